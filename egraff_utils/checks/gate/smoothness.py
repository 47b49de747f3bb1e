"""Does the energy jump where an atom crosses the cutoff of another?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator

from egraff_utils.checks.gate.consistency import predict
from egraff_utils.graph import build_graph
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV

if TYPE_CHECKING:
    from egraff_utils.checks.gate import Subject

JUMP_STEPS = (1e-2, 1e-4, 1e-6)
"""Half the lengths of the steps across the cutoff, Å."""
REACH = 0.3
"""Largest distance from the cutoff of the pairs that are moved across it, Å."""
PAIRS = 6
"""Largest number of pairs that are moved across the cutoff."""
WINDOW = np.linspace(-0.01, 0.01, 20)
"""Distances from the cutoff at which the energy is plotted, Å; none of them is zero."""


class Pair(NamedTuple):
    """Two atoms of a frame whose distance is close to the cutoff."""

    atoms: ase.Atoms
    centre: int
    neighbour: int
    vector: np.ndarray
    """From centre to neighbour, shape ``(3,)``, Å."""

    @property
    def distance(self) -> float:
        """Distance of the two atoms, Å."""
        return float(np.linalg.norm(self.vector))

    @property
    def symbols(self) -> str:
        """Symbols of the two elements, in alphabetic order."""
        return "-".join(sorted(self.atoms.symbols[[self.centre, self.neighbour]]))

    def at(self, distance: float) -> ase.Atoms:
        """The frame with the neighbour moved along the line of the pair to a distance, Å."""
        moved = self.atoms.copy()
        moved.positions[self.neighbour] += (distance / self.distance - 1) * self.vector
        return moved


def pairs_at_cutoff(frames: Sequence[ase.Atoms], cutoff: float, *, most: int = PAIRS) -> list[Pair]:
    """Pairs of atoms nearest to the cutoff, one for each pair of elements, a list of :class:`Pair`.

    The nearest comes first. If no pair is within :data:`REACH` of the cutoff, the nearest of all is returned.
    """
    every = [pair for atoms in frames for pair in _near(atoms, cutoff)]
    close = [pair for pair in every if abs(pair.distance - cutoff) < REACH]
    every = sorted(close or every, key=lambda pair: abs(pair.distance - cutoff))[: None if close else 1]
    first: dict[str, Pair] = {}
    for pair in every:
        first.setdefault(pair.symbols, pair)
    return list(first.values())[:most]


def _near(atoms: ase.Atoms, cutoff: float) -> Collection[Pair]:
    """The pair nearest to the cutoff, for each pair of elements in a frame."""
    graph = build_graph(atoms, cutoff + REACH)
    centre, neighbour = graph.edge_index.numpy()
    vectors = graph.edge_vectors().numpy()
    kinds = np.sort(atoms.numbers[graph.edge_index.numpy()], axis=0)
    gap = np.where(centre == neighbour, np.inf, np.abs(np.linalg.norm(vectors, axis=1) - cutoff))
    found: dict[tuple[int, ...], Pair] = {}
    for edge in np.argsort(gap, kind="stable"):
        if np.isfinite(gap[edge]):
            found.setdefault(tuple(kinds[:, edge]), Pair(atoms, centre[edge], neighbour[edge], vectors[edge]))
    return found.values()


def jump(calculator: Calculator, pair: Pair, cutoff: float, half_step: float) -> tuple[float, float]:
    r"""Jump of the energy and of the forces where a pair crosses the cutoff.

    .. math:: E(r_c + \delta) - E(r_c - \delta) + \delta\, (F_+ + F_-) \cdot u

    The last term, with the forces on the moved atom and the direction u of its motion, subtracts the change
    of a smooth energy, up to :math:`\delta^3`. The remainder is a jump if it does not shrink with the step.

    Parameters
    ----------
    calculator
        ASE calculator with energy (eV) and forces (eV/Å).
    pair
        :class:`Pair`.
    cutoff, half_step
        Cutoff :math:`r_c` and half step :math:`\delta`, Å.

    Returns
    -------
    tuple of float
        Jump of the energy, eV; largest change of a force component, eV/Å.
    """
    before, after = (predict(calculator, pair.at(cutoff + sign * half_step)) for sign in (-1, 1))
    along = (before[1] + after[1])[pair.neighbour] @ pair.vector / pair.distance
    return after[0] - before[0] + half_step * along, np.abs(after[1] - before[1]).max()


def jumps(
    subject: Subject, frames: Sequence[ase.Atoms], scale: float
) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    """Metrics, by name, and curves of the smoothness at the cutoff."""
    cutoff: float = subject.cutoff  # type: ignore[assignment]  # asked only where it is known
    pairs = pairs_at_cutoff(frames, cutoff)
    if not pairs:
        raise ValueError(f"no two atoms can be brought to the cutoff of {cutoff} Å in these frames")
    found = np.array([[jump(subject.precise, p, cutoff, d) for d in JUMP_STEPS] for p in pairs])
    energies, forces = EV_TO_MEV * found[..., 0], EV_TO_MEV * found[..., 1]
    worst = np.abs(energies[:, -1]).max()
    line = np.array([predict(subject.precise, pairs[0].at(cutoff + x))[0] for x in WINDOW])
    metrics = [
        Metric("jump", worst, "meV", n=len(pairs)),
        Metric("jump_relative", worst / (EV_TO_MEV * scale), "1"),
        Metric("force_jump", forces[:, -1].max(), "meV/Å"),
    ]
    curves = {
        "jump_steps": np.array(JUMP_STEPS),
        "jump_pairs": energies,
        "jump_distance": np.array([pair.distance for pair in pairs]),
        "jump_symbols": np.array([pair.symbols for pair in pairs]),
        "cutoff_distance": cutoff + WINDOW,
        "cutoff_energy": EV_TO_MEV * (line - line.mean()),
    }
    return {metric.name: metric for metric in metrics}, curves
