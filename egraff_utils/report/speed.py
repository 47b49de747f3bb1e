"""How much faster than the upstream packages, how far from the machine's limit? Tables of benchmarks.

The records are those that ``python -m benchmarks`` writes, of kinds ``bench_md``, ``bench_training`` and so
on. A suffix of the kind after an underscore names a preset, or what training is compared with
(:data:`BESIDE`). A ratio is their time over ours, so ours is faster if it is above one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import cards, records
from egraff_utils.report import look, table_cells, tables
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.speed_goals import GOALS, Goal
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import span as range_text
from egraff_utils.report.values import value

LEVELS = ("dataset", "model", "preset", "device")
HEADS = {
    "ratio_1": "1 replica, ratio (dimensionless)",
    "ratio_5": "5 replicas, ratio (dimensionless)",
    "function": "Compiled function (ms)",
    "collation": "Collation, filling up (ms)",
    "clipping": "Clipping, averaging (ms)",
    "rest": "Rest, Lightning (ms)",
    "step": "Step with Adam (ms)",
    "compile_seconds": "Compilation (s)",
    "compile_again_seconds": "From the cache (s)",
    "compile_time": "Compilation (s)",
    "rollout_ratio": "Rollout with compilation, ratio (dimensionless)",
    "payback_steps": "Paid back after (steps)",
    "time_exponent": "Exponent of time (dimensionless)",
    "time_exponent_large": "From 250 atoms on (dimensionless)",
    "constant": "Time without atoms (ms)",
    "atoms_in_memory": "Would fill the memory (atoms)",
    "largest_size": "Largest size (atoms)",
    "ms_per_step": "Time of a step (ms)",
    "ms_per_atom": "Time per atom there (ms)",
    "operators_per_step": "Operators per step (count)",
    "force_error": "Model's force error (meV/Å)",
    "force_difference_over_error_float32": "float32 difference over it (×)",
    "force_difference_over_error_tf32": "TF32 difference over it (×)",
    "speed_float32": "float32, speed (×)",
    "speed_tf32": "TF32, speed (×)",
    "drift_float64": "Drift in float64 (meV / atom / ps)",  # spaces, so that a head can break
    "drift_float32": "Drift in float32 (meV / atom / ps)",
    "drift_tf32": "Drift in TF32 (meV / atom / ps)",
    "plain_difference_float64": "Fast beside plain in float64, relative (×)",
    "plain_difference_over_error_float32": "In float32, over the error (×)",
    "imports_torch": "Imports torch (1: yes)",
    "notebooks": "Notebooks of the demo (count)",
    "ratio_rdf": "RDF, ratio (dimensionless)",
    "ours_rdf": "RDF, ours (frames/s)",
    "theirs_rdf": "RDF, ASE's (frames/s)",
    "rdf_difference": "RDF, difference (dimensionless)",
    "metrics_time": "Metrics of a rollout (s)",
    "rollout_time": "The rollout (s)",
    "share_of_rollout": "Share (dimensionless)",
}
"""Metric whose name is not clear enough -> its head."""

SHOWN = {
    "bench_compiled": ("ratio_1", "ratio_5", "compile_time", "rollout_ratio", "payback_steps"),
    "bench_limit": (
        "flop_per_step",
        "bytes_per_step",
        "operators_per_step",
        "ms_per_step",
        "compute_fraction",
        "memory_fraction",
        "operator_fraction",
    ),
    "bench_metrics": (
        "ratio_rdf",
        "ours_rdf",
        "rdf_difference",
        "metrics_time",
        "rollout_time",
        "share_of_rollout",
    ),
    "bench_precision": (
        "force_error",
        "force_difference_over_error_float32",
        "force_difference_over_error_tf32",
        "speed_float32",
        "speed_tf32",
        "drift_float64",
        "drift_float32",
        "drift_tf32",
        "plain_difference_float64",
        "plain_difference_over_error_float32",
    ),
}
"""Kind -> metrics that a table of it shows; a kind that is missing here has all of them."""

WORST = 4
"""Largest number of cells that a goal names among those that missed it."""

TINY = 1e-4
LINES = {"small": "-", "paper": "--"}
RATES = [*LEVELS, "replicas", "ratio", "low", "high", "pairs", "ours", "theirs", "unit"]

BESIDE = {
    "bench_training_plain": "Ours by operators",
    "bench_training": "Package's command",
    "bench_training_compiled": "Package's command, compiled",
}
"""Kind of a comparison -> what our compiled training is compared with."""
NOT_YET, NOT_MEASURED = "not measured yet", "(not measured)"


def read(names: Iterable[str]) -> list:
    """Records of benchmarks in the campaigns with these names, a list; the first one of a cell counts."""
    found = [r for name in names for r in records.read_all(name) if r.kind.startswith("bench_")]
    return list({(r.kind, *_key(r)): r for r in reversed(found)}.values())[::-1]


def of_kind(found: Iterable, kind: str) -> list:
    """Records of a kind, with any preset as its suffix."""
    return [r for r in found if r.kind == kind or (r.kind.startswith(f"{kind}_") and r.kind not in BESIDE)]


def rates(found: Iterable, kind: str = "bench_md") -> pd.DataFrame:
    """Throughput of both sides and their ratio.

    Parameters
    ----------
    found
        Records; failed ones and those of other kinds are ignored.
    kind
        ``bench_md``, or one of :data:`BESIDE`.

    Returns
    -------
    DataFrame with one row per record and number of replicas: ``dataset``, ``model``, ``preset``, ``device``,
    ``replicas`` (count; 0 if a metric names none), ``ratio`` with ``low`` and ``high`` (10th and 90th
    percentile over ``pairs``, dimensionless), and ``ours`` and ``theirs`` in ``unit``.
    """
    rows = []
    for record in of_kind(found, kind):
        for ratio in record.metrics:
            name, _, replicas = ratio.name.partition("_")
            if name != "ratio" or not (replicas or "0").isdigit():
                continue
            sides = [record.metric(ratio.name.replace("ratio", side)) for side in ("ours", "theirs")]
            measured = (ratio.value, ratio.low, ratio.high, ratio.n, *(side.value for side in sides))
            rows.append((*_key(record), int(replicas or 0), *measured, sides[0].unit))
    table = pd.DataFrame(rows, columns=RATES).astype(dict.fromkeys(RATES[5:-1], float))
    return table.sort_values([*LEVELS, "replicas"], key=_order, ignore_index=True)


def ratio_table(found: Iterable, kind: str = "bench_md") -> pd.DataFrame:
    """Ratios with their range, and our throughput, with one row per dataset and model.

    Failed cells are marked; `failures` gives the reason.
    """
    found = of_kind(found, kind)
    table = rates(found, kind)
    heads = {"ratio": "Ratio (dimensionless)", "ours": f"Ours ({next(iter(table.unit), '1/s')})"}
    cells = table.assign(ratio=[_ranged(row) for row in table.itertuples()]).rename(columns=heads)
    wide = cells.pivot(index=list(LEVELS), columns="replicas", values=list(heads.values()))
    parts = sorted(set(table.replicas))
    wide = wide.reindex(columns=[(head, part) for head in heads.values() for part in parts])
    names = [(head, f"{part} replica{'s' * (part > 1)}") for head, part in wide]
    wide.columns = pd.MultiIndex.from_tuples(names) if any(parts) else [head for head, _ in names]
    return _with_failures(wide, found)


def training_table(found: Iterable) -> pd.DataFrame:
    """Throughput of our training and of its competitors, with ratios, in one row per dataset and model.

    Ours is the one from the first comparison in :data:`BESIDE` that was measured.
    """
    found = [r for r in found if r.kind in BESIDE]
    parts = {kind: rates(found, kind).set_index(list(LEVELS)) for kind in BESIDE}
    unit = next((unit for rows in parts.values() for unit in rows.unit), "1/s")
    ours = pd.concat([rows.ours for rows in parts.values()])
    columns = {f"Ours ({unit})": ours[~ours.index.duplicated()]}
    for kind, title in BESIDE.items():
        rows = parts[kind]
        failed = _index([r for r in found if r.kind == kind and r.status == "failed"])
        ratios = pd.Series([_ranged(row) for row in rows.itertuples()], rows.index, dtype=object)
        for head, values in ((f"{title} ({unit})", rows.theirs), (f"{title}, ratio (dimensionless)", ratios)):
            columns[head] = pd.concat(
                [values.astype(object), pd.Series(table_cells.FAILED, failed, dtype=object)]
            )
    cells = _index(found).unique()
    wide = pd.DataFrame({head: values.reindex(cells) for head, values in columns.items()}, index=cells)
    wide = wide.astype(object).sort_index(key=_order)
    wide.loc[:, wide.isna().all()] = NOT_YET
    return _without_silent_levels(wide)


def _ranged(row):
    known = f" ({row.low:.2f} to {row.high:.2f})" if np.isfinite(row.low) else ""
    return f"{row.ratio:.2f}{known}"


def value_table(found: Iterable, kind: str) -> pd.DataFrame:
    """Metrics in :data:`SHOWN` of the records of a kind, with one row per dataset and model.

    Large values have a prefix to their unit. The column ``Note`` gives the reason why a measurement ended.
    """
    found = of_kind(found, kind)
    units = {m.name: m.unit for r in found for m in r.metrics}
    chosen = [m for m in SHOWN.get(kind, units) if m in units]
    columns = {metric: _column(found, metric, units[metric]) for metric in chosen}
    wide = pd.DataFrame(dict(columns.values()), index=_index(found)).astype(object).map(_plain)
    if any(r.message for r in found):
        wide["Note"] = [r.message for r in found]
    return _with_failures(wide, found)


def show(table: pd.DataFrame, name: str, empty: str = NOT_YET) -> None:
    """Display a table with the link that saves it, or a text if it has no row."""
    if len(table):
        tables.show(tables.plain(table, name, missing=tables.NO_VALUE), name)
    else:
        display(Markdown(f"{name.removeprefix('speed-').replace('-', ' ').capitalize()}: {empty}"))


def gains(table: pd.DataFrame, **chosen) -> str:
    """Range of the ratios of some rows of `rates`, chosen by the values of columns, as text."""
    rows = table[(table[list(chosen)] == list(chosen.values())).all(axis=1)]
    return range_text(rows.ratio, ".1f", missing=NOT_MEASURED)


def machine_rates(found: Iterable) -> dict:
    """Rates of the machine that determine the limits, name -> text with unit; empty without records."""
    limits = [r for r in of_kind(found, "bench_limit") if r.metrics]
    rates = [m for m in limits[0].metrics if m.name.endswith("_rate")] if limits else []
    return {m.name: f"{m.value / 1e9:.3g} G{m.unit}" for m in rates if m.unit != "1/s"}


def limit_reached(found: Iterable) -> pd.Series:
    """Largest fraction of the machine's limits in every cell, dimensionless, shape ``(cells,)``."""
    ends = "_fraction"
    cells = {
        r.path: [m.value for m in r.metrics if m.name.endswith(ends)] for r in of_kind(found, "bench_limit")
    }
    return pd.Series({path: max(values) for path, values in cells.items() if values}, dtype=float)


