"""Where are the atoms? Radial distributions, bonds, and the rules by which a trajectory counts as broken."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.geometry import complete_cell
from ase.neighborlist import natural_cutoffs, neighbor_list
from matscipy.neighbours import neighbour_list
from numpy.typing import ArrayLike

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

_FRAMES_AT_ONCE = 50  # frames that share a list of near pairs; over more frames atoms move too far for it
_PAIRS_AT_ONCE = 20_000  # frames times pairs in memory at a time, few enough for the cache


class RadialDistributions(NamedTuple):
    """Total and partial radial distributions of a trajectory (B bins, P pairs of elements)."""

    r: np.ndarray
    """Bin centres, shape ``(B,)``, Å."""
    total: np.ndarray
    """g(r) over all pairs of atoms, shape ``(B,)``, dimensionless."""
    partials: np.ndarray
    """g(r) of each pair of elements, shape ``(P, B)``, dimensionless."""
    pairs: list
    """Names of the pairs, such as ``"Li-P"``, in the order of ``partials``; the lighter element first."""

    def partial(self, pair: str | tuple) -> np.ndarray:
        """Partial distribution of one pair, ``"Li-P"``, ``("P", "Li")`` or ``(3, 15)``, shape ``(B,)``."""
        name = _pair_name(pair)
        if name not in self.pairs:
            raise ValueError(f"no pair {name} in this trajectory; it has {', '.join(self.pairs)}")
        return self.partials[self.pairs.index(name)]


def radial_distribution(
    frames: Sequence[Atoms],
    r_max: float,
    *,
    dr: float = 0.05,
    pair: str | tuple | None = None,
    volume: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Radial distribution function, averaged over frames (EGraFFBench, App. A.4).

    .. math:: g_{ab}(r) = \frac{V}{N_a N_b} \frac{n_{ab}(r)}{4\pi r^2 \Delta r}, \qquad
              g(r) = \sum_{ab} c_a c_b\, g_{ab}(r)

    The result equals that of ``ase.geometry.rdf.get_rdf``. The volume is that of the cell, so for a molecule
    the stored cell sets the height of g(r). The minimum image is used in periodic directions only.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]``; cells, and even compositions, may differ between frames.
    r_max
        Largest distance, Å; it must be below the height of the cell in periodic directions.
    dr
        Width of a bin, Å; it is adjusted so that a whole number of bins fills ``r_max``.
    pair
        Two elements whose partial distribution is returned, as ``"Li-P"``, ``("Li", "P")`` or ``(3, 15)``; by
        default the total distribution is returned.
    volume
        Volume that defines the density, Å³, in place of that of the cell.

    Returns
    -------
    r, g
        Bin centres, Å, and g(r), dimensionless, both with shape ``(B,)``.

    Raises
    ------
    ValueError
        If there are no frames, ``r_max`` does not fit the cell, a cell has no volume, an element of
        ``pair`` is missing, or positions are not finite.

    Examples
    --------
    >>> r, g = radial_distribution([Atoms("Ar2", [[0, 0, 0], [1, 0, 0]], cell=[9, 9, 9])], 2.0, dr=0.5)
    >>> r
    array([0.25, 0.75, 1.25, 1.75])
    >>> np.flatnonzero(g)
    array([1])
    """
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise ValueError("no frames to average over")
    groups = {}
    for atoms in frames:
        key = (atoms.numbers.tobytes(), atoms.pbc.tobytes(), atoms.cell.array.tobytes())
        groups.setdefault(key, []).append(atoms)
    g = 0.0
    for group in groups.values():
        first = group[0]
        found = radial_distributions(
            np.stack([atoms.positions for atoms in group]), first.numbers,
            cell=first.cell.array, pbc=first.pbc, r_max=r_max, dr=dr, volume=volume,
        )  # fmt: skip
        g = g + len(group) / len(frames) * (found.total if pair is None else found.partial(pair))
    return found.r, g


