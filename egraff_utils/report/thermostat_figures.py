"""What do thermostats look like? Temperatures along the run, those that were reached, and equipartition."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import quantities
from egraff_utils.report import look, panels, plots, relaxation, survival
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.thermostat import AS_CODED, CORRECTED, PROTOCOLS
from egraff_utils.report.titles import short_title


def temperature_grid(found) -> Figure:
    """Temperature against time, as coded (left) and corrected (right), with one row per dataset.

    Curves are means over valid replicas and over 20 fs; the two datasets are those with both protocols, or
    the first ones if none has both; the target is dashed, the expectation
    black.

    Parameters
    ----------
    found
        Records, as returned by `records.read_all`.
    """
    runs = [
        (kind, r)
        for kind, r in survival.runs(found)
        if kind in PROTOCOLS and r.curves.get("time") is not None
    ]
    runs = [(kind, r) for kind, r in runs if r.parameters.get("temperature")]
    kinds = {name: {kind for kind, r in runs if r.dataset == name} for name in {r.dataset for _, r in runs}}
    both = [name for name in order_datasets(kinds) if len(kinds[name]) == len(PROTOCOLS)]
    shown = (both or order_datasets(kinds))[:2]
    figure, axes = plt.subplots(
        max(len(shown), 1), 2, figsize=(7.5, 0.8 + 2.2 * max(len(shown), 1)), sharey="row", squeeze=False
    )
    models = {}
    for row, dataset in zip(axes, shown, strict=False):
        for ax, (protocol, title) in zip(row, PROTOCOLS.items(), strict=True):
            here = [r for kind, r in runs if kind == protocol and r.dataset == dataset]
            models |= dict.fromkeys(r.model for r in here)
            _draw_temperatures(ax, here)
            ax.set_title(f"{short_title(dataset)}, {title}", fontsize="small", loc="left")
    if not shown:
        axes[0, 0].text(0.5, 0.5, "not run", ha="center", va="center", color="0.4")
    figure.supxlabel("Time (fs)", fontsize="medium")
    figure.supylabel(quantities.of("temperature").axis, fontsize="medium")
    handles = look.model_handles(order_models(models), dashes=True)
    handles += [Line2D([], [], color="black", linewidth=1.6, label="expected")]
    handles += [Line2D([], [], color="black", linestyle="--", linewidth=1, label="target")]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _draw_temperatures(ax, records):
    for record in records:
        time, curve = record.curves["time"], np.asarray(record.curves["temperature"], float)
        broke = [end.replica for end in record.breaks]
        mean = (
            plots.replica_mean(np.delete(curve, broke, axis=0))
            if len(broke) < len(curve)
            else curve[0] * np.nan
        )
        length = max(1, min(round(20 / (time[1] - time[0])), len(time))) if len(time) > 1 else 1
        smooth = np.convolve(mean, np.ones(length) / length, mode="valid")
        middle = time[: len(smooth)] + (time[length - 1] - time[0]) / 2
        ax.plot(middle, smooth, **look.model_line(record.model), linewidth=1.2)
    if not records:
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color="0.4")
        return
    record = max(records, key=lambda r: len(r.curves["time"]))
    target, time = record.parameters["temperature"], record.curves["time"]
    given = {
        "target": target * relaxation.stationary_ratio(record),
        "friction": relaxation.friction_rate(record),
    }
    given["potential"] = relaxation.start_temperatures(record, target).mean()
    kinetic = float(np.nanmean(relaxation.velocity_temperatures(record)))
    ax.plot(
        time, relaxation.expected_temperature(time, kinetic=kinetic, **given), color="black", linewidth=1.6
    )
    ax.axhline(target, color="black", linestyle="--", linewidth=1)


def reached_plot(table: pd.DataFrame) -> Figure:
    """Ratio of temperature to target of every rollout with its interval; crosses mark expectations.

    Parameters
    ----------
    table
        DataFrame of `temperatures`.
    """
    keys = list(dict.fromkeys((survival.setting(k, d), d, k) for k, d, _ in table.index))
    names = order_datasets({d for _, d, _ in keys})
    keys.sort(key=lambda key: (survival.ORDER.index(key[0]), names.index(key[1])))
    figure, ax = plt.subplots(figsize=(7.5, 1.0 + 0.32 * max(len(keys), 3)))
    models = order_models(set(table.index.get_level_values("model")))
    for place, (_, dataset, kind) in enumerate(keys):
        here = table.loc[(kind, dataset)]
        for model, row in here.iterrows():
            y = place + 0.7 * ((models.index(model) + 0.5) / len(models) - 0.5)
            bar = look.error_bar(row.ratio, row.low, row.high)
            ax.errorbar(row.ratio, y, xerr=bar, elinewidth=0.9, markersize=3.5, **_marks(model))
            ax.plot(row.expected, y, "x", color="black", markersize=3, markeredgewidth=0.8)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    labels = [f"{short_title(d)}{'' if s == survival.HOME else ', ' + s}" for s, d, _ in keys]
    ax.set_yticks(range(len(keys)), labels, fontsize="small")
    ax.set(xlabel="Temperature over target (dimensionless)", ylabel="Dataset")
    ax.invert_yaxis()
    handles = look.model_handles(models, markers=True, linestyle="none")
    handles.append(Line2D([], [], color="black", marker="x", linestyle="none", label="expected"))
    figure.legend(handles=handles, loc="outside upper center", ncols=7, columnspacing=0.9, handletextpad=0.3)
    return figure


def _marks(model):
    """Colour and marker of a model."""
    return {"color": look.model_color(model), "marker": look.model_marker(model)}


def equipartition_grid(table: pd.DataFrame) -> Figure:
    """Ratio of the temperature of each element to that of all atoms, in one panel per protocol with values.

    Intervals are cut at 0.3 and 1.9.

    Parameters
    ----------
    table
        DataFrame of `equipartition`.
    """
    kinds = [kind for kind in (CORRECTED, AS_CODED) if kind in table.index.get_level_values("kind")] or [None]
    figure, axes = plt.subplots(len(kinds), 1, figsize=(7.5, 0.6 + 2.2 * len(kinds)), squeeze=False)
    models = order_models(set(table.index.get_level_values("model")))
    for ax, kind in zip(axes[:, 0], kinds, strict=True):
        if kind is None:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="0.4")
            continue
        here = table.loc[kind]
        places = [
            (d, e)
            for d in order_datasets(set(here.index.get_level_values(0)))
            for e in here.loc[d].index.unique("element")
        ]
        for (dataset, model, element), row in here.iterrows():
            x = places.index((dataset, element)) + 0.7 * ((models.index(model) + 0.5) / len(models) - 0.5)
            bar = look.error_bar(row.ratio, row.low, row.high)
            ax.errorbar(x, row.ratio, yerr=bar, elinewidth=0.9, markersize=3.5, **_marks(model))
        ax.axhline(1, color="black", linestyle="--", linewidth=1)
        firsts = [i for i, (d, _) in enumerate(places) if i == 0 or places[i - 1][0] != d]
        ax.set_xticks(range(len(places)), [e for _, e in places], fontsize="small")
        for level, i in enumerate(firsts):
            style = {"fontsize": "x-small", "va": "top", "transform": ax.get_xaxis_transform()}
            ax.text(i - 0.45, 0.99 - 0.09 * (level % 2), short_title(places[i][0]), **style)
        for i in firsts[1:]:
            ax.axvline(i - 0.5, color="0.8", linewidth=0.8)
        ax.set_title(PROTOCOLS[kind], fontsize="small", loc="left")
        ax.set(xlim=(-0.5, len(places) - 0.5), ylim=(0.3, 1.9))
    figure.supylabel("Element over all atoms (dimensionless)", fontsize="medium")
    handles = look.model_handles(models, markers=True, linestyle="none")
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def protocol_plot(values: pd.DataFrame) -> Figure:
    """A metric as coded against the corrected one, with one panel per metric; markers denote datasets.

    Parameters
    ----------
    values
        DataFrame of `protocols`.
    """
    metrics = ("wf", "ev_root", "fv")
    figure, axes = plt.subplots(1, len(metrics), figsize=(7.5, 3.0), squeeze=False)
    markers = dict(zip(dict.fromkeys(values.index.get_level_values(0)), look.MARKERS * 9, strict=False))
    for ax, metric in zip(axes[0], metrics, strict=True):
        quantity = quantities.of(metric)
        pair = values[metric].dropna() * quantity.factor if len(values) else pd.DataFrame()
        for (dataset, model), row in pair.iterrows():
            ax.plot(
                row["corrected"],
                row["as coded"],
                markers[dataset],
                color=look.model_color(model),
                markersize=5,
            )
        if len(pair):
            ends = [pair.to_numpy().min() * 0.9, pair.to_numpy().max() * 1.1]
            ax.plot(ends, ends, color="0.4", linewidth=0.9, zorder=0)
        else:
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color="0.4")
        ax.set(xlabel="corrected", title=f"{quantity.name} ({quantity.head_unit})")
        ax.title.set(fontsize="small")
    axes[0, 0].set_ylabel("as coded")
    models = order_models(set(values.index.get_level_values(1)))
    handles = look.model_handles(models, marker="s", linestyle="none")
    handles += panels.dataset_handles(markers)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure
