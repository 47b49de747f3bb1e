"""What does a metric say of a replica, of a block of its time, and of all replicas? Values come from curves.

Symbols: R replicas, T recorded frames, B bins, K blocks of equal time.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from egraff_utils import metrics, quantities, statistics
from egraff_utils.records import Metric, Record

BLOCKS = 10
"""Number of blocks of equal time that a rollout is cut into; intervals are obtained by resampling them."""
STRUCTURE = {
    "rdf": {"wf": metrics.wright_factor, "jsd": metrics.jsd, "jsd_raw": metrics.jsd_raw},
    "bonds": {"bond_jsd": metrics.jsd},
    "angles": {"angle_jsd": metrics.jsd},
    "spectrum": {"spectrum_jsd": metrics.jsd},
}
"""Distribution -> metric -> function that compares it with that of the reference, each of shape ``(B,)``."""


def replica_values(curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One value per replica of every metric that the curves of a rollout determine.

    Parameters
    ----------
    curves
        Curves as returned by :func:`egraff_utils.md.analysis.measure`.

    Returns
    -------
    dict of ndarray
        Shape ``(R,)``: geometric means over time, without the start, of ``ev``, ``ev_root``, ``fv``; means
        over the last tenth of the time of ``rmsd`` and ``deviation`` (Å); mean ``temperature`` (K); ``wf``
        (%), ``jsd``, ``jsd_raw``, of molecules ``bond_jsd`` and ``angle_jsd``, and where there is a spectrum
        ``spectrum_jsd`` (nats); ``stable_steps``. NaN where a replica has no value.
    """
    return {name: _row_means(values) for name, values in block_values(curves).items()}


def _row_means(values: np.ndarray) -> np.ndarray:
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(1) / present.sum(1)


