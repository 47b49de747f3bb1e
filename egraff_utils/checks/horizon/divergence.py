"""How fast do two trajectories diverge? Horizons, deviations and growth rates, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from egraff_utils import metrics, statistics
from egraff_utils.checks.horizon.following import DYNAMICS
from egraff_utils.records import Metric

if TYPE_CHECKING:
    from egraff_utils.checks.horizon.course import Course
    from egraff_utils.md.dynamics import Trajectory

THEMSELVES = {"noise": ("langevin", "nve"), "friction": ("driven", "nve"), "control": ("control", "nve")}
"""Name of a comparison of a model with itself -> the two dynamics."""

TIMES = (20.0, 50.0, 100.0, 200.0)
"""Times at which the deviation is reported, fs."""


def measure(
    course: Course, runs: Mapping[str, Trajectory], *, floor: float
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Metrics and curves of simulations along a reference.

    Parameters
    ----------
    course
        :class:`~egraff_utils.checks.horizon.course.Course`.
    runs
        Trajectories as returned by :func:`~egraff_utils.checks.horizon.following.follow`.
    floor
        FV of two unrelated frames of the reference, dimensionless.

    Returns
    -------
    metrics
        ``fv_start``: geometric mean over the starts of FV at t = 0. For every dynamics ``horizon_<name>``,
        fs, with ``horizon_<name>_reached`` (1, or 0 if the simulations ended earlier, in which case the value
        is their length), ``deviation_<name>_<t>``, Å, root mean square distance of an atom from its reference
        at t fs, and ``growth_<name>``, 1/ps (:func:`growth_rate`). The same for the model compared with
        itself: ``horizon_noise``, with and without the thermostat; ``horizon_friction``, with and without the
        friction of the reference; ``horizon_control``; and ``fv_noise``, ``fv_friction``, ``fv_control`` at
        the end of the shorter of the two. Also ``floor_fv`` and ``ms_per_step``.
    curves
        ``time`` (T,) fs, ``start_frame`` (S,), and over the first t of these times ``fv_<name>`` (S, t) and
        ``deviation_<name>`` (S, t) Å.
    """
    moved = {name: run.positions - run.positions[:, :1] for name, run in runs.items()}
    forces = {name: run.forces for name, run in runs.items()}
    pairs: dict[str, Sequence[np.ndarray]] = {
        name: (runs[name].forces, course.forces[name], moved[name], course.moved[name])
        for name in course.forces
    }
    for name, (one, other) in THEMSELVES.items():
        if one in runs:
            starts, frames = np.minimum(forces[one].shape[:2], forces[other].shape[:2])
            pairs[name] = [kind[run][:starts, :frames] for kind in (forces, moved) for run in (one, other)]
    longest = max(course.steps(name) for name in course.forces)
    curves = {"time": np.arange(longest + 1) * course.interval, "start_frame": course.first}
    for name, (force, force_reference, move, move_reference) in pairs.items():
        curves[f"fv_{name}"] = violations(force, force_reference)
        curves[f"deviation_{name}"] = np.sqrt(np.square(move - move_reference).sum(-1).mean(-1))
    found = [_mean("fv_start", curves["fv_nve"][:, 0], "1"), Metric("floor_fv", floor, "1")]
    for name in pairs:
        found += horizon_metrics(name, curves, floor)
    found += [_mean(f"fv_{name}", curves[f"fv_{name}"][:, -1], "1") for name in THEMSELVES if name in pairs]
    found.append(Metric("ms_per_step", np.median(runs["nve"].step_times[3:]) * 1000, "ms"))
    return found, curves


