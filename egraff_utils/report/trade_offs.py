"""How do metrics stand against each other? Figures 6 and 7 of the paper, and cost against size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egraff_utils import quantities
from egraff_utils.config import changed
from egraff_utils.report import comparison, look, panels
from egraff_utils.report.beside import COOL, main_rows, seed_means
from egraff_utils.report.levels import floor_of
from egraff_utils.report.plots import metric_label
from egraff_utils.report.titles import model_title, short_title


def radar_grid(
    values: pd.DataFrame,
    *,
    scale: str = "fixed",
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
    beside
        Values of further campaigns by name, drawn with broken lines.
    """
    scaled = {
        name: comparison.scaled_values(found, scale) for name, found in {"": values, **(beside or {})}.items()
    }
    lines = dict(zip(scaled, ("-", "--", ":", "-."), strict=False))
    labels = comparison.PAPER_SPOKES if scale == "paper" else {s.metric: s.label for s in comparison.SCALES}
    labels = {metric: label for metric, label in labels.items() if any(metric in s for s in scaled.values())}
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)

    floors = comparison.floor_places(values, scale)

    def draw(ax, dataset):
        drawn = {}
        for metric, angle in zip(labels, angles, strict=True):
            if ends := floors.get((dataset, metric)):
                ax.plot([angle] * 2, ends, color=look.FLOOR_COLOR, alpha=0.45, linewidth=5, zorder=0)
        for name, line in lines.items():
            here = scaled[name].reindex(columns=list(labels)).dropna(how="all")
            here = here[here.index.get_level_values("dataset") == dataset].droplevel("dataset")
            for model, row in here.iterrows():
                _draw_polygon(ax, angles, row.to_numpy(float), model, line)
                drawn[model] = None
        _mark_spokes(ax, angles, list(labels.values()))
        return list(drawn)

    datasets = comparison.order_datasets(set(values.index.get_level_values(0)))
    bars = bool(floors)
    return panels.grid(datasets, draw, marker=True, lines=lines, floor=bars, projection="polar", height=2.1)


def _draw_polygon(ax, angles, radii, model, line):
    """Draw a line from spoke to spoke, with gaps next to spokes without a value."""
    style = panels.point_style(model) | {
        "markersize": 3.5,
        "linestyle": line,
        "linewidth": 1.2,
        "clip_on": False,
    }
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
    pairs: Sequence[tuple[str, str]] = comparison.PAIRS,
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
    published = comparison.published_values() if published is None else published
    sides = (("ours", values), ("paper", published))
    size = (panels.WIDTH, 0.6 + 2.35 * len(pairs))
    figure, axes = plt.subplots(len(pairs), 2, sharex="row", sharey="row", squeeze=False, figsize=size)
    markers = panels.dataset_markers({name for _, side in sides for name in side.index.get_level_values(0)})
    for (x, y), row in zip(pairs, axes, strict=True):
        for (title, side), ax in zip(sides, row, strict=True):
            _draw_floor_crosses(ax, values, x, y)
            _draw_pairs(ax, side, (x, y), markers, hollow=title == "paper")
            ax.set_xlabel(quantities.of(x).label)
        row[0].set_ylabel(quantities.of(y).label)
        for axis, name in (("x", x), ("y", y)):
            if panels.is_wide(pd.concat([side.get(name, pd.Series(dtype=float)) for _, side in sides])):
                for ax in row:
                    look.set_log_scale(ax, axis)
    for (title, _), ax in zip(sides, axes[0], strict=True):
        ax.set_title(title, fontsize="medium", loc="left")
    models = comparison.order_models({name for _, side in sides for name in side.index.get_level_values(1)})
    floor = any(f"floor_{metric}_low" in values for pair in pairs for metric in pair)
    return panels.add_legend(
        figure, panels.legend_entries(models, floor=floor) + panels.dataset_handles(markers), columns=5
    )


def _draw_floor_crosses(ax, values, x, y):
    names = [f"floor_{metric}{end}" for metric in (x, y) for end in ("", "_low", "_high")]
    for a, a_low, a_high, b, b_low, b_high in (
        values.reindex(columns=names).dropna().drop_duplicates().to_numpy()
    ):
        style = {"color": look.FLOOR_COLOR, "alpha": 0.6, "linewidth": 3, "zorder": 0}
        ax.plot([a_low, a_high], [b, b], **style)
        ax.plot([a, a], [b_low, b_high], **style)


def _draw_pairs(ax, values, pair, markers, *, hollow):
    points = values.reindex(columns=list(pair)).dropna()
    points = points[(points > 0).all(axis=1)]
    for (dataset, model), (x, y) in points.iterrows():
        color = look.model_color(model)
        face, edge = ("none", color) if hollow else (color, "0.2")
        style = {"markersize": 5.5, "markerfacecolor": face, "markeredgecolor": edge}
        ax.plot(x, y, markers[dataset], markeredgewidth=1.2 if hollow else 0.5, **style)
    if points.empty:
        panels.say_not_run(ax)


