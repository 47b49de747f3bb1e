"""Which atoms are close? Distances of pairs by minimum or by every image, counted in blocks of frames."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import ArrayLike

FRAMES_AT_ONCE = 50  # frames that share a list of near pairs; over more frames atoms move too far for it
PAIRS_AT_ONCE = 20_000  # frames times pairs in memory at a time, few enough for the cache


@functools.lru_cache(maxsize=1)
def all_pairs(count: int) -> np.ndarray:
    """All pairs i < j of ``count`` atoms, shape (2, P)."""
    return np.array(np.triu_indices(count, 1))


class Box(NamedTuple):
    """A cell and the quantities that derive from it."""

    vectors: np.ndarray  # (3, 3), Å
    inverse: np.ndarray  # (3, 3), 1/Å
    pbc: np.ndarray  # (3,)
    reach: np.ndarray  # (3,): range over height of the cell; zero in directions that are not periodic
    volume: float  # Å³, defines the density

    @classmethod
    def of(cls, cell: np.ndarray, pbc: np.ndarray, r_max: float, volume: float | None) -> "Box":
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


def blocks_of(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_max: float, volume: float | None
) -> Iterator[tuple[np.ndarray, Box]]:
    """Yield runs of frames that share a cell, and their :class:`Box`."""
    if cell.ndim == 2:
        yield positions, Box.of(cell, pbc, r_max, volume)
        return
    if len(cell) != len(positions):
        raise ValueError(f"{cell.shape=} but {positions.shape=}")
    yield from ((positions[t : t + 1], Box.of(cell[t], pbc, r_max, volume)) for t in range(len(cell)))


def count_pairs(
    positions: np.ndarray,
    box: Box,
    pairs: np.ndarray,
    kinds: np.ndarray,
    r_max: float,
    shape: tuple[int, int],
) -> np.ndarray:
    """Histogram of the distances of pairs (2, P) of kinds (P,) over frames of one cell.

    The shape is (kinds, B + 2): the first column counts pairs at distance zero, the last pairs out of range.
    """
    counts, bins = np.zeros(shape, dtype=int).ravel(), shape[1] - 2
    for squared, label in close_pairs(positions, box, pairs, kinds * shape[1], r_max):
        found = np.sqrt(squared, out=squared)
        found *= bins / r_max
        np.minimum(np.ceil(found, out=found), bins + 1, out=found)
        counts += np.bincount(found.astype(np.intp) + label, minlength=len(counts))
    return counts.reshape(shape)


def close_pairs(
    positions: np.ndarray, box: Box, pairs: np.ndarray, labels: np.ndarray, cutoff: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield squared distances (M,), Å², including all within the cutoff, and labels (M,) of their pairs.

    Frames are the last axis in memory, so that all following operations run over long rows.
    """
    step = max(FRAMES_AT_ONCE, PAIRS_AT_ONCE // max(1, len(labels)))
    for t in range(0, len(positions), step):
        rows = np.ascontiguousarray(np.transpose(positions[t : t + step] @ box.inverse, (2, 1, 0)))
        frames, kept = rows.shape[2], _candidates(rows, box, pairs, cutoff)
        size = max(1, PAIRS_AT_ONCE // frames)
        for chunk in (kept[p : p + size] for p in range(0, len(kept), size)):
            each = np.repeat(labels[chunk], frames)
            chosen = np.take(pairs, chunk, axis=1)
            for squared, index in _squared_distances(rows, box, chosen, box.reach):
                yield squared, each[index]


def _candidates(rows: np.ndarray, box: Box, pairs: np.ndarray, cutoff: float) -> np.ndarray:
    """Indices of the pairs that can be within the cutoff in some frame of coordinates (3, N, T).

    In the middle frame such a pair is no farther apart than the cutoff plus the largest displacements of its
    two atoms from that frame.
    """
    everything = np.arange(pairs.shape[1])
    if rows.shape[2] * len(everything) <= PAIRS_AT_ONCE:
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


def _squared_distances(
    rows: np.ndarray, box: Box, pairs: np.ndarray, reach: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | slice]]:
    """Yield squared distances (M,), Å², of pairs (2, P) at coordinates (3, N, T), and their indices in P * T.

    A vector shorter than half the height of the cell has fractional coordinates below 1/2, so rounding finds
    it. Up to the full height, the next image on the other side can also be within range.
    """
    scaled = np.take(rows, pairs[0], axis=1)
    scaled -= np.take(rows, pairs[1], axis=1)
    scaled = scaled.reshape(3, -1)
    for axis in np.flatnonzero(box.pbc):
        scaled[axis] -= np.rint(scaled[axis])
    found: list[tuple[np.ndarray, np.ndarray | slice]] = [(scaled, slice(None))]
    for axis in np.flatnonzero(reach > 0.5):
        found += [_next_images(*some, axis, 1 - reach[axis]) for some in found]
    for scaled, index in found:
        vectors = box.vectors.T @ scaled
        yield np.einsum("kp,kp->p", vectors, vectors), index


def _next_images(
    scaled: np.ndarray, index: np.ndarray | slice, axis: int | np.integer, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Images on the other side along an axis, of the vectors that lie at least ``least`` along it."""
    more = np.flatnonzero(np.abs(scaled[axis]) >= least)
    image = scaled[:, more]
    image[axis] -= np.sign(image[axis])
    return image, more if isinstance(index, slice) else index[more]


def checked(positions: ArrayLike) -> np.ndarray:
    positions = np.asarray(positions, dtype=float)
    if positions.ndim != 3 or positions.shape[2] != 3 or not len(positions):
        raise ValueError(f"positions must have shape (T, N, 3) with T > 0, not {positions.shape}")
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))
        raise ValueError(f"positions are not finite from frame {bad[0]} on; end the trajectory before it")
    return positions