def radial_distributions(
    positions: ArrayLike,
    numbers: ArrayLike,
    *,
    cell: ArrayLike,
    pbc: ArrayLike | bool,
    r_max: float,
    dr: float = 0.05,
    volume: float | None = None,
) -> RadialDistributions:
    """Total and all partial radial distributions of a trajectory, in one pass over its pairs.

    Definitions and errors are those of :func:`radial_distribution`. The result is exact for every cell whose
    smallest height exceeds ``r_max``. ASE requires twice that height, a condition that the published
    ``r_max`` does not meet for LiPS and five compositions of LiPS20.

    Parameters
    ----------
    positions
        Positions, wrapped or not, shape ``(T, N, 3)``, Å.
    numbers
        Atomic numbers, shape ``(N,)``.
    cell
        Cell vectors, shape ``(3, 3)`` or, if they change with time, ``(T, 3, 3)``, Å.
    pbc
        Whether the cell is periodic, ``bool`` or shape ``(3,)``.
    r_max, dr
        Largest distance and width of a bin, Å.
    volume
        Volume that defines the density, Å³, in place of that of the cell.

    Returns
    -------
    RadialDistributions

    Examples
    --------
    >>> positions = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    >>> found = radial_distributions(positions, [8, 1, 1], cell=9 * np.eye(3), pbc=False, r_max=2)
    >>> found.pairs
    ['H-H', 'H-O', 'O-O']
    >>> found.r[found.partial("O-H") > 0]
    array([0.975])
    """
    positions, numbers = _trajectory(positions), np.asarray(numbers)
    if len(numbers) != positions.shape[1]:
        raise ValueError(f"{positions.shape=} but {numbers.shape=}")
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), 3)
    num_bins = _num_bins(r_max, dr)
    species, which = np.unique(numbers, return_inverse=True)
    kind_of = _kinds(len(species))
    pairs = _pairs(len(numbers))
    kinds = kind_of[which[pairs[0]], which[pairs[1]]]
    counts = np.zeros((kind_of.max() + 1, num_bins + 2))
    for block, box in _blocks(positions, np.asarray(cell, dtype=float), pbc, r_max, volume):
        counts += _count(block, box, pairs, kinds, r_max, counts.shape) * box.volume
    counts = counts[:, 1:-1] / len(positions)
    return _normalise(counts, np.bincount(which), species, kind_of, r_max)


def _num_bins(r_max, dr):
    if not (np.isfinite(r_max) and r_max > 0 and dr > 0 and round(r_max / dr) > 0):
        raise ValueError(f"{r_max=} Å with {dr=} Å leaves no bins")
    return round(r_max / dr)


def _kinds(num_species):
    """Symmetric table of the indices of pairs of species, shape (S, S)."""
    table = np.zeros((num_species, num_species), dtype=int)
    upper = np.triu_indices(num_species)
    table[upper] = np.arange(len(upper[0]))
    return np.maximum(table, table.T)


@functools.lru_cache(maxsize=1)
def _pairs(count):
    """All pairs i < j of ``count`` atoms, shape (2, P)."""
    return np.array(np.triu_indices(count, 1))


class _Box(NamedTuple):
    """A cell and the quantities that derive from it."""

    vectors: np.ndarray  # (3, 3), Å
    inverse: np.ndarray  # (3, 3), 1/Å
    pbc: np.ndarray  # (3,)
    reach: np.ndarray  # (3,): range over height of the cell; zero in directions that are not periodic
    volume: float  # Å³, defines the density

    @classmethod
    def of(cls, cell, pbc, r_max, volume):
        volume = abs(np.linalg.det(cell)) if volume is None else volume
        if volume < 1e-10:
            raise ValueError("the cell has no volume, so there is no density; give one with volume= (Å³)")
        cell = complete_cell(cell) if pbc.any() else np.eye(3)
        inverse = np.linalg.inv(cell)
        reach = r_max * np.linalg.norm(inverse, axis=0) * pbc
        if (reach >= 1).any():
            height = (r_max / reach[pbc]).min()
            raise ValueError(
                f"{r_max=} Å exceeds the cell's smallest height, {height:.2f} Å; repeat the cell"
            )
        return cls(cell, inverse, pbc, reach, volume)


