"""Which trained models pass the gate? Tables and figures of its records, with those of smooth variants."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from egraff_utils import quantities
from egraff_utils.checks import gate
from egraff_utils.report import figures, look, panels, plots, tables, titles
from egraff_utils.report.values import MISSING, value

SMOOTH = "cpu_smooth"
"""Name of the campaign of the variants that are smooth at the cutoff."""
PUBLISHED_LABEL, SMOOTH_LABEL = "as published", "smooth variant"
SMOOTH_COLOR = "0.25"
SMALLEST = 1e-6
"""Smallest jump that is shown, meV; smaller ones are rounding errors and are drawn at this value."""


def select(found, *, dataset=None, model=None):
    """Records of kind ``gate``, a list, restricted to a dataset and a model if these are given."""
    return [
        record
        for record in found
        if record.kind == "gate" and dataset in (None, record.dataset) and model in (None, record.model)
    ]


def worst(found):
    """Largest absolute value of every check over the datasets of a model.

    Returns
    -------
    pandas.DataFrame
        One row per model, one column per check in :data:`egraff_utils.checks.gate.CHECKS`; infinite where a
        value is missing, NaN where the check did not apply.
    """
    rows = {}
    for record in select(found):
        row = rows.setdefault(record.model, {})
        for metric in record.metrics:
            if metric.name in gate.CHECKS:
                value = np.inf if metric.value is None else abs(metric.value)
                row[metric.name] = max(value, row.get(metric.name, 0.0))
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(gate.CHECKS))
    return frame.loc[figures.order_models(rows)].rename_axis("model")


def check_table():
    """Table of the checks with what they measure, the unit, the tolerance and the reason for it."""
    rows = {
        name: (check.what, check.unit, f"{check.tolerance:g}", check.why)
        for name, check in gate.CHECKS.items()
    }
    heads = ["What is measured", "Unit", "Tolerance", "Why so much"]
    return tables.plain(pd.DataFrame.from_dict(rows, orient="index", columns=heads), "gate-about")


def page_values(record):
    """Values of the page of one gate, numbers and texts; NaN or "no value" where a check did not apply."""
    found = {name: value(record, name) for name in ("jump", "drift", "fluctuation", "crossings")}
    drift = {metric.name: metric for metric in record.metrics}.get("drift")
    ends = (drift.low, drift.high) if drift else (None, None)
    symbols, distances = (record.curves.get(f"jump_{name}", [None]) for name in ("symbols", "distance"))
    return found | {
        "model": tables.model_title(record.model),
        "dataset": titles.dataset_title(record.dataset),
        "badge": gate.badge(record) if record["passed"] else f"fails {gate.badge(record)}",
        "interval": " to ".join(tables.say(end, ".2g") for end in ends),
        "pair": str(symbols[0] or MISSING),
        "distance": tables.say(distances[0], ".2f"),
    }


def verdict_table(record):
    """Table of the checks in one record, with value, unit, tolerance and verdict."""
    limits, bad = record.parameters["tolerances"], gate.failed(record)
    rows = {
        metric.name: (
            tables.say(metric.value, ".2g"),
            metric.unit,
            f"{limits[metric.name]:g}",
            "no" if metric.name in bad else "yes",
        )
        for metric in record.metrics
        if metric.name in limits
    }
    heads = ["Value", "Unit", "Tolerance", "Passed"]
    return tables.plain(pd.DataFrame.from_dict(rows, orient="index", columns=heads), "gate-verdict")


def table(found):
    """Table of checks and models, with the worst value over all datasets, and the number of datasets passed.

    A cross marks a value for which some dataset failed; the last column is the tolerance.
    """
    values, rows = worst(found), {}
    for model, row in values.iterrows():
        runs = select(found, model=model)
        failures = {name for record in runs for name in gate.failed(record)}
        passed = f"{sum(bool(record['passed']) for record in runs)} of {len(runs)}"
        cells = {name: _cell(row[name], name in failures) for name in gate.CHECKS}
        rows[model] = {"passed": passed} | cells
    limits = {name: f"{check.tolerance:g}" for name, check in gate.CHECKS.items()}
    shown = pd.DataFrame(rows | {"tolerance": {"passed": ""} | limits})
    units = {name: check.unit for name, check in gate.CHECKS.items() if check.unit != "1"}
    shown.index = [f"{name} ({units[name]})" if name in units else name for name in shown.index]
    return tables.plain(shown.rename_axis(columns="model"), "gate-checks")


def verdicts(found):
    """Verdicts of the gate, with one row per dataset and one column per model."""
    badges = {(record.dataset, record.model): gate.badge(record) for record in select(found)}
    index = figures.order_datasets({dataset for dataset, _ in badges})
    columns = figures.order_models({model for _, model in badges})
    cells = [[badges.get((dataset, model), tables.NOT_RUN) for model in columns] for dataset in index]
    frame = pd.DataFrame(cells, index=index, columns=columns)
    return frame.rename_axis(index="dataset", columns="model")


def compare(frame, smooth):
    """Accuracy, jump, conservation and simulation of the published form and of the smooth variant.

    Parameters
    ----------
    frame, smooth
        Data frames of the two campaigns, as returned by ``records.read``.

    Returns
    -------
    pandas.DataFrame
        One row for each dataset and model of the smooth campaign, and two columns, :data:`PUBLISHED_LABEL`
        and :data:`SMOOTH_LABEL`, for each quantity; NaN without a record.
    """
    wanted = {
        ("training", "force_mae"): quantities.of("force_mae").head,
        ("training", "energy_mae"): quantities.of("energy_mae").head,
        ("gate", "jump"): "Jump (meV)",
        ("gate", "crossings"): "Crossings (1/atom/ps)",
        ("gate", "drift"): "Drift (meV/atom/ps)",
        ("gate", "fluctuation"): "Fluctuation (meV/atom)",
        ("rollout", "stable_fraction"): f"{quantities.of('stable_fraction').name} (×)",
    }
    trained = smooth[smooth.kind == "training"]
    keys = sorted(set(zip(trained.dataset, trained.model, strict=True)))
    columns = {}
    for (kind, metric), title in wanted.items():
        for label, source in ((PUBLISHED_LABEL, frame), (SMOOTH_LABEL, smooth)):
            rows = source[(source.kind == kind) & (source.metric == metric)]
            values = rows.groupby(["dataset", "model"]).value.mean()
            columns[title, label] = [values.get(key, np.nan) for key in keys]
    index = pd.MultiIndex.from_tuples(keys, names=["dataset", "model"])
    return pd.DataFrame(columns, index=index, columns=pd.MultiIndex.from_tuples(columns))


def plot_crossing(record, *, label=None, color=None, ax=None):
    """Energy of a frame as one atom crosses the cutoff of another, without its slope.

    The slope and a step at the cutoff are fitted, and the slope is subtracted. A smooth energy then stays on
    a line through zero, apart from its curvature. The axes say so if no cutoff was known.
    """
    ax = look.take_axes(ax)
    ax.set(xlabel="Distance minus cutoff (Å)", ylabel="Energy (meV)")
    if "cutoff_energy" not in record.curves:
        ax.text(0.5, 0.5, "no cutoff is known", transform=ax.transAxes, ha="center", color="0.4")
        return ax
    distance, energy = (plots.read_curve(record, f"cutoff_{name}") for name in ("distance", "energy"))
    x = distance - distance.mean()
    slope = np.linalg.lstsq(np.column_stack([x, np.ones_like(x), x > 0]), energy, rcond=None)[0][0]
    rest = energy - slope * x
    style = {"color": color or look.model_color(record.model), "linestyle": "--" if color else "-"}
    for side, name in ((x < 0, label or tables.model_title(record.model)), (x > 0, None)):
        ax.plot(x[side], rest[side] - rest.mean(), label=name, **style)
    ax.locator_params(axis="x", nbins=5)
    return ax


def plot_energy(record, *, label=None, color=None, ax=None):
    """Total energy along the NVE runs of a gate, relative to the start."""
    ax = look.take_axes(ax)
    time, energy = plots.read_curve(record, "time"), plots.read_curve(record, "energy_total")
    style = {"color": color or look.model_color(record.model), "linestyle": "--" if color else "-"}
    for run, values in enumerate(energy):
        ax.plot(
            time,
            values,
            linewidth=1.0,
            label=None if run else label or tables.model_title(record.model),
            **style,
        )
    ax.set(xlabel="Time (fs)", ylabel="Total energy (meV/atom)")
    return ax


def pair_grid(found, smooth, draw):
    """One panel for each dataset and architecture, with the published form in colour, the smooth one dark.

    Parameters
    ----------
    found, smooth
        Records of the two campaigns.
    draw
        :func:`plot_crossing` or :func:`plot_energy`.
    """
    wanted = ["ethanol", "lips"]
    own = [name for name in wanted if select(found, dataset=name)]
    names = own or figures.order_datasets({record.dataset for record in select(found)}) or wanted
    models = ("equiformer", "torchmd_net")
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 2.7 * len(names)), squeeze=False)
    for (row, column), ax in np.ndenumerate(axes):
        where = {"dataset": names[row], "model": models[column]}
        for record in select(found, **where):
            draw(record, label=PUBLISHED_LABEL, ax=ax)
        for record in select(smooth, **where):
            draw(record, label=SMOOTH_LABEL, color=SMOOTH_COLOR, ax=ax)
        title = f"{tables.short_title(names[row])}, {tables.model_title(models[column])}"
        ax.set_title(title, fontsize="small", loc="left")
        if ax.lines:
            ax.legend(fontsize="small")
        else:
            ax.text(0.5, 0.5, tables.NOT_RUN, transform=ax.transAxes, ha="center", color="0.4")
            ax.set(xticks=[], yticks=[])
    return figure


def drift_against_jump(found, smooth=()):
    """Fluctuation and drift of the total energy against the jump, with one point per model and dataset.

    Hollow points are smooth variants.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.7))
    drawn = [(record, "full") for record in select(found)] + [(record, "none") for record in select(smooth)]
    markers = panels.dataset_markers({record.dataset for record, _ in drawn})
    for record, fill in drawn:
        jump = value(record, "jump")
        color = look.model_color(record.model)
        for ax, name in zip(axes, ("fluctuation", "drift"), strict=True):
            size = abs(value(record, name))
            if np.isfinite([jump, size]).all() and size:
                style = {"marker": markers[record.dataset], "color": color, "fillstyle": fill}
                ax.plot(max(jump, SMALLEST), size, linestyle="none", **style)
    labels = ("Fluctuation (meV/atom)", "Size of the drift (meV/atom/ps)")
    for ax, label in zip(axes, labels, strict=True):
        ax.set(xlabel="Jump (meV)", ylabel=label)
        if ax.lines:
            ax.set(xscale="log", yscale="log")
            ax.axvline(gate.CHECKS["jump"].tolerance, color="0.6", linestyle=":", linewidth=1)
    models = figures.order_models({record.model for record, _ in drawn})
    handles = look.model_handles(models)
    handles += panels.dataset_handles(markers)
    if handles:
        axes[1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure


def _cell(value, bad):
    if np.isnan(value):
        return "not applicable"
    text = "not finite" if np.isinf(value) else "0" if value == 0 else f"{value:.1e}"
    return f"{text} ✗" if bad else text
