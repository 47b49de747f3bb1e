"""Which of two ways to do the same work is faster, and by what factor?"""

import time
from typing import NamedTuple

import numpy as np

from egraff_utils.records import Metric

RANGE = (10, 90)
"""Percentiles of the pairs that stand as low and high beside a median."""


class Comparison(NamedTuple):
    """Times of P pairs of calls and what follows from them; made by `compare`."""

    ratio: float
    """Median over pairs of theirs / ours: above one, ours is faster."""
    low: float
    """10th percentile of the pairs' ratios."""
    high: float
    """90th percentile."""
    ours: float
    """Median time of a call, s."""
    theirs: float
    """Likewise, s."""
    pairs: int
    times_ours: np.ndarray
    """Time of every call, shape ``(P,)``, s."""
    times_theirs: np.ndarray
    """Likewise, shape ``(P,)``, s; the two of an index were made one after the other."""

    @classmethod
    def of(cls, times_ours, times_theirs):
        """Comparison of two lists of times, shape ``(P,)``, s.

        >>> Comparison.of([1.0, 1.0, 2.0], [2.0, 3.0, 8.0]).ratio
        3.0
        """
        ours, theirs = np.asarray(times_ours, dtype=float), np.asarray(times_theirs, dtype=float)
        ratios = theirs / ours
        low, high = np.percentile(ratios, RANGE)
        middle = (float(np.median(values)) for values in (ours, theirs))
        return cls(float(np.median(ratios)), float(low), float(high), *middle, len(ratios), ours, theirs)

    def metrics(self, name="", *, unit_per_call=1.0, unit="1/s"):
        """Metrics ``ratio_<name>``, ``ours_<name>`` and ``theirs_<name>``; the last two are throughputs.

        Parameters
        ----------
        name
            Tells comparisons of one record apart; without it the metrics are ``ratio``, ``ours``, ``theirs``.
        unit_per_call
            Work done in one call, such as replicas times steps.
        unit
            Of the throughputs.

        Returns
        -------
        list of Metric
            Medians with the 10th and 90th percentile over the pairs.
        """
        tail = f"_{name}" if name else ""
        ratio = Metric(f"ratio{tail}", self.ratio, "1", self.low, self.high, self.pairs)
        sides = (("ours", self.times_ours), ("theirs", self.times_theirs))
        return [ratio, *(_throughput(f"{side}{tail}", unit_per_call / times, unit) for side, times in sides)]

    def curves(self, name=""):
        """All times by name, ``times_ours_<name>`` and ``times_theirs_<name>``, shape ``(P,)``, s."""
        tail = f"_{name}" if name else ""
        return {f"times_ours{tail}": self.times_ours, f"times_theirs{tail}": self.times_theirs}


def compare(
    ours,
    theirs,
    *,
    seconds=20.0,
    least=5,
    most=50,
    warm_up=2,
    rest=0.0,
    synchronize=None,
    clock=time.perf_counter,
):
    """Comparison of two callables that do the same amount of work, interleaved in one process.

    After `warm_up` calls of each they run in pairs, ours first and theirs first in turn, until `seconds` are
    over. A machine that slows down or is shared then slows both, and the ratio of a pair stays.

    Parameters
    ----------
    ours, theirs
        Callables without arguments.
    seconds
        After which no further pair is begun, s; warm-up not counted.
    least, most
        Pairs at least, whatever they take, and at most.
    rest
        Pause before each call, s.
    synchronize
        Waits until a device is done, such as ``torch.cuda.synchronize``; called before a time is read.
    clock
        Seconds; ``time.process_time`` for what runs in one thread of a machine that others use.

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
    times = {"ours": [], "theirs": []}
    order, begun = [("ours", ours), ("theirs", theirs)], clock()
    while (pairs := len(times["ours"])) < least or (pairs < most and clock() - begun < seconds):
        for side, call in order:
            time.sleep(rest)
            times[side].append(_time(call, synchronize, clock))
        order.reverse()
    return Comparison.of(times["ours"], times["theirs"])


def same(ours, theirs, relative=1e-5):
    r"""Largest difference of two results that must agree, relative to the largest value of the second.

    .. math:: \max|a - b| \,/\, \max|b|

    Called on forces before anything is timed.

    Parameters
    ----------
    ours, theirs
        Arrays of one shape and unit.
    relative
        Bound on what is returned.

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
