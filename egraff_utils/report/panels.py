"""What do figures over many records share? Grids of panels with one legend, and their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils.report import look, plots
from egraff_utils.report.beside import DATASETS
from egraff_utils.report.comparison import (
    order_datasets,
    order_models,
)
from egraff_utils.report.levels import floor_of
from egraff_utils.report.look import FLOOR_COLOR, REFERENCE_COLOR
from egraff_utils.report.table_cells import NOT_RUN
from egraff_utils.report.titles import short_title

WIDTH = 7.4
"""Width of a grid, which is the text width of a page, inches."""


POINT = {"markersize": 5, "markeredgecolor": "0.2", "markeredgewidth": 0.5, "linestyle": "none"}
"""Style of the marker of a model."""


def is_wide(values):
    """Whether positive values span more than a factor of three."""
    values = values[values > 0]
    return len(values) > 0 and values.max() > 3 * values.min()


def dataset_markers(names: Iterable[str]) -> dict[str, str]:
    """Marker of every dataset, which is fixed for those of the paper; others take the next ones."""
    order = [*DATASETS, *(name for name in order_datasets(names) if name not in DATASETS)]
    markers = dict(zip(order, look.MARKERS * 9, strict=False))
    return {name: markers[name] for name in order_datasets(names)}


def grid(
    keys: Iterable,
    draw: Callable,
    *,
    title: Callable | None = None,
    sharey: bool = False,
    projection: str | None = None,
    height: float = 1.95,
    ratios: Sequence[float] = (1,),
    legend: bool = True,
    noun: str = "models",
    **handles,
) -> Figure:
    """Panels, three in a row, with one legend; `draw(ax, key)` returns the names of what it drew.

    With several `ratios` a panel consists of axes of these relative heights, one below the other, and `ax` is
    the list of them.
    """
    keys, parts = list(keys), len(ratios)
    columns = min(3, max(len(keys), 1))
    rows = -(-max(len(keys), 1) // columns)
    size = (WIDTH if columns > 1 else 0.7 * WIDTH, height * rows + (0.9 if rows < 3 else 0.6))
    options = {"squeeze": False, "sharey": sharey, "subplot_kw": {"projection": projection}}
    figure, axes = plt.subplots(
        rows * parts, columns, figsize=size, height_ratios=[*ratios] * rows, **options
    )
    stacks = [
        list(axes[parts * row : parts * (row + 1), column]) for row, column in np.ndindex(rows, columns)
    ]
    shown = dict(zip(keys, stacks, strict=False))
    drawn = {key: draw(stack if parts > 1 else stack[0], key) for key, stack in shown.items()}
    every = {name for names in drawn.values() for name in names}
    for key, names in drawn.items():
        count = f", {len(names)} of {len(every)} {noun}" if 0 < len(names) < len(every) else ""
        shown[key][0].set_title(f"{(title or short_title)(key)}{count}", fontsize="small", loc="left")
        if not names:
            say_not_run(shown[key][0])
            for ax in shown[key]:
                ax.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for stack in stacks[len(keys) :]:
        for ax in stack:
            ax.set_axis_off()
    if not keys:
        say_not_run(stacks[0][0])
    return add_legend(figure, legend_entries(order_models(every), **handles)) if legend else figure


def label_axes(figure, x, y):
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return figure


def say_not_run(ax, text=NOT_RUN):
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.grid(visible=False)


def add_legend(figure, handles, *, columns=None):
    if handles:
        columns = columns or (len(handles) if len(handles) <= 6 else -(-len(handles) // 2))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2)
    return figure


def legend_entries(models, *, marker=False, reference=False, floor=False, lines=None):
    """Entries of the legend, with markers if the figure has them."""
    handles = []
    if reference:
        handles.append(Line2D([], [], color=REFERENCE_COLOR, linewidth=2.6, label="reference"))
    handles += look.model_handles(
        models, markers=marker, dashes=not marker, **(POINT if marker else {"linewidth": 1.6})
    )
    if floor:
        label = floor if isinstance(floor, str) else "saturation"
        handles.append(Line2D([], [], color=FLOOR_COLOR, linewidth=5, alpha=0.45, label=label))
    for name, line in (lines or {}).items():
        if name:
            handles.append(Line2D([], [], color="0.3", linestyle=line, linewidth=1.2, label=name))
    return handles


def dataset_handles(markers):
    style = {"color": "0.45", "linestyle": "none"}
    return [Line2D([], [], marker=m, label=short_title(name), **style) for name, m in markers.items()]


def point_style(model):
    return {"color": look.model_color(model), "marker": look.model_marker(model), **POINT}


def offset(place, total):
    return 0.7 * ((place + 0.5) / max(total, 1) - 0.5)


def select(records, kind, dataset):
    return [r for r in records if r.kind == kind and r.dataset == dataset and r.model != "reference"]


def dataset_names(records, kind):
    return order_datasets({r.dataset for r in records if r.kind == kind and r.model != "reference"})


def by_model(records):
    """Records by model, in the paper's order of models."""
    groups = {}
    for record in records:
        groups.setdefault(record.model, []).append(record)
    return {model: groups[model] for model in order_models(groups)}


