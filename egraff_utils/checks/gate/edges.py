"""Does the graph hold every pair within the cutoff, and each once? It is compared with a brute-force list."""

import itertools

import numpy as np

from egraff_utils.graph import SkinList


def edge_errors(atoms, cutoff, graph=None):
    """Number of edges that are missing or superfluous, compared with a brute-force list over images.

    By default the graph is the one used in rollouts, that of :class:`~egraff_utils.graph.SkinList`.
    """
    if graph is None:
        graph = SkinList(atoms, cutoff).update(atoms.positions)
    centre, neighbour = graph.edge_index.cpu().numpy()
    vectors = graph.edge_vectors().double().cpu().numpy()
    found = _rows(centre, neighbour, vectors)
    return len(found ^ _rows(*brute_force_edges(atoms, cutoff))) + len(centre) - len(found)


def brute_force_edges(atoms, cutoff):
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


def _rows(centre, neighbour, vectors):
    rounded = np.rint(1e5 * vectors).astype(int)
    return set(map(tuple, np.column_stack([centre, neighbour, rounded]).tolist()))
