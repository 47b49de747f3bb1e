"""How long do replicas last, and do groups of them differ? Kaplan-Meier curves and the log-rank test.

A replica is *censored* if it was valid to its end. Symbols: R replicas, E ends.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


def kaplan_meier(steps, broke):
    r"""Kaplan-Meier curve of the fraction of valid replicas, with its 95 % interval.

    .. math:: S(t) = \prod_{t_i \le t} \Big(1 - \frac{d_i}{n_i}\Big), \qquad
       \log(-\log S) \pm \frac{z}{|\log S|} \sqrt{\sum_{t_i \le t} \frac{d_i}{n_i (n_i - d_i)}}

    with :math:`d_i` failures among :math:`n_i` replicas at risk, and Greenwood's variance on the log-log
    scale (Kalbfleisch and Prentice 1980). This interval has no width where S is 1 or 0. There the exact
    interval is used (Clopper and Pearson 1934), of no failure among the replicas at risk, or of failures only
    among all replicas.

    Parameters
    ----------
    steps
        Last valid step of each replica, or its time, in any unit, shape ``(R,)``. The curve falls after it.
    broke
        Whether the replica broke there, shape ``(R,)``; the others are censored.

    Returns
    -------
    steps, fraction, low, high : ndarray
        Zero and every distinct end, and values that hold from there to the next end, shape ``(E,)``.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> t, fraction, low, high = kaplan_meier([2, 3, 4, 5], [True, False, True, False])
    >>> fraction
    array([1.   , 0.75 , 0.75 , 0.375, 0.375])
    """
    ends, at_risk, _ = _risk(steps, broke)
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    survival = stats.ecdf(stats.CensoredData(uncensored=steps[broke], right=steps[~broke])).sf
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # on ends without a width, which are replaced below
        interval = survival.confidence_interval(0.95, method="log-log")
    fraction, low, high = (curve.evaluate(ends) for curve in (survival, interval.low, interval.high))
    rare, remaining = 0.025, np.maximum(at_risk, 1)
    low = np.where(fraction == 1, rare ** (1 / remaining), np.where(fraction == 0, 0.0, low))
    high = np.where(fraction == 1, 1.0, np.where(fraction == 0, 1 - rare ** (1 / max(len(steps), 1)), high))
    return ends, fraction, low, high


def _risk(steps, broke):
    """Distinct ends and zero, with the replicas at risk and the failures; failures precede censorings."""
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    if steps.shape != broke.shape:
        raise ValueError(f"{steps.shape=} but {broke.shape=}")
    ends = np.unique(np.append(0.0, steps))
    at_risk = (steps >= ends[:, None]).sum(1)
    failures = ((steps == ends[:, None]) & broke).sum(1)
    return ends, at_risk, failures


def restricted_mean(steps, broke, limit: float):
    r"""Mean length of a valid run up to a limit, :math:`\int_0^L S(t)\,\mathrm dt`, with bounds.

    The bounds are the integrals of the ends of the pointwise interval, so they are wider than a 95 % interval
    of the mean, and they have a finite width even if nothing broke.

    Parameters
    ----------
    steps, broke
        As in `kaplan_meier`.
    limit
        Limit L, in the unit of ``steps``.

    Returns
    -------
    mean, low, high : float
        Mean and bounds in the unit of ``steps``.

    Raises
    ------
    ValueError
        If the last replica at risk was censored before the limit, after which nothing is known.

    Examples
    --------
    >>> restricted_mean([2, 4], [True, False], 4)[0]
    3.0
    """
    ends, fraction, low, high = kaplan_meier(steps, broke)
    if ends[-1] < limit and fraction[-1] > 0:
        raise ValueError(f"{limit=} lies after the last replica at risk, which ended at {ends[-1]:g}")
    widths = np.diff(np.append(np.minimum(ends, limit), limit))
    return tuple(float(widths @ heights) for heights in (fraction, low, high))


def fewest_breaks(tests: int) -> int:
    """Number of broken replicas, all of one of two models, from which on the two differ at 5 %.

    Each is the only one of its stratum, to which both models give equally many replicas, so that it falls to
    the one or the other model with probability 1/2, and the two-sided p value of k of them is 2 / 2**k.

    Parameters
    ----------
    tests
        Number of pairs that are tested together (Bonferroni).

    Examples
    --------
    >>> fewest_breaks(1), fewest_breaks(15)
    (6, 10)
    """
    return int(np.floor(np.log2(2 * tests / 0.05))) + 1


def detectable_share(replicas: int, tests: int) -> float:
    """Probability to break from which on a model differs in 80 % of tests from one that never breaks.

    Parameters
    ----------
    replicas
        Number of replicas of each of the two models.
    tests
        As in `fewest_breaks`.

    Returns
    -------
    float
        Probability of a replica to break, dimensionless; nan if there are too few replicas.

    Examples
    --------
    >>> round(detectable_share(45, 15), 2), detectable_share(5, 15)
    (0.27, nan)
    """
    needed = fewest_breaks(tests)
    return float(stats.beta.ppf(0.8, needed, replicas - needed + 1)) if replicas >= needed else float("nan")


def log_rank_scores(steps, broke):
    r"""Log-rank score of every replica: one if it broke, minus the failures expected in its time at risk.

    .. math:: u_r = \delta_r - \sum_{t_i \le t_r} d_i / n_i

    The sum of the scores of a group is its number of observed minus expected failures; over all replicas it
    is zero.

    Examples
    --------
    >>> log_rank_scores([1, 2], [True, True])
    array([ 0.5, -0.5])
    """
    ends, at_risk, failures = _risk(steps, broke)
    hazard = np.cumsum(failures / np.maximum(at_risk, 1))
    return np.asarray(broke, dtype=float) - hazard[np.searchsorted(ends, np.asarray(steps, dtype=float))]


class LogRank(NamedTuple):
    """Comparison of groups of replicas."""

    table: pd.DataFrame
    """Counts by group: ``replicas``, ``broke`` and ``expected`` (the number if all groups were alike)."""
    p: float
    """Fraction of relabellings at least as uneven as the data; 1 if nothing broke."""


def log_rank(
    steps, broke, groups, strata=None, units=None, *, permutations: int = 10_000, seed: int = 0
) -> LogRank:
    r"""Stratified log-rank comparison of groups with a permutation test (Peto and Peto 1972).

    Units are relabelled within strata, so the test assumes neither large numbers nor independent replicas in
    a unit. The statistic is :math:`\sum_g U_g^2 / R_g`, with the summed scores :math:`U_g` of the
    :math:`R_g` replicas of a group.

    Parameters
    ----------
    steps, broke
        As in `kaplan_meier`.
    groups
        Group of every replica, such as its model, shape ``(R,)``.
    strata
        Stratum of every replica, such as its dataset, shape ``(R,)``. Strata may differ from each other.
    units
        Unit of every replica, such as its training, shape ``(R,)``; by default each replica is one. A unit
        keeps its replicas, and may lie in several strata. It changes places with those of the same strata.
    permutations, seed
        Number of permutations and seed of their draw.

    Raises
    ------
    ValueError
        If a unit belongs to more than one group.
    """
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    strata = _numbered(np.zeros(len(steps)) if strata is None else strata)
    units = _numbered(np.arange(len(steps)) if units is None else units)
    scores = np.zeros(len(steps))
    for stratum in np.unique(strata):
        here = strata == stratum
        scores[here] = log_rank_scores(steps[here], broke[here])
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    if (group[first][units] != group).any():
        raise ValueError("a unit belongs to more than one group, and cannot be relabelled as a whole")
    unit_scores = np.bincount(units, scores)
    rng, relabelled = np.random.default_rng(seed), np.tile(group[first], (permutations + 1, 1))
    lies_in = pd.Series(strata).groupby(units).agg(lambda own: str(sorted(set(own))))
    for alike in lies_in.groupby(lies_in).indices.values():
        if unit_scores[alike].any():
            relabelled[1:, alike] = rng.permuted(relabelled[1:, alike], axis=1)
    uneven = np.zeros(len(relabelled))
    for g in range(len(names)):
        own = relabelled == g
        uneven += (own @ unit_scores) ** 2 / np.maximum(own @ sizes, 1)
    count, failed, surplus = (np.bincount(group, each, len(names)) for each in (None, broke, scores))
    table = pd.DataFrame(
        {"replicas": count, "broke": failed.astype(int), "expected": failed - surplus}, index=names
    )
    return LogRank(table, float((uneven >= uneven[0] - 1e-9).mean()) if broke.any() else 1.0)


def _numbered(names):
    """Names as numbers from zero on, shape ``(R,)``."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]
