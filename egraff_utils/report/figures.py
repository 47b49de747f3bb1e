"""How do all models compare? Each function draws one of the paper's figures for a whole campaign.

Every grid has one panel per dataset (or model), one legend, and colours, black reference and grey floors as
in `plots`. The title of a panel names what it shows; if models have no record, it gives the number of those
that do, and a panel without any says "not run". Symbols: R replicas, T frames, B bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import quantities
from egraff_utils.config import changed
from egraff_utils.quantities import DIMENSIONLESS
from egraff_utils.report import beside, look, panels, plots, titles
from egraff_utils.report.comparison import (
    order_datasets,
    order_models,
)
from egraff_utils.report.levels import floor_of
from egraff_utils.report.plots import CURVE_LABELS, VIOLATIONS
from egraff_utils.report.table_cells import NOT_RUN
from egraff_utils.report.titles import short_title

BREAK = {"marker": r"$\dagger$", "markersize": 10, "markeredgewidth": 0.3, "zorder": 4}
"""Style of the dagger where a replica broke, as in the tables."""


# Figure 3: structure


def rdf_grid(records: Iterable) -> Figure:
    """Figure 3, radial distribution functions, with one panel per dataset and one line per model.

    Below each panel, on a separate scale, are the differences of the models' functions from the reference;
    the grey band is the 95 % range of the mean over independent trajectories of the reference. A rollout over
    several compositions has one panel for each of them.

    Parameters
    ----------
    records
        Records of a campaign, as returned by `records.read_all`.
    """
    records = list(records)
    shown = {}
    for name in panels.dataset_names(records, "rollout"):
        chosen = panels.select(records, "rollout", name)
        parts = panels.part_names(chosen)
        shown |= {(name, ""): chosen} if not parts else {}
        for part in parts:
            shown[name, part] = panels.select(records, changed("rollout", shift=part), name)

    def draw(ax, key):
        found = panels.by_model(r for r in shown[key] if "rdf" in r.curves)
        _draw_rdfs(ax[0], found)
        _draw_rdf_differences(ax[1], found)
        _draw_rdf_floor(ax[1], found, records)
        ax[0].tick_params(labelbottom=False)
        ax[1].set(xlim=ax[0].get_xlim())
        return list(found)

    figure = panels.grid(shown, draw, title=panels.part_title, reference=True, height=2.4, ratios=(2.4, 1))
    return panels.label_axes(figure, "Distance r (Å)", f"g(r), and difference ({DIMENSIONLESS})")


def _draw_rdfs(ax, found):
    for place, (model, records) in enumerate(found.items()):
        r = plots.read_curve(records[0], "rdf_r")
        if not place:
            reference = plots.read_curve(records[0], "rdf_reference")
            ax.plot(r, reference, color=look.REFERENCE_COLOR, linewidth=2.6, alpha=0.85)
            ax.set(xlim=(0, r[np.flatnonzero(reference > 0.003 * reference.max())[-1]]))
        ax.plot(r, panels.mean_distribution(records, "rdf"), **look.model_line(model), linewidth=1.1)
    ax.set(ylim=(0, None))


def _draw_rdf_differences(ax, found):
    for model, records in found.items():
        difference = panels.mean_distribution(records, "rdf") - plots.read_curve(records[0], "rdf_reference")
        r = plots.read_curve(records[0], "rdf_r")
        ax.plot(r, difference, **look.model_line(model), linewidth=0.9)
    ax.axhline(0, color=look.REFERENCE_COLOR, linewidth=0.8)


def _draw_rdf_floor(ax, found, records):
    run = next(iter(found.values()))[0]
    place = (changed(run.kind, act="floor"), run.dataset, "reference")
    for floor in (r for r in records if (r.kind, r.dataset, r.model) == place):
        r = plots.read_curve(run, "rdf_r")
        plots.plot_rdf_floor(ax, r, np.zeros(len(r)), floor, mean=True)


# Figure 4: mean violations


def mean_grid(frame: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Figure 4, metrics of every dataset and model with intervals, one above the other, with one legend.

    The range of the floor is grey. An axis is logarithmic if the values are positive and span more than a
    factor of three.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`; several seeds are averaged.
    metrics
        Names of the metrics, such as ``"fv"``.
    """
    size = (panels.WIDTH, 0.7 + 2.1 * len(metrics))
    figure, axes = plt.subplots(len(metrics), sharex=True, squeeze=False, figsize=size)
    rows = _metric_rows(frame, metrics)
    models, datasets = order_models(rows.model.unique()), order_datasets(rows.dataset.unique())
    for metric, ax in zip(metrics, axes[:, 0], strict=True):
        _draw_means(ax, frame, metric, datasets, models)
    floors = [floor_of(frame, "rollout", name, metric)[0] for name in datasets for metric in metrics]
    entries = panels.legend_entries(models, marker=True, floor=bool(np.isfinite(floors).any()))
    return panels.add_legend(figure, entries)