def span(found: Iterable, kind: str, metric: str) -> str:
    """Range of the absolute value of a metric over the records of a kind, as text."""
    values = [abs(value(r, metric)) for r in of_kind(found, kind) if metric in {m.name for m in r.metrics}]
    return _span(values) or NOT_MEASURED


def goal_table(found: Iterable, goals: Iterable[Goal] = GOALS) -> pd.DataFrame:
    """Goals with the values that were found, and the cells that missed them.

    Returns
    -------
    DataFrame with the index ``Goal`` and texts in the columns ``Asked``, ``Found`` (range over all cells),
    ``Cells`` (number that reach the goal, and number of all), ``Verdict`` (``met``, ``not met`` or ``not
    measured``) and ``Missed by``.
    """
    found, rows = list(found), {}
    for goal in goals:
        cells = _cells(goal, found)
        missed = {title: value for title, value in cells.items() if not goal.low <= value <= goal.high}
        met = len(cells) - len(missed)
        verdict = "not met" if missed else "met"
        rows[goal.title] = {
            "Asked": goal.asked,
            "Found": _span([value for value in cells.values() if not math.isnan(value)]),
            "Cells": f"{met} of {len(cells)}" if cells else "",
            "Verdict": verdict if cells else "not measured",
            "Missed by": _missed(missed),
        }
    columns = ["Asked", "Found", "Cells", "Verdict", "Missed by"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("Goal")


def _missed(cells):
    """Text with the worst cells and their values, failed ones first, and the number of further cells."""
    order = sorted(cells, key=lambda title: -math.inf if math.isnan(cells[title]) else cells[title])
    more = [f"{len(order) - WORST} more"] if len(order) > WORST else []
    return ", ".join([f"{title} {_short(cells[title])}" for title in order[:WORST]] + more)


def failures(found: Iterable) -> pd.DataFrame:
    """Comparisons without a value, in columns ``Benchmark``, ``Dataset``, ``Model`` and ``Reason``."""
    rows = [
        (r.kind.removeprefix("bench_"), short_title(r.dataset), model_title(r.model), r.message)
        for r in found
        if r.status == "failed"
    ]
    return pd.DataFrame(rows, columns=["Benchmark", "Dataset", "Model", "Reason"]).set_index("Benchmark")


def made_on(found: Iterable) -> pd.DataFrame:
    """Hardware, versions and wall time (min), with one row per campaign, machine and number of threads."""
    rows = [
        {
            "Campaign": r.campaign,
            "Hardware": r.provenance.get("hardware", "not recorded"),
            "Threads": r.provenance.get("threads", 1),
            "Versions": ", ".join(
                f"{k} {v}" for k, v in r.provenance.get("versions", {}).items() if v != "absent"
            ),
            "wall_time": r.provenance.get("wall_time", 0) / 60,
        }
        for r in found
    ]
    heads = ["Campaign", "Hardware", "Threads", "Versions"]
    table = pd.DataFrame(rows, columns=[*heads, "wall_time"]).groupby(heads).wall_time.agg(["count", "sum"])
    table = table.set_axis(["Records (count)", "Wall time (min)"], axis=1).reset_index().set_index("Campaign")
    return table.astype({"Threads": str, "Records (count)": str})


# -- figures --------------------------------------------------------------------------------------------


def ratio_grid(table: pd.DataFrame, *, device: str = "cpu") -> Figure:
    """Ratio against the number of replicas, with one panel per dataset; bars show 10th to 90th percentiles.

    A grey line is a ratio of one, a black dash is a goal for this dataset.

    Parameters
    ----------
    table
        DataFrame of `rates`.
    device
        Device whose rows are shown.
    """
    table = table[table.device == device]
    datasets = order_datasets(set(table.dataset))
    rows = -(-max(len(datasets), 1) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(7.5, 0.9 + 2.2 * rows), squeeze=False, sharey=True)
    for ax, dataset in zip(axes.flat, datasets, strict=False):
        _draw_ratios(ax, table[table.dataset == dataset])
        for goal in (g for g in GOALS if (g.kind, g.dataset, g.device) == ("bench_md", dataset, device)):
            ax.plot(int(goal.metric.partition("_")[2]), goal.low, "_", color="black", markersize=22)
        ax.set_title(short_title(dataset), fontsize="small", loc="left")
    for ax in axes.flat[len(datasets) :]:
        ax.set_axis_off()
    if not datasets:
        axes[0, 0].text(0.5, 0.5, "not measured", ha="center", va="center", color="0.4")
    figure.supxlabel("Replicas (count)", fontsize="medium")
    figure.supylabel("Ratio, theirs over ours (dimensionless)", fontsize="medium")
    return _add_legend(figure, table)


def _draw_ratios(ax, table):
    ax.axhline(1, color=look.FLOOR_COLOR, linewidth=2)
    for (model, preset), rows in table.groupby(["model", "preset"], sort=False):
        ends = np.abs(rows[["low", "high"]].to_numpy(dtype=float).T - rows.ratio.to_numpy())
        line = {"color": look.model_color(model), "linestyle": LINES.get(preset, ":")}
        spread = 1 + 0.02 * (look.model_place(model) - 2.5)  # separates lines that coincide
        ax.errorbar(
            rows.replicas * spread, rows.ratio, ends, marker=look.model_marker(model), markersize=4, **line
        )
    for axis in "xy":
        look.set_log_scale(ax, axis)
    ax.set_xticks(sorted(set(table.replicas)), labels=[str(n) for n in sorted(set(table.replicas))])


def _add_legend(figure, table):
    handles = look.model_handles(order_models(set(table.model)), markers=True)
    if table.preset.nunique() > 1:
        handles += [
            Line2D([], [], color="0.3", linestyle=LINES.get(p, ":"), label=f"preset {p}")
            for p in dict.fromkeys(table.preset)
        ]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4))
    return figure


