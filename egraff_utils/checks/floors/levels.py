"""What does the reference score against itself? Levels of structure, EV, FV and RMSD, with their ranges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.special import ndtr

from egraff_utils import metrics, statistics
from egraff_utils.checks.floors.sample import DRAWS, Extent, Sample, gram_of, violations
from egraff_utils.md import averages


def independent(sample: Sample, extent: Extent) -> dict[str, np.ndarray | float]:
    """Draws of all metrics of an independent trajectory, see `floors.of_rollout`."""
    total = len(sample.rdf)
    hidden = not sample.ordered and order_shows(sample.rdf)
    lengths = extent._replace(frames=total // 2, reference=total - total // 2) if hidden else extent
    found: dict[str, np.ndarray | float] = {}
    for name, frames in sample.distributions.items():
        used = frames if name == "rdf" else frames[:, frames.any(0)]  # nine in ten bins are empty
        found |= structure_floor(used, lengths, ordered=sample.ordered or hidden, distribution=name)
    apart = separation(sample.energies, sample.forces) if sample.ordered else None
    found |= violation_floor(sample.energies, sample.forces, extent, apart=apart)
    if sample.ordered:
        found["draws_rmsd"] = displacement_floor(sample.path, extent)
    return found


def order_shows(rdf: np.ndarray, *, draws: int = 200, seed: int = 0) -> bool:
    """Whether the two halves of a set as stored differ more than 97.5 % of random halves, by Wright's factor.

    Parameters
    ----------
    rdf
        g(r) of every frame, shape ``(F, B)``, dimensionless.
    draws, seed
        Number of random halves, and seed of their draw.

    Examples
    --------
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(40, 20))
    >>> order_shows(rdf), order_shows(np.sort(rdf, axis=0))
    (False, True)
    """
    half = len(rdf) // 2
    if not half:
        return False
    stored = metrics.wright_factor(rdf[:half].mean(0), rdf[half:].mean(0))
    options: dict[str, Any] = {"ordered": False, "distribution": "rdf", "draws": draws, "seed": seed}
    shuffled = _scores(rdf, 1, half, len(rdf) - half, **options)["wf"]
    return bool(stored > np.quantile(shuffled, 0.975))


def structure_floor(
    rdf: np.ndarray,
    extent: Extent,
    *,
    ordered: bool,
    distribution: str = "rdf",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray | float]:
    """Structure metrics of an independent trajectory, from g(r), or another distribution, of single frames.

    Parameters
    ----------
    rdf
        Distribution of every frame, shape ``(F, B)``, dimensionless.
    extent
        :class:`Extent` of the rollout.
    ordered
        Whether the frames are ordered in time; otherwise they count as independent.
    distribution
        Name of the distribution, a key of ``egraff_utils.md.averages.STRUCTURE``.
    draws, seed
        Number of hypothetical rollouts, and seed of the places or draws of their blocks.

    Returns
    -------
    dict
        ``draws_<metric>`` (D,) in the unit of the metric (all nan if there are too few frames for R blocks),
        ``exponent_<metric>``, ``scale_<metric>``, and of g(r) ``rdf_spread`` (2, B), its scatter.

    Examples
    --------
    >>> from egraff_utils.checks.floors import Extent
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(400, 50))
    >>> found = structure_floor(rdf, Extent(1, 100, 100, (100,)), ordered=False)
    >>> bool(0.017 < found["draws_wf"].mean() < 0.023)  # (1/100 + 1/100) of a variance of 1 over 10**2, in %
    True
    """
    total = len(rdf)
    block = min(extent.frames, total // 2)
    sizes = [size for size in dict.fromkeys((total // 2, total // 4, total // 8)) if size]
    fewer = -(-draws // 5)  # for means, which need no tails
    options: dict[str, Any] = {"ordered": ordered, "distribution": distribution}
    measured = {
        size: _scores(rdf, 1, size, total - size, draws=fewer, seed=seed, **options)
        for size in {block, *sizes}
    }
    share = min(1.0, total / (extent.replicas * extent.frames + extent.reference))
    scaled = max(1, int(share * extent.frames))
    rest = min(total - extent.replicas * scaled, max(1, round(share * extent.reference)))
    options |= {"draws": draws, "seed": seed + 1}
    several = _scores(rdf, extent.replicas, scaled, rest, **options) if rest > 0 else None
    found: dict[str, np.ndarray | float] = {}
    for name in averages.STRUCTURE[distribution]:
        means = {size: scores[name].mean() for size, scores in measured.items()}
        power = _power([1 / size + 1 / (total - size) for size in sizes], [means[size] for size in sizes])
        wanted, had = 1 / extent.frames + 1 / extent.reference, 1 / block + 1 / (total - block)
        scale = (wanted / had) ** power
        relative = several[name] / several[name].mean() if several else np.full(draws, np.nan)
        if ordered:
            relative = relative * _level(measured[block][name], total // block - 1, draws, seed)
        found |= {f"draws_{name}": means[block] * scale * relative}
        found |= {f"exponent_{name}": power, f"scale_{name}": scale}
    if total >= 2 and distribution == "rdf":
        exponent = float(found["exponent_wf"])
        found["rdf_spread"] = rdf_spread(
            rdf, extent, block, exponent, ordered=ordered, draws=draws, seed=seed
        )
    return found


def rdf_spread(
    rdf: np.ndarray,
    extent: Extent,
    block: int,
    power: float,
    *,
    ordered: bool,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """Half-width of the 95 % range of g(r) of an independent trajectory about the reference's.

    Blocks of the reference are compared with the rest of it. The squares of the differences scale like
    Wright's factor, so its exponent is used to extrapolate them to the lengths of rollout and reference.

    Parameters
    ----------
    rdf
        g(r) of every frame, shape ``(F, B)``, dimensionless.
    extent
        :class:`Extent` of the rollout.
    block
        Number of frames in a block.
    power
        Exponent of Wright's factor, see :func:`of_rollout`.
    ordered, draws, seed
        As in :func:`structure_floor`.

    Returns
    -------
    ndarray
        Half-widths for a single replica and for the mean over all replicas, shape ``(2, B)``, dimensionless.

    Examples
    --------
    >>> from egraff_utils.checks.floors import Extent
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(400, 50))
    >>> spread = rdf_spread(rdf, Extent(4, 100, 400, (100,)), 100, 1.0, ordered=False)
    >>> [round(float(x), 1) for x in spread.mean(1) * 10 / 1.96]  # roots of 1/100 + 1/400, 1/400 + 1/400
    [1.1, 0.7]
    """
    total, rng = len(rdf), np.random.default_rng(seed)
    apart = np.empty((draws, rdf.shape[1]))
    for draw in range(draws):
        order = _order(rng, total, ordered)
        apart[draw] = rdf[order[:block]].mean(0) - rdf[order[block:]].mean(0)
    had = 1 / block + 1 / (total - block)
    wanted = np.array([1 / extent.frames, 1 / (extent.replicas * extent.frames)]) + 1 / extent.reference
    return np.quantile(np.abs(apart), 0.95, axis=0) * (wanted[:, None] / had) ** (power / 2)


def _order(rng: np.random.Generator, total: int, ordered: bool) -> np.ndarray:
    """Indices of all frames from a random one onwards, cyclically; shuffled if they have no order in time."""
    return np.roll(np.arange(total), -rng.integers(total)) if ordered else rng.permutation(total)


def _scores(
    rdf: np.ndarray,
    replicas: int,
    block: int,
    rest: int,
    *,
    ordered: bool,
    distribution: str,
    draws: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean scores of blocks against a separate rest, ``{metric: (draws,)}``."""
    rng, total = np.random.default_rng(seed), len(rdf)
    compare = averages.STRUCTURE[distribution]
    rows = np.empty((draws, len(compare)))
    for draw in range(draws):
        order = _order(rng, total, ordered)
        inside, outside = order[: replicas * block], order[replicas * block :][:rest]
        blocks, reference = rdf[inside].reshape(replicas, block, -1).mean(1), rdf[outside].mean(0)
        rows[draw] = [np.mean([f(g, reference) for g in blocks]) for f in compare.values()]
    return dict(zip(compare, rows.T, strict=True))


