"""What does a smaller test error change? The same cells of two campaigns, one trained longer than the other.

A cell is a model on a dataset. Both campaigns start from the same frames with the same velocities and noise,
so what differs between the two simulations of a cell is the model.
"""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import quantities, statistics
from egraff_utils.report import look, question
from egraff_utils.report.comparison import order_models
from egraff_utils.report.panels import WIDTH, add_legend, dataset_handles, dataset_markers, legend_entries
from egraff_utils.report.values import MISSING, count, say, span
from egraff_utils.report.windows import censored

BETTER, WORSE, OPEN = "better", "worse", "not told from no change"
ENOUGH = 5
"""Number of datasets from which an interval over them is given: of normal values it holds the mean in 92 % of
cases for five, in 86 % for four and in 71 % for three."""


def pairs(short: pd.DataFrame, long: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Cells that both campaigns have, side by side.

    Parameters
    ----------
    short, long
        One row per metric, as returned by `records.read`, of the two campaigns.
    metric
        One of `question.METRICS`.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns of `question.cells` for each campaign, the
    second ones with ``_long`` after their names; ``change``, the logarithm of the second value over the
    first one, or their difference where a value may be zero (:func:`is_ratio`); ``late`` and ``late_long``,
    whether a horizon is a lower bound, as some simulation ended before it.
    """
    found = question.cells(short, metric).join(question.cells(long, metric), rsuffix="_long", how="inner")
    values = found[["value", "value_long"]].astype(float)
    if is_ratio(metric):
        values = np.log(values.where(values > 0))
    late = {f"late{end}": _late(rows, found, metric) for end, rows in (("", short), ("_long", long))}
    return found.assign(change=values.value_long - values.value, **late)


def _late(frame, found, metric):
    """Whether the horizon of a cell is a lower bound, as some simulation ended before it."""
    cells = {(dataset, model) for _, dataset, model in censored(frame, metric)}
    return [cell in cells for cell in found.index]


def is_ratio(metric: str) -> bool:
    """Whether a metric is compared by the ratio of its values, not by their difference.

    >>> is_ratio("wf"), is_ratio("stable_fraction")
    (True, False)
    """
    return quantities.of(metric).interval != "fraction"


def answers(short: pd.DataFrame, long: pd.DataFrame) -> pd.DataFrame:
    """What the longer training changes in every metric of `question.METRICS` that both campaigns have.

    Returns
    -------
    DataFrame with one row per metric: ``cells`` and ``datasets``; ``change``, the geometric mean of the
    ratios of the longer to the shorter training, or the mean difference, over the means of the datasets, with
    the 95 % interval ``low``, ``high`` of `statistics.bootstrap_interval` over datasets, or, of fewer than
    :data:`ENOUGH`, the range of their means, NaN of a single dataset; ``bound``, ``>`` or ``<`` where
    horizons that were not reached make ``change`` a lower or an upper bound, ``?`` where they do both;
    ``better`` and ``worse``, the numbers of cells that improve and that do not; ``alike`` and ``alike_long``,
    the numbers of saturated cells, NaN without a saturation level; ``order`` and ``order_long``, the rank
    correlations of test error and metric within datasets (`question.answer`), over these cells; ``chance``,
    the p value of :func:`chance_of`, ``adjusted``, the same with Holm's correction over the metrics; and
    ``verdict``, which takes an adjusted p value below 5 %.
    """
    rows = {}
    for metric in question.METRICS:
        found = pairs(short, long, metric).dropna(subset="change")
        if len(found):
            rows[metric] = _row(found, metric)
    table = pd.DataFrame.from_dict(rows, orient="index")
    if len(table):
        table["adjusted"] = statistics.holm(table.chance)
        table["verdict"] = np.where(table.adjusted < 0.05, table.side, OPEN)
    return table


def chance_of(changes: np.ndarray) -> float:
    """Two-sided probability of a mean at least this far from zero if the sign of every change is random.

    All signs are tried (Fisher 1935), so that n changes give 2 / 2**n at least.

    Examples
    --------
    >>> chance_of([1.0, 2.0, 3.0]), chance_of([1.0, -1.0])
    (0.25, 1.0)
    """
    changes = np.asarray(changes, dtype=float)
    signs = np.array(list(product([-1.0, 1.0], repeat=len(changes))))
    return float(np.mean(np.abs(signs @ changes) >= np.abs(changes.sum()) * (1 - 1e-9)))


def _row(found, metric):
    up = quantities.of(metric).lower_is_better is False
    means = found.change.groupby(level="dataset").mean()
    bounds = statistics.bootstrap_interval(means) if len(means) >= ENOUGH else (means.min(), means.max())
    bounds = bounds if len(means) > 1 else (np.nan, np.nan)
    ends = np.array([means.mean(), *bounds])
    known = found.floor_high.notna().any()
    change, low, high = np.exp(ends) if is_ratio(metric) else ends
    return {
        "cells": len(found),
        "datasets": len(means),
        "change": change,
        "low": low,
        "high": high,
        "bound": {(0, 0): "", (0, 1): ">", (1, 0): "<", (1, 1): "?"}[found.late.any(), found.late_long.any()],
        "better": int((found.change > 0 if up else found.change < 0).sum()),
        "worse": int((found.change < 0 if up else found.change > 0).sum()),
        "alike": int(found.alike.sum()) if known else np.nan,
        "alike_long": int(found.alike_long.sum()) if known else np.nan,
        "order": _order(found, "", up),
        "order_long": _order(found, "_long", up),
        "chance": chance_of(means),
        "side": BETTER if (ends[0] > 0) == up else WORSE,
    }


def _order(found, suffix, up):
    """Rank correlation of test error and metric within datasets, of one of the two campaigns."""
    names = ["error", "value", "low", "high"]
    part = found[[f"{name}{suffix}" for name in names]].set_axis(names, axis=1)
    return question.answer(part, higher_is_better=up).within


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """`answers` as texts, one row per metric."""
    rows = [
        {
            "Cells": f"{row.cells:.0f}",
            "Longer over shorter": _change(row),
            "Better, worse": f"{row.better:.0f}, {row.worse:.0f}",
            "Saturated": "–" if np.isnan(row.alike) else f"{row.alike:.0f}, then {row.alike_long:.0f}",
            "Order by test error": f"{say(row.order)}, then {say(row.order_long)}",
            "p, adjusted": f"{row.adjusted:.2g}",
            "Longer training": row.verdict,
        }
        for row in found.itertuples()
    ]
    return pd.DataFrame(rows, index=[quantities.of(name).short_name for name in found.index])


def _change(row):
    sign, form = ("×", ".2f") if is_ratio(row.Index) else ("", "+.2f")
    ends = f" ({row.low:{form}} to {row.high:{form}})" if np.isfinite([row.low, row.high]).all() else ""
    return " ".join(filter(None, [row.bound, f"{sign}{row.change:{form}}{ends}"]))


def values(short: pd.DataFrame, long: pd.DataFrame, found: pd.DataFrame) -> dict:
    """What a page says of `answers`, and of the test errors of the cells, as texts by name."""
    errors = errors_of(short, long)
    ratio, few = errors.error / errors.error_long, len(errors.index.unique("dataset"))
    texts = dict.fromkeys((f"{metric}_change" for metric in question.METRICS), MISSING)
    texts |= {f"{row.Index}_change": _change(row) for row in found.itertuples()}
    for name, verdict in {"better": BETTER, "worse": WORSE, "open": OPEN}.items():
        metrics = found.index[found.verdict == verdict] if len(found) else []
        texts[name] = ", ".join(quantities.of(metric).short_name for metric in metrics) or "none"
    texts["told"] = f"None of {len(found)} metrics tells the simulations apart"
    if {texts["better"], texts["worse"]} != {"none"}:
        texts["told"] = (
            f"Of {len(found)} metrics the simulation is told to be better by {texts['better']}, worse by "
            f"{texts['worse']}"
        )
    least = min(1.0, 2.0 ** (1 - few) * len(found)) if few else None
    return texts | {
        "caution": ", which so few datasets could not show" if least is None or least >= 0.05 else "",
        "cells": str(len(errors)),
        "datasets": str(few),
        "error": say(np.exp(np.log(ratio).groupby(level="dataset").mean().mean()), ".1f"),
        "error_span": span(ratio, ".1f"),
        "error_better": count(ratio > 1),
        "asked": str(len(found)),
        "least_p": say(least, ".2g"),
    }


def errors_of(short: pd.DataFrame, long: pd.DataFrame) -> pd.DataFrame:
    """Test errors of the cells with a rollout in both campaigns, ``error`` and ``error_long``, meV/Å."""
    return pairs(short, long, "stable_fraction")[["error", "error_long"]]


def change_grid(short: pd.DataFrame, long: pd.DataFrame, metrics: tuple) -> Figure:
    """Metric against test error of every cell, a line from the shorter training to the longer one.

    The marker, which stands at the longer training and denotes the dataset, is open where the value is
    saturated; the colour denotes the model.
    """
    found = {metric: part for metric in metrics if len(part := pairs(short, long, metric))}
    rows = max(1, -(-len(found) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(WIDTH, 2.5 * rows + 0.6), squeeze=False)
    keys = [key for part in found.values() for key in part.index]
    markers = dataset_markers({dataset for dataset, _ in keys})
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax, (metric, part) in zip(axes.flat, found.items(), strict=False):
        for (dataset, model), row in part.iterrows():
            color = look.model_color(model)
            ax.plot([row.error, row.error_long], [row.value, row.value_long], color=color, linewidth=0.9)
            filled = "none" if row.alike_long else color
            ax.plot(
                row.error_long,
                row.value_long,
                markers[dataset],
                color=color,
                markerfacecolor=filled,
                markersize=5,
            )
        ax.set(xlabel="Force MAE, test (meV/Å)", ylabel=quantities.of(metric).label)
        positive = is_ratio(metric) and (part[["value", "value_long"]] > 0).all(axis=None)
        for axis in "xy" if positive else "x":
            look.set_log_scale(ax, axis)
    handles = legend_entries(order_models({model for _, model in keys}))
    return add_legend(figure, handles + dataset_handles(markers), columns=5)
