"""Which temperature does theory predict? A harmonic system under Langevin dynamics, from any start.

Symbols: T frames, R replicas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from ase import units

from egraff_utils import cards, data
from egraff_utils.md import temperature as md_temperature
from egraff_utils.report import catalogue

MD17_ATOMS = {"ethanol": 9, "benzene": 12, "salicylic_acid": 16, "naphthalene": 18, "aspirin": 21}
"""Numbers of atoms of the molecules of MD17. Its trajectories have 500 K over 3N degrees of freedom although
their centre of mass is at rest, hence 500 K N / (N - 1) over the actual 3N - 3: 562.5 K for ethanol."""


def expected_temperature(time, *, target, kinetic, potential, friction):
    r"""Mean kinetic temperature of a harmonic system under Langevin dynamics, for any start.

    .. math:: T(t) = T^* + \Big( \frac{T_\mathrm{kin} + T_\mathrm{pot}}{2} - T^* \Big) e^{-\gamma t}

    Vibrations distribute the energy of the start equally to kinetic and potential energy within about ten
    femtoseconds; the equation holds after that. The friction acts on velocities, hence on half of the energy,
    so the total relaxes with the rate gamma. Free particles relax with 2 gamma, and from rest would reach
    only :math:`1 - e^{-2 \gamma t}`.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    target
        Temperature of the thermostat, K.
    kinetic, potential
        Temperature of the velocities and of the positions at the start, K.
    friction
        Friction gamma, 1/fs.

    Returns
    -------
    ndarray
        Temperatures, shape ``(T,)``, K.

    Examples
    --------
    >>> cold = {"kinetic": 0.0, "potential": 500.0, "friction": 4.91e-4}  # a thermal frame set at rest
    >>> expected_temperature(np.array([0.0, 500.0]), target=500.0, **cold).round(1)
    array([250. , 304.4])
    """
    decay = np.exp(-friction * np.asarray(time, dtype=float))
    return target + ((kinetic + potential) / 2 - target) * decay


def stationary_ratio(record) -> float:
    """Ratio of the stationary temperature of a rollout's thermostat to its target; 1 but for as-coded noise.

    It is also 1 if the atoms of the dataset are not available.
    """
    scale = _scale_of(record)
    if record.parameters.get("protocol") != "as_coded" or scale is None:
        return 1.0
    return float(md_temperature.stationary_ratio(scale.masses))


def friction_rate(record) -> float:
    """Friction of a rollout, 1/fs; the published 5e-3 in ASE units is 0.491 per ps."""
    return record.parameters.get("friction", 5e-3) * units.fs


def sampled_temperature(dataset: str, target: float) -> float:
    """Temperature at which the frames of a dataset were sampled, K, the target but for MD17 (`MD17_ATOMS`).

    Examples
    --------
    >>> sampled_temperature("ethanol", 500.0), sampled_temperature("acac", 300.0)
    (562.5, 300.0)
    """
    atoms = MD17_ATOMS.get(dataset)
    return target if atoms is None else target * atoms / (atoms - 1)


def potential_temperature(energy, mean, *, temperature, freedom):
    r"""Temperature at which a harmonic system has a given potential energy on average.

    .. math:: T_\mathrm{pot} = T + \frac{2 (V - \langle V \rangle_T)}{f k_B}

    Parameters
    ----------
    energy
        Potential energy of one or more frames, eV.
    mean
        Mean potential energy of frames sampled at ``temperature`` (K), eV.
    freedom
        Degrees of freedom f.

    Examples
    --------
    >>> found = potential_temperature(-1.0, -1.0 + 1.5 * units.kB * 300, temperature=300, freedom=3)
    >>> abs(round(float(found), 6))
    0.0
    """
    return temperature + 2 * (np.asarray(energy, dtype=float) - mean) / (freedom * units.kB)


def start_temperatures(record, target: float) -> np.ndarray:
    """Potential temperature of the start of every replica, shape ``(R,)``, K.

    The mean energy is that of the split from which the rollout starts. For the MD17 molecules, whose test
    frames are the beginning of a trajectory that started at the minimum, it is that of the training set. If
    the frames are not available, all values are those of `sampled_temperature`.
    """
    temperature = sampled_temperature(record.parameters.get("target") or record.dataset, target)
    energies, scale = record.curves.get("energy_reference"), _scale_of(record)
    if energies is None or scale is None:
        return np.full(len(record.curves["stable_step"]), temperature)
    given = {"temperature": temperature, "freedom": scale.freedom}
    return potential_temperature(energies[:, 0], scale.energy, **given)


def velocity_temperatures(record) -> np.ndarray:
    """Temperature of the velocities at the start of every replica, shape ``(R,)``, K."""
    return np.asarray(record.curves["start_temperature"], float)


class Scale(NamedTuple):
    """Properties of a thermal sample of a dataset."""

    energy: float
    """Mean potential energy, eV."""
    freedom: int
    """Number of vibrational degrees of freedom."""
    masses: np.ndarray
    """Masses, shape ``(N,)``, atomic mass units."""


def _scale_of(record):
    dataset = record.parameters.get("target") or record.dataset
    return _scale(dataset, record.parameters.get("split", "test"))


@lru_cache(maxsize=64)
def _scale(dataset, split):
    """:class:`Scale` of the thermal sample that belongs to a split; None if it is not available."""
    if dataset not in cards.datasets():
        return None
    card = cards.dataset(dataset)
    split = "train" if dataset in MD17_ATOMS and split in card.time_ordered else split
    if card.generate or split not in card.splits or not catalogue.at_hand(dataset, split):
        return None
    frames = data.load(dataset, split)
    if len({len(atoms) for atoms in frames}) > 1:
        return None
    freedom = 3 * len(frames[0]) - (6 if card.system == "molecule" else 3)
    energy = float(np.mean([atoms.get_potential_energy() for atoms in frames]))
    return Scale(energy, freedom, frames[0].get_masses())
