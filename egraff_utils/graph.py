"""Which atoms are neighbours? The periodic graph that every model receives.

Symbols used throughout the package: N atoms, E edges, S structures, T frames, R replicas, B bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
import torch
from matscipy.neighbours import neighbour_list
from torch import Tensor

MOST_BINS = 1e8
"""Largest number of cubes of the size of the cutoff into which space is divided; each takes some bytes."""


class AtomicGraph(NamedTuple):
    """One or more structures with all pairs of atoms closer than a cutoff.

    Every pair is listed in both directions: edge ``e + E/2`` is the reverse of edge ``e``. In a small cell an
    atom may be its own neighbour, through a periodic image, and several edges may join a pair of atoms.
    """

    positions: Tensor
    """Positions, shape ``(N, 3)``, Å."""
    species: Tensor
    """Atomic numbers, shape ``(N,)``, int64."""
    edge_index: Tensor
    """Centre i (row 0) and neighbour j (row 1) of each edge, shape ``(2, E)``, int64."""
    shifts: Tensor
    """Displacement of the neighbour's periodic image, shape ``(E, 3)``, Å."""
    structure: Tensor
    """Index of the structure of each atom, shape ``(N,)``, int64, ascending."""
    cells: Tensor
    """Cell vectors as rows, shape ``(S, 3, 3)``, Å; zero where there is no cell."""

    @property
    def num_structures(self) -> int:
        """Number of structures, S."""
        return self.cells.shape[0]

    def edge_vectors(self) -> Tensor:
        """Vectors from centre to neighbour, ``x_j + shift - x_i``, shape ``(E, 3)``, Å."""
        centre, neighbour = self.edge_index
        x = self.positions
        return x.index_select(0, neighbour) + self.shifts - x.index_select(0, centre)

    def pair_vectors(self) -> Tensor:
        """Vectors of the first edge of every pair, shape ``(E / 2, 3)``, Å; the reverse has the opposite."""
        pairs = self.edge_index.shape[1] // 2
        return self._replace(edge_index=self.edge_index[:, :pairs], shifts=self.shifts[:pairs]).edge_vectors()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AtomicGraph":
        """The same graph on another device or with another floating-point type."""
        return AtomicGraph(
            *(t.to(device=device, dtype=dtype if t.is_floating_point() else None) for t in self)
        )


def build_graph(
    atoms: ase.Atoms | Sequence[ase.Atoms], cutoff: float = 5.0, *, dtype: torch.dtype = torch.float64
) -> AtomicGraph:
    """Graph of one or several structures, with edges to all periodic images within the cutoff.

    Parameters
    ----------
    atoms
        ``ase.Atoms`` or a list of them; positions in Å, which need not be wrapped.
    cutoff
        Largest length of an edge, Å.
    dtype
        Floating-point type of positions, shifts and cells.

    Raises
    ------
    ValueError
        If a position is not finite, a direction is periodic but its cell vector is zero, or a cell or the
        distances of a molecule are too large for a list of neighbours (:data:`MOST_BINS`).

    Examples
    --------
    >>> build_graph(ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])).edge_vectors()
    tensor([[ 0.0000,  0.0000,  0.7400],
            [ 0.0000,  0.0000, -0.7400]], dtype=torch.float64)
    """
    structures = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    return collate([_single_graph(structure, cutoff, dtype) for structure in structures])


