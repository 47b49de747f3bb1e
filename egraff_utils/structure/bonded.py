"""How are the bonded atoms of a molecule arranged? Distributions of bond lengths and of bond angles.

Symbols: T frames, N atoms, P bonds, A angles, S kinds of bonds or of angles, B bins.
"""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from egraff_utils.structure.pairs import checked
from egraff_utils.structure.stability import bond_lengths, reference_bonds

BOND_EDGES = np.linspace(0.5, 3.5, 151)
"""Edges of the bins of bond lengths, Å. A bin of 0.02 Å is narrower than the thermal width at 300 K of the
stiffest bonds: 0.03 Å for C-H, whose force constant is 30 eV/Å². Lengths outside are counted in the first or
last bin, so that every frame has the same sum."""

ANGLE_EDGES = np.linspace(0.0, 180.0, 91)
"""Edges of the bins of bond angles, degrees; bending at 300 K has a width of about 5 degrees."""


def intact_bonds(frames: Sequence[Atoms]) -> np.ndarray:
    """Bonds of the first frame that stay intact in all, by :func:`~egraff_utils.structure.reference_bonds`.

    A periodic system has none: in a solid or a liquid, which atoms are bonded is a matter of convention, and
    its structure is judged by g(r).

    Parameters
    ----------
    frames
        Reference trajectory of one molecule, unwrapped.

    Returns
    -------
    ndarray
        Indices of the atoms, shape ``(P, 2)``.

    Examples
    --------
    >>> water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    >>> intact_bonds([water]).tolist()
    [[0, 1], [0, 2]]
    """
    if frames[0].pbc.any():
        return np.empty((0, 2), dtype=int)
    return reference_bonds(frames[0], np.stack([atoms.positions for atoms in frames]))[0]


def angles(pairs: ArrayLike) -> np.ndarray:
    """Angles between bonds that share an atom, shape ``(A, 3)``, with that atom in the middle.

    Examples
    --------
    >>> angles([[0, 1], [0, 2]])
    array([[1, 0, 2]])
    """
    near: dict[int, set[int]] = {}
    for i, j in np.asarray(pairs, dtype=int).reshape(-1, 2).tolist():
        near.setdefault(i, set()).add(j)
        near.setdefault(j, set()).add(i)
    found = [(i, centre, k) for centre in sorted(near) for i in near[centre] for k in near[centre] if i < k]
    return np.array(sorted(found), dtype=int).reshape(-1, 3)


def bond_angles(positions: ArrayLike, triples: ArrayLike) -> np.ndarray:
    """Angles at the middle atoms of triples; positions must be unwrapped.

    Parameters
    ----------
    positions
        Shape ``(..., N, 3)``, Å.
    triples
        Indices from :func:`angles`, shape ``(A, 3)``.

    Returns
    -------
    ndarray
        Shape ``(..., A)``, degrees, between 0 and 180.

    Examples
    --------
    >>> bond_angles(np.array([[2.0, 0, 0], [0, 0, 0], [0, 3, 0]]), [[0, 1, 2]])
    array([90.])
    """
    positions, triples = np.asarray(positions, dtype=float), np.asarray(triples, dtype=int).reshape(-1, 3)
    first, centre, last = (positions[..., triples[:, column], :] for column in range(3))
    one, other = first - centre, last - centre
    across = np.linalg.norm(np.cross(one, other), axis=-1)  # the arc cosine loses digits near 0 and 180
    return np.degrees(np.arctan2(across, (one * other).sum(-1)))


def bonded_kinds(numbers: ArrayLike, pairs: ArrayLike) -> dict[str, list[str]]:
    """Kinds of ``bonds`` and of ``angles``, in the order of :func:`bonded_distributions`.

    Examples
    --------
    >>> bonded_kinds([8, 1, 1], [[0, 1], [0, 2]])
    {'bonds': ['H-O'], 'angles': ['H-O-H']}
    """
    return {name: np.unique(_names(numbers, sets)).tolist() for name, sets in _sets(pairs).items()}


def bonded_distributions(positions: ArrayLike, numbers: ArrayLike, pairs: ArrayLike) -> dict[str, np.ndarray]:
    r"""Distributions of bond lengths and bond angles of every frame.

    Bonds are of one kind if their elements are the same, angles if their three elements are. The value in bin
    b of kind s is the fraction of all bonds (angles) of the frame that are of this kind and in this bin,

    .. math:: p_{sb} = \frac{n_{sb}}{\sum_{sb} n_{sb}}

    Kinds do not change with time, so the divergence of two such distributions is the mean of the divergences
    of the kinds, weighted by their numbers of bonds: a C-H bond that is too short does not pass for an O-H
    bond. Distributions are compared by kind as by Guan et al. (2023, TargetDiff). Torsions are left out, as
    they turn more slowly than most rollouts last.

    Parameters
    ----------
    positions
        Trajectory, unwrapped, shape ``(T, N, 3)``, Å.
    numbers
        Atomic numbers, shape ``(N,)``.
    pairs
        Bonds, shape ``(P, 2)``.

    Returns
    -------
    dict of ndarray
        ``bonds`` and ``angles``, shape ``(T, S * B)``, dimensionless, on the bins of ``BOND_EDGES`` and
        ``ANGLE_EDGES``, the kinds of :func:`bonded_kinds` one after another. Without ``angles`` for a
        diatomic molecule, and empty without bonds.

    Raises
    ------
    ValueError
        If positions are not finite.

    Examples
    --------
    >>> molecule = np.array([[[0.0, 0, 0], [0.97, 0, 0], [0, 1.53, 0]]])
    >>> found = bonded_distributions(molecule, [8, 1, 6], [[0, 1], [0, 2]])
    >>> np.flatnonzero(found["bonds"]).tolist()  # C-O: (1.53 - 0.5) / 0.02; H-O: 150 + (0.97 - 0.5) / 0.02
    [51, 173]
    >>> np.flatnonzero(found["angles"]).tolist()  # 90 degrees / 2
    [45]
    """
    positions = checked(positions)
    found = {}
    for name, sets in _sets(pairs).items():
        edges, measure = MEASURES[name]
        kinds = np.unique(_names(numbers, sets), return_inverse=True)[1]
        found[name] = _fractions(measure(positions, sets), kinds, edges)
    return found


MEASURES = {"bonds": (BOND_EDGES, bond_lengths), "angles": (ANGLE_EDGES, bond_angles)}
"""Distribution -> edges of its bins, and function that gives its values from positions and indices."""


def _sets(pairs):
    """Atoms of every bond and every angle, by the name of the distribution; without empty ones."""
    sets = {"bonds": np.asarray(pairs, dtype=int).reshape(-1, 2), "angles": angles(pairs)}
    return {name: rows for name, rows in sets.items() if len(rows)}


def _names(numbers, sets):
    """Names of sets of bonded atoms, such as ``"H-O"`` and ``"H-C-O"``; the lighter end first."""
    elements = np.asarray(numbers)[sets]
    turned = np.where(elements[:, :1] <= elements[:, -1:], elements, elements[:, ::-1])
    return ["-".join(chemical_symbols[number] for number in row) for row in turned]


def _fractions(values, kinds, edges):
    """Fraction of the values (T, P) of a frame in every bin of every kind, shape (T, S * B)."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    columns = (kinds.max() + 1) * (len(edges) - 1)
    flat = bins + kinds * (len(edges) - 1) + columns * np.arange(len(values))[:, None]
    counts = np.bincount(flat.ravel(), minlength=len(values) * columns)
    return counts.reshape(len(values), columns) / values.shape[1]