def _draw_means(ax, frame, metric, datasets, models):
    means = _metric_rows(frame, [metric]).groupby(["dataset", "model"])[["value", "low", "high"]].mean()
    for (dataset, model), row in means.iterrows():
        ax.errorbar(
            datasets.index(dataset) + panels.offset(models.index(model), len(models)),
            row.value,
            yerr=look.error_bar(row.value, row.low, row.high),
            **panels.point_style(model),
        )
    for place, name in enumerate(datasets):
        _draw_floor(ax, place, frame, name, metric)
    if (means.value > 0).all() and panels.is_wide(means.value):
        look.set_log_scale(ax, "y")
    for place in set(range(len(datasets))) - {datasets.index(name) for name, _ in means.index}:
        ax.text(place, 0.5, NOT_RUN, transform=ax.get_xaxis_transform(), ha="center", color="0.4", size=8)
    _mark_groups(ax, [short_title(name) for name in datasets])
    ax.set(ylabel=plots.metric_label(frame, metric))


def _metric_rows(frame, metrics):
    rows = beside.of_first_seeds(beside.main_rows(frame))
    return rows[rows.metric.isin(metrics) & rows.value.notna()]


def _draw_floor(ax, place, frame, dataset, metric):
    """Draw a grey band over the range of a floor, or a grey line at its value."""
    floor = floor_of(frame, "rollout", dataset, metric)
    ends = place - 0.42, place + 0.42
    if np.isfinite(floor).all():
        ax.fill_between(ends, *floor[1:], color=look.FLOOR_COLOR, alpha=0.35, linewidth=1.5, zorder=0)
    elif np.isfinite(floor[0]):
        ax.hlines(floor[0], *ends, color=look.FLOOR_COLOR, linewidth=5, alpha=0.45)


