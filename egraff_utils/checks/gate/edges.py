"""Does the graph hold every pair within the cutoff, and each once? It is compared with a brute-force list."""

import itertools

import ase
import numpy as np

from egraff_utils.graph import AtomicGraph, SkinList

SAME = 1e-4
"""Largest difference of two vectors of the same edge, Å, which single precision may make."""


def edge_errors(atoms: ase.Atoms, cutoff: float, graph: AtomicGraph | None = None) -> int:
    """Number of edges that are missing or superfluous, compared with a brute-force list over images.

    By default the graph is the one used in rollouts, that of :class:`~egraff_utils.graph.SkinList`.
    """
    if graph is None:
        graph = SkinList(atoms, cutoff).update(atoms.positions)
    centre, neighbour = graph.edge_index.cpu().numpy()
    vectors = graph.edge_vectors().double().cpu().numpy()
    found, wrong = _rows(atoms, centre, neighbour, vectors)
    expected, _ = _rows(atoms, *brute_force_edges(atoms, cutoff))
    return len(found ^ expected) + len(centre) - len(found) + wrong


def brute_force_edges(atoms: ase.Atoms, cutoff: float) -> tuple[np.ndarray, ...]:
    """Centre (E,), neighbour (E,) and vector (E, 3), Å, of all pairs within the cutoff, images included."""
    cell, pbc = np.asarray(atoms.cell), atoms.pbc
    vectors = atoms.positions[None] - atoms.positions[:, None]
    reach = np.zeros(3, dtype=int)
    if pbc.any():
        inverse = np.linalg.inv(np.asarray(atoms.cell.complete()))
        spread = np.abs(vectors @ inverse).max((0, 1))
        reach = np.where(pbc, np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + spread), 0).astype(int)
    found = []
    for image in itertools.product(*(range(-n, n + 1) for n in reach)):
        apart = vectors + image @ cell
        near = np.square(apart).sum(-1) < cutoff**2
        if not any(image):
            np.fill_diagonal(near, False)
        found.append((*np.nonzero(near), apart[near]))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _rows(
    atoms: ase.Atoms, centre: np.ndarray, neighbour: np.ndarray, vectors: np.ndarray
) -> tuple[set[tuple[int, ...]], int]:
    """Edges as a set of (centre, neighbour, image), and how many vectors lead to no image of the neighbour.

    Vectors themselves are not compared digit by digit: those of positions with few digits, as many files have
    them, often lie on the border between two roundings.
    """
    away = vectors - (atoms.positions[neighbour] - atoms.positions[centre])
    cell = np.asarray(atoms.cell.complete())
    image = np.rint(away @ np.linalg.inv(cell)).astype(int) * atoms.pbc
    wrong = np.abs(away - image @ cell).max(axis=1, initial=0.0) > SAME
    return set(map(tuple, np.column_stack([centre, neighbour, image]).tolist())), int(wrong.sum())
