"""How do all models compare? Each function draws one of the paper's figures for a whole campaign.

Every grid has one panel per dataset (or model), one legend, and colours, black reference and grey floors as
in `plots`. The title of a panel names what it shows; if models have no record, it gives the number of those
that do, and a panel without any says "not run". Symbols: R replicas, T frames, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import quantities
from egraff_utils.config import changed
from egraff_utils.quantities import DIMENSIONLESS
from egraff_utils.report import plots, tables
from egraff_utils.report.beside import DATASETS, floor_of, short_title
from egraff_utils.report.comparison import (
    PAIRS,
    PAPER_SPOKES,
    SCALES,
    floor_places,
    order_datasets,
    order_models,
    published_values,
    scaled_values,
)
from egraff_utils.report.plots import CURVE_LABELS, FLOOR_COLOR, REFERENCE_COLOR, VIOLATIONS

WIDTH = 7.4
"""Width of a grid, which is the text width of a page, inches."""

NOT_RUN = tables.NOT_RUN

POINT = {"markersize": 5, "markeredgecolor": "0.2", "markeredgewidth": 0.5, "linestyle": "none"}
"""Style of the marker of a model."""

BREAK = {"marker": r"$\dagger$", "markersize": 10, "markeredgewidth": 0.3, "zorder": 4}
"""Style of the dagger where a replica broke, as in the tables."""


# Figure 3: structure


def rdf_grid(records: Iterable, *, datasets: Sequence[str] | None = None, kind: str = "rollout") -> Figure:
    """Figure 3, radial distribution functions, with one panel per dataset and one line per model.

    Below each panel, on a separate scale, are the differences of the models' functions from the reference;
    the grey band is the 95 % range of the mean over independent trajectories of the reference. A rollout over
    several compositions has one panel for each of them.

    Parameters
    ----------
    records
        Records of a campaign, as returned by `records.read_all`.
    datasets
        Panels that are shown, in this order; by default all with such records.
    kind
        Kind of the rollouts, such as ``"rollout_600K"``.
    """
    records = list(records)
    panels = {}
    for name in _datasets(records, kind, datasets):
        chosen = _select(records, kind, name)
        parts = _parts(chosen)
        panels |= {(name, ""): chosen} if not parts else {}
        for part in parts:
            panels[name, part] = _select(records, changed(kind, shift=part), name)

    def draw(ax, key):
        found = _by_model(r for r in panels[key] if "rdf" in r.curves)
        _draw_rdfs(ax[0], found)
        _draw_rdf_differences(ax[1], found)
        _draw_rdf_floor(ax[1], found, records)
        ax[0].tick_params(labelbottom=False)
        ax[1].set(xlim=ax[0].get_xlim())
        return list(found)

    figure = _grid(panels, draw, title=_part_title, reference=True, height=2.4, ratios=(2.4, 1))
    return _label(figure, "Distance r (Å)", f"g(r), and difference ({DIMENSIONLESS})")


def _draw_rdfs(ax, found):
    for place, (model, records) in enumerate(found.items()):
        r = plots.read_curve(records[0], "rdf_r")
        if not place:
            reference = plots.read_curve(records[0], "rdf_reference")
            ax.plot(r, reference, color=REFERENCE_COLOR, linewidth=2.6, alpha=0.85)
            ax.set(xlim=(0, r[np.flatnonzero(reference > 0.003 * reference.max())[-1]]))
        ax.plot(r, _mean_rdf(records), color=plots.model_color(model), linewidth=1.1)
    ax.set(ylim=(0, None))


def _draw_rdf_differences(ax, found):
    for model, records in found.items():
        difference = _mean_rdf(records) - plots.read_curve(records[0], "rdf_reference")
        r = plots.read_curve(records[0], "rdf_r")
        ax.plot(r, difference, color=plots.model_color(model), linewidth=0.9)
    ax.axhline(0, color=REFERENCE_COLOR, linewidth=0.8)


def _draw_rdf_floor(ax, found, records):
    run = next(iter(found.values()))[0]
    place = (changed(run.kind, act="floor"), run.dataset, "reference")
    for floor in (r for r in records if (r.kind, r.dataset, r.model) == place):
        r = plots.read_curve(run, "rdf_r")
        plots.plot_rdf_floor(ax, r, np.zeros(len(r)), floor, mean=True)


def _mean_rdf(records):
    values = _stack(records, "rdf")
    values[~values.any(1)] = np.nan  # g(r) of a replica that broke before its first frame is zero throughout
    return plots.replica_mean(values)


# Figure 4: mean violations


def plot_mean(
    frame: pd.DataFrame,
    metric: str,
    *,
    datasets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Figure 4, a metric of every dataset and model with its interval, and the range of the floor in grey.

    The axis is logarithmic if the values are positive and span more than a factor of three.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`; several seeds are averaged.
    metric
        Name of the metric, such as ``"fv"``.
    datasets, models
        Datasets and models that have a place, in this order; by default those that have the metric.
    """
    own_figure, ax = ax is None, plots.take_axes(ax)
    rows = _metric_rows(frame, [metric])
    datasets = order_datasets(rows.dataset.unique()) if datasets is None else list(datasets)
    models = order_models(rows.model.unique()) if models is None else list(models)
    rows = rows[rows.dataset.isin(datasets) & rows.model.isin(models)]
    means = rows.groupby(["dataset", "model"])[["value", "low", "high"]].mean()
    for (dataset, model), row in means.iterrows():
        ax.errorbar(
            datasets.index(dataset) + _offset(models.index(model), len(models)),
            row.value,
            yerr=plots.error_bar(row.value, row.low, row.high),
            **_point(model),
        )
    drawn = [_draw_floor(ax, place, frame, name, metric) for place, name in enumerate(datasets)]
    if (means.value > 0).all() and _wide(means.value):
        plots.set_log_scale(ax, "y")
    for place in set(range(len(datasets))) - {datasets.index(name) for name, _ in means.index}:
        ax.text(place, 0.5, NOT_RUN, transform=ax.get_xaxis_transform(), ha="center", color="0.4", size=8)
    _mark_groups(ax, [short_title(name) for name in datasets])
    ax.set(ylabel=plots.metric_label(frame, metric))
    if own_figure:
        ax.set(xlabel="Dataset (name)")
        handles = _legend_entries(models, marker=True, floor=any(drawn))
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def mean_grid(
    frame: pd.DataFrame,
    metrics: Sequence[str] = ("ev_root", "fv"),
    *,
    datasets: Sequence[str] | None = None,
) -> Figure:
    """Figure 4 for several metrics, one above the other, with one legend.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.
    metrics
        Names of the metrics.
    datasets
        Datasets that have a place, in this order; by default those that have one of the metrics.
    """
    size = (WIDTH, 0.7 + 2.1 * len(metrics))
    figure, axes = plt.subplots(len(metrics), sharex=True, squeeze=False, figsize=size)
    rows = _metric_rows(frame, metrics)
    models = order_models(rows.model.unique())
    datasets = order_datasets(rows.dataset.unique()) if datasets is None else list(datasets)
    for metric, ax in zip(metrics, axes[:, 0], strict=True):
        plot_mean(frame, metric, datasets=datasets, models=models, ax=ax)
    floors = [floor_of(frame, "rollout", name, metric)[0] for name in datasets for metric in metrics]
    return _add_legend(figure, _legend_entries(models, marker=True, floor=bool(np.isfinite(floors).any())))


