"""When is a trajectory broken? Bonds, contacts, and the deviation of the radial distribution."""

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from ase.neighborlist import natural_cutoffs, neighbor_list
from matscipy.neighbours import neighbour_list
from numpy.typing import ArrayLike

from egraff_utils.structure.distributions import radial_distributions
from egraff_utils.structure.pairs import (
    PAIRS_AT_ONCE,
    Box,
    all_pairs,
    checked,
    count_pairs,
)

BOND_TOLERANCE = 0.5
"""Largest deviation of a bond from its mean length, Å; beyond it a molecule is broken (Fu et al. 2023)."""

RDF_TOLERANCE = 1.5
"""Largest :func:`rdf_deviation` of a window of 100 frames, Å; beyond it a bulk system is broken.

Fu et al. (2023) use 1.0 for LiPS and 3.0 for water, on windows of 1 ps. Windows here are shorter, and one of
a run that starts cold resembles a single frame. Single frames of the references reach 0.97 (LiPS) and 0.68
(GeTe), windows of them 0.09 and 0.21, and windows of LiPS20 at 3000 K at most 0.78. Atoms placed at random
give 2.0 to 3.9.
"""

RDF_RANGE = 6.0
"""Range over which Fu et al. (2023) integrate the deviation of the radial distribution, Å."""

MINIMUM_DISTANCE = 0.5
"""Shortest allowed distance, Å; closer atoms have collapsed (the shortest in any reference is 0.89 Å)."""

MAXIMUM_DISTANCE = 3.0
"""Largest distance of an atom of a molecule from its nearest neighbour, Å; beyond it the atom has escaped."""


def bonds(atoms: Atoms, *, scale: float = 1.25) -> np.ndarray:
    """Bonded pairs, which are closer than ``scale`` times the sum of their covalent radii.

    The scale covers thermal stretching (C-H up to 1.34 Å) and stays below second neighbours.

    Parameters
    ----------
    atoms
        One ``ase.Atoms``.
    scale
        Factor on the covalent radii of ASE.

    Returns
    -------
    ndarray
        Indices of the atoms, shape ``(P, 2)``, the smaller one first.

    Examples
    --------
    >>> from ase import Atoms
    >>> bonds(Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
    array([[0, 1],
           [0, 2]])
    """
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=scale))
    pairs = np.stack([first, second], axis=1)
    return np.unique(pairs[first < second], axis=0)


def bond_lengths(positions: ArrayLike, pairs: ArrayLike) -> np.ndarray:
    """Distances of bonded pairs; positions must be unwrapped.

    Parameters
    ----------
    positions
        Shape ``(..., N, 3)``, Å.
    pairs
        Indices, shape ``(P, 2)``.

    Returns
    -------
    ndarray
        Shape ``(..., P)``, Å.

    Examples
    --------
    >>> bond_lengths(np.array([[0.0, 0, 0], [3, 4, 0]]), [[0, 1]])
    array([5.])
    """
    positions, pairs = np.asarray(positions, dtype=float), np.asarray(pairs, dtype=int).reshape(-1, 2)
    return np.linalg.norm(positions[..., pairs[:, 1], :] - positions[..., pairs[:, 0], :], axis=-1)


def reference_bonds(
    atoms: Atoms, positions: ArrayLike, *, tolerance: float = BOND_TOLERANCE
) -> tuple[np.ndarray, np.ndarray]:
    """Bonds of a molecule that stay intact in its reference trajectory, with their mean lengths.

    A pair that the reference itself stretches by more than the tolerance is not a fixed bond and is left out:
    the shared proton of acetylacetone hops between its oxygens in 5 to 14 % of the published frames.

    Parameters
    ----------
    atoms
        The molecule, ``ase.Atoms``, which gives the elements and the bonded pairs.
    positions
        Reference trajectory, unwrapped, shape ``(T, N, 3)``, Å.
    tolerance
        Largest deviation from the mean length, Å.

    Returns
    -------
    pairs, lengths
        Shapes ``(P, 2)`` and ``(P,)``, Å.
    """
    pairs = bonds(atoms)
    lengths = bond_lengths(checked(positions), pairs)
    mean = lengths.mean(axis=0)
    kept = (np.abs(lengths - mean) <= tolerance).all(axis=0)
    return pairs[kept], mean[kept]