def cost_grid(records: Iterable, kind: str = "cost") -> Figure:
    """Time and memory of one MD step against the number of atoms, with one line per model and dataset.

    Parameters
    ----------
    records
        Records of which those of the kind are drawn, with curves ``atoms``, ``milliseconds`` (ms) and
        ``memory`` (MB), one value per size.
    kind
        ``"cost"`` of a campaign, or ``"bench_scaling"``.
    """
    found = panels.by_model(r for r in records if r.kind == kind and "atoms" in r.curves)
    datasets = comparison.order_datasets({r.dataset for runs in found.values() for r in runs})
    lines = dict(zip(datasets, ("-", "--", ":", "-."), strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(panels.WIDTH, 3.4))
    labels = {"milliseconds": "Time per MD step (ms)", "memory": "Memory of an MD step (MB)"}
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        drawn = [r for runs in found.values() for r in runs if name in r.curves]
        for record in drawn:
            style = panels.point_style(record.model) | {"linestyle": lines[record.dataset], "linewidth": 1.4}
            ax.plot(record.curves["atoms"], record.curves[name], **style)
        ax.set(xlabel="Atoms (count)", ylabel=label)
        for axis in "xy" if drawn else "":
            look.set_log_scale(ax, axis)
        if not drawn:
            panels.say_not_run(ax, "not measured")
            ax.set(xticks=[], yticks=[])
    named = {short_title(name): line for name, line in lines.items()} if len(lines) > 1 else {}
    return panels.add_legend(figure, panels.legend_entries(found, marker=True, lines=named))


def in_distribution(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a campaign in which each set stands for frames like its training set, as in Tables 1 to 3.

    3BPA is trained at 300 K, and its test set is of 600 K: errors, rollouts and levels of 300 K take the
    place of those of the test set. Where there are none, the dataset has none.
    """
    for kind, dataset in COOL.values():
        home = {kind: "rollout", changed(kind, act="errors"): "training", changed(kind, act="floor"): "floor"}
        if kind != "rollout":
            here, taken = frame.dataset == dataset, frame.kind.isin(home)
            rows = frame[here & taken].assign(kind=lambda rows, home=home: rows.kind.map(home))
            frame = pd.concat([frame[~here | ~(taken | frame.kind.isin(home.values()))], rows])
    return frame


def plot_leaderboard(frame: pd.DataFrame, x: str = "force_mae", y: str = "wf") -> Axes:
    """One metric against another, with a point and the intervals over replicas for every model and dataset.

    The colour denotes the model, the marker the dataset; a grey band shows the floor of `y` on a dataset, as
    wide as its points. An axis is logarithmic if all its values are positive.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.
    x, y
        Names of the two metrics, for example ``"force_mae"`` (meV/Å) and ``"wf"`` (%).

    Raises
    ------
    ValueError
        If no model has both metrics.
    """
    points = _pair_metrics(frame, x, y)
    figure, ax = plt.subplots(figsize=(4.8, 3.8))  # narrow, so that its words can be read on a phone
    markers = dict(zip(sorted(points.dataset.unique()), look.MARKERS * 4, strict=False))
    for row in points.itertuples():
        ax.errorbar(
            row.x,
            row.y,
            xerr=look.error_bar(row.x, row.x_low, row.x_high),
            yerr=look.error_bar(row.y, row.y_low, row.y_high),
            color=look.model_color(row.model),
            marker=markers[row.dataset],
            markeredgecolor="0.2",
            markeredgewidth=0.6,
            linestyle="none",
            elinewidth=1,
        )
    for name, here in points.groupby("dataset"):
        _, low, high = floor_of(frame, "rollout", name, y)
        if np.isfinite([low, high]).all():
            ends = here.x.min() / 1.1, here.x.max() * 1.1
            ax.fill_between(ends, low, high, color=look.FLOOR_COLOR, alpha=0.35, linewidth=1.5, zorder=0)
    for model in sorted(points.model.unique(), key=look.model_place):
        ax.plot([], [], "o", color=look.model_color(model), label=model_title(model))
    for name, marker in markers.items():
        if len(markers) > 1:
            ax.plot([], [], marker, color="0.5", linestyle="none", label=short_title(name))
    for axis, values in (("x", points.x), ("y", points.y)):
        if (values > 0).all() and values.max() > 3 * values.min():
            look.set_log_scale(ax, axis)
    ax.set(xlabel=metric_label(frame, x), ylabel=metric_label(frame, y))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", columnspacing=1.0, handletextpad=0.3)
    return ax


def _pair_metrics(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """One row per dataset and model with both metrics, means and intervals over seeds as in tables."""
    sides, rows = [], main_rows(frame)
    for name, side in ((x, "x"), (y, "y")):
        column = quantities.of(name)
        mean = seed_means(rows[rows.value.notna()], column).droplevel("kind") / column.factor
        sides.append(mean.rename(columns={"value": side, "low": f"{side}_low", "high": f"{side}_high"}))
    points = sides[0].join(sides[1], how="inner").reset_index()
    if points.empty:
        raise ValueError(
            f"no model has both {x!r} and {y!r}; the frame has {sorted(frame.metric.dropna().unique())}"
        )
    return points