def collate(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """One graph that joins several; their structures are not connected."""
    sizes = [len(g.positions) for g in graphs]
    atom_offsets = np.cumsum([0, *sizes[:-1]])
    structure_offsets = np.cumsum([0, *[g.num_structures for g in graphs[:-1]]])
    edges = [g.edge_index + int(o) for g, o in zip(graphs, atom_offsets, strict=True)]
    return AtomicGraph(
        positions=torch.cat([g.positions for g in graphs]),
        species=torch.cat([g.species for g in graphs]),
        edge_index=_join_edges(edges, 1),
        shifts=_join_edges([g.shifts for g in graphs], 0),
        structure=torch.cat([g.structure + int(o) for g, o in zip(graphs, structure_offsets, strict=True)]),
        cells=torch.cat([g.cells for g in graphs]),
    )


def _join_edges(parts, dim):
    """Edges of several graphs, the first halves of all graphs followed by all reverse edges."""
    halves = [part.tensor_split(2, dim) for part in parts]
    return torch.cat([*(there for there, _ in halves), *(back for _, back in halves)], dim)


def _single_graph(atoms, cutoff, dtype):
    _check_geometry(atoms)
    i, j, images = _pairs(atoms, cutoff)
    cell = np.asarray(atoms.cell)
    there, back = np.stack([i, j]), np.stack([j, i])
    return AtomicGraph(
        positions=torch.as_tensor(atoms.positions, dtype=dtype),
        species=torch.as_tensor(atoms.numbers, dtype=torch.int64),
        edge_index=torch.as_tensor(np.concatenate([there, back], axis=1), dtype=torch.int64),
        shifts=torch.as_tensor(np.concatenate([images, -images]) @ cell, dtype=dtype),
        structure=torch.zeros(len(atoms), dtype=torch.int64),
        cells=torch.as_tensor(cell[None], dtype=dtype),
    )


def _check_geometry(atoms):
    if not np.isfinite(atoms.positions).all():
        bad = int(np.argmin(np.isfinite(atoms.positions).all(axis=1)))
        raise ValueError(f"the position of atom {bad} ({atoms.symbols[bad]}) is not finite")
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError("the cell is not finite; set a cell")
    lengths = atoms.cell.lengths()
    for axis in range(3):
        if atoms.pbc[axis] and lengths[axis] == 0:
            raise ValueError(f"{atoms.pbc=} but cell vector {axis} is zero; set a cell or pbc=False")
    if atoms.pbc.any() and abs(atoms.cell.complete().volume) < 1e-9 * lengths.max() ** 3:
        raise ValueError("the vectors of the cell lie in a plane; set a cell with a volume")


def _pairs(atoms, cutoff):
    """Both atoms, and the integer image of the second, of all pairs within the cutoff, in one direction."""
    if len(atoms) == 0:
        raise ValueError("a structure without atoms has no graph")
    boxed = ase.Atoms(positions=atoms.positions, numbers=atoms.numbers, cell=atoms.cell, pbc=atoms.pbc)
    if not atoms.pbc.all():
        _enclose(boxed, cutoff)
    if np.prod(boxed.cell.lengths() / cutoff) > MOST_BINS:
        widths = " x ".join(f"{length:.3g}" for length in atoms.cell.lengths())
        raise ValueError(
            f"a cell of {widths} Å is too large for a list of neighbours; make it smaller, or set pbc=False "
            "in directions without images"
        )
    i, j, images = neighbour_list("ijS", boxed, float(cutoff))
    base = 2 * np.abs(images).max(initial=0) + 1
    once = (i < j) | ((i == j) & (images @ [base**2, base, 1] > 0))  # an atom's own images come in pairs
    return i[once], j[once], images[once]


def _enclose(atoms, cutoff):
    """Replace the cell, arbitrary in directions that are not periodic, by a box around the atoms there."""
    extent = np.ptp(atoms.positions, axis=0)
    if np.prod(extent / cutoff + 2) > MOST_BINS:
        raise ValueError(f"atoms are {extent.max():.0f} Å apart, too far for a list of neighbours")
    cell = np.array(atoms.cell)
    if not atoms.pbc.any():
        cell = np.diag(extent + 2 * cutoff)
    else:
        filled = atoms.cell.complete()
        for axis in np.flatnonzero(~atoms.pbc):
            cell[axis] = filled[axis] / np.linalg.norm(filled[axis]) * (extent.max() + 2 * cutoff)
    atoms.set_cell(cell)
    if not atoms.pbc.any():
        atoms.positions -= atoms.positions.min(axis=0) - cutoff


class SkinList:
    """Graph of moving atoms from a neighbour list with a skin, which is rebuilt only when needed.

    The returned edges are always exactly those within the cutoff, so the result does not depend on the skin
    (Verlet, Phys. Rev. 159, 98, 1967).

    Parameters
    ----------
    atoms
        ``ase.Atoms`` or a list of them, which give species, cells, periodicity and initial positions.
    cutoff
        Largest length of an edge, Å.
    skin
        Distance beyond the cutoff up to which pairs are listed, Å.
    dtype, device
        Floating-point type and device of the graph.
    """

    def __init__(
        self,
        atoms: ase.Atoms | Sequence[ase.Atoms],
        cutoff: float = 5.0,
        *,
        skin: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self.structures = [atoms.copy()] if isinstance(atoms, ase.Atoms) else [a.copy() for a in atoms]
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self._splits = np.cumsum([len(a) for a in self.structures])[:-1]
        self._built_at = None
        self.rebuilds = 0

    def update(self, positions: np.ndarray) -> AtomicGraph:
        """Graph at new positions, shape ``(N, 3)``, Å.

        Raises
        ------
        ValueError
            If a position is not finite.
        """
        if self._built_at is None or self._moved(positions):
            self._search(positions)
        wide, pairs = self._wide, self._wide.edge_index.shape[1] // 2
        x = torch.as_tensor(positions, dtype=torch.float64).to(self.device)
        centre, neighbour = wide.edge_index[:, :pairs]
        vectors = x.index_select(0, neighbour) + wide.shifts[:pairs] - x.index_select(0, centre)
        near = (torch.linalg.vector_norm(vectors, dim=1) < self.cutoff).nonzero().squeeze(1)
        near = torch.cat([near, near + pairs])
        edge_index, shifts = wide.edge_index.index_select(1, near), wide.shifts.index_select(0, near)
        return wide._replace(positions=x, edge_index=edge_index, shifts=shifts).to(dtype=self.dtype)

    def _moved(self, positions):
        displacement = np.abs(positions - self._built_at)
        return not np.square(displacement).sum(1).max() < (self.skin / 2) ** 2

    def _search(self, positions):
        for structure, part in zip(self.structures, np.split(positions, self._splits), strict=True):
            structure.positions = part
        self._wide = build_graph(self.structures, self.cutoff + self.skin).to(self.device)
        self._built_at = np.array(positions)
        self.rebuilds += 1
