"""In what order were the frames made? Frames as arrays, and their order and interval from the data alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.geometry import complete_cell
from scipy import ndimage

from egraff_utils.records import Metric

CUTOFF = 5.0
"""Cutoff of the models, Å."""
RESOLVED = 0.85
"""Smallest correlation of accelerations with forces over masses for an interval that resolves the motion."""
ROLES = ("train", "val", "test")
"""Folders by which shipped files are distinguished."""
SAME = 1e-4
"""Largest difference of the sorted interatomic distances of structures that count as equal, Å."""

CHECKS = {
    "copies": "Copies",
    "order": "Order in time",
    "interval": "Interval (fs)",
    "temperature": "Temperature (K)",
    "labels": "Forces and energies",
    "outliers": "Outliers (z)",
    "atomic energies": "Atomic energies",
    "units": "Units and digits",
    "geometry": "Geometry",
    "sample": "Independent test frames",
}
"""Name of a check -> head of its column in a table."""


class Finding(NamedTuple):
    """A defect of the data."""

    check: str
    """One of :data:`CHECKS`."""
    text: str
    """Description of the defect, with its number."""
    consequence: str
    """Effect of the defect on the numbers of a benchmark."""
    mended: bool = False
    """Whether the defect is only in the shipped files, not in the splits of the card."""


Checked = tuple[list[Finding], list[Metric], str]
"""Findings, metrics and summary of a check."""


@dataclass
class Series:
    """Frames of one system as arrays, in the order of their file."""

    name: str
    numbers: np.ndarray
    """Atomic numbers, shape ``(N,)``."""
    positions: np.ndarray
    """Positions, shape ``(T, N, 3)``, Å."""
    energy: np.ndarray
    """Energies, shape ``(T,)``, eV."""
    forces: np.ndarray | None
    """Forces, shape ``(T, N, 3)``, eV/Å; None if there are none."""
    cells: np.ndarray
    """Cell vectors of every frame, shape ``(T, 3, 3)``, Å."""
    pbc: np.ndarray
    """Directions that are periodic, shape ``(3,)``."""
    masses: np.ndarray
    """Masses, shape ``(N, 1)``, atomic mass units."""
    keys: list[tuple[str, int]]
    """Source and index of every frame."""

    @classmethod
    def of(cls, frames: Sequence[Atoms], name: str = "") -> Series:
        """Series of a ``list[ase.Atoms]`` of one system, see :func:`egraff_utils.data.compositions`."""
        labelled = all("forces" in atoms.calc.results for atoms in frames)
        return cls(
            name,
            frames[0].numbers,
            np.array([atoms.positions for atoms in frames]),
            np.array([atoms.get_potential_energy() for atoms in frames]),
            np.array([atoms.get_forces() for atoms in frames]) if labelled else None,
            np.array([atoms.cell.array for atoms in frames]),
            frames[0].pbc,
            frames[0].get_masses()[:, None],
            [(atoms.info.get("source", name), atoms.info.get("frame", i)) for i, atoms in enumerate(frames)],
        )

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, index: slice | np.ndarray) -> Series:
        """The frames of a slice or of an array of indices."""
        picked = np.arange(len(self))[index]
        forces = None if self.forces is None else self.forces[picked]
        keys = [self.keys[i] for i in picked]
        positions, energy, cells = self.positions[picked], self.energy[picked], self.cells[picked]
        return dataclasses.replace(
            self, positions=positions, energy=energy, cells=cells, forces=forces, keys=keys
        )

    @property
    def periodic(self) -> bool:
        """Whether any direction is periodic."""
        return bool(self.pbc.any())

    @property
    def freedom(self) -> int:
        """Number of internal degrees of freedom."""
        return 3 * len(self.numbers) - (3 if self.periodic else 6)

    @cached_property
    def filled(self) -> np.ndarray:
        """Cells with unit vectors in place of those that are zero, shape ``(T, 3, 3)``, Å."""
        return np.array([complete_cell(cell) for cell in self.cells])

    def shortest(self, vectors: np.ndarray, index: slice | np.ndarray) -> np.ndarray:
        """Vectors (n, ..., 3) by minimum image in the cells of the frames of an index, same shape, Å."""
        if not self.periodic:
            return vectors
        cells = self.filled[index]
        fractions = vectors @ np.linalg.inv(cells)
        return (fractions - np.rint(fractions) * self.pbc) @ cells

    @cached_property
    def steps(self) -> np.ndarray:
        """Displacements from frame to frame, shape ``(T - 1, N, 3)``, Å, without the strain of the cell."""
        if not self.periodic:
            return np.diff(self.positions, axis=0)
        moved = np.diff(self.positions @ np.linalg.inv(self.filled), axis=0)
        return (moved - np.rint(moved) * self.pbc) @ self.filled[1:]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Root mean square displacement from frame to frame, shape ``(T - 1,)``, Å."""
        return np.sqrt((self.steps**2).mean((1, 2)))

    @cached_property
    def distances(self) -> np.ndarray:
        """Sorted interatomic distances of every frame, shape ``(T, N(N - 1)/2)``, Å, single precision.

        They do not change when a frame is translated, rotated, mirrored or wrapped, or its atoms are
        renumbered.
        """
        return self._pairs[0]

    @property
    def contacts(self) -> np.ndarray:
        """Shortest distance over the sum of the two covalent radii, shape ``(T,)``; about 1."""
        return self._pairs[1]

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = np.triu_indices(len(self.numbers), 1)
        radii = covalent_radii[self.numbers]
        lengths, contacts = np.empty((len(self), len(first)), np.float32), np.empty(len(self))
        block = max(1, 300_000 // max(1, len(first)))
        for start in range(0, len(self), block):
            some = slice(start, start + block)
            x = self.positions[some]
            found = np.linalg.norm(self.shortest(x[:, first] - x[:, second], some), axis=-1)
            contacts[start : start + block] = (found / (radii[first] + radii[second])).min(1)
            lengths[start : start + block] = np.sort(found, axis=1)
        return lengths, contacts

    @cached_property
    def order(self) -> Order:
        """:class:`Order` of the frames."""
        return order_in_time(self)


class Order(NamedTuple):
    """Order of frames in time."""

    kind: str
    """``even`` (equal intervals), ``gaps`` (in order, with unequal but resolved intervals), ``loose`` (in
    order, but too far apart to determine the intervals), ``shuffled`` or ``short``."""
    jumps: list[int]
    """Frames after which an even series jumps."""
    gaps: np.ndarray
    """Intervals between frames in units of the shortest, shape ``(T - 1,)``; all 1 in an even series."""

    @property
    def longest(self) -> tuple[int, int]:
        """First and last frame of the longest stretch without a jump."""
        edges = [-1, *self.jumps, len(self.gaps)]
        place = int(np.argmax(np.diff(edges)))
        return edges[place] + 1, edges[place + 1]


def order_in_time(series: Series) -> Order:
    """Order of frames in time, from the displacements of atoms between neighbouring frames of a file.

    Frames are shuffled if the distance of neighbours exceeds half of that of frames drawn at random. They are
    even if 90 % of the steps agree within a factor of 2.5, apart from single jumps (three times the running
    median of 41). Otherwise they have gaps, if Newton's law holds where neighbours are closest.

    Returns
    -------
    Order
    """
    sizes = series.sizes
    if len(sizes) < 10:
        return Order("short", [], np.ones(len(sizes), int))
    first, second = np.random.default_rng(0).integers(len(series), size=(2, 200))
    apart = series.shortest(series.positions[first] - series.positions[second], first)[first != second]
    if np.median(sizes) > 0.5 * np.sqrt((apart**2).mean()):
        return Order("shuffled", [], np.ones(len(sizes), int))
    relative = sizes / ndimage.median_filter(sizes, 41, mode="nearest")
    low, high = np.quantile(relative, [0.05, 0.95])
    if high < 2.5 * low:
        jumps = np.flatnonzero(relative > 3)
        return Order("even", [int(jump) for jump in jumps], np.ones(len(sizes), int))
    gaps = np.maximum(np.rint(sizes / ndimage.minimum_filter1d(sizes, 41)).astype(int), 1)
    resolved = newton_clock(series, Order("gaps", [], gaps)).correlation > RESOLVED
    return Order("gaps", [], gaps) if resolved else Order("loose", [], np.ones(len(sizes), int))


class Clock(NamedTuple):
    """Interval of frames, determined by Newton's law."""

    interval: float
    """Interval of the shortest steps, fs; nan if no three frames are consecutive."""
    correlation: float
    """Correlation of accelerations with forces over masses; near one if the interval resolves the motion."""


def newton_clock(series: Series, order: Order | None = None) -> Clock:
    r"""Interval between frames from the data alone, and the correlation of the motion with the forces.

    .. math:: \Delta t^2 = \frac{\sum a \cdot (x_{t+1} - 2 x_t + x_{t-1})}{\sum a \cdot a},
        \qquad a = F / m

    where the sums run over all frames with a neighbour one shortest interval away on both sides. No
    information about time is needed.

    Parameters
    ----------
    series
        :class:`Series`.
    order
        :class:`Order`; by default that of the series.

    Returns
    -------
    Clock
    """
    order = order or series.order
    near = order.gaps == 1
    near[order.jumps] = False
    middle = np.flatnonzero(near[1:] & near[:-1])
    if not len(middle) or series.forces is None or order.kind in ("shuffled", "short"):
        return Clock(float("nan"), float("nan"))
    bend = series.steps[middle + 1] - series.steps[middle]
    pull = series.forces[middle + 1] / series.masses
    both, square = (pull * bend).sum(), (pull**2).sum()
    correlation = both / np.sqrt(square * (bend**2).sum())
    return Clock(float(np.sqrt(abs(both) / square) / units.fs), float(correlation))
