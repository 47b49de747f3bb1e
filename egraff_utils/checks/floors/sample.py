"""From what are floors computed? The arrays of a reference, and the violations of all pairs of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from ase import Atoms

from egraff_utils import metrics, structure
from egraff_utils.md import analysis

DRAWS = 500
"""Number of hypothetical simulations that are drawn for an interval."""


@dataclass(frozen=True)
class Sample:
    """Arrays of the reference that floors are computed from: F frames, N atoms, B bins."""

    rdf: np.ndarray
    """g(r) of every frame, shape ``(F, B)``."""
    energies: np.ndarray
    """Potential energies, shape ``(F,)``, eV."""
    forces: np.ndarray
    """Forces, shape ``(F, N, 3)``, eV/Å."""
    path: np.ndarray
    """Unwrapped positions, shape ``(F, N, 3)``, Å; meaningful only for time-ordered frames."""
    interval: float | None
    """Time between two frames, fs; None if they have no order in time."""
    atoms: Atoms
    """First frame, which gives cell and elements."""
    bonds: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=int))
    """Bonds of a molecule, shape ``(P, 2)``."""

    @classmethod
    def of(cls, frames: Sequence[Atoms], interval: float | None) -> Sample:
        """Sample of a ``list[ase.Atoms]`` of one composition and one cell, with energies and forces."""
        first = frames[0]
        box = {"cell": first.cell.array, "pbc": first.pbc, "r_max": structure.as_coded_r_max(first)}
        rdf = [structure.radial_distributions(a.positions[None], a.numbers, **box).total for a in frames]
        forces = np.stack([atoms.get_forces() for atoms in frames])
        energies, path, bonds = energies_of(frames), analysis.unwrap(frames), structure.intact_bonds(frames)
        return cls(np.stack(rdf), energies, forces, path, interval, first, bonds)

    def bonded(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Distributions of bond lengths and angles of frames ``(T, N, 3)``, ``{name: (T, B)}``."""
        return structure.bonded_distributions(positions, self.atoms.numbers, self.bonds)

    @cached_property
    def distributions(self) -> dict[str, np.ndarray]:
        """Distributions of every frame that metrics of structure compare, ``{name: (F, B)}``."""
        return {"rdf": self.rdf} | self.bonded(self.path)

    @property
    def ordered(self) -> bool:
        """Whether the frames are ordered in time."""
        return self.interval is not None


class Extent(NamedTuple):
    """Lengths of a rollout and of its comparison, in frames of the reference."""

    replicas: int
    """Number of replicas, R."""
    frames: int
    """Number of reference frames in the time of a replica."""
    reference: int
    """Number of frames in the radial distribution that it is compared with."""
    compared: tuple[int, ...]
    """Number of frames of every replica, after its start, that are compared with a frame of the reference."""
    memory: float = np.inf
    """Number of recorded frames in which the thermostat makes a replica forget its energy."""


def violations(
    energies: np.ndarray, forces: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Means over replicas of geometric means over pairs of frames, which are (draws, count) per replica."""
    tables = {"ev_root": _log_energy(energies), "fv": _log_force(forces)}
    return {
        f"draws_{name}": np.mean([_geometric(table[pair]) for pair in pairs], axis=0)
        for name, table in tables.items()
    }


def _geometric(logs: np.ndarray) -> np.ndarray:
    """Geometric means, shape (draws,), over the pairs of frames that do not agree exactly."""
    with np.errstate(invalid="ignore"):
        return np.exp(np.nansum(logs, axis=1) / np.isfinite(logs).sum(1))


def _log_energy(energies: np.ndarray) -> np.ndarray:
    """Logarithm of the root of EV for all pairs of frames, shape (F, F); nan where they agree exactly."""
    apart = metrics.energy_violation_root(*np.broadcast_arrays(energies[:, None], energies))
    return np.log(np.where(apart > 0, apart, np.nan))


def _log_force(forces: np.ndarray) -> np.ndarray:
    """Logarithm of FV for all pairs of frames, shape (F, F); nan for a frame with itself."""
    gram = gram_of(forces)
    norm = np.sqrt(np.diag(gram))
    squared = np.maximum(norm[:, None] ** 2 + norm**2 - 2 * gram, 1e-24)
    log = np.log(np.sqrt(squared) / (norm[:, None] + norm))
    np.fill_diagonal(log, np.nan)
    return log


def gram_of(forces: np.ndarray) -> np.ndarray:
    flat = np.asarray(forces, dtype=float).reshape(len(forces), -1)
    return flat @ flat.T


def energies_of(frames: Sequence[Atoms]) -> np.ndarray:
    return np.array([atoms.get_potential_energy() for atoms in frames])