def block_values(curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    r"""Contribution of each block to a metric of its replica; the mean over blocks is the replica's value.

    A metric :math:`\theta` of a mean over time (of g(r) or of a logarithm) has no meaningful value for a
    single block: Wright's factor of a short stretch is mostly noise, whose variance adds to the metric. A
    block is therefore assigned the jackknife's pseudo-value, without its bias correction,

    .. math:: \theta_k = \theta + (K - 1)\Big(\frac1K \sum_l \theta_{-l} - \theta_{-k}\Big)

    Intervals and resamples of these values describe the metric of runs of this length, whose own noise is
    part of the value. Drawing blocks and recomputing the metric would describe runs that are twice as noisy.

    Parameters
    ----------
    curves
        Curves as returned by :func:`egraff_utils.md.analysis.measure` or :func:`pool`. Without ``rdf_blocks``
        (older records) a replica is one block for the metrics of structure.

    Returns
    -------
    dict of ndarray
        Shape ``(R, K)``, NaN where a replica has no frames; ``rmsd``, ``deviation`` and ``stable_steps``,
        which refer to the end of a run, have shape ``(R, 1)``. Names and units are those of
        :func:`replica_values`.
    """
    found = {}
    for name, average in quantities.averaged().items():
        if f"{name}_blocks" in curves:
            found[name] = np.asarray(curves[f"{name}_blocks"], dtype=float)
        elif average in AVERAGES and name in curves:
            found[name] = AVERAGES[average](curves[name])
        elif average in STRUCTURE and f"{average}_reference" in curves:
            found[name] = _structure_values(curves, average, STRUCTURE[average][name])
    if "ev_root" in curves:
        sums = _block_sums(_simulated(curves["ev_root"]), np.log)
        found["ev"] = _pseudo_values(*sums, lambda logs: np.exp(2 * logs[..., 0]))
    return found | {"stable_steps": np.asarray(curves["stable_step"], dtype=float)[:, None]}


def _structure_values(
    curves: Mapping[str, np.ndarray], distribution: str, compare: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """Pseudo-values of a metric of a distribution; values of whole replicas where blocks are not stored."""
    reference = np.asarray(curves[f"{distribution}_reference"], dtype=float)
    if f"{distribution}_blocks" in curves:
        frames = np.asarray(curves["block_frames"], dtype=float)
        g = np.nan_to_num(np.asarray(curves[f"{distribution}_blocks"], dtype=float))
    else:
        g = np.asarray(curves[distribution], dtype=float)[:, None]
        frames = g.any(-1).astype(float)

    def score(means: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(lambda g: compare(g, reference) if g.any() else np.nan, -1, means)

    return _pseudo_values(g * frames[..., None], frames, score)


def _geometric(curve: np.ndarray) -> np.ndarray:
    return _pseudo_values(*_block_sums(_simulated(curve), np.log), lambda logs: np.exp(logs[..., 0]))


def _simulated(curve: np.ndarray) -> np.ndarray:
    """The curve (R, T) without its first frame, unless there is no other.

    That frame is the start, which a model shares with its reference. Its violation is the error of the model
    on one given frame, up to a hundred times smaller than the others, and moves the mean of logarithms of a
    run of 1000 frames by more than the width of many floors.
    """
    curve = np.asarray(curve)
    return curve[:, 1:] if curve.shape[1] > 1 else curve


def _arithmetic(curve: np.ndarray) -> np.ndarray:
    return _pseudo_values(*_block_sums(curve), lambda means: means[..., 0])


def _late(curve: np.ndarray) -> np.ndarray:
    return np.array([[_late_mean(values)] for values in curve])


def _late_mean(curve: np.ndarray) -> float:
    """Mean over the last tenth of the frames that have a value."""
    values = curve[np.isfinite(curve)]
    return values[-max(1, len(values) // 10) :].mean() if len(values) else np.nan


AVERAGES = {"geometric": _geometric, "arithmetic": _arithmetic, "late": _late}
"""Functions that give values of blocks from a curve (R, T), by
:attr:`~egraff_utils.quantities.Quantity.average`."""


def _block_sums(
    curve: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = lambda values: values
) -> tuple[np.ndarray, np.ndarray]:
    """Sums (R, K, 1) and counts (R, K) of the finite transformed values of a curve, in blocks.

    A zero, which has no logarithm, is left out. Where all values of a replica are zero, its sums are minus
    infinity.
    """
    bounds = np.linspace(0, curve.shape[1], BLOCKS + 1).astype(int)
    with np.errstate(divide="ignore"):
        values = transform(np.asarray(curve, dtype=float))
    some = np.isfinite(values).any(1, keepdims=True)
    present = np.where(some, np.isfinite(values), ~np.isnan(values))
    values = np.where(present, values, 0)
    cut = [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]
    sums = np.stack([values[:, block].sum(1) for block in cut], axis=1)
    return sums[..., None], np.stack([present[:, block].sum(1) for block in cut], axis=1).astype(float)


def _pseudo_values(
    sums: np.ndarray, counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Pseudo-values (R, K) of a score of means, from the sums (R, K, D) and counts (R, K) of blocks."""
    blocks = (counts > 0).sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = score(sums.sum(1) / counts.sum(1)[:, None])[:, None]
        left = score((sums.sum(1, keepdims=True) - sums) / (counts.sum(1, keepdims=True) - counts)[..., None])
    usable = (counts > 0) & (blocks > 1) & np.isfinite(left)
    mean = _row_means(np.where(usable, left, np.nan))[:, None]
    moved = np.where(usable, (blocks - 1) * (mean - left), 0.0)
    return np.where(counts > 0, whole + moved, np.nan)


def summary(name: str, values: ArrayLike, *, groups: Sequence[str] | np.ndarray | None = None) -> Metric:
    """Mean over replicas with its 95 % interval, a :class:`~egraff_utils.records.Metric`.

    :attr:`~egraff_utils.quantities.Quantity.interval` decides whether the interval is that of
    :func:`~egraff_utils.statistics.replica_interval`, on a linear or a logarithmic scale, that of
    :func:`~egraff_utils.statistics.fraction_interval`, or absent. The interval covers the mean over many
    replicas of this length from such starts, including the noise of that length; it does not cover the
    variation between trainings.

    Parameters
    ----------
    name
        Name of the metric.
    values
        One value per replica, shape ``(R,)``, or one per block, ``(R, K)``, as from :func:`block_values`. A
        replica without a value is left out.
    groups
        Name of the group of each replica, shape ``(R,)``, if replicas differ by design.
    """
    values = np.asarray(values, dtype=float)
    values = values if values.ndim == 2 else values[:, None]
    means = _row_means(values)
    count = int(np.isfinite(means).sum())
    if not count:
        return Metric.of(name, None, n=0)
    scale = quantities.of(name).interval
    bounds: tuple[float | None, float | None] = (None, None)
    if scale == "fraction":
        bounds = statistics.fraction_interval(means)
    elif scale:
        bounds = statistics.replica_interval(values, groups=groups, positive=scale == "log")
    return Metric.of(name, np.nanmean(means), *bounds, count)


def pool(parts: Mapping[str, Record]) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Metrics and curves over all replicas of one model's rollouts of several compositions.

    Parameters
    ----------
    parts
        ``{composition: Record}`` of rollouts.

    Returns
    -------
    metrics : list of Metric
        Metrics as in :func:`egraff_utils.md.analysis.measure`; costs are means over the parts.
    curves : dict
        Curves over time, NaN after the end of a shorter part, and ``composition`` (R,).
    """
    found = [record.curves for record in parts.values()]
    time = max((curves["time"] for curves in found), key=len)
    curves = {"time": time}
    for name in ("ev_root", "fv", "rmsd", "temperature"):
        curves[name] = np.concatenate([_pad(c[name], len(time)) for c in found])
    for name in ("stable_step", "start_temperature"):
        if all(name in c for c in found):
            curves[name] = np.concatenate([c[name] for c in found])
    replicas = [len(c["stable_step"]) for c in found]
    curves["composition"] = np.repeat(list(parts), replicas)
    each = [block_values(c) for c in found]
    values = {name: stacked([v[name] for v in each]) for name in each[0] if all(name in v for v in each)}
    scores = [name for metrics_of in STRUCTURE.values() for name in metrics_of if name in values]
    curves |= {f"{name}_blocks": values[name].astype(np.float32) for name in scores}
    values["stable_fraction"] = np.concatenate([stable_fractions(r) for r in parts.values()])
    ordered = [
        summary(name, values[name], groups=curves["composition"])
        for name in quantities.averaged()
        if name in values
    ]
    for name in ("ms_per_step", "replica_steps_per_second", "steps", "reference_contiguous"):
        ordered.append(Metric.of(name, float(np.mean([record[name] for record in parts.values()]))))
    return ordered, curves


def stable_fractions(record: Record) -> np.ndarray:
    """Stable fraction of every replica of a rollout, shape ``(R,)``, dimensionless.

    A replica that reached the end of the simulation is stable, even if the simulation ended early.
    """
    stable = record.curves["stable_step"]
    return np.where(stable < record["steps"], stable / record.parameters["steps"], 1.0)


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Values (R, K) of several records, concatenated along R; NaN where a record has fewer blocks."""
    return np.concatenate([_pad(part, max(p.shape[1] for p in parts)) for part in parts])


def _pad(curve: np.ndarray, length: int) -> np.ndarray:
    """A curve (R, T), padded with NaN to ``length`` frames."""
    return np.pad(curve, [(0, 0), (0, length - curve.shape[1])], constant_values=np.nan)