def unstable_bonds(
    positions: ArrayLike, pairs: ArrayLike, lengths: ArrayLike, *, tolerance: float = BOND_TOLERANCE
) -> int | None:
    """Index of the first frame in which a bond is broken, or None (Fu et al. 2023).

    A bond is broken if its length is not finite or differs from its reference length by more than the
    tolerance.

    Parameters
    ----------
    positions
        A trajectory or a window of one, unwrapped, shape ``(T, N, 3)``, Å.
    pairs, lengths
        Bonds from :func:`reference_bonds`, shapes ``(P, 2)`` and ``(P,)``, Å.
    tolerance
        Largest deviation of a bond length, Å.

    Raises
    ------
    ValueError
        If ``pairs`` and ``lengths`` differ in number.

    Examples
    --------
    >>> stretched = np.array([[[0.0, 0, 0], [x, 0, 0]] for x in (1.1, 1.5, 1.7)])
    >>> unstable_bonds(stretched, [[0, 1]], [1.1])
    2
    """
    found, lengths = bond_lengths(positions, pairs), np.asarray(lengths, dtype=float)
    if found.shape[-1:] != lengths.shape:
        raise ValueError(f"{np.shape(pairs)=} but {lengths.shape=}")
    return _first(~(np.abs(found - lengths) <= tolerance).all(axis=-1))


