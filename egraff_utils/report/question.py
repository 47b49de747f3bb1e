"""Does the test error predict the simulation? Rank correlations of force MAE with all rollout metrics.

A cell is a model on a dataset. The sign of all correlations is such that +1 means that simulations are
better, the smaller the test error is. Symbols: S draws, M models.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from egraff_utils import paper, quantities, statistics
from egraff_utils.report import beside, levels, look, panels, windows
from egraff_utils.report.ranks import chance_of, detectable, rank_correlation, rank_correlations
from egraff_utils.report.values import listed, span

METRICS = (
    "wf",
    "jsd",
    "bond_jsd",
    "angle_jsd",
    "spectrum_jsd",
    "fv",
    "ev_root",
    "deviation",
    "stable_fraction",
    "horizon_langevin",
    "horizon_driven",
    "horizon_nve",
)
"""Names of the rollout metrics and of the horizon."""

PUBLISHED = ("wf", "fv", "ev_root")
"""Metrics among these that the paper reports."""

COLUMNS = ["error", "value", "low", "high", "floor_low", "floor_high", "alike"]
RESAMPLES = 1000
"""Number of resamples of every bootstrap."""

YES, NO, REVERSED, UNKNOWN = "predicts it", "not told from chance", "predicts the reverse", "not run"
HERE = "orders these datasets, others perhaps not"


class Answer(NamedTuple):
    """Degree to which the test error predicts the order by a metric; nan with too few cells."""

    cells: int
    datasets: int
    """Number of datasets with a rank correlation, which have at least three models, not all equal."""
    within: float
    """Mean of the rank correlations of the datasets, which says whether the test error selects the model."""
    within_low: float
    within_high: float
    chance: float
    """Two-sided probability of a mean at least this far from zero if models are shuffled within datasets."""
    right: float
    """Fraction of the pairs of models of a dataset that the test error orders correctly, of those that the
    metric orders; 0.5 is chance."""
    detectable: float
    """Mean correlation that a test of one of `METRICS` would distinguish from chance in 80 % of cases."""


def cells(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Test error, metric and saturation level of every model and dataset that has the first two.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`; the seeds that have both test error and metric are
        averaged, with an interval over seeds where there are several, as in tables.
    metric
        One of `METRICS`.

    Returns
    -------
    DataFrame with the index (dataset, model): ``error`` (meV/Å), ``value`` and its interval ``low``,
    ``high``, ``floor_low`` and ``floor_high`` in the unit of the record; ``alike``, whether the value is
    saturated. NaN without an interval or a level. Rollouts cover the same time (`windows`); datasets in
    which all horizons are lower bounds (`windows.censored`) are left out.
    """
    frame = windows.common(frame)
    rows = frame[
        (frame.kind == quantities.of(metric).kind) & (frame.metric == metric) & (frame.model != "reference")
    ]
    late = windows.censored(frame, metric)
    known = {cell[1] for cell in zip(rows.kind, rows.dataset, rows.model, strict=True) if cell not in late}
    rows = rows[rows.dataset.isin(known)]
    errors = frame[(frame.kind == "training") & (frame.metric == "force_mae")]
    cell, column = ["dataset", "model"], quantities.of(metric)
    errors = errors[[*cell, "seed", "value"]].rename(columns={"value": "error"}).dropna(subset="error")
    both = rows.dropna(subset="value").merge(errors, on=[*cell, "seed"])
    values = beside.seed_means(both, column).droplevel("kind") / column.factor
    values["error"] = both.groupby(cell).error.mean()
    places = dict.fromkeys(values.index.unique("dataset"), "rollout")
    return _with_floors(values, frame, metric, places)