def _mark_groups(ax, names):
    ax.set_xticks(range(len(names)), names)
    if len(names) > 4:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    for place in range(1, len(names)):
        ax.axvline(place - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.grid(visible=False, axis="x")
    ax.set(xlim=(-0.5, max(len(names), 1) - 0.5))


# Figures 5, 8 and 9: along the run


def violation_grid(records: Iterable, name: str = "fv", *, window: int = 21) -> Figure:
    """Figure 5, energy or force violation along the run, with one panel per dataset and one line per model.

    A line is the geometric mean over the replicas that have not broken and over `window` frames; a dagger
    marks where a replica broke. The grey band is the saturation level, the 95 % range of the mean
    over a run of an independent trajectory of the reference.

    Parameters
    ----------
    records
        Records of a campaign, including those of the floors.
    name
        ``"fv"``, ``"ev"`` or ``"ev_root"``.
    window
        Number of frames in the running mean; 1 shows every frame.

    Raises
    ------
    ValueError
        If the violation is unknown.
    """
    if name not in VIOLATIONS:
        raise ValueError(f"{name=} is not a violation; choose one of {sorted(VIOLATIONS)}")
    records = list(records)

    def draw(ax, dataset):
        found = panels.by_model(r for r in panels.select(records, "rollout", dataset) if name in r.curves)
        for model, runs in found.items():
            values = panels.stack_curves(runs, name)
            mean = plots.replica_mean(np.where(values > 0, values, np.nan), geometric=True)
            _draw_run(ax, model, runs, np.exp(panels.running_mean(np.log(mean), window)))
        if found:
            plots.plot_floor(ax, panels.floor_range(records, "rollout", dataset, name))
            look.set_log_scale(ax, "y")
        return list(found)

    figure = panels.grid(panels.dataset_names(records, "rollout"), draw, floor=True, sharey=name == "fv")
    return panels.label_axes(figure, "Time (fs)", quantities.of(name).written_out)


def rmsd_grid(records: Iterable, by: str = "dataset") -> Figure:
    """Figures 8 and 9, root mean square displacement from the start, with one panel per dataset or model.

    A line is the mean over the replicas that have not broken; a dagger marks where one broke. The reference
    is black if its frames are ordered in time. In panels by dataset, the grey band over the last tenth of the
    time is the saturation level, the displacement of an independent trajectory.

    Parameters
    ----------
    records
        Records of a campaign with curves ``time`` (T,) fs and ``rmsd`` (R, T) Å.
    by
        ``"dataset"`` (Figure 8, colours denote models) or ``"model"`` (Figure 9, markers denote datasets).

    Raises
    ------
    ValueError
        If `by` is neither of these.
    """
    records = list(records)
    datasets = panels.dataset_names(records, "rollout")
    if by == "dataset":
        figure = panels.grid(datasets, partial(_draw_rmsds, records), reference=True, floor=True)
    elif by == "model":
        figure = _rmsd_by_model(records, datasets)
    else:
        raise ValueError(f"{by=} is neither 'dataset' nor 'model'")
    return panels.label_axes(figure, "Time (fs)", quantities.of("rmsd").written_out)


def _draw_rmsds(records, ax, dataset):
    found = panels.by_model(r for r in panels.select(records, "rollout", dataset) if "rmsd" in r.curves)
    for place, (model, runs) in enumerate(found.items()):
        if not place and "rmsd_reference" in runs[0].curves:
            values = panels.stack_curves(runs[:1], "rmsd_reference")
            ax.plot(
                panels.longest_time(runs[:1]),
                plots.replica_mean(values),
                color=look.REFERENCE_COLOR,
                linewidth=2.6,
            )
        _draw_run(ax, model, runs, plots.replica_mean(panels.stack_curves(runs, "rmsd")))
    low, high = panels.floor_range(records, "rollout", dataset, "rmsd")
    if found and np.isfinite(low):
        ends = np.quantile(np.concatenate([panels.longest_time(runs) for runs in found.values()]), [0.9, 1.0])
        ax.fill_between(ends, low, high, color=look.FLOOR_COLOR, alpha=0.35, linewidth=0, zorder=0)
    ax.set(ylim=(0, None))
    return list(found)


def _rmsd_by_model(records, datasets):
    markers = panels.dataset_markers(datasets)

    def draw(ax, model):
        drawn = []
        for dataset in datasets:
            runs = panels.select(records, "rollout", dataset)
            runs = [r for r in runs if r.model == model and "rmsd" in r.curves]
            if runs:
                mean = plots.replica_mean(panels.stack_curves(runs, "rmsd"))
                _draw_run(ax, model, runs, mean, marker=markers[dataset], markevery=(0.05, 0.19))
                drawn.append(dataset)
        return drawn

    models = order_models({r.model for r in records if r.kind == "rollout" and r.model != "reference"})
    figure = panels.grid(models, draw, title=titles.model_title, sharey=True, legend=False, noun="datasets")
    figure.axes[0].set(ylim=(0, None))  # after the last panel, as it ends autoscaling of the shared axis
    return panels.add_legend(figure, panels.dataset_handles(markers))


def _draw_run(ax, model, runs, mean, **line):
    """Draw the line of a model over the frames that have a value, and a dagger at each break of a replica."""
    time, own, known = panels.longest_time(runs), look.model_line(model), np.isfinite(mean)
    style = {"linewidth": 1.3, "markersize": 4.5, "markeredgecolor": "0.2", "markeredgewidth": 0.5} | line
    ax.plot(time[known], mean[known], **own, **style)
    for step, steps in _breaks(runs):
        place = min(round(step / steps * (len(time) - 1)), len(time) - 1)
        finite = np.flatnonzero(np.isfinite(mean[: place + 1]))
        if len(finite):
            at = finite[-1]
            ax.plot(time[at], mean[at], color=own["color"], **BREAK)


def _breaks(runs):
    """Steps at which replicas broke, and number of steps that the curves of their run span."""
    for record in runs:
        stable = record.curves.get("stable_step")
        if record.status == "unstable" and stable is not None:
            steps = float(record["steps"] or stable.max())
            yield from ((float(step), steps) for step in stable if step < steps)


# learning curves


def learning_curves(records: Iterable, x: str) -> Figure:
    """Validation force error against the cost of training, one panel per dataset and one line per model.

    The grey line is the error of predicting zero.

    Parameters
    ----------
    records
        Records of a campaign, of which those of kind ``training`` are drawn.
    x
        ``"seconds"`` (s) or ``"step"``.
    """
    records = list(records)

    def draw(ax, dataset):
        found = panels.by_model(r for r in panels.select(records, "training", dataset) if x in r.curves)
        for runs in found.values():
            for record in runs:
                plots.plot_learning_curve(record, x, ax=ax)
                ax.lines[-1].set(markersize=4, linewidth=1.2)
        zero = panels.dataset_value(records, dataset, "zero_force_mae")
        if found and zero is not None:
            plots.plot_floor(ax, (zero, zero))
        if found:
            look.set_log_scale(ax, "x")
        ax.set(xlabel="", ylabel="")
        return list(found)

    names = panels.dataset_names(records, "training")
    figure = panels.grid(names, draw, marker=True, floor="predicting zero")
    return panels.label_axes(figure, CURVE_LABELS[x], CURVE_LABELS["val_force_mae"])