def _metric_rows(frame, metrics):
    rows = tables.main_rows(frame)
    return rows[rows.metric.isin(metrics) & rows.value.notna()]


def _draw_floor(ax, place, frame, dataset, metric):
    """Draw a grey band over the range of a floor, or a grey line at its value; returns whether it exists."""
    floor = floor_of(frame, "rollout", dataset, metric)
    ends = place - 0.42, place + 0.42
    if np.isfinite(floor).all():
        ax.fill_between(ends, *floor[1:], color=FLOOR_COLOR, alpha=0.35, linewidth=1.5, zorder=0)
    elif np.isfinite(floor[0]):
        ax.hlines(floor[0], *ends, color=FLOOR_COLOR, linewidth=5, alpha=0.45)
    return bool(np.isfinite(floor[0]))


def _mark_groups(ax, names):
    ax.set_xticks(range(len(names)), names)
    if len(names) > 4:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    for place in range(1, len(names)):
        ax.axvline(place - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.grid(visible=False, axis="x")
    ax.set(xlim=(-0.5, max(len(names), 1) - 0.5))


# Figures 5, 8 and 9: along the run


def violation_grid(
    records: Iterable,
    name: str = "fv",
    *,
    datasets: Sequence[str] | None = None,
    kind: str = "rollout",
    window: int = 21,
) -> Figure:
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
    datasets, kind
        As in `rdf_grid`.
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
        found = _by_model(r for r in _select(records, kind, dataset) if name in r.curves)
        for model, runs in found.items():
            values = _stack(runs, name)
            mean = plots.replica_mean(np.where(values > 0, values, np.nan), geometric=True)
            _draw_run(ax, model, runs, np.exp(_running_mean(np.log(mean), window)))
        if found:
            plots.plot_floor(ax, _floor(records, kind, dataset, name))
        if found:
            plots.set_log_scale(ax, "y")
        return list(found)

    figure = _grid(_datasets(records, kind, datasets), draw, floor=True, sharey=name == "fv")
    return _label(figure, "Time (fs)", quantities.of(name).written_out)


def rmsd_grid(
    records: Iterable,
    by: str = "dataset",
    *,
    datasets: Sequence[str] | None = None,
    kind: str = "rollout",
) -> Figure:
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
    datasets, kind
        As in `rdf_grid`.

    Raises
    ------
    ValueError
        If `by` is neither of these.
    """
    records = list(records)
    datasets = _datasets(records, kind, datasets)
    if by == "dataset":
        figure = _grid(
            datasets, lambda ax, key: _draw_rmsds(ax, records, kind, key), reference=True, floor=True
        )
    elif by == "model":
        figure = _rmsd_by_model(records, kind, datasets)
    else:
        raise ValueError(f"{by=} is neither 'dataset' nor 'model'")
    return _label(figure, "Time (fs)", quantities.of("rmsd").written_out)


def _draw_rmsds(ax, records, kind, dataset):
    found = _by_model(r for r in _select(records, kind, dataset) if "rmsd" in r.curves)
    for place, (model, runs) in enumerate(found.items()):
        if not place and "rmsd_reference" in runs[0].curves:
            values = _stack(runs[:1], "rmsd_reference")
            ax.plot(_time(runs[:1]), plots.replica_mean(values), color=REFERENCE_COLOR, linewidth=2.6)
        _draw_run(ax, model, runs, plots.replica_mean(_stack(runs, "rmsd")))
    low, high = _floor(records, kind, dataset, "rmsd")
    if found and np.isfinite(low):
        ends = np.quantile(np.concatenate([_time(runs) for runs in found.values()]), [0.9, 1.0])
        ax.fill_between(ends, low, high, color=FLOOR_COLOR, alpha=0.35, linewidth=0, zorder=0)
    ax.set(ylim=(0, None))
    return list(found)


def _rmsd_by_model(records, kind, datasets):
    markers = dataset_markers(datasets)

    def draw(ax, model):
        drawn = []
        for dataset in datasets:
            runs = [r for r in _select(records, kind, dataset) if r.model == model and "rmsd" in r.curves]
            if runs:
                mean = plots.replica_mean(_stack(runs, "rmsd"))
                _draw_run(ax, model, runs, mean, marker=markers[dataset], markevery=(0.05, 0.19))
                drawn.append(dataset)
        return drawn

    models = order_models({r.model for r in records if r.kind == kind and r.model != "reference"})
    figure = _grid(models, draw, title=tables.model_title, sharey=True, legend=False, noun="datasets")
    figure.axes[0].set(ylim=(0, None))  # after the last panel, as it ends autoscaling of the shared axis
    return _add_legend(figure, _dataset_handles(markers))


def _draw_run(ax, model, runs, mean, **line):
    """Draw the line of a model over the frames that have a value, and a dagger at each break of a replica."""
    time, color, known = _time(runs), plots.model_color(model), np.isfinite(mean)
    style = {"linewidth": 1.3, "markersize": 4.5, "markeredgecolor": "0.2", "markeredgewidth": 0.5} | line
    ax.plot(time[known], mean[known], color=color, **style)
    for step, steps in _breaks(runs):
        place = min(round(step / steps * (len(time) - 1)), len(time) - 1)
        finite = np.flatnonzero(np.isfinite(mean[: place + 1]))
        if len(finite):
            at = finite[-1]
            ax.plot(time[at], mean[at], color=color, **BREAK)


def _breaks(runs):
    """Steps at which replicas broke, and number of steps that the curves of their run span."""
    for record in runs:
        stable = record.curves.get("stable_step")
        if record.status == "unstable" and stable is not None:
            steps = float(record["steps"] or stable.max())
            yield from ((float(step), steps) for step in stable if step < steps)


# learning curves


def learning_curves(
    records: Iterable,
    x: str = "seconds",
    *,
    metric: str = "val_force_mae",
    datasets: Sequence[str] | None = None,
) -> Figure:
    """Validation error against the cost of training, with one panel per dataset and one line per model.

    The grey line is the force error of predicting zero.

    Parameters
    ----------
    records
        Records of a campaign, of which those of kind ``training`` are drawn.
    x
        ``"seconds"`` (s) or ``"step"``.
    metric
        ``"val_force_mae"`` (meV/Å) or ``"val_energy_mae"`` (meV).
    datasets
        As for `rdf_grid`.
    """
    records = list(records)

    def draw(ax, dataset):
        found = _by_model(
            r for r in _select(records, "training", dataset) if x in r.curves and metric in r.curves
        )
        for runs in found.values():
            for record in runs:
                plots.plot_learning_curve(record, x, metric=metric, ax=ax)
                ax.lines[-1].set(markersize=4, linewidth=1.2)
        zero = _value(records, dataset, "zero_force_mae")
        if found and metric == "val_force_mae" and zero is not None:
            plots.plot_floor(ax, (zero, zero))
        if found:
            plots.set_log_scale(ax, "x")
        ax.set(xlabel="", ylabel="")
        return list(found)

    figure = _grid(
        _datasets(records, "training", datasets),
        draw,
        marker=True,
        floor="predicting zero" if metric == "val_force_mae" else False,
    )
    return _label(figure, CURVE_LABELS.get(x, x), CURVE_LABELS.get(metric, metric))


# Figures 6 and 7: metrics against each other


def radar_grid(
    values: pd.DataFrame,
    *,
    scale: str = "fixed",
    datasets: Sequence[str] | None = None,
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """Figure 6, radial plots of the metrics, with one panel per dataset; values near the centre are better.

    A grey bar on a spoke is the range of the floor.

    Parameters
    ----------
    values
        Values as returned by `comparison.metric_values` or `comparison.published_values`.
    scale
        As in `comparison.scaled_values`.
    datasets
        Panels that are shown, in this order; by default all of `values`.
    beside
        Values of further campaigns by name, drawn with broken lines.
    """
    scaled = {name: scaled_values(found, scale) for name, found in {"": values, **(beside or {})}.items()}
    lines = dict(zip(scaled, ("-", "--", ":", "-."), strict=False))
    labels = PAPER_SPOKES if scale == "paper" else {s.metric: s.label for s in SCALES}
    labels = {metric: label for metric, label in labels.items() if any(metric in s for s in scaled.values())}
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)

    floors = floor_places(values, scale)

    def draw(ax, dataset):
        drawn = {}
        for metric, angle in zip(labels, angles, strict=True):
            if ends := floors.get((dataset, metric)):
                ax.plot([angle] * 2, ends, color=FLOOR_COLOR, alpha=0.45, linewidth=5, zorder=0)
        for name, line in lines.items():
            here = scaled[name].reindex(columns=list(labels)).dropna(how="all")
            here = here[here.index.get_level_values("dataset") == dataset].droplevel("dataset")
            for model, row in here.iterrows():
                _draw_polygon(ax, angles, row.to_numpy(float), model, line)
                drawn[model] = None
        _mark_spokes(ax, angles, list(labels.values()))
        return list(drawn)

    datasets = order_datasets(set(values.index.get_level_values(0))) if datasets is None else list(datasets)
    bars = bool(floors)
    return _grid(datasets, draw, marker=True, lines=lines, floor=bars, projection="polar", height=2.1)


def _draw_polygon(ax, angles, radii, model, line):
    """Draw a line from spoke to spoke, with gaps next to spokes without a value."""
    style = _point(model) | {"markersize": 3.5, "linestyle": line, "linewidth": 1.2, "clip_on": False}
    ax.plot(np.append(angles, angles[:1]), np.append(radii, radii[:1]), **style)


def _mark_spokes(ax, angles, labels):
    ax.set(ylim=(0, 1), theta_offset=np.pi / 2, theta_direction=-1)
    ax.set_xticks(angles, labels, fontsize=8)
    ax.set_yticks([0.25, 0.5, 0.75, 1.0], [])
    ax.tick_params(axis="x", pad=-2)
    ax.spines["polar"].set(color="0.6", linewidth=0.8)
    for angle, text in zip(angles, ax.get_xticklabels(), strict=True):
        side = round(np.sin(angle), 6)
        text.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")


def pairs_grid(
    values: pd.DataFrame,
    published: pd.DataFrame | None = None,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> Figure:
    """Figure 7, pairs of metrics against each other, with one point per dataset and model.

    There is one row per pair, with our values on the left, with full markers, and the published values on the
    right, with hollow ones, on the same axes. Colours denote models, markers denote datasets; a grey cross
    spans the ranges of the dataset's floors. A value published as zero cannot be shown on a logarithmic axis.

    Parameters
    ----------
    values
        Values as returned by `comparison.metric_values`.
    published
        Values as returned by `comparison.published_values`, which is the default.
    pairs
        Pairs of metrics on the horizontal and the vertical axis.
    """
    published = published_values() if published is None else published
    sides = (("ours", values), ("paper", published))
    size = (WIDTH, 0.6 + 2.35 * len(pairs))
    figure, axes = plt.subplots(len(pairs), 2, sharex="row", sharey="row", squeeze=False, figsize=size)
    markers = dataset_markers({name for _, side in sides for name in side.index.get_level_values(0)})
    for (x, y), row in zip(pairs, axes, strict=True):
        for (title, side), ax in zip(sides, row, strict=True):
            _draw_floor_crosses(ax, values, x, y)
            _draw_pairs(ax, side, (x, y), markers, hollow=title == "paper")
            ax.set_xlabel(quantities.of(x).label)
        row[0].set_ylabel(quantities.of(y).label)
        for axis, name in (("x", x), ("y", y)):
            if _wide(pd.concat([side.get(name, pd.Series(dtype=float)) for _, side in sides])):
                for ax in row:
                    plots.set_log_scale(ax, axis)
    for (title, _), ax in zip(sides, axes[0], strict=True):
        ax.set_title(title, fontsize="medium", loc="left")
    models = order_models({name for _, side in sides for name in side.index.get_level_values(1)})
    floor = any(f"floor_{metric}_low" in values for pair in pairs for metric in pair)
    return _add_legend(figure, _legend_entries(models, floor=floor) + _dataset_handles(markers), columns=5)


def _draw_floor_crosses(ax, values, x, y):
    names = [f"floor_{metric}{end}" for metric in (x, y) for end in ("", "_low", "_high")]
    for a, a_low, a_high, b, b_low, b_high in (
        values.reindex(columns=names).dropna().drop_duplicates().to_numpy()
    ):
        style = {"color": FLOOR_COLOR, "alpha": 0.6, "linewidth": 3, "zorder": 0}
        ax.plot([a_low, a_high], [b, b], **style)
        ax.plot([a, a], [b_low, b_high], **style)


def _wide(values):
    """Whether positive values span more than a factor of three."""
    values = values[values > 0]
    return len(values) > 0 and values.max() > 3 * values.min()


def _draw_pairs(ax, values, pair, markers, *, hollow):
    points = values.reindex(columns=list(pair)).dropna()
    points = points[(points > 0).all(axis=1)]
    for (dataset, model), (x, y) in points.iterrows():
        color = plots.model_color(model)
        face, edge = ("none", color) if hollow else (color, "0.2")
        style = {"markersize": 5.5, "markerfacecolor": face, "markeredgecolor": edge}
        ax.plot(x, y, markers[dataset], markeredgewidth=1.2 if hollow else 0.5, **style)
    if points.empty:
        _say_not_run(ax)


# cost against size


def cost_grid(records: Iterable) -> Figure:
    """Time and memory of one MD step against the number of atoms, with one line per model.

    Parameters
    ----------
    records
        Records of a campaign, of which those of kind ``cost`` are drawn, with curves ``atoms``,
        ``milliseconds`` (ms) and ``memory`` (MB), one value per size.
    """
    found = _by_model(r for r in records if r.kind == "cost" and "atoms" in r.curves)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    labels = {"milliseconds": "Time per MD step (ms)", "memory": "Memory of an MD step (MB)"}
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        for model, runs in found.items():
            for record in runs:
                style = _point(model) | {"linestyle": "-", "linewidth": 1.4}
                ax.plot(record.curves["atoms"], record.curves[name], **style)
        ax.set(xlabel="Atoms (count)", ylabel=label)
        for axis in "xy" if found else "":
            plots.set_log_scale(ax, axis)
        if not found:
            _say_not_run(ax, "not measured")
            ax.set(xticks=[], yticks=[])
    return _add_legend(figure, _legend_entries(found, marker=True))


# order and looks


def dataset_markers(names: Iterable[str]) -> dict[str, str]:
    """Marker of every dataset, which is fixed for those of the paper; others take the next ones."""
    order = [*DATASETS, *(name for name in order_datasets(names) if name not in DATASETS)]
    markers = dict(zip(order, plots.MARKERS * 9, strict=False))
    return {name: markers[name] for name in order_datasets(names)}


def _grid(
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
            _say_not_run(shown[key][0])
            for ax in shown[key]:
                ax.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for stack in stacks[len(keys) :]:
        for ax in stack:
            ax.set_axis_off()
    if not keys:
        _say_not_run(stacks[0][0])
    return _add_legend(figure, _legend_entries(order_models(every), **handles)) if legend else figure


def _label(figure, x, y):
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return figure


def _say_not_run(ax, text=NOT_RUN):
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.grid(visible=False)


def _add_legend(figure, handles, *, columns=None):
    if handles:
        columns = columns or (len(handles) if len(handles) <= 6 else -(-len(handles) // 2))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2)
    return figure


def _legend_entries(models, *, marker=False, reference=False, floor=False, lines=None):
    """Entries of the legend, with markers if the figure has them."""
    handles = []
    if reference:
        handles.append(Line2D([], [], color=REFERENCE_COLOR, linewidth=2.6, label="reference"))
    handles += plots.model_handles(models, markers=marker, **(POINT if marker else {"linewidth": 2.2}))
    if floor:
        label = floor if isinstance(floor, str) else "saturation"
        handles.append(Line2D([], [], color=FLOOR_COLOR, linewidth=5, alpha=0.45, label=label))
    for name, line in (lines or {}).items():
        if name:
            handles.append(Line2D([], [], color="0.3", linestyle=line, linewidth=1.2, label=name))
    return handles


def _dataset_handles(markers):
    style = {"color": "0.45", "linestyle": "none"}
    return [Line2D([], [], marker=m, label=short_title(name), **style) for name, m in markers.items()]


def _point(model):
    return {"color": plots.model_color(model), "marker": plots.model_marker(model), **POINT}


def _offset(place, total):
    return 0.7 * ((place + 0.5) / max(total, 1) - 0.5)


# records


def _select(records, kind, dataset):
    return [r for r in records if r.kind == kind and r.dataset == dataset and r.model != "reference"]


def _datasets(records, kind, datasets):
    if datasets is not None:
        return list(datasets)
    return order_datasets({r.dataset for r in records if r.kind == kind and r.model != "reference"})


def _by_model(records):
    """Records by model, in the paper's order of models."""
    groups = {}
    for record in records:
        groups.setdefault(record.model, []).append(record)
    return {model: groups[model] for model in order_models(groups)}


def _parts(records):
    """Names of the compositions over which rollouts were pooled."""
    names = [str(name) for r in records if "composition" in r.curves for name in r.curves["composition"]]
    return list(dict.fromkeys(names))


def _part_title(key):
    dataset, part = key
    return f"{short_title(dataset)}{', ' + part if part else ''}"


def _stack(records, name):
    """Curves of all replicas of all seeds, shape ``(R, T)``, NaN after the end of a shorter run."""
    curves = [np.atleast_2d(plots.read_curve(record, name)).astype(float) for record in records]
    length = max(curve.shape[1] for curve in curves)
    ends = [((0, 0), (0, length - curve.shape[1])) for curve in curves]
    padded = [np.pad(curve, end, constant_values=np.nan) for curve, end in zip(curves, ends, strict=True)]
    return np.concatenate(padded)


def _time(records):
    """Times of the longest run, shape ``(T,)``, fs."""
    return max((plots.read_curve(record, "time") for record in records), key=len)


def _running_mean(values, window):
    """Running mean over the frames that have a value; NaN where the central frame has none."""
    found = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(found, values, 0.0), kernel, mode="same")
    count = np.convolve(found.astype(float), kernel, mode="same")
    return np.where(found, total / np.maximum(count, 1), np.nan)


def _value(records, dataset, metric):
    """Metric in the record of a dataset, or of the first training on it; `None` if there is none."""
    for record in sorted(records, key=lambda r: r.kind != "dataset"):
        if record.dataset == dataset and record.kind in ("dataset", "training"):
            values = {m.name: m.value for m in record.metrics}
            if values.get(metric) is not None:
                return values[metric]
    return None


def _floor(records, kind, dataset, name):
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
