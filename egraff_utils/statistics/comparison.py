"""Which of several means differ? Tests that bound the chance of any false alarm, and letters for a table.

Symbols: R replicas, K blocks of equal time.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import studentized_range


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values adjusted for their number (Holm 1979), which bounds the chance of any false rejection.

    Parameters
    ----------
    p_values
        P values of n tests, shape ``(n,)``.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty_like(steps)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def compact_letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letters of names, of which two names share one exactly if they do not differ (Piepho 2004).

    Parameters
    ----------
    names
        Names, the best one first, which has the letter ``a``.
    different
        Pairs of names that differ.

    Returns
    -------
    dict
        Name -> letters.

    Examples
    --------
    >>> compact_letters(["mace", "nequip", "botnet"], [("mace", "botnet")])
    {'mace': 'a', 'nequip': 'ab', 'botnet': 'b'}
    """
    groups = [frozenset(names)] if names else []
    for pair in different:
        split = [group - {name} for group in groups if group >= set(pair) for name in pair]
        groups = [group for group in groups if not group >= set(pair)] + split
        groups = [g for g in dict.fromkeys(groups) if not any(g < other for other in groups)]
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    return {
        name: "".join(ascii_lowercase[i] for i, group in enumerate(groups) if name in group) for name in names
    }


def told_apart(
    values: Mapping[str, ArrayLike], *, groups: ArrayLike | None = None, level: float = 0.95
) -> list[tuple[str, str]]:
    r"""Pairs of names whose means over the same replicas differ, by Tukey's range test on paired differences.

    For a pair with the mean difference d over n replicas, whose values in the same replica differ with the
    variance v,

    .. math:: q = |d| \sqrt{2n / \max(v, \bar v)}

    is compared with the studentized range (Tukey 1949) of M names, where :math:`\bar v` is the mean of v over
    all pairs and has :math:`(n - 1)(M - 1)` degrees of freedom. Only whole replicas count as independent: a
    block of a run remembers the block before it, by an amount that the run itself is too short to determine.
    The variance is never taken below that of the pair, as some models scatter more than others.

    Parameters
    ----------
    values
        Name -> values of blocks, shape ``(R, K)`` each, as in :func:`standard_error`; row r of every name
        comes from the same start. Only blocks that both names of a pair have are compared.
    groups
        As in :func:`standard_error`.
    level
        One minus the chance that any two are found to differ if all are equal.

    Returns
    -------
    list of (name, name)
        Pairs that differ. Pairs with different shapes, or with fewer than two rows in common, count as equal.

    Examples
    --------
    >>> start = np.array([[0.0], [1.0], [2.0]])
    >>> told_apart({"a": start, "b": start + [[5.0], [5.1], [4.9]], "c": start + [[0.1], [0.0], [-0.1]]})
    [('a', 'b'), ('b', 'c')]
    """
    found = {}
    for first, second in combinations(values, 2):
        if (difference := _difference(values[first], values[second], groups)).degrees > 0:
            found[first, second] = difference
    if not found:
        return []
    names, degrees = {name for pair in found for name in pair}, sum(d.degrees for d in found.values())
    pooled = sum(d.degrees * d.variance for d in found.values()) / degrees
    limit = critical_range(len(names), max(1, round(2 * degrees / len(names))), level)
    return [pair for pair, d in found.items() if 2 * d.rows * d.mean**2 > limit**2 * max(d.variance, pooled)]


class _Difference(NamedTuple):
    """Mean and variance of the difference of two names over their rows, with its degrees of freedom."""

    mean: float
    variance: float
    rows: int
    degrees: int


def _difference(first: ArrayLike, second: ArrayLike, groups: ArrayLike | None) -> _Difference:
    if np.shape(first) != np.shape(second):
        return _Difference(0.0, 0.0, 0, 0)
    apart = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    apart = apart if apart.ndim == 2 else apart[:, None]
    kept = np.isfinite(apart).any(1)
    if not kept.any():
        return _Difference(0.0, 0.0, 0, 0)
    rows = np.nanmean(apart[kept], axis=1)
    names = np.zeros(len(rows), int) if groups is None else np.unique(groups, return_inverse=True)[1][kept]
    sizes = np.bincount(names)
    rest = rows - (np.bincount(names, rows) / np.maximum(1, sizes))[names]
    degrees = len(rows) - int((sizes > 0).sum())
    return _Difference(rows.mean(), (rest**2).sum() / max(1, degrees), len(rows), degrees)


@lru_cache(maxsize=256)
def critical_range(names: int, degrees: int, level: float = 0.95) -> float:
    """Studentized range of equal means that is exceeded in one of ``1 / (1 - level)`` cases (Tukey 1949).

    Parameters
    ----------
    names
        Number of means.
    degrees
        Degrees of freedom of the variance.
    level
        Between 0 and 1.

    Examples
    --------
    >>> round(critical_range(6, 20), 2)  # any table of the studentized range
    4.45
    """
    return float(studentized_range.ppf(level, names, degrees))