def horizon_metrics(name: str, curves: Mapping[str, np.ndarray], floor: float) -> list[Metric]:
    """Horizon, deviations and growth rate of one dynamics, a list of ``Metric``; see :func:`measure`."""
    fv, deviation = curves[f"fv_{name}"], curves[f"deviation_{name}"]
    t = curves["time"][: fv.shape[1]]
    value = horizon_time(t, fv, floor)
    low, high = quantiles(resamples(t, fv, floor))
    reached = np.isfinite(value)
    found = [
        Metric(f"horizon_{name}", value if reached else t[-1], "fs", min(low, t[-1]), high, len(fv)),
        Metric(f"horizon_{name}_reached", float(reached), "1"),
    ]
    if name in DYNAMICS:
        for moment in TIMES:
            if moment <= t[-1]:
                here = deviation[:, np.argmin(abs(t - moment))]
                found.append(_mean(f"deviation_{name}_{moment:g}", here[np.isfinite(here)], "Å"))
        found.append(_growth(f"growth_{name}", t, deviation, horizon_time(t, fv, floor)))
    return found


def violations(forces: np.ndarray, forces_reference: np.ndarray) -> np.ndarray:
    """FV of every start and frame, shape ``(S, T)``; it is one after a simulation has broken.

    Parameters
    ----------
    forces, forces_reference
        Forces of model and reference, shape ``(S, T, N, 3)``, eV/Å; NaN after a break.

    Examples
    --------
    >>> forces = np.array([[[[1.0, 0, 0]], [[np.nan, 0, 0]]]])
    >>> violations(forces, np.array([[[[3.0, 0, 0]], [[1.0, 0, 0]]]]))
    array([[0.5, 1. ]])
    """
    pairs = zip(forces.astype(float), forces_reference.astype(float), strict=True)
    found = np.stack([metrics.force_violation(f, g) for f, g in pairs])
    return np.where(np.isfinite(found), found, 1.0)


def horizon_time(time: ArrayLike, fv: ArrayLike, floor: float) -> float:
    """Time at which the geometric mean of FV over the starts first reaches half of the floor, fs.

    The mean is taken before the crossing is sought, since FV of a single start oscillates with the bonds and
    may touch half of the floor long before it stays there. The mean is interpolated linearly between two
    frames.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    fv
        FV of every start, shape ``(S, T)``, dimensionless.
    floor
        FV of two unrelated frames, dimensionless.

    Returns
    -------
    float
        Horizon, fs; zero if FV starts above half of the floor, infinite if it does not reach it.

    Examples
    --------
    >>> horizon_time([0.0, 1.0, 2.0], [[0.1, 0.2, 0.4]], floor=0.6)
    1.5
    """
    return float(_crossings(time, _log(fv).mean(0)[None], floor)[0])


def resamples(
    time: ArrayLike, fv: np.ndarray, floor: float, *, count: int = 1000, seed: int = 0
) -> np.ndarray:
    """Horizons of bootstrap resamples of the starts, shape ``(count,)``, fs; infinite where not reached.

    Records with the same number of starts share their draws, so that differences between models are paired.

    Parameters
    ----------
    time, fv, floor
        As in :func:`horizon_time`.
    count, seed
        Number and seed of the draws.
    """
    draws = np.random.default_rng(seed).integers(len(fv), size=(count, len(fv)))
    weights = np.stack([np.bincount(draw, minlength=len(fv)) for draw in draws]) / len(fv)
    return _crossings(time, weights @ _log(fv), floor)


def exchanged_differences(
    time: ArrayLike, one: np.ndarray, other: np.ndarray, floor: float, exchanged: np.ndarray
) -> np.ndarray:
    """Differences of two horizons after exchanges of the curves of some starts, shape ``(count,)``, fs.

    A horizon that is not reached counts as the length of the runs.

    Parameters
    ----------
    time, floor
        As in :func:`horizon_time`.
    one, other
        FV of every start for two models, shape ``(S, T)`` each, dimensionless.
    exchanged
        Whether a start is exchanged, shape ``(count, S)``, booleans.

    Examples
    --------
    >>> one, other = np.array([[0.1, 0.2, 0.4]]), np.array([[0.1, 0.4, 0.4]])
    >>> exchanged_differences([0.0, 1.0, 2.0], one, other, 0.6, np.array([[False], [True]])).round(2).tolist()
    [0.83, -0.83]
    """
    one, other = _log(one), _log(other)
    both, moved = one.sum(0) + other.sum(0), exchanged @ (other - one)
    mean = (one.sum(0) + moved) / len(one)
    end = np.asarray(time, dtype=float)[-1]
    first, second = (_crossings(time, curves, floor) for curves in (mean, both / len(one) - mean))
    return np.minimum(first, end) - np.minimum(second, end)