# -- pieces of tables -----------------------------------------------------------------------------------


def _key(record):
    """Dataset, model, preset and device (with its threads, if several) of a record, as in `LEVELS`."""
    given = record.parameters
    device = str(given.get("device", record.provenance.get("device", "cpu"))).partition(":")[0]
    threads = given.get("threads", 1)
    device = f"{device}, {threads} threads" if device == "cpu" and threads > 1 else device
    preset = given.get("preset") or "_".join(record.kind.split("_")[2:])
    model = "-" if record.model == cards.REFERENCE else record.model  # the benchmark runs no model
    return record.dataset, model, str(preset), device


def _index(found):
    return pd.MultiIndex.from_tuples([_key(r) for r in found], names=LEVELS)


def _order(values):
    """Sorting key of a level: datasets and models in the order of the book, preset small before paper."""
    known = {"dataset": order_datasets, "model": order_models}.get(values.name)
    order = known(set(values)) if known else sorted(set(values), key=lambda v: (v == "paper", v))
    return values.map({name: place for place, name in enumerate(order)})


def _column(found, metric, unit):
    """Head with unit, and values of a metric, which are scaled if they are large."""
    values = np.array([value(r, metric) for r in found], dtype=float)
    largest = np.nanmax(np.abs(values), initial=0)
    prefix = "" if unit in ("1", "") else "G" if largest >= 1e9 else "M" if largest >= 1e6 else ""
    values = values / {"": 1, "M": 1e6, "G": 1e9}[prefix]
    unit = {"1": "dimensionless", "": "dimensionless"}.get(unit, prefix + unit)
    return HEADS.get(metric, f"{metric.replace('_', ' ').capitalize()} ({unit})"), values