def published_cells(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Cells of the paper, Table 1 against Table 2 or 3; saturation levels are those of the given records."""
    error = paper.values("force_mae").rename("error")
    values = paper.values(metric).rename("value").to_frame()
    values[["low", "high"]] = np.nan
    places = {name: kind for kind, name in beside.COOL.values()}
    return _with_floors(values.join(error, how="inner"), frame, metric, places)


def _with_floors(values, frame, metric, places):
    """Cells with error and value, with the saturation levels of datasets; ``places`` gives their kinds."""
    values = values.dropna(subset=["error", "value"])
    floors = {name: levels.floor_of(frame, kind, name, metric)[1:] for name, kind in places.items()}
    names = values.index.get_level_values("dataset")
    values["floor_low"] = [floors.get(name, (np.nan, np.nan))[0] for name in names]
    values["floor_high"] = [floors.get(name, (np.nan, np.nan))[1] for name in names]
    bounds = zip(values.value, values.floor_low, values.floor_high, strict=True)
    values["alike"] = [levels.is_alike(metric, *each) for each in bounds]
    return values[COLUMNS]


def answer(found: pd.DataFrame, *, higher_is_better: bool = False, tests: int = len(METRICS)) -> Answer:
    """Rank correlations of test error and metric, their intervals, and a test against chance.

    The 95 % intervals combine two sources. Datasets are drawn with replacement, together with their models,
    with percentiles expanded for few datasets (`statistics.bootstrap_interval`). In addition every value is
    redrawn from its interval, if it has one; these draws enter by their deviations from their mean, since
    additional noise lowers a correlation. The test error counts as exact, although it varies between
    trainings too.

    Parameters
    ----------
    found
        DataFrame of `cells`.
    higher_is_better
        Whether larger values of the metric are better.
    tests
        Number of metrics that are tested together, for the power.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([list("abcd"), ["x", "y", "z"]], names=["dataset", "model"])
    >>> found = pd.DataFrame({"error": [1.0, 2, 3] * 4, "value": [5.0, 7, 6] * 4}, index=index)
    >>> both = answer(found.reindex(columns=COLUMNS))
    >>> round(both.within, 2), round(both.right, 2)
    (0.5, 0.67)
    """
    if found.empty:
        return Answer(0, 0, *[np.nan] * (len(Answer._fields) - 2))
    rng = np.random.default_rng(0)
    sign = -1.0 if higher_is_better else 1.0
    groups = [part for _, part in found.groupby(level="dataset")]
    pairs = [(part.error.to_numpy(), sign * part.value.to_numpy()) for part in groups]
    redrawn = [sign * _redraw(part, rng) for part in groups]
    each = np.array([rank_correlation(*pair) for pair in pairs])
    judged = np.flatnonzero(np.isfinite(each))
    within = float(each[judged].mean()) if len(judged) else np.nan
    chosen = each[judged][rng.integers(max(1, len(judged)), size=(RESAMPLES, len(judged)))]
    inside = [rank_correlations(pairs[i][0], redrawn[i]) for i in judged]
    ends = _interval(
        chosen.mean(1) if len(judged) else [], np.mean(inside, axis=0) if inside else 0, len(judged)
    )
    tested = [pairs[i] for i in judged]
    return Answer(
        len(found),
        len(judged),
        within,
        *ends,
        chance_of(tested, within),
        _right(pairs),
        detectable([len(x) for x, _ in tested], tests),
    )


def _redraw(part, rng):
    """Values (S, M) drawn from their intervals, on a logarithmic scale if these are positive."""
    value, low, high = (part[name].to_numpy(float) for name in ("value", "low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    normal = rng.standard_normal((RESAMPLES, len(part))) / 1.96
    width = np.where(known, np.where(normal > 0, high - value, value - low), 0.0)
    straight = value + normal * width
    if (value <= 0).any() or (low[known] <= 0).any():
        return straight
    ends = np.where(normal > 0, np.where(known, high / value, 1.0), np.where(known, value / low, 1.0))
    return value * np.exp(normal * np.log(ends))


def _interval(drawn, noise, count):
    """Percentiles of draws plus the spread of the noise, between -1 and 1; nan for few datasets."""
    total = np.clip(np.asarray(drawn, dtype=float) + noise - np.mean(noise), -1, 1)
    total = total[np.isfinite(total)]  # draws in which all values of each dataset are equal are undefined
    if count < 3 or len(total) < RESAMPLES / 2:
        return np.nan, np.nan
    tail = statistics.expanded_tail(count)
    return tuple(float(end) for end in np.quantile(total, [tail, 1 - tail]))


def _right(pairs):
    """Fraction of pairs of models that both quantities order alike, of those that both order."""
    signs = [
        np.sign((y[j] - y[i]) * (x[j] - x[i]))
        for x, y in pairs
        for i, j in combinations(range(len(x)), 2)
        if x[i] != x[j] and y[i] != y[j]
    ]
    return float((np.mean(signs) + 1) / 2) if signs else np.nan


def answers(frame: pd.DataFrame, *, published: bool = False) -> pd.DataFrame:
    """Answers for all metrics, from the records or from the numbers of the paper.

    Returns
    -------
    DataFrame with one row per metric: the fields of `Answer`; ``alike``, the number of saturated cells;
    ``below``, that of cells below the range of the saturation level; the fields with prefix ``outside_``, the
    answer without saturated cells; ``adjusted``, the p value with Holm's correction over the metrics; and
    ``verdict`` on the mean within datasets: to predict needs both the adjusted p value below 5 % and an
    interval that excludes zero. With the first alone the order of these datasets is told from chance, while
    others may have none (:data:`HERE`).
    """
    rows = {}
    asked, values = (PUBLISHED, published_cells) if published else (METRICS, cells)
    each = {metric: values(frame, metric) for metric in asked}
    tests = sum(len(found) > 0 for found in each.values())
    for metric, found in each.items():
        better = quantities.of(metric).lower_is_better is False
        every, outside = (
            answer(part, higher_is_better=better, tests=tests)
            for part in (found, found[~found.alike.astype(bool)])
        )
        counts = {"alike": int(found.alike.sum()), "below": int((found.value < found.floor_low).sum())}
        further = {f"outside_{name}": value for name, value in outside._asdict().items()}
        rows[metric] = every._asdict() | counts | further
    table = pd.DataFrame(rows.values(), index=list(rows))
    tested = table.chance.notna()
    adjusted = pd.Series(np.nan, table.index)
    adjusted[tested] = statistics.holm(table.chance[tested])
    table = table.assign(adjusted=adjusted)
    return table.assign(verdict=[_verdict(row) for row in table.itertuples()])


def _verdict(row):
    if not np.isfinite(row.within):
        return UNKNOWN
    if not row.adjusted < 0.05:
        return NO
    return (YES if row.within > 0 else REVERSED) if row.within_low * row.within_high > 0 else HERE


def finding(table: pd.DataFrame, metric: str) -> str:
    """What the test error says of a metric, as a sentence without its full stop, from a row of `answers`.

    Examples
    --------
    >>> row = {"within": 0.47, "within_low": 0.2, "within_high": 0.7, "chance": 0.0017}
    >>> row |= {"below": 18, "cells": 54}
    >>> finding(pd.DataFrame([row], index=["fv"]), "fv")
    'rank correlation with FV 0.47 (0.20 to 0.70) within datasets, p = 0.0017 by permutation of the models
    within them; 18 of 54 values below the saturation range'
    """
    row, name = table.loc[metric], quantities.of(metric).short_name
    within = with_interval(row.within, row.within_low, row.within_high)
    return (
        f"rank correlation with {name} {within} within datasets, p = {_text(row.chance, '{:.2g}')} by "
        f"permutation of the models within them; {row.below:.0f} of {row.cells:.0f} values below the "
        "saturation range"
    )


def error_spread(found: pd.DataFrame) -> tuple[float, float]:
    """Least and largest ratio, over datasets, of the largest test error to the smallest one.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([["a", "b"], ["x", "y"]], names=["dataset", "model"])
    >>> error_spread(pd.DataFrame({"error": [1.0, 2, 4, 6]}, index=index))
    (1.5, 2.0)
    """
    errors = found.error.groupby(level="dataset")
    ratios = (errors.max() / errors.min())[errors.size() > 1]
    return float(ratios.min()), float(ratios.max())


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`answers` as texts: correlations with their intervals, the test, its power, and pairs in order."""
    interval = ("within", "within_low", "within_high")
    rows = [
        {
            "Cells": f"{row.cells:.0f}",
            "Within datasets": with_interval(*(getattr(row, name) for name in interval)),
            "p, adjusted": _text(row.adjusted, "{:.2g}"),
            "Found in 80 % from": _text(row.detectable, "{:.2f}"),
            "Pairs right": _text(row.right, "{:.0%}"),
            "Not saturated, cells": f"{row.outside_cells:.0f}",
            "Within datasets ": with_interval(
                row.outside_within, row.outside_within_low, row.outside_within_high
            ),
            "Test error": row.verdict,
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows, index=[quantities.of(name).label for name in table.index])


def with_interval(value: float, low: float, high: float) -> str:
    """Text of a correlation and its interval.

    Examples
    --------
    >>> with_interval(0.31, -0.02, 0.6), with_interval(0.31, float("nan"), 1.0), with_interval(np.nan, 0, 0)
    ('0.31 (-0.02 to 0.60)', '0.31', 'no value')
    """
    if not np.isfinite(value):
        return "no value"
    return f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if np.isfinite([low, high]).all() else "")


def _text(value, form):
    return form.format(value) if np.isfinite(value) else "no value"


def told(table: pd.DataFrame, verdict: str) -> str:
    """Heads, without units, of the metrics that have this verdict, as text; ``none`` if there are none."""
    names = [quantities.of(name).short_name for name in table.index[table.verdict == verdict]]
    return listed(names) or "none"


def where(table: pd.DataFrame) -> str:
    """On how many datasets the metrics that the test error predicts were compared, as a part of a sentence.

    Examples
    --------
    >>> where(pd.DataFrame({"verdict": [YES, NO], "datasets": [4, 9]}))
    ', compared on 4 datasets'
    """
    counts = table.datasets[table.verdict == YES]
    return f", compared on {span(counts, '.0f')} datasets" if len(counts) else ""


def plot_question(found: dict) -> Figure:
    """Metric against test error, with one panel per metric and saturation levels as grey boxes.

    The colour denotes the model, the marker the dataset. Open markers are saturated. The box of a dataset
    spans the errors of its models horizontally and the range of its saturation level vertically.

    Parameters
    ----------
    found
        Metric -> DataFrame of `cells`.
    """
    shown = {metric: part for metric, part in found.items() if len(part)}
    rows = max(1, -(-len(shown) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(7.8, 2.5 * rows), squeeze=False)
    names = list(dict.fromkeys(n for part in shown.values() for n in part.index.get_level_values("dataset")))
    markers = dict(zip(names, look.MARKERS * 4, strict=False))
    for ax, (metric, part) in zip(axes.flat, shown.items(), strict=False):
        _plot_cells(ax, metric, part, markers)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    models = {model for part in shown.values() for model in part.index.get_level_values("model")}
    handles = look.model_handles(sorted(models, key=look.model_place), marker="o", linestyle="")
    handles += panels.dataset_handles(markers)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
    else:
        axes[0, 0].text(0, 0.5, "not run")
    return figure


def _plot_cells(ax, metric, part, markers):
    for dataset, here in part.groupby(level="dataset"):
        low, high = here.floor_low.iloc[0], here.floor_high.iloc[0]
        if np.isfinite([low, high]).all():
            left, right = here.error.min() / 1.15, here.error.max() * 1.15
            box = {"color": look.FLOOR_COLOR, "alpha": 0.4, "linewidth": 0, "zorder": 0}
            ax.add_patch(Rectangle((left, low), right - left, high - low, **box))
        for (_, model), row in here.iterrows():
            color = look.model_color(model)
            style = {"color": color, "markerfacecolor": "none" if row.alike else color, "markersize": 5}
            ax.plot(row.error, row.value, markers[dataset], **style)
    ax.set(xlabel="Force MAE, test (meV/Å)", ylabel=quantities.of(metric).label)
    for axis in "xy" if metric != "stable_fraction" and (part.value > 0).all() else "x":
        look.set_log_scale(ax, axis)
