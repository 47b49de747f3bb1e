"""How long until the forces are accurate? Learning curves, and the times at which they reach an error.

The records are those of ``python -m benchmarks accuracy equal``, of the kinds ``bench_accuracy`` and
``bench_equal``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import records
from egraff_utils.report import look, speed, table_cells, tables
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import count, span

KIND = "bench_accuracy"
EQUAL = "bench_equal"
SIDES = {"ours": ("Ours", "-"), "theirs": ("Package's command", "--")}
"""Side of the comparison -> its name and line style."""


def targets(found: Iterable) -> list:
    """Errors for which times were measured, meV/Å, the largest first."""
    names = {m.name for r in speed.of_kind(found, KIND) for m in r.metrics if m.name.startswith("ours_")}
    return sorted((int(name.removeprefix("ours_")) for name in names), reverse=True)


def times(found: Iterable) -> pd.DataFrame:
    """Time until every error was reached.

    Returns
    -------
    DataFrame with one row per record and target: ``dataset``, ``model``, ``target`` (meV/Å), ``ours``,
    ``theirs`` and ``compilation`` (s); infinite if the budget ended before, NaN if there is no such program.
    """
    rows = []
    for record in speed.of_kind(found, KIND):
        value = {m.name: math.inf if m.value is None else m.value for m in record.metrics}
        for target in targets([record]):
            seconds = [value.get(f"{side}_{target}", math.nan) for side in SIDES]
            rows.append((record.dataset, record.model, target, *seconds, value["compile_seconds"]))
    return pd.DataFrame(rows, columns=["dataset", "model", "target", *SIDES, "compilation"])


def time_table(found: Iterable) -> pd.DataFrame:
    """Times until every error as texts, with one row per dataset and model; failed cells are marked."""
    found, rows = speed.of_kind(found, KIND), {}
    for record in found:
        budget, row = record.parameters.get("budget", math.nan), {}
        for _, _, target, ours, theirs, compilation in times([record]).itertuples(index=False):
            sides = {"ours": ours, "ours with compilation": ours + compilation, "package's command": theirs}
            row |= {f"{target} meV/Å, {side} (s)": _seconds(value, budget) for side, value in sides.items()}
        if row:
            row["Compilation (s)"] = _seconds(compilation, budget)
        rows[record.dataset, record.model] = row
    index = pd.MultiIndex.from_tuples(list(rows), names=["dataset", "model"])
    table = pd.DataFrame(list(rows.values()), index=index)
    table.loc[[r.status == "failed" for r in found]] = table_cells.FAILED
    return table.sort_index(key=speed._order)


def _seconds(value, budget):
    if math.isnan(value):
        return tables.NO_VALUE
    return f"{value:.0f}" if math.isfinite(value) else f"over {budget:.0f}"


def equal(names: Iterable[str]) -> list:
    """Complete records of both trainers after equal epochs in campaigns with these names."""
    found = [r for name in names for r in records.read_all(name) if r.kind == EQUAL]
    return [record for record in found if record.status == "complete"]


def equal_table(found: Iterable) -> pd.DataFrame:
    """Least validation errors of both trainers after equal epochs, ranges over the seeds, a row per model."""
    columns = ["model", *SIDES, "ratio"]
    frame = pd.DataFrame([[r.model, r["ours"], r["theirs"], r["ratio"]] for r in found], columns=columns)
    runs, rows = dict(list(frame.groupby("model"))), {}
    for model in order_models(runs):
        of = runs[model]
        sides = {f"{title}, error (meV/Å)": span(of[side], ".1f") for side, (title, _) in SIDES.items()}
        mean = np.exp(np.log(of.ratio).mean())
        rows[model_title(model)] = sides | {
            "Ours over theirs": span(of.ratio), "Geometric mean": f"{mean:.2f}", "Seeds": str(len(of)),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Model")


def equal_values(found: Iterable) -> dict[str, str]:
    """What a page says of :func:`equal_table`, as texts by name.

    Returns
    -------
    ``means``, the range over the models of the geometric means over seeds of our error over theirs;
    ``pairs``, that over all pairs; ``greater``, in how many of these ours is the greater error; ``sided``,
    the models for which that holds of all seeds, or of none; ``epochs`` and ``preset`` of the trainings.
    """
    frame = pd.DataFrame([(r.model, r["ratio"]) for r in found], columns=["model", "ratio"])
    logs = np.log(frame.ratio.astype(float)).groupby(frame.model)
    sides = {"above one": logs.min() > 0, "below one": logs.max() < 0}
    sided = [
        f"{model_title(model)} ({side})"
        for side, held in sides.items()
        for model in order_models(held[held].index)
    ]
    return {
        "means": span(np.exp(logs.mean())),
        "pairs": span(frame.ratio),
        "greater": count(frame.ratio > 1),
        "epochs": span([r.parameters["epochs"] for r in found], ".0f"),
        "preset": ", ".join(dict.fromkeys(r.parameters["preset"] for r in found)),
        "sided": ", ".join(sided) or "none",
    }


def gain(found: Iterable, target: float, *, compiled: bool = False) -> str:
    """Range of the ratio of their time to ours until an error, over the cells where both reach it, as text.

    Where there is no such cell the text says in how many each of the two does.

    Parameters
    ----------
    found
        Records of benchmarks.
    target
        Error, meV/Å.
    compiled
        Whether the compilation is included in our time.
    """
    rows = times(found)
    rows = rows[rows.target == target].dropna()  # without a program there is nothing to compare
    arrived = rows[list(SIDES)] < math.inf
    both = rows[arrived.all(axis=1)]
    if rows.empty or len(both):
        ratios = both.theirs / (both.ours + both.compilation * compiled)
        return speed._span(list(ratios)) or f"({speed.NOT_YET})"
    ours, theirs = (count(arrived[side]) for side in SIDES)
    return "none" if compiled else f"no cell, reached by ours in {ours} and by the command in {theirs}"


def curve_grid(found: Iterable) -> Figure:
    """Validation error of the forces against training time, with one panel per dataset.

    Solid lines are ours, dashed ones the package's command; grey lines are the errors of :func:`targets`. The
    curves are ``ours_seconds`` (s), ``ours_error`` (meV/Å) and those with ``theirs``.
    """
    found = [r for r in speed.of_kind(found, KIND) if "ours_error" in r.curves]
    datasets = order_datasets({r.dataset for r in found})
    figure, axes = plt.subplots(1, max(len(datasets), 1), figsize=(7.5, 3.8), squeeze=False, sharey=True)
    for ax, dataset in zip(axes.flat, datasets, strict=False):
        for record in (r for r in found if r.dataset == dataset):
            for side, (_, line) in SIDES.items():
                if f"{side}_error" in record.curves:
                    points = record.curves[f"{side}_seconds"], record.curves[f"{side}_error"]
                    ax.plot(*points, line, color=look.model_color(record.model), linewidth=1.2)
        for target in targets(found):
            ax.axhline(target, color=look.FLOOR_COLOR, linewidth=1, zorder=0)
        ax.set_title(short_title(dataset), fontsize="small", loc="left")
        ax.set_xlabel("Training (s)")
        for axis in "xy":
            look.set_log_scale(ax, axis)
    axes[0, 0].set_ylabel("Validation force MAE (meV/Å)")
    if not found:
        axes[0, 0].text(0.5, 0.5, speed.NOT_YET, ha="center", va="center", color="0.4")
        return figure
    handles = look.model_handles(order_models({r.model for r in found}))
    handles += [Line2D([], [], color="0.3", linestyle=line, label=title) for title, line in SIDES.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure
