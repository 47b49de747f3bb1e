"""Which of several means differ? Paired tests with a correction for their number, and letters for a table.

Symbols: R replicas, K blocks of equal time.
"""

from itertools import combinations
from string import ascii_lowercase

import numpy as np
from scipy import special

from egraff_utils.statistics.intervals import parts_of


def holm(p_values):
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


def compact_letters(names, different):
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


def told_apart(values, *, groups=None, level=0.95):
    """Pairs of names whose means over the same replicas differ, by paired tests with Holm's correction.

    Parameters
    ----------
    values
        Name -> values of blocks, shape ``(R, K)`` each, as in :func:`standard_error`; row r of every name
        comes from the same start.
    groups
        As in :func:`standard_error`.
    level
        One minus the chance that any two are found to differ if all are equal.

    Returns
    -------
    list of (name, name)
        Pairs that differ. Pairs with different shapes, or with fewer than two rows in common, count as equal.
    """
    pairs = list(combinations(values, 2))
    adjusted = holm([_p_value(values[a], values[b], groups) for a, b in pairs])
    return [pair for pair, p in zip(pairs, adjusted, strict=True) if p < 1 - level]


def _p_value(first, second, groups):
    """Two-sided p value of a zero mean difference."""
    if np.shape(first) != np.shape(second):
        return 1.0
    parts = parts_of(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), groups)
    if not np.isfinite(parts["error"]) or parts["mean"] == 0:
        return 1.0
    if parts["error"] == 0:
        return 0.0
    return float(2 * special.stdtr(parts["degrees"], -abs(parts["mean"]) / parts["error"]))
