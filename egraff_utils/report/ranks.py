"""Do two quantities order models alike? Rank correlations, and the chance of their mean over groups."""

from itertools import permutations

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import ndtri
from scipy.stats import rankdata

GRID = 10_000
"""Number of steps of one in the distribution of a rank correlation under chance."""

ORDERS = 20_000
"""Number of random orders of a group that is too large to enumerate them."""


def rank_correlation(first, second) -> float:
    """Spearman's rank correlation of two series of values; equal values share their mean rank.

    Parameters
    ----------
    first, second
        Values in any units, shape ``(n,)``.

    Returns
    -------
    float
        Correlation between -1 and 1, dimensionless; nan for fewer than three pairs or if all values of a
        series are equal.

    Examples
    --------
    >>> round(rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]), 3)
    0.5
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    if ranks.shape[1] < 3:
        return float("nan")
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = (ranks**2).sum(axis=1)
    return float(ranks[0] @ ranks[1] / np.sqrt(norms.prod())) if norms.all() else float("nan")


def _ranks(values):
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def rank_correlations(x, values) -> np.ndarray:
    """Rank correlation of x (n,) with every row of values (S, n); zero for rows of equal values."""
    first, second = rankdata(x) - (len(x) + 1) / 2, rankdata(values, axis=1) - (len(x) + 1) / 2
    norms = np.sqrt(np.square(first).sum() * np.square(second).sum(1))
    return np.divide(second @ first, norms, out=np.zeros(len(values)), where=norms > 0)


def chance_of(pairs: list, within: float) -> float:
    """Two-sided p value of a mean rank correlation, over all orders of the models within groups.

    It is exact, to the grid on which the distributions of the groups are convolved, for groups of up to seven
    models, whose orders are enumerated; of a larger group :data:`ORDERS` random ones are taken.

    Parameters
    ----------
    pairs
        Two arrays of shape ``(n,)`` for every group; n may differ.
    within
        Mean of the rank correlations of the groups.

    Returns
    -------
    float
        P value; nan without a group.

    Examples
    --------
    >>> round(chance_of([([1, 2, 3, 4], [1, 2, 3, 4])], 1.0), 6)  # two of 24 orders
    0.083333
    """
    if not pairs:
        return float("nan")
    chances = np.ones(1)
    for x, y in pairs:
        places = np.rint((rank_correlations(x, _orders(y)) + 1) * GRID).astype(int)
        chances = fftconvolve(chances, np.bincount(places, minlength=2 * GRID + 1) / len(places))
    far = np.abs(np.arange(len(chances)) / GRID - len(pairs)) >= (abs(within) - 1 / GRID) * len(pairs)
    return float(np.clip(chances[far].sum(), 0, 1))


def detectable(sizes: list, tests: int) -> float:
    r"""Mean rank correlation that a test against chance finds in 80 % of cases.

    .. math:: (z_{1 - 0.05 / 2 k} + z_{0.8}) \frac1G \sqrt{\sum_{g=1}^{G} \frac{1}{n_g - 1}}

    Parameters
    ----------
    sizes
        Number of models :math:`n_g` of every group.
    tests
        Number k of correlations that are tested together at 5 %.

    Returns
    -------
    float
        Correlation, dimensionless; above one if even a perfect order would be missed; nan without a group.

    Examples
    --------
    >>> round(detectable([6] * 9, 1), 2), round(detectable([6], 1), 2)
    (0.42, 1.25)
    """
    if not len(sizes):
        return float("nan")
    scatter = np.sqrt(np.sum(1 / (np.array(sizes) - 1))) / len(sizes)
    return float((ndtri(1 - 0.05 / (2 * tests)) + ndtri(0.8)) * scatter)


def _orders(values):
    """All orders of a few values, or random ones of many, shape (S, n)."""
    if len(values) <= 7:
        return np.array(list(permutations(values)))
    return np.random.default_rng(0).permuted(np.tile(values, (ORDERS, 1)), axis=1)