def _plain(value):
    """A number near zero as a power of ten, a large count without decimals; other numbers unchanged."""
    if 0 < abs(value) < TINY:
        return f"{value:.0e}"
    return f"{value:,.0f}" if value == np.round(value) and abs(value) >= 100 else value


def _with_failures(wide, found):
    """Table with one row per record, in which failed ones are marked, and only levels that vary are kept."""
    wide = wide.astype(object).reindex(_index(found)).sort_index(key=_order)
    numbers = [column for column in wide if column != "Note"]
    wide.loc[_index([r for r in found if r.status == "failed"]), numbers] = table_cells.FAILED
    return _without_silent_levels(wide)


def _without_silent_levels(wide):
    """Table without the levels of preset and device if they do not vary."""
    said = {name: set(wide.index.get_level_values(name)) for name in LEVELS}
    silent = [name for name in LEVELS[2:] if len(said[name]) <= 1]
    return wide.droplevel(silent + ["model"] * (said["model"] == {"-"}))


def _cells(goal, found):
    """Title -> value of every cell to which a goal applies; NaN for failed ones."""
    chosen = [
        (_key(r), value(r, goal.metric))
        for r in of_kind(found, goal.kind)
        if r.status == "failed" or goal.metric in {m.name for m in r.metrics}
    ]
    presets, cells = {preset for (_, _, preset, _), _ in chosen}, {}
    for (dataset, model, preset, device), reached in chosen:
        if device == goal.device and goal.dataset in ("", dataset):
            words = [
                model_title(model) if model != "-" else "",
                short_title(dataset) if dataset not in ("-", goal.dataset) else "",
                f"({preset})" if len(presets) > 1 else "",
            ]
            cells[" ".join(word for word in words if word)] = reached
    return cells


def _span(values):
    low, high = (min(values), max(values)) if values else (math.nan, math.nan)
    return "" if not values else _short(low) if low == high else f"{_short(low)} to {_short(high)}"


def _short(value):
    return (
        table_cells.FAILED if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    )