def _crossings(time: ArrayLike, curves: np.ndarray, floor: float) -> np.ndarray:
    """Times at which logarithmic curves, shape ``(C, T)``, first cross half the floor, shape ``(C,)``, fs."""
    time, curves = np.asarray(time, dtype=float), np.exp(curves)
    above = curves >= floor / 2
    last = np.argmax(above, axis=1)
    rows, before = np.arange(len(curves)), np.maximum(last - 1, 0)
    low, high = curves[rows, before], curves[rows, last]
    part = np.where(last > 0, (floor / 2 - low) / np.where(high > low, high - low, 1.0), 0.0)
    found = time[before] + part * (time[last] - time[before])
    return np.where(above.any(1), found, np.inf)


def _log(fv: ArrayLike) -> np.ndarray:
    return np.log(np.maximum(np.asarray(fv, dtype=float), 1e-12))


def quantiles(values: np.ndarray | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Bounds of the central ``level`` of resampled values; infinite values count as the largest."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(values, ends, method="nearest")
    return float(low), float(high)


def growth_rate(time: ArrayLike, deviation: ArrayLike, end: float) -> float:
    r"""Exponential rate at which two trajectories diverge, 1/ps.

    It is the slope of the mean over starts of :math:`\ln d(t)`, by least squares over the second half of the
    time before ``end``. In the first half, a distance caused by force errors grows like :math:`t^2`.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    deviation
        Distance d of the two trajectories, shape ``(S, T)``, Å.
    end
        End of the time that is used, fs.

    Returns
    -------
    float
        Rate, 1/ps; NaN if there are fewer than ten frames in that time.

    Examples
    --------
    >>> t = np.arange(101.0)
    >>> round(growth_rate(t, np.exp(0.02 * t)[None], end=80.0), 6)
    20.0
    """
    time = np.asarray(time, dtype=float)
    chosen = (time >= min(end, time[-1]) / 2) & (time <= end)
    if chosen.sum() < 10:
        return float("nan")
    curve = np.log(np.maximum(np.asarray(deviation)[:, chosen], 1e-9))
    curve = curve[np.isfinite(curve).all(1)].mean(0)
    return float(np.polyfit(time[chosen] / 1000, curve, 1)[0])


def _growth(name: str, time: np.ndarray, deviation: np.ndarray, end: float) -> Metric:
    sound = np.isfinite(deviation).all(1)
    if not sound.any():
        return Metric(name, None, "1/ps", n=0)
    draws = np.random.default_rng(0).integers(sound.sum(), size=(200, sound.sum()))
    rates = [growth_rate(time, deviation[sound][draw], end) for draw in draws]
    low, high = quantiles(rates)
    return Metric(name, growth_rate(time, deviation[sound], end), "1/ps", low, high, int(sound.sum()))


def _mean(name: str, values: np.ndarray, unit: str) -> Metric:
    """Metric whose value is the geometric mean over starts, with its interval."""
    values = np.maximum(np.asarray(values, dtype=float), 1e-12)
    if not len(values):
        return Metric(name, None, unit, n=0)
    low, high = statistics.bootstrap_interval(np.log(values))
    return Metric(name, np.exp(np.log(values).mean()), unit, np.exp(low), np.exp(high), len(values))
