"""Does a model keep the pressure of its reference? The stress on frames of a rollout, beside that of data.

Symbols: R replicas, M frames, N atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from egraff_utils import data
from egraff_utils.md import averages
from egraff_utils.md.own_frames import labelled_frames
from egraff_utils.records import Metric

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.md.dynamics import Trajectory


def compare(
    trajectory: Trajectory,
    frames: Sequence[Atoms],
    make_calculator: Callable[[int], BaseCalculator],
    *,
    temperature: float,
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    r"""Pressure of a model on frames of its rollout and of the reference on its own, where both have it.

    .. math:: P = \frac{N k_B T}{V} - \frac13 \operatorname{tr} \sigma

    T is that of the thermostat, so that pressures differ by what the atoms' places and forces do.

    Parameters
    ----------
    trajectory
        :class:`~egraff_utils.md.dynamics.Trajectory` of the model.
    frames
        Frames of the reference, ``list[ase.Atoms]``, of one composition and cell.
    make_calculator
        Function that returns an ASE calculator of the model for n replicas.
    temperature
        Temperature of the thermostat, K.

    Returns
    -------
    metrics : list of Metric
        ``pressure`` with the interval over replicas, and ``pressure_reference``, GPa; none if a frame of the
        reference is not periodic or has no stress, or the calculator gives none.
    curves : dict
        ``pressure`` (R, M), GPa, NaN after the last valid frame of a replica, at ``pressure_steps`` (M,).
    """
    stresses = [data.strain_derivative(atoms) for atoms in frames]
    chosen = labelled_frames(max(map(trajectory.frames, range(len(trajectory.energy)))))
    if not frames[0].pbc.all() or any(stress is None for stress in stresses) or not len(chosen):
        return [], {}
    system, found = frames[0].copy(), np.full((len(trajectory.energy), len(chosen)), np.nan)
    system.calc = make_calculator(1)
    ideal = len(system) * units.kB * temperature / system.get_volume()
    for replica, column in np.ndindex(*found.shape):
        if chosen[column] < trajectory.frames(replica):
            system.positions = trajectory.positions[replica, chosen[column]]
            try:
                found[replica, column] = ideal - system.get_stress()[:3].mean()
            except PropertyNotImplementedError:
                return [], {}
    traces = np.trace(np.array(stresses), axis1=1, axis2=2)  # type: ignore[arg-type]  # none is missing
    expected = ideal - traces.mean() / 3 / system.get_volume()
    found /= units.GPa
    metrics = [
        averages.summary("pressure", found),
        Metric.of("pressure_reference", expected / units.GPa, n=len(frames)),
    ]
    return metrics, {"pressure": found, "pressure_steps": trajectory.steps[chosen]}
