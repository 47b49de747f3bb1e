"""Is a model as accurate on the configurations that it visits? The reference labels frames of its rollout.

A test error is taken on configurations that the reference visits. EV and FV of a rollout compare two
trajectories at equal times, and these diverge. Here model and reference evaluate the same configurations,
which the model's own dynamics has reached. Symbols: R replicas, T recorded frames, M labelled frames, N
atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, CalculatorError

from egraff_utils import metrics
from egraff_utils.md import averages
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.md.dynamics import Trajectory

FRAMES = 20
"""Largest number of frames that the reference labels per replica."""


def label(
    trajectory: Trajectory, atoms: Atoms, calculator: BaseCalculator, *, frames: int = FRAMES
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Errors of a model on configurations of its own rollout, equally spaced in time.

    Positions and forces of a trajectory are stored in single precision, so errors below about 0.01 meV/atom
    and 0.1 meV/Å cannot be resolved.

    Parameters
    ----------
    trajectory
        :class:`~egraff_utils.md.dynamics.Trajectory` of the model.
    atoms
        A starting structure, ``ase.Atoms``, which gives elements and cell.
    calculator
        ASE calculator of the reference: energy in eV, forces in eV/Å.
    frames
        Largest number of labelled frames per replica.

    Returns
    -------
    metrics : list of Metric
        Means over replicas of :func:`replica_values` with their intervals.
    curves : dict
        ``oracle_steps`` (M,), the steps; ``oracle_ev_root`` and ``oracle_fv`` (R, M), dimensionless;
        ``oracle_force_mae`` (R, M), meV/Å, mean over components; ``oracle_energy_error`` (R, M), model minus
        reference, meV/atom; ``oracle_sound`` (R,), the number of frames passed to the reference. Values are
        NaN after the last valid frame of a replica, and where the reference itself fails on a frame.
    """
    chosen = labelled_frames(max(trajectory.frames(r) for r in range(len(trajectory.energy))), frames)
    energy, forces = _labels(trajectory, atoms, calculator, chosen)
    predicted, predicted_forces = trajectory.energy[:, chosen], trajectory.forces[:, chosen].astype(float)
    curves = {
        "oracle_ev_root": metrics.energy_violation_root(predicted, energy),
        "oracle_fv": np.array(
            [metrics.force_violation(f, g) for f, g in zip(predicted_forces, forces, strict=True)]
        ),
        "oracle_force_mae": np.abs(predicted_forces - forces).mean((2, 3)) * EV_TO_MEV,
        "oracle_energy_error": (predicted - energy) / len(atoms) * EV_TO_MEV,
    }
    curves = {name: np.asarray(curve, dtype=float) for name, curve in curves.items()}
    curves["oracle_steps"] = trajectory.steps[chosen]
    curves["oracle_sound"] = _sound(trajectory, chosen).sum(1)
    values = replica_values(curves)
    return [averages.summary(name, found) for name, found in values.items()], curves


def labelled_frames(total: int, count: int = FRAMES) -> np.ndarray:
    """Indices of every k-th of ``total`` frames without the start, at most ``count``, with the least k.

    The start is a frame of the reference, so it says nothing about the configurations that the model visits.

    Examples
    --------
    >>> labelled_frames(401, 20)[[0, 1, -1]]
    array([ 20,  40, 400])
    >>> labelled_frames(6, 20)
    array([1, 2, 3, 4, 5])
    """
    every = max(1, -(-(total - 1) // count))
    return np.arange(every, total, every)


def replica_values(curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One value per replica of every metric of this module.

    Parameters
    ----------
    curves
        Curves as returned by :func:`label`.

    Returns
    -------
    dict of ndarray
        Shape ``(R,)``, NaN where a replica has no labelled frame: geometric means over time of ``oracle_fv``
        and ``oracle_ev_root``; means of ``oracle_force_mae`` (meV/Å) and ``oracle_energy_mae_per_atom``
        (meV/atom); ``oracle_energy_mae_shifted_per_atom``, the same after subtracting the mean error of the
        whole rollout; ``oracle_labelled``, the fraction of the valid frames that the reference could label.

    Examples
    --------
    >>> error = np.array([[1.0, 3.0], [2.0, np.nan]])
    >>> curves = dict.fromkeys(("oracle_ev_root", "oracle_fv", "oracle_force_mae"), np.abs(error))
    >>> values = replica_values(curves | {"oracle_energy_error": error, "oracle_sound": np.array([2, 1])})
    >>> values["oracle_energy_mae_per_atom"], values["oracle_energy_mae_shifted_per_atom"]
    (array([2., 2.]), array([1., 0.]))
    """
    error = curves["oracle_energy_error"]
    known = np.isfinite(error)
    offset = error[known].mean() if known.any() else np.nan
    sound = curves["oracle_sound"]
    averaged = ("oracle_fv", "oracle_ev_root")
    values: dict[str, list[float] | np.ndarray]
    values = {name: [_geometric(curve) for curve in curves[name]] for name in averaged}
    values["oracle_force_mae"] = [_mean(curve) for curve in curves["oracle_force_mae"]]
    values["oracle_energy_mae_per_atom"] = [_mean(np.abs(row)) for row in error]
    values["oracle_energy_mae_shifted_per_atom"] = [_mean(np.abs(row - offset)) for row in error]
    values["oracle_labelled"] = np.where(sound > 0, known.sum(1) / np.maximum(sound, 1), np.nan)
    return {name: np.array(value) for name, value in values.items()}


def _labels(
    trajectory: Trajectory, atoms: Atoms, calculator: BaseCalculator, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (R, M), eV, and forces (R, M, N, 3), eV/Å, of the reference."""
    energy = np.full((len(trajectory.energy), len(chosen)), np.nan)
    forces = np.full((*energy.shape, len(atoms), 3), np.nan)
    system = atoms.copy()
    system.calc = calculator
    for replica, column in np.argwhere(_sound(trajectory, chosen)):
        system.positions = trajectory.positions[replica, chosen[column]]
        try:
            forces[replica, column] = system.get_forces()
            energy[replica, column] = system.get_potential_energy()
        except (CalculatorError, RuntimeError):
            forces[replica, column] = np.nan
            if isinstance(calculator, Calculator):  # others keep nothing of it
                calculator.reset()  # so that the next frame does not start from the state of the failure
    return energy, forces


def _sound(trajectory: Trajectory, chosen: np.ndarray) -> np.ndarray:
    """Whether a replica was valid at each of the chosen frames, shape ``(R, M)``."""
    ends = [trajectory.frames(replica) for replica in range(len(trajectory.energy))]
    return chosen < np.array(ends)[:, None]


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return values.mean() if len(values) else np.nan


def _geometric(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return metrics.geometric_mean(values) if len(values) else np.nan  # type: ignore[return-value]
