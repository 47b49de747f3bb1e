"""What do two independent stretches of the reference show of each other? Levels of structure, EV and FV."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from egraff_utils import metrics
from egraff_utils.structure import radial_distributions

_T = TypeVar("_T")


def floor(
    reference: np.ndarray,
    metric: Callable[[Any, Any], _T],
    *,
    summarize: Callable[[np.ndarray], Any] = lambda frames: np.mean(frames, axis=0),
) -> _T:
    """Floor of a metric, its value between the first and the second half of the reference.

    No model can be expected to score lower, and a metric at its floor says nothing about the model.

    Parameters
    ----------
    reference
        Values with frames along the first axis, shape ``(T, ...)``.
    metric
        Function of two summaries, such as ``metrics.wright_factor``.
    summarize
        Function that maps half of the frames to what the metric compares; by default the mean over frames.

    Raises
    ------
    ValueError
        If there are fewer than two frames.

    Examples
    --------
    >>> floor(np.array([[1.0], [1.0], [2.0], [2.0]]), metrics.mae)
    1.0
    """
    if len(reference) < 2:
        raise ValueError(f"a floor needs two frames or more, not {len(reference)}")
    half = len(reference) // 2
    return metric(summarize(reference[:half]), summarize(reference[half:]))


def floor_rdf(
    positions: np.ndarray,
    numbers: ArrayLike,
    *,
    cell: ArrayLike,
    pbc: ArrayLike | bool,
    r_max: float,
    dr: float = 0.05,
) -> dict[str, float]:
    """Floors of Wright's factor and both divergences, from the two halves of the reference.

    Parameters
    ----------
    positions, numbers, cell, pbc, r_max, dr
        Reference trajectory, as in :func:`egraff_utils.structure.radial_distributions`.

    Returns
    -------
    dict
        ``wf`` in percent, ``jsd`` and ``jsd_raw`` in nats; empty if no two atoms of a half are within range.
    """
    positions, cell = np.asarray(positions), np.asarray(cell)

    def summarize(half):
        box = cell if cell.ndim == 2 else cell[half]
        return radial_distributions(positions[half], numbers, cell=box, pbc=pbc, r_max=r_max, dr=dr).total

    measures = {"wf": metrics.wright_factor, "jsd": metrics.jsd, "jsd_raw": metrics.jsd_raw}

    def compare(g, g_ref):
        if not (g.any() and g_ref.any()):
            return {}
        return {name: measure(g, g_ref) for name, measure in measures.items()}

    return floor(np.arange(len(positions)), compare, summarize=summarize)


def floor_ev_fv(
    energies: ArrayLike, forces: ArrayLike, *, pairs: int = 2000, seed: int = 0, separation: int = 1
) -> dict[str, float]:
    """Floors of EV and FV, geometric means over pairs of frames drawn at random from the reference.

    Two chaotic trajectories of one ensemble are independent samples after some tens of femtoseconds. The
    index-matched metrics are then at these floors, whatever the model.

    Parameters
    ----------
    energies
        Potential energy, shape ``(T,)``, eV.
    forces
        Forces, shape ``(T, N, 3)``, eV/Å.
    pairs
        Number of pairs that are drawn.
    seed
        Seed of the draw.
    separation
        Smallest distance in frames between the two frames of a pair; for a contiguous trajectory, its
        correlation time.

    Returns
    -------
    dict
        ``ev``, ``ev_root`` and ``fv``, dimensionless.

    Raises
    ------
    ValueError
        If energies and forces differ in number, or no pair is that far apart.
    """
    energies, forces = np.asarray(energies, dtype=float), np.asarray(forces, dtype=float)
    if energies.shape != forces.shape[:1]:
        raise ValueError(f"{energies.shape=} but {forces.shape=}; expected (T,) and (T, N, 3)")
    if not 1 <= separation < len(energies):
        raise ValueError(f"{separation=} must lie between 1 and {len(energies) - 1} for these frames")
    first, second = _independent_pairs(len(energies), pairs, seed, separation)
    energy = metrics.energy_violation(energies[first], energies[second])
    force = metrics.force_violation(forces[first], forces[second])
    means = {"ev": energy, "ev_root": np.sqrt(energy), "fv": force}
    return {name: metrics.geometric_mean(values) for name, values in means.items()}


def _independent_pairs(length, pairs, seed, separation):
    """Indices (pairs,), (pairs,) of frames at least `separation` apart, uniform over all such pairs."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(_distinct(rng, length - separation + 1, pairs), axis=0)
    first, second = low, high + separation - 1
    swap = rng.random(pairs) < 0.5
    return np.where(swap, second, first), np.where(swap, first, second)


def _distinct(rng, length, pairs):
    """Two different indices below `length`, shape (2, pairs)."""
    first = rng.integers(length, size=pairs)
    return np.stack([first, (first + rng.integers(1, length, size=pairs)) % length])
