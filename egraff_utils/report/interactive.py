"""Which point is which? Scatters whose points name their cell and values, and lead to its page, for plotly.

They are the plain ``data`` and ``layout`` of plotly, which `drawn.show` keeps beside the picture; no library
is needed to make them. The colour denotes the model, the marker the dataset, as in the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from egraff_utils import quantities
from egraff_utils.report import look, question
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import say

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "h": "hexagon",
}
"""Markers of matplotlib -> symbols of plotly."""

LOG_TICKS = {"type": "log", "dtick": "D2"}


def against_error(frame: pd.DataFrame, *metrics: str) -> dict:
    """The scatter of some metrics; the frame has one row per metric, as `records.read` returns it."""
    return scatter({metric: question.cells(frame, metric) for metric in metrics})


def scatter(found: Mapping[str, pd.DataFrame]) -> dict:
    """Metrics against the test error, one at a time, from which a reader chooses.

    A point says which model and dataset it is, its values with units and intervals, and the saturation level;
    a click opens the page of the dataset's simulations. Open markers are saturated.

    Parameters
    ----------
    found
        Metric -> DataFrame of `question.cells`; those without rows are left out.

    Returns
    -------
    dict
        ``data`` and ``layout`` of plotly.
    """
    found = {metric: part for metric, part in found.items() if len(part)}
    traces = [(metric, _trace(metric, *each)) for metric, part in found.items() for each in _by_model(part)]
    for metric, trace in traces:
        trace["visible"] = metric == next(iter(found))
    buttons = [
        {
            "label": quantities.of(metric).label,
            "method": "update",
            "args": [{"visible": [other == metric for other, _ in traces]}, _axes(metric, part)],
        }
        for metric, part in found.items()
    ]
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.16, "yanchor": "top"}
    layout = {"height": 520, "hovermode": "closest", "margin": {"l": 70, "r": 10, "t": 70, "b": 60}}
    layout |= {"updatemenus": [menu]} if len(buttons) > 1 else {}
    first = buttons[0]["args"][1] if buttons else {}
    return {"data": [trace for _, trace in traces], "layout": layout | _nested(first)}


def _nested(flat):
    """Settings without dots in their names, which only an update of a plot understands."""
    nested = {}
    for name, value in flat.items():
        head, _, rest = name.partition(".")
        nested[head] = {**nested.get(head, {}), **_nested({rest: value})} if rest else value
    return nested


def _by_model(part):
    for model in sorted(part.index.unique("model"), key=look.model_place):
        yield model, part.xs(model, level="model"), list(part.index.unique("dataset"))


def _trace(metric, model, rows, datasets):
    color = look.model_color(model)
    markers = {name: SYMBOLS[look.MARKERS[datasets.index(name) % len(look.MARKERS)]] for name in rows.index}
    symbols = [markers[name] + "-open" * bool(row.alike) for name, row in rows.iterrows()]
    ends = {"array": _ends(rows.high - rows.value), "arrayminus": _ends(rows.value - rows.low)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": model_title(model),
        "x": [_short(value) for value in rows.error],
        "y": [_short(value) for value in rows.value],
        "error_y": {"type": "data", "thickness": 1, "width": 0, **ends},
        "marker": {"color": color, "symbol": symbols, "size": 9, "line": {"width": 1.5}},
        "text": [_text(metric, name, model, row) for name, row in rows.iterrows()],
        "hovertemplate": "%{text}<extra></extra>",
        "customdata": [f"../rollout/{name}.html" for name in rows.index],
    }


def _ends(lengths):
    return [_short(max(length, 0)) if np.isfinite(length) else 0 for length in lengths]


def _short(value):
    return float(f"{value:.4g}")


def _text(metric, dataset, model, row):
    quantity = quantities.of(metric)
    unit = "" if quantity.unit == "1" else f" {quantity.unit}"
    lines = [
        f"<b>{model_title(model)} on {short_title(dataset)}</b>",
        f"Force MAE {say(row.error, '.4g')} meV/Å",
        f"{quantity.short_name} {say(row.value, '.4g')}{unit}{_range(row.low, row.high, '95 %: ')}",
        f"Saturation{_range(row.floor_low, row.floor_high)}" + ", reached" * bool(row.alike),
    ]
    return "<br>".join(lines[: 4 if np.isfinite(row.floor_high) else 3])


def _range(low, high, before=""):
    return f" ({before}{low:.4g} to {high:.4g})" if np.isfinite([low, high]).all() else ""


def _axes(metric, part):
    """Titles and scales of the axes, and the grey boxes of the saturation levels."""
    positive = metric != "stable_fraction" and (part.value > 0).all()
    scale = LOG_TICKS if positive else {"type": "linear", "dtick": None}
    boxes = [_box(here) for _, here in part.groupby(level="dataset") if np.isfinite(here.floor_high.iloc[0])]
    flat = {f"yaxis.{name}": value for name, value in scale.items()}
    flat |= {f"xaxis.{name}": value for name, value in LOG_TICKS.items()}
    flat |= {"yaxis.autorange": True, "yaxis.title.text": quantities.of(metric).label}
    return flat | {"xaxis.title.text": "Force MAE, test (meV/Å)", "shapes": boxes}


def _box(here):
    low, high = here.floor_low.iloc[0], here.floor_high.iloc[0]
    ends = {"x0": _short(here.error.min() / 1.15), "x1": _short(here.error.max() * 1.15)}
    look_of_it = {"fillcolor": "#8c8c8c", "opacity": 0.3, "line": {"width": 0}, "layer": "below"}
    return {"type": "rect", **ends, "y0": _short(low), "y1": _short(high), **look_of_it}
