"""Where does the paper hold up? How our values follow the published ones, over cells and within datasets.

A cell is one model in one group: a dataset, or a dataset at a temperature. Cells are a DataFrame with the
index (group, ..., model) and the columns ``"paper"`` and ``"ours"``, both in one unit; all measures use only
the cells that have both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from egraff_utils import cards, metrics, statistics

PAPER, OURS = "paper", "ours"
AS_PUBLISHED, REVERSED, UNDECIDED = "as published", "reversed", "not told from chance"
NOT_COMPARED = "not run"
LEAST_CELLS = 8
"""Cells below which a rank correlation gets no interval."""


class Agreement(NamedTuple):
    """How values of ours agree with published ones; nan where there are too few cells."""

    cells: int
    """Cells with both values."""
    groups: int
    """Groups with a rank correlation: three cells or more, not all alike."""
    overall: float
    """Spearman's rank correlation over all cells; mostly tells datasets apart."""
    overall_low: float
    overall_high: float
    within: float
    """Mean of the groups' rank correlations: whether the models come in the same order."""
    within_low: float
    within_high: float
    chance: float
    """Standard deviation of ``within`` if the order within each group were random."""
    ratio: float
    """Geometric mean of ours over published."""
    ratio_low: float
    ratio_high: float
    spread: float
    """Geometric standard deviation of that ratio: 1 where it is the same in all cells."""


def matched(values: pd.DataFrame, head, *, source: str = OURS) -> pd.DataFrame:
    """Cells of one column that have both a published value and one of ours.

    Parameters
    ----------
    values
        Columns (head, source), as `tables.beside_values` returns them.
    head
        Head of the column.
    source
        Whose values to set against the published ones.

    Returns
    -------
    DataFrame with the columns ``"paper"`` and ``"ours"``; without rows where either is missing altogether.
    """
    cells = {name: values.get((head, key)) for name, key in ((PAPER, PAPER), (OURS, source))}
    empty = pd.Series(np.nan, index=values.index)
    filled = {name: empty if column is None else column for name, column in cells.items()}
    return pd.DataFrame(filled).astype(float).dropna()


def rank_correlation(first, second) -> float:
    """Spearman's rank correlation of two series of values; equal values share their mean rank.

    Parameters
    ----------
    first, second
        Shape ``(n,)``, any units.

    Returns
    -------
    float
        Between -1 and 1, dimensionless; nan for fewer than three pairs or where all values of one are alike.

    Examples
    --------
    >>> round(rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]), 3)
    0.5
    """
    ranks = np.stack([rankdata(first), rankdata(second)])
    if ranks.shape[1] < 3:
        return float("nan")
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = (ranks**2).sum(axis=1)
    return float(ranks[0] @ ranks[1] / np.sqrt(norms.prod())) if norms.all() else float("nan")


def group_correlations(cells: pd.DataFrame) -> pd.Series:
    """Rank correlation within each group, over its models; groups without one are left out."""
    groups = _groups(cells)
    found = {name: rank_correlation(here[PAPER], here[OURS]) for name, here in groups}
    return pd.Series(found, dtype=float).dropna()


def chance_deviation(cells: pd.DataFrame) -> float:
    r"""Standard deviation of the mean of the groups' rank correlations under random order.

    For one group of n models it is :math:`1/\sqrt{n - 1}`, ties or not, and for G of them

    .. math:: \frac1G \sqrt{\sum_{g=1}^{G} \frac{1}{n_g - 1}}

    Groups without a rank correlation are left out; nan without any.
    """
    sizes = _groups(cells).size().reindex(group_correlations(cells).index).to_numpy(float)
    return float(np.sqrt(np.sum(1 / (sizes - 1))) / len(sizes)) if len(sizes) else float("nan")


def _groups(cells):
    """Cells by all levels of the index but the last, the model."""
    levels = list(range(cells.index.nlevels - 1))
    return cells.groupby(level=levels if len(levels) > 1 else levels[0])


def agreement(cells: pd.DataFrame) -> Agreement:
    """All measures of the agreement of one column.

    Intervals are bootstraps of 95 %. The rank correlation over all cells and the ratio draw cells, published
    value and ours together; the mean within groups draws groups. Ratios need positive values: cells with a
    zero (JSD, as published for bulk systems) count for the ranks only.
    """
    pairs = cells[[PAPER, OURS]].to_numpy(float).reshape(-1, 2)
    within = group_correlations(cells).to_numpy()
    positive = pairs[(pairs > 0).all(axis=1)]
    ratios = positive[:, 1] / positive[:, 0]
    enough = pairs if len(pairs) >= LEAST_CELLS else pairs[:0]
    overall = statistics.bootstrap_interval(enough, lambda drawn: rank_correlation(*drawn.T))
    return Agreement(
        len(pairs),
        len(within),
        rank_correlation(*pairs.T),
        *overall,
        float(within.mean()) if len(within) else float("nan"),
        *statistics.bootstrap_interval(within),
        chance_deviation(cells),
        metrics.geometric_mean(ratios) if len(ratios) else float("nan"),
        *statistics.bootstrap_interval(ratios, metrics.geometric_mean),
        float(np.exp(np.std(np.log(ratios), ddof=1))) if len(ratios) > 1 else float("nan"),
    )


def verdict(found: Agreement) -> str:
    """Whether models come in the published order within groups, judged at two standard deviations of chance.

    Examples
    --------
    >>> models = pd.MultiIndex.from_product([list("abcd"), ["x", "y", "z"]])
    >>> cells = pd.DataFrame({"paper": [1.0, 2.0, 4.0] * 4, "ours": [7.0, 5.0, 3.0] * 4}, index=models)
    >>> verdict(agreement(cells))
    'reversed'
    """
    if not np.isfinite(found.within):
        return NOT_COMPARED
    if abs(found.within) < 2 * found.chance:
        return UNDECIDED
    return AS_PUBLISHED if found.within > 0 else REVERSED


def agreement_table(columns: dict) -> pd.DataFrame:
    """Measures and verdict of several columns, one row for each.

    Parameters
    ----------
    columns
        Cells by name; a tuple (table, head) gives an index of two levels.
    """
    found = {name: agreement(cells) for name, cells in columns.items()}
    rows = [measures._asdict() | {"order": verdict(measures)} for measures in found.values()]
    names = list(found)
    index = pd.MultiIndex.from_tuples(names) if names and isinstance(names[0], tuple) else names
    return pd.DataFrame(rows, index=index, columns=[*Agreement._fields, "order"])


def sentence(row) -> str:
    """One row of `agreement_table` in words, for a page.

    Examples
    --------
    >>> models = pd.MultiIndex.from_product([["a"], ["x", "y", "z"]])
    >>> cells = pd.DataFrame({"paper": [1.0, 2.0, 4.0], "ours": [2.0, 4.0, 8.0]}, index=models)
    >>> sentence(agreement_table({"t": cells}).loc["t"])
    '3 cells, ours 2 times the published; rank correlation 1.00 within groups (chance: 0.00 ± 0.71)'
    """
    words = f"{row.cells:.0f} cells" if row.cells else NOT_COMPARED
    if np.isfinite(row.ratio):
        words += f", ours {row.ratio:.2g} times the published"
    if np.isfinite(row.within):
        words += f"; rank correlation {row.within:.2f} within groups (chance: 0.00 ± {row.chance:.2f})"
    return words


def published_epochs(model: str) -> int:
    """Epochs of a model in the paper (Tables 11 to 16), from its card."""
    return cards.model(model).training("paper").max_epochs