def part_names(records):
    """Names of the compositions over which rollouts were pooled."""
    names = [str(name) for r in records if "composition" in r.curves for name in r.curves["composition"]]
    return list(dict.fromkeys(names))


def part_title(key):
    dataset, part = key
    return f"{short_title(dataset)}{', ' + part if part else ''}"


def stack_curves(records, name):
    """Curves of all replicas of all seeds, shape ``(R, T)``, NaN after the end of a shorter run."""
    curves = [np.atleast_2d(plots.read_curve(record, name)).astype(float) for record in records]
    length = max(curve.shape[1] for curve in curves)
    ends = [((0, 0), (0, length - curve.shape[1])) for curve in curves]
    padded = [np.pad(curve, end, constant_values=np.nan) for curve, end in zip(curves, ends, strict=True)]
    return np.concatenate(padded)


def mean_distribution(records, name):
    """Mean over replicas and seeds of a distribution (R, B), zero throughout for one that ended too early."""
    values = stack_curves(records, name)
    values[~values.any(1)] = np.nan
    return plots.replica_mean(values)


def longest_time(records):
    """Times of the longest run, shape ``(T,)``, fs."""
    return max((plots.read_curve(record, "time") for record in records), key=len)


def running_mean(values, window):
    """Running mean over the frames that have a value; NaN where the central frame has none."""
    found = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(found, values, 0.0), kernel, mode="same")
    count = np.convolve(found.astype(float), kernel, mode="same")
    return np.where(found, total / np.maximum(count, 1), np.nan)


def dataset_value(records, dataset, metric):
    """Metric in the record of a dataset, or of the first training on it; `None` if there is none."""
    for record in sorted(records, key=lambda r: r.kind != "dataset"):
        if record.dataset == dataset and record.kind in ("dataset", "training"):
            values = {m.name: m.value for m in record.metrics}
            if values.get(metric) is not None:
                return values[metric]
    return None


def floor_range(records, kind, dataset, name):
    """Range of the floor of a metric, or its value twice if it has no range; NaN without a floor."""
    root = "ev_root" if name == "ev" else name
    columns = ["kind", "dataset", "model", "metric", "value", "low", "high"]
    rows = [
        (r.kind, dataset, r.model, m.name, m.value, m.low, m.high)
        for r in records
        if r.dataset == dataset and r.model == "reference"
        for m in r.metrics
    ]
    value, *ends = floor_of(pd.DataFrame(rows, columns=columns), kind, dataset, root)
    ends = np.array(ends if np.isfinite(ends).all() else [value, value])
    return ends**2 if name == "ev" else ends  # the geometric mean of squares is the square of the mean