def _blocks(positions, cell, pbc, r_max, volume):
    """Yield runs of frames that share a cell, and their :class:`_Box`."""
    if cell.ndim == 2:
        yield positions, _Box.of(cell, pbc, r_max, volume)
        return
    if len(cell) != len(positions):
        raise ValueError(f"{cell.shape=} but {positions.shape=}")
    yield from ((positions[t : t + 1], _Box.of(cell[t], pbc, r_max, volume)) for t in range(len(cell)))


def _count(positions, box, pairs, kinds, r_max, shape):
    """Histogram of the distances of pairs (2, P) of kinds (P,) over frames of one cell.

    The shape is (kinds, B + 2): the first column counts pairs at distance zero, the last pairs out of range.
    """
    counts, bins = np.zeros(shape, dtype=int).ravel(), shape[1] - 2
    for squared, label in _close_pairs(positions, box, pairs, kinds * shape[1], r_max):
        found = np.sqrt(squared, out=squared)
        found *= bins / r_max
        np.minimum(np.ceil(found, out=found), bins + 1, out=found)
        counts += np.bincount(found.astype(np.intp) + label, minlength=len(counts))
    return counts.reshape(shape)


def _close_pairs(positions, box, pairs, labels, cutoff):
    """Yield squared distances (M,), Å², including all within the cutoff, and labels (M,) of their pairs.

    Frames are the last axis in memory, so that all following operations run over long rows.
    """
    step = max(_FRAMES_AT_ONCE, _PAIRS_AT_ONCE // max(1, len(labels)))
    for t in range(0, len(positions), step):
        rows = np.ascontiguousarray(np.transpose(positions[t : t + step] @ box.inverse, (2, 1, 0)))
        frames, kept = rows.shape[2], _candidates(rows, box, pairs, cutoff)
        size = max(1, _PAIRS_AT_ONCE // frames)
        for chunk in (kept[p : p + size] for p in range(0, len(kept), size)):
            each = np.repeat(labels[chunk], frames)
            chosen = np.take(pairs, chunk, axis=1)
            for squared, index in _squared_distances(rows, box, chosen, box.reach):
                yield squared, each[index]


def _candidates(rows, box, pairs, cutoff):
    """Indices of the pairs that can be within the cutoff in some frame of coordinates (3, N, T).

    In the middle frame such a pair is no farther apart than the cutoff plus the largest displacements of its
    two atoms from that frame.
    """
    everything = np.arange(pairs.shape[1])
    if rows.shape[2] * len(everything) <= _PAIRS_AT_ONCE:
        return everything
    middle = rows[..., rows.shape[2] // 2, None]
    moved = rows - middle
    moved[box.pbc] -= np.rint(moved[box.pbc])
    moved = np.sqrt(np.square(np.tensordot(box.vectors, moved, (0, 0))).sum(0).max(-1))
    farthest = cutoff + moved[pairs[0]] + moved[pairs[1]] + 1e-6  # 1e-6 Å allows for rounding
    reach = box.reach * farthest.max() / cutoff
    if (reach >= 1).any():
        return everything
    kept = np.zeros(len(everything), dtype=bool)
    for squared, index in _squared_distances(middle, box, pairs, reach):
        kept[everything[index][squared <= farthest[index] ** 2]] = True
    return np.flatnonzero(kept)


def _squared_distances(rows, box, pairs, reach):
    """Yield squared distances (M,), Å², of pairs (2, P) at coordinates (3, N, T), and their indices in P * T.

    A vector shorter than half the height of the cell has fractional coordinates below 1/2, so rounding finds
    it. Up to the full height, the next image on the other side can also be within range.
    """
    scaled = np.take(rows, pairs[0], axis=1)
    scaled -= np.take(rows, pairs[1], axis=1)
    scaled = scaled.reshape(3, -1)
    for axis in np.flatnonzero(box.pbc):
        scaled[axis] -= np.rint(scaled[axis])
    found = [(scaled, slice(None))]
    for axis in np.flatnonzero(reach > 0.5):
        found += [_next_images(*some, axis, 1 - reach[axis]) for some in found]
    for scaled, index in found:
        vectors = box.vectors.T @ scaled
        yield np.einsum("kp,kp->p", vectors, vectors), index


def _next_images(scaled, index, axis, least):
    """Images on the other side along an axis, of the vectors that lie at least ``least`` along it."""
    more = np.flatnonzero(np.abs(scaled[axis]) >= least)
    image = scaled[:, more]
    image[axis] -= np.sign(image[axis])
    return image, more if isinstance(index, slice) else index[more]


def _normalise(counts, atoms_of, species, kind_of, r_max):
    """Distributions from the mean over frames of volume times counts of pairs i < j, shape (kinds, B)."""
    edges = np.linspace(0.0, r_max, counts.shape[1] + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    total = 2 * counts.sum(axis=0) / (atoms_of.sum() ** 2 * shells)
    partials, names = np.empty_like(counts), [""] * len(counts)
    for a, b in zip(*np.triu_indices(len(species)), strict=True):
        ordered = 2 if a == b else 1
        partials[kind_of[a, b]] = ordered * counts[kind_of[a, b]] / (atoms_of[a] * atoms_of[b] * shells)
        names[kind_of[a, b]] = _pair_name((species[a], species[b]))
    return RadialDistributions((edges[:-1] + edges[1:]) / 2, total, partials, names)


def _pair_name(pair):
    elements = pair.split("-") if isinstance(pair, str) else list(pair)
    try:
        numbers = sorted(atomic_numbers[e] if isinstance(e, str) else int(e) for e in elements)
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} in pair {pair!r} is not an element") from None
    if len(numbers) != 2:
        raise ValueError(f"a pair names two elements, as in 'Li-P', not {pair!r}")
    return "-".join(chemical_symbols[number] for number in numbers)


def _trajectory(positions):
    positions = np.asarray(positions, dtype=float)
    if positions.ndim != 3 or positions.shape[2] != 3 or not len(positions):
        raise ValueError(f"positions must have shape (T, N, 3) with T > 0, not {positions.shape}")
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))
        raise ValueError(f"positions are not finite from frame {bad[0]} on; end the trajectory before it")
    return positions


def as_coded_r_max(atoms: Atoms) -> float:
    """Range of g(r) in the published evaluation, ``round(min((shortest cell vector - 1) / 2, 10), 1)``, Å.

    The formula is that of the released script. NumPy rounds half to even, so a 19.1 Å cube gives 9.0.

    Raises
    ------
    ValueError
        If the cell is too small to define a range, or there is no cell.

    Examples
    --------
    >>> as_coded_r_max(Atoms("C", cell=[50, 50, 50]))
    10.0
    """
    r_max = float(np.round(min((atoms.cell.lengths().min() - 1) / 2, 10.0), 1))
    if r_max <= 0:
        raise ValueError(f"cell lengths {atoms.cell.lengths()} Å are too short for an RDF; set a larger cell")
    return r_max


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
    lengths = bond_lengths(_trajectory(positions), pairs)
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
    step, nearest = max(1, _PAIRS_AT_ONCE // atoms**2), np.empty((frames, atoms))
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
        box, pairs = _Box.of(cell, np.full(3, True), minimum, None), _pairs(positions.shape[1])
        counts = _count(positions, box, pairs, np.zeros(pairs.shape[1], dtype=int), minimum, (1, 3))
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
    positions: ArrayLike,
    numbers: ArrayLike,
    *,
    cell: ArrayLike,
    pbc: ArrayLike | bool,
    g_ref: ArrayLike,
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
        Range of the distributions, Å. Use the smaller of :data:`RDF_RANGE` and :func:`as_coded_r_max`, as the
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
