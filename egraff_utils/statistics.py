"""How sure is a number? Intervals by resampling, correlation in time, floors from the reference itself."""

import numpy as np

from egraff_utils import metrics
from egraff_utils.structure import radial_distributions


def bootstrap_interval(values, statistic=np.mean, *, level=0.95, seed=0, resamples=2000):
    """Percentile bootstrap interval of a statistic of independent values (Efron 1979).

    Few values make it too narrow: of five normal values, the 95 % interval covers the mean in some 84 % of
    cases, of twenty in 92 %.

    Parameters
    ----------
    values
        Independent values along the first axis, shape ``(n, ...)``.
    statistic
        Function of resampled values, such as ``np.mean`` or ``metrics.geometric_mean``, giving a number.
    level
        Coverage aimed at, between 0 and 1.
    seed
        Seed of the resampling.
    resamples
        Number of resamples.

    Returns
    -------
    low, high
        In the unit of the statistic; both nan for fewer than two values or where a statistic is nan.

    Examples
    --------
    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=float)
    starts = _draw(len(values), (resamples, len(values)), seed)
    return _interval(values, starts, statistic, level)


def block_bootstrap_interval(series, statistic=np.mean, *, block=None, level=0.95, seed=0, resamples=2000):
    r"""Bootstrap interval of a statistic of a correlated series, by moving blocks (Künsch 1989).

    Resamples are made of whole blocks of consecutive frames, so they keep the correlation within a block.
    Without ``block`` its length is the optimum of Politis & White (2004) for a first-order autoregression
    with the series' autocorrelation time :math:`\tau`,

    .. math:: b = \Big( \tfrac32 \Big( \frac{\tau^2 - 1}{2\tau} \Big)^2 n \Big)^{1/3}

    Parameters
    ----------
    series
        Frames along the first axis, shape ``(T, ...)``; ``block`` is needed unless the shape is ``(T,)``.
    statistic, level, seed, resamples
        As in :func:`bootstrap_interval`.
    block
        Length of a block in frames.

    Returns
    -------
    low, high
        As in :func:`bootstrap_interval`.

    Raises
    ------
    ValueError
        If ``block`` is not between 1 and T.
    """
    series = np.asarray(series, dtype=float)
    block = _block_length(series) if block is None else block
    if not 1 <= block <= max(1, len(series)):
        raise ValueError(f"{block=} must lie between 1 and the {len(series)} frames of the series")
    count = -(-len(series) // block)
    starts = _draw(len(series) - block + 1, (resamples, count), seed)
    picks = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, : len(series)]
    return _interval(series, picks, statistic, level)


def _draw(high, shape, seed):
    return np.random.default_rng(seed).integers(max(1, high), size=shape)


def _block_length(series):
    time = autocorrelation_time(series)
    if not time > 1:
        return 1
    length = (1.5 * ((time**2 - 1) / (2 * time)) ** 2 * len(series)) ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, max(1, len(series) // 2)))


def _interval(values, picks, statistic, level):
    if not 0 < level < 1:
        raise ValueError(f"{level=} must lie between 0 and 1")
    if len(values) < 2:
        return float("nan"), float("nan")
    found = [statistic(values[pick]) for pick in picks]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def autocorrelation_time(series, *, window=5.0):
    r"""Integrated autocorrelation time of a series, in frames.

    .. math:: \tau = 1 + 2 \sum_{k=1}^{M} \rho_k

    with M the smallest lag that is at least ``window`` times the estimate so far (Sokal 1997). A series of T
    frames holds :math:`T / \tau` independent ones; it must be some 50 times as long as the result for the
    result to be reliable.

    Parameters
    ----------
    series
        Shape ``(T,)``, any unit.
    window
        Width of the window, in autocorrelation times.

    Returns
    -------
    float
        Frames, at least 1 (anticorrelation counts as none); nan for a constant series or one that is not
        finite.

    Raises
    ------
    ValueError
        If the series is not one-dimensional.

    Examples
    --------
    >>> series = np.repeat(np.random.default_rng(0).normal(size=1000), 5)  # each value lasts five frames
    >>> 4 < autocorrelation_time(series) < 6
    True
    """
    series = np.asarray(series, dtype=float)
    if series.ndim != 1:
        raise ValueError(f"a series must have shape (T,), not {series.shape}")
    if not np.isfinite(series).all() or np.ptp(series) == 0 or len(series) < 2:
        return float("nan")
    spectrum = np.fft.rfft(series - series.mean(), 2 * len(series))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(series)]
    times = 2 * np.cumsum(correlation / correlation[0]) - 1
    enough = np.arange(len(times)) >= window * times
    return max(1.0, float(times[np.argmax(enough) if enough.any() else -1]))


def floor(reference, metric, *, summarize=lambda frames: np.mean(frames, axis=0)):
    """Floor of a metric: what it gives between the first half and the second half of the reference itself.

    A model cannot be asked to do better; a metric at its floor says nothing of the model.

    Parameters
    ----------
    reference
        Frames along the first axis, shape ``(T, ...)``.
    metric
        Function of the two summaries, such as ``metrics.wright_factor``.
    summarize
        Function of a half, giving what the metric compares; the mean over frames without it.

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


def floor_rdf(positions, numbers, *, cell, pbc, r_max, dr=0.05):
    """Floors of Wright's factor and both divergences: first half of the reference against the second.

    Parameters
    ----------
    positions, numbers, cell, pbc, r_max, dr
        The reference trajectory, as in :func:`egraff_utils.structure.radial_distributions`; one cell.

    Returns
    -------
    dict
        ``wf`` in percent, ``jsd`` and ``jsd_raw`` in nats.
    """

    def summarize(half):
        return radial_distributions(half, numbers, cell=cell, pbc=pbc, r_max=r_max, dr=dr).total

    measures = {"wf": metrics.wright_factor, "jsd": metrics.jsd, "jsd_raw": metrics.jsd_raw}

    def compare(g, g_ref):
        return {name: measure(g, g_ref) for name, measure in measures.items()}

    return floor(positions, compare, summarize=summarize)


def floor_ev_fv(energies, forces, *, pairs=2000, seed=0, separation=1):
    """Floors of EV and FV: geometric means over pairs of frames drawn at random from the reference.

    Two chaotic trajectories of one ensemble are independent samples after some tens of femtoseconds; then
    the index-matched metrics sit here, whatever the model.

    Parameters
    ----------
    energies
        Potential energy, shape ``(T,)``, eV.
    forces
        Shape ``(T, N, 3)``, eV/Å.
    pairs
        Number of pairs drawn.
    seed
        Seed of the draw.
    separation
        Least distance of the frames of a pair; for a contiguous trajectory, its correlation time in frames.

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