def _level(scores: np.ndarray, apart: int, draws: int, seed: int) -> np.ndarray:
    """Relative scatter, shape (draws,), of a mean score that is determined from only a few blocks."""
    picks = np.random.default_rng(seed).integers(len(scores), size=(draws, max(1, apart)))
    return scores[picks].mean(1) / scores.mean()


def _power(lengths: Sequence[float], scores: Sequence[float]) -> float:
    """Exponent p of scores ~ lengths**p, restricted to between 0 (no scaling) and 1 (no correlation)."""
    if len(scores) < 2 or min(scores) <= 0:
        return 0.0
    return float(np.clip(np.polyfit(np.log(lengths), np.log(scores), 1)[0], 0.0, 1.0))


def separation(energies: np.ndarray, forces: np.ndarray) -> int:
    """Number of frames after which a trajectory is uncorrelated with its past.

    It is the larger of the autocorrelation time of the energy and the first zero of the autocorrelation of
    the forces, but at most a quarter of the trajectory.

    Parameters
    ----------
    energies, forces
        Energies and forces in order of time, shapes ``(F,)``, eV, and ``(F, N, 3)``, eV/Å.
    """
    gram = gram_of(forces)
    quarter = max(1, len(gram) // 4)
    decay = [np.trace(gram, lag) for lag in range(quarter + 1)]
    zero = next((lag for lag, value in enumerate(decay) if value <= 0), quarter)
    energy = statistics.autocorrelation_time(energies)
    return int(min(quarter, max(1, zero, np.ceil(energy) if np.isfinite(energy) else 1)))


def violation_floor(
    energies: np.ndarray,
    forces: np.ndarray,
    extent: Extent,
    *,
    apart: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """EV and FV of a trajectory that is independent of the reference.

    Parameters
    ----------
    energies, forces
        Energies and forces, shapes ``(F,)``, eV, and ``(F, N, 3)``, eV/Å.
    extent
        :class:`Extent` of the rollout.
    apart
        Number of frames after which the reference is uncorrelated. A stretch of it is compared with the
        stretch that follows after a random lag of at least this length (the end is joined to the beginning).
        With None, for frames without an order in time, stretches are drawn by ``energy_path`` and every
        frame of them is compared with another one drawn at random.
    draws, seed
        Number of hypothetical rollouts, and seed of their draws.

    Returns
    -------
    dict
        ``draws_ev_root`` and ``draws_fv``, geometric means over time averaged over replicas, shape ``(D,)``,
        dimensionless.
    """
    rng, total = np.random.default_rng(seed), len(energies)

    def pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
        if apart is None:
            first = energy_path(energies, (draws, count), extent.memory, rng)
            return first, (first + rng.integers(1, total, size=first.shape)) % total
        first = rng.integers(total, size=(draws, 1)) + np.arange(count)
        return first % total, (first + rng.integers(apart, total - apart + 1, size=(draws, 1))) % total

    return violations(energies, forces, [pairs(count) for count in extent.compared])


def energy_path(
    energies: np.ndarray, shape: tuple[int, int], memory: float, rng: np.random.Generator
) -> np.ndarray:
    r"""Frames of a set without an order in time, drawn such that energies are correlated as in a simulation.

    In a nearly isolated system energy only flows between its kinetic and its potential part. For harmonic
    vibrations the potential energy therefore has half of its variance within one simulation, as it changes
    in a few femtoseconds, and the other half between simulations, as the total energy changes only by the
    thermostat, in the time :math:`1/\gamma`. A path of normal scores has these two parts, an autoregression
    and white noise. It is mapped onto the frames by their rank in energy, so that every frame is drawn
    equally often.

    Parameters
    ----------
    energies
        Potential energies of the set, shape ``(F,)``, eV.
    shape
        Number of paths and number of frames in each.
    memory
        Time in which the thermostat changes the total energy, in frames of the path; zero for independent
        frames.
    rng
        ``numpy.random.Generator``.

    Returns
    -------
    ndarray
        Indices of frames, of the given shape.

    Examples
    --------
    >>> path = energy_path(np.arange(1000.0), (300, 50), np.inf, np.random.default_rng(0))
    >>> means = path.mean(1) / path.std()  # half of the variance is between paths
    >>> bool(0.4 < means.var() < 0.6)
    True
    """
    keep, slow = np.exp(-1 / memory) if memory > 0 else 0.0, rng.standard_normal(shape)
    slow[:, 1:] *= np.sqrt(1 - keep**2)
    scores = np.sqrt(0.5) * (lfilter([1], [1, -keep], slow, axis=1) + rng.standard_normal(shape))
    return np.argsort(energies)[(ndtr(scores) * len(energies)).astype(int)]


def displacement_floor(path: np.ndarray, extent: Extent, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """RMSD at saturation, that of the reference itself in the last tenth of the rollout's time.

    The relative range is that of displacements over a time that fits R + 1 times into the reference.

    Parameters
    ----------
    path
        Unwrapped positions in order of time, shape ``(F, N, 3)``, Å.
    extent
        :class:`Extent` of the rollout.
    draws, seed
        Number of hypothetical rollouts, and seed of their draws.

    Returns
    -------
    ndarray
        RMSD of every draw, shape ``(D,)``, Å; nan if the reference is too short.
    """
    total, last = len(path), extent.frames - 1
    lags = np.arange(max(1, int(np.ceil(0.9 * last))), min(last, total - 1) + 1)
    if not len(lags):
        return np.full(draws, np.nan)
    mean = np.mean([_displaced(path, lag).mean() for lag in lags.tolist()])
    short = _displaced(path, max(1, min(last, total // (extent.replicas + 1))))
    starts = np.random.default_rng(seed).integers(len(short), size=(draws, extent.replicas))
    return mean * short[starts].mean(1) / short.mean()


def _displaced(path: np.ndarray, lag: int) -> np.ndarray:
    """Root mean square displacement over a lag from every start, shape (F - lag,), Å."""
    return np.sqrt(np.square(path[lag:] - path[:-lag]).sum(-1).mean(-1))