def nearest_distances(
    positions: ArrayLike, *, cell: ArrayLike | None = None, pbc: ArrayLike | bool = False
) -> np.ndarray:
    """Distance of every atom to its nearest neighbour, by minimum image in periodic directions.

    Distances below half the cell's smallest height are exact.

    Parameters
    ----------
    positions
        Shape ``(T, N, 3)``, Å.
    cell
        Cell vectors, shape ``(3, 3)``, Å; needed if ``pbc`` is true.
    pbc
        Whether the cell is periodic, ``bool`` or shape ``(3,)``.

    Returns
    -------
    ndarray
        Distances, shape ``(T, N)``, Å; infinite for a single atom, nan in frames that are not finite.
    """
    positions = np.asarray(positions, dtype=float)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), 3)
    cell = complete_cell(cell) if pbc.any() else np.eye(3)
    frames, atoms = positions.shape[:2]
    step, nearest = max(1, PAIRS_AT_ONCE // atoms**2), np.empty((frames, atoms))
    with np.errstate(invalid="ignore"):
        for t in range(0, frames, step):
            rows = np.moveaxis(positions[t : t + step] @ np.linalg.inv(cell), -1, 0)
            vectors = (rows[..., None, :] - rows[..., None]).reshape(3, -1)
            for axis in np.flatnonzero(pbc):
                vectors[axis] -= np.rint(vectors[axis])
            vectors = cell.T @ vectors
            squared = np.einsum("kp,kp->p", vectors, vectors).reshape(-1, atoms, atoms)
            squared[:, range(atoms), range(atoms)] = np.inf
            nearest[t : t + step] = np.sqrt(squared.min(axis=-1))
    return nearest


def unstable_contacts(
    positions: ArrayLike,
    *,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | bool = False,
    minimum: float = MINIMUM_DISTANCE,
    maximum: float | None = None,
) -> int | None:
    """Index of the first frame with a collapsed pair or a lost atom, or None.

    Parameters
    ----------
    positions
        A trajectory or a window of one, shape ``(T, N, 3)``, Å.
    cell, pbc
        As in :func:`nearest_distances`.
    minimum
        Smallest allowed distance of two atoms, Å.
    maximum
        Largest allowed distance of an atom from its nearest neighbour, Å; None for no limit (bulk).

    Examples
    --------
    >>> unstable_contacts(np.array([[[0.0, 0, 0], [x, 0, 0]] for x in (1.0, 0.6, 0.4)]))
    2
    """
    if maximum is None and np.all(pbc):
        return _first_collapse(np.asarray(positions, dtype=float), complete_cell(cell), minimum)
    nearest = nearest_distances(positions, cell=cell, pbc=pbc)
    good = nearest >= minimum
    if maximum is not None:
        good &= nearest <= maximum
    return _first(~good.all(axis=1))


def _first_collapse(positions, cell, minimum):
    """Index of the first frame of a bulk system that has a pair closer than the minimum or is not finite.

    Frames are examined one by one only if some pair of the trajectory is that close, which is rare.
    """
    if np.isfinite(positions).all():
        box, pairs = Box.of(cell, np.full(3, True), minimum, None), all_pairs(positions.shape[1])
        counts = count_pairs(positions, box, pairs, np.zeros(pairs.shape[1], dtype=int), minimum, (1, 3))
        if not counts[0, :2].any():
            return None
    for t, frame in enumerate(positions):
        if not np.isfinite(frame).all() or len(neighbour_list("i", None, minimum, frame, cell, [True] * 3)):
            return t
    return None


def rdf_deviation(g: ArrayLike, g_ref: ArrayLike, *, dr: float) -> float:
    r"""Integrated deviation of two radial distributions, used in the bulk rule of Fu et al. (2023).

    .. math:: \Delta = \int |g(r) - g_\mathrm{ref}(r)|\, \mathrm dr

    Parameters
    ----------
    g, g_ref
        Distributions on equal bins, shape ``(B,)``, dimensionless.
    dr
        Width of a bin, Å.

    Returns
    -------
    float
        Deviation, Å; not finite if an input is not.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> rdf_deviation([0.0, 2.0], [0.0, 1.0], dr=0.5)
    0.5
    """
    g, g_ref = np.asarray(g, dtype=float), np.asarray(g_ref, dtype=float)
    if g.shape != g_ref.shape:
        raise ValueError(f"{g.shape=} but {g_ref.shape=}")
    return float(np.abs(g - g_ref).sum() * dr)


def unstable_step_molecule(positions: ArrayLike, pairs: ArrayLike, lengths: ArrayLike) -> int | None:
    """Index of the first frame in which a molecule is broken, or None.

    A molecule is broken if a bond length is off by more than 0.5 Å (Fu et al. 2023), two atoms are closer
    than 0.5 Å, or an atom is farther than 3 Å from all others. The last rule covers atoms whose bonds
    :func:`reference_bonds` left out.

    Parameters
    ----------
    positions
        A trajectory or a window of one, unwrapped, shape ``(T, N, 3)``, Å.
    pairs, lengths
        Bonds from :func:`reference_bonds`, shapes ``(P, 2)`` and ``(P,)``, Å.
    """
    steps = [
        unstable_bonds(positions, pairs, lengths),
        unstable_contacts(positions, maximum=MAXIMUM_DISTANCE if np.shape(positions)[1] > 1 else None),
    ]
    return min((step for step in steps if step is not None), default=None)


def unstable_step_bulk(
    positions: np.ndarray,
    numbers: ArrayLike,
    *,
    cell: ArrayLike,
    pbc: ArrayLike | bool,
    g_ref: np.ndarray,
    r_max: float,
    tolerance: float = RDF_TOLERANCE,
    window: int = 100,
) -> int | None:
    """Index of the first frame in which a bulk system is broken, or None (after Fu et al. 2023).

    A system is broken if two atoms are closer than 0.5 Å, a frame is not finite, or the total radial
    distribution of a window deviates by more than the tolerance; in the last case the index is that of the
    first frame of the window. Windows do not overlap, and the last one includes the remaining frames. A
    trajectory shorter than one window is judged by its contacts only, as the distribution of a few frames is
    noise.

    Parameters
    ----------
    positions
        A trajectory or a window of one, shape ``(T, N, 3)``, Å.
    numbers, cell, pbc
        Shapes ``(N,)``, ``(3, 3)`` in Å, and ``bool`` or ``(3,)``.
    g_ref
        Reference distribution up to ``r_max``, shape ``(B,)``; its length sets the bins.
    r_max
        Range of the distributions, Å. Use the smaller of ``RDF_RANGE`` and :func:`as_coded_r_max`, as the
        deviation grows with the range.
    tolerance
        Largest allowed :func:`rdf_deviation`, Å.
    window
        Length of a window in frames.
    """
    contact = unstable_contacts(positions, cell=cell, pbc=pbc)
    end = len(positions) if contact is None else contact
    dr = r_max / len(g_ref)
    for start in range(0, end - window + 1, window):
        frames = positions[start : end if start + 2 * window > end else start + window]
        found = radial_distributions(frames, numbers, cell=cell, pbc=pbc, r_max=r_max, dr=dr)
        if rdf_deviation(found.total, g_ref, dr=dr) > tolerance:
            return start
    return contact


def _first(broken):
    return int(np.argmax(broken)) if broken.any() else None
