"""Which of two ways to do the same work is faster, and by what factor?"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from egraff_utils.records import Metric

RANGE = (10, 90)
"""Percentiles over the pairs that are reported as low and high with a median."""


class Comparison(NamedTuple):
    """Times of P pairs of calls and their statistics, from `compare`."""

    ratio: float
    """Median over pairs of the ratio of their time to ours; above one, ours is faster."""
    low: float
    """10th percentile of the ratios of the pairs."""
    high: float
    """90th percentile of the ratios of the pairs."""
    ours: float
    """Median time of one of our calls, s."""
    theirs: float
    """Median time of one of their calls, s."""
    pairs: int
    times_ours: np.ndarray
    """Times of our calls, shape ``(P,)``, s."""
    times_theirs: np.ndarray
    """Times of their calls, shape ``(P,)``, s; calls with the same index were made one after the other."""

    @classmethod
    def of(cls, times_ours: ArrayLike, times_theirs: ArrayLike) -> "Comparison":
        """Comparison of two lists of times, shape ``(P,)``, s.

        >>> Comparison.of([1.0, 1.0, 2.0], [2.0, 3.0, 8.0]).ratio
        3.0
        """
        ours, theirs = np.asarray(times_ours, dtype=float), np.asarray(times_theirs, dtype=float)
        ratios = theirs / ours
        low, high = np.percentile(ratios, RANGE)
        ratio, mine, other = (float(np.median(values)) for values in (ratios, ours, theirs))
        return cls(ratio, float(low), float(high), mine, other, len(ratios), ours, theirs)

    def metrics(self, name: str | int = "", *, unit_per_call: float = 1.0, unit: str = "1/s") -> list[Metric]:
        """Metrics ``ratio_<name>``, and throughputs ``ours_<name>`` and ``theirs_<name>``.

        Parameters
        ----------
        name
            Suffix that distinguishes comparisons in one record; without it the metrics are ``ratio``,
            ``ours`` and ``theirs``.
        unit_per_call
            Work done in one call, such as replicas times steps.
        unit
            Unit of the throughputs.

        Returns
        -------
        list of Metric
            Medians with the 10th and 90th percentiles over the pairs.
        """
        tail = f"_{name}" if name else ""
        ratio = Metric(f"ratio{tail}", self.ratio, "1", self.low, self.high, self.pairs)
        sides = (("ours", self.times_ours), ("theirs", self.times_theirs))
        return [ratio, *(_throughput(f"{side}{tail}", unit_per_call / times, unit) for side, times in sides)]

    def curves(self, name: str | int = "") -> dict[str, np.ndarray]:
        """All times by name, ``times_ours_<name>`` and ``times_theirs_<name>``, shape ``(P,)``, s."""
        tail = f"_{name}" if name else ""
        return {f"times_ours{tail}": self.times_ours, f"times_theirs{tail}": self.times_theirs}


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    seconds: float = 20.0,
    least: int = 5,
    most: int = 50,
    warm_up: int = 2,
    rest: float = 0.0,
    synchronize: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Comparison of two callables that do the same amount of work, interleaved in one process.

    After `warm_up` calls of each they run in pairs, ours first and theirs first alternately, until `seconds`
    have passed. If the machine slows down or is shared, both are slowed down, and the ratio of a pair is not
    affected.

    Parameters
    ----------
    ours, theirs
        Callables without arguments.
    seconds
        Time after which no further pair is begun, without the warm-up, s.
    least, most
        Smallest number of pairs, whatever their time, and largest number.
    warm_up
        Number of untimed calls of each.
    rest
        Pause before each call, s.
    synchronize
        Function that waits until a device is done, such as ``torch.cuda.synchronize``; it is called before a
        time is read.
    clock
        Function that returns a time in seconds; ``time.process_time`` for work in one thread on a shared
        machine.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If no pair would run.
    """
    if not 1 <= least <= most:
        raise ValueError(f"{least=} and {most=}: pairs must be at least one, and least no more than most")
    for call in (*[ours] * warm_up, *[theirs] * warm_up):
        call()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    order, begun = [("ours", ours), ("theirs", theirs)], clock()
    while (pairs := len(times["ours"])) < least or (pairs < most and clock() - begun < seconds):
        for side, call in order:
            time.sleep(rest)
            times[side].append(_time(call, synchronize, clock))
        order.reverse()
    return Comparison.of(times["ours"], times["theirs"])


def same(ours: ArrayLike, theirs: ArrayLike, relative: float = 1e-5) -> float:
    r"""Largest difference of two results that must agree, relative to the largest value of the second.

    .. math:: \max|a - b| \,/\, \max|b|

    It is applied to forces before anything is timed.

    Parameters
    ----------
    ours, theirs
        Arrays of the same shape and unit.
    relative
        Largest allowed difference.

    Returns
    -------
    float
        Relative difference, dimensionless.

    Raises
    ------
    AssertionError
        If the difference is larger than the bound, or not a number.
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> same([1.0, 2.0], [1.0, 2.5], relative=0.5)
    0.2
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"ours has shape {a.shape}, theirs {b.shape}")
    largest, scale = float(np.max(np.abs(a - b))), float(np.max(np.abs(b)))
    if not largest <= relative * scale:
        raise AssertionError(f"results differ by {largest:.3g} of {scale:.3g}; {relative=:g}")
    return largest / scale if scale else 0.0


def _time(call, synchronize, clock):
    wait = synchronize or (lambda: None)
    wait()
    begun = clock()
    call()
    wait()
    return clock() - begun


def _throughput(name, values, unit):
    low, high = np.percentile(values, RANGE)
    return Metric(name, np.median(values), unit, low, high, len(values))
