"""Is a model as accurate on the configurations that it visits? Errors on its own frames and on test frames.

The errors exist for datasets whose reference can be run (:mod:`egraff_utils.md.own_frames`).
Symbols: R replicas, M labelled frames.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egraff_utils import quantities
from egraff_utils.cards import REFERENCE
from egraff_utils.config import changed
from egraff_utils.report import look, plots, tables, titles
from egraff_utils.report.comparison import mean_rank_correlation, order_datasets, order_models
from egraff_utils.report.levels import floor_of
from egraff_utils.report.table_cells import NO_VALUE
from egraff_utils.report.titles import short_title
from egraff_utils.report.values import MISSING, listed, say

TEST, OWN, SHIFTED, RATIO = "test", "own frames", "own, offset off", "ratio (×)"
APART, FLOOR = "trajectories", "saturation"
FORCE, FV, EV = (quantities.of(metric).head for metric in ("force_mae", "fv", "ev_root"))
ENERGY = f"Energy MAE ({quantities.of('energy_mae_per_atom').unit})"
LABELS = {"oracle_force_mae": FORCE, "oracle_energy_error": "Energy error (meV/atom)", "oracle_fv": FV}
"""Curve on own frames -> label of its axis."""


def errors(frame: pd.DataFrame, kind: str = "rollout") -> pd.DataFrame:
    """Test errors and errors on own frames.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`; several seeds are averaged.
    kind
        Kind of the rollouts. Test errors are taken from the training record for ``rollout``, and from
        ``errors_600K`` for ``rollout_600K``.

    Returns
    -------
    DataFrame with the index (dataset, model), with all models of the campaign for every dataset with such
    rollouts, and the columns (head with unit, ``test``, ``own frames``, ``own, offset off``, ``ratio (×)``).
    The ratio is that of own frames to test; the reference, whose errors are rounding errors, has none.
    Missing values are NaN.
    """
    static = "training" if kind == "rollout" else changed(kind, act="errors")
    columns = {
        (FORCE, TEST): (static, "force_mae", 1.0),
        (FORCE, OWN): (kind, "oracle_force_mae", 1.0),
        (ENERGY, TEST): (static, "energy_mae_per_atom", 1.0),
        (ENERGY, OWN): (kind, "oracle_energy_mae_per_atom", 1.0),
        (ENERGY, SHIFTED): (kind, "oracle_energy_mae_shifted_per_atom", 1.0),
    }
    values = _values(frame, kind, columns)
    values[FORCE, RATIO] = values[FORCE, OWN] / values[FORCE, TEST]
    values.loc[_is_reference(values), [(FORCE, RATIO)]] = np.nan
    order = [(FORCE, TEST), (FORCE, OWN), (FORCE, RATIO), *[key for key in columns if key[0] == ENERGY]]
    return values[order]


def errors_table(values: pd.DataFrame, name: str):
    """DataFrame of `errors` as a styled table, with a dash for the reference, which has no ratio."""
    texts = values.astype(object)
    texts.loc[_is_reference(values), [(FORCE, RATIO)]] = NO_VALUE
    return tables.plain(texts, name)


def violations(frame: pd.DataFrame, kind: str = "rollout") -> pd.DataFrame:
    """FV and root EV on own frames and between the two trajectories, with the floor of the latter.

    Parameters and index are those of :func:`errors`; columns are (head, ``own frames``, ``trajectories`` or
    ``floor``).
    """
    values = _values(
        frame,
        kind,
        {
            (FV, OWN): (kind, "oracle_fv", 1.0),
            (FV, APART): (kind, "fv", 1.0),
            (EV, OWN): (kind, "oracle_ev_root", quantities.of("ev_root").factor),
            (EV, APART): (kind, "ev_root", quantities.of("ev_root").factor),
        },
    )
    for quantity in (quantities.of("fv"), quantities.of("ev_root")):
        floors = {name: floor_of(frame, kind, name, quantity.metric)[0] for name in values.index.unique(0)}
        values[quantity.head, FLOOR] = [floors[name] * quantity.factor for name, _ in values.index]
    return values[[(head, source) for head in (FV, EV) for source in (OWN, APART, FLOOR)]]


def shifted_kinds(frame: pd.DataFrame) -> list[str]:
    """Kinds of out-of-distribution rollouts whose own frames were labelled."""
    kinds = frame[frame.metric == "oracle_fv"].kind.unique()
    return sorted(kind for kind in kinds if kind not in ("rollout", "rollout_as_coded"))


def _values(frame, kind, columns):
    there = frame[(frame.kind == kind) & (frame.metric == "oracle_fv")]
    models = order_models(set(frame.model[frame.kind == "training"]) | set(there.model))
    pairs = [(name, model) for name in order_datasets(there.dataset.unique()) for model in models]
    index = pd.MultiIndex.from_tuples(pairs, names=["dataset", "model"])
    known = frame.groupby(["kind", "dataset", "model", "metric"])["value"].mean()
    values = {
        key: [factor * known.get((source, *pair, metric), np.nan) for pair in pairs]
        for key, (source, metric, factor) in columns.items()
    }
    return pd.DataFrame(values, index, columns=pd.MultiIndex.from_tuples(columns), dtype=float)


def _is_reference(values):
    """Whether each row is that of the reference run as a model, a boolean array."""
    return values.index.get_level_values("model") == REFERENCE


def below_reference(apart: pd.DataFrame) -> str:
    """How many models of a dataset are closer to the live reference than its run with other noise, as text.

    Parameters
    ----------
    apart
        DataFrame of `violations`.
    """
    fv = apart[FV, APART].dropna().unstack("model")
    fv = fv[fv[REFERENCE].notna()] if REFERENCE in fv else fv.iloc[:0]
    below = fv.drop(columns=REFERENCE, errors="ignore").lt(fv.get(REFERENCE), axis=0).sum(axis=1)
    models = fv.drop(columns=REFERENCE, errors="ignore").notna().sum(axis=1)
    counts = [f"{below[name]} of {models[name]} on {short_title(name)}" for name in order_datasets(fv.index)]
    return f"Of the models' FV between trajectories, {listed(counts)} lie below it" if counts else MISSING


def middle(values, *, digits: int = 2) -> str:
    """Median and range of the finite values, as text.

    Examples
    --------
    >>> middle([1.0, 3.0, np.nan, 2.0])
    '2.00 (1.00 to 3.00)'
    >>> middle([np.nan])
    'no value'
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return MISSING
    return f"{np.median(known):.{digits}f} ({known.min():.{digits}f} to {known.max():.{digits}f})"


def page_values(found, values: pd.DataFrame, apart: pd.DataFrame) -> dict:
    """Values of the page that shows own frames, numbers and texts.

    Parameters
    ----------
    found
        Records of the campaigns.
    values, apart
        DataFrames of `errors` and `violations`, of one campaign or of several, one below the other. Rows of
        the reference itself do not count.
    """
    found = [record for record in found if record.model != REFERENCE]
    values, apart = values[~_is_reference(values)], apart[~_is_reference(apart)]
    ratio, ev = values[FORCE, RATIO].dropna(), (apart[EV, OWN] / apart[EV, APART]).dropna()
    force, energy = (curve_ends(found, f"oracle_{name}") for name in ("force_mae", "energy_error"))
    means = [mean_error(r, "oracle_energy_error") for r in found if r.kind == "rollout"]
    sides = {"test": TEST, "own": OWN, "shifted": SHIFTED}
    places = {"own": OWN, "apart": APART, "floor": FLOOR}
    return {
        "cells": len(ratio),
        "above": (ratio > 1).sum(),
        "double": (ratio > 2).sum(),
        "ratio": middle(ratio, digits=1),
        "rank": say(mean_rank_correlation(values[FORCE, TEST], values[FORCE, OWN])),
        "growth": middle(force[:, 1] / force[:, 0], digits=1),
        "ev_ratio": middle(ev, digits=1),
        "ev_reversed": (ev > 1).sum(),
        "energy_end": middle(energy[:, 1], digits=1),
        "under": sum(mean < 0 for mean in means),
        **{f"energy_{name}": middle(values[ENERGY, side], digits=1) for name, side in sides.items()},
        **{f"fv_{name}": middle(apart[FV, place]) for name, place in places.items()},
    }


def curve_ends(records, name: str) -> np.ndarray:
    """Means over replicas of a curve at the first and the last labelled frame of every rollout, ``(n, 2)``.

    Rollouts of a single labelled frame, or without a value, do not count.
    """
    curves = [r.curves[name] for r in records if r.kind == "rollout" and name in r.curves]
    means = [plots.replica_mean(curve) for curve in curves if curve.shape[1] > 1]
    ends = [mean[np.isfinite(mean)][[0, -1]] for mean in means if np.isfinite(mean).any()]
    return np.array(ends).reshape(-1, 2)


def mean_error(record, name: str) -> float:
    """Mean of a curve over replicas and labelled frames; NaN without a value."""
    found = np.asarray(record.curves.get(name, np.nan), dtype=float)
    return float(np.nanmean(found)) if np.isfinite(found).any() else np.nan


def plot_errors(values: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Force error on own frames against test error; the two are equal on the dashed diagonal.

    Colours denote models, markers denote datasets. The reference has rounding errors alone, and no point.

    Parameters
    ----------
    values
        DataFrame of :func:`errors`.
    """
    ax = look.take_axes(ax)
    known = values[~_is_reference(values)][FORCE][[TEST, OWN]].dropna()
    markers = dict(zip(values.index.unique(0), look.MARKERS, strict=False))
    for (dataset, model), row in known.iterrows():
        style = {"color": look.model_color(model), "marker": markers[dataset], "markeredgecolor": "0.2"}
        ax.plot(row[TEST], row[OWN], linestyle="none", **style)
    for model in known.index.unique(1):
        ax.plot([], [], color=look.model_color(model), linewidth=2.2, label=titles.model_title(model))
    for dataset in known.index.unique(0):
        ax.plot([], [], color="0.45", linestyle="none", marker=markers[dataset], label=short_title(dataset))
    if len(known):
        ends = np.array([known.min().min() / 1.3, known.max().max() * 1.3])
        ax.plot(ends, ends, color="0.5", linestyle="--", linewidth=1, zorder=0)
        ax.set(xscale="log", yscale="log")
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        ax.text(0.5, 0.5, tables.NOT_RUN, transform=ax.transAxes, ha="center", color="0.4")
    ax.set(xlabel="Force MAE on test frames (meV/Å)", ylabel="Force MAE on own frames (meV/Å)")
    return ax


def along_grid(records, name: str = "oracle_force_mae") -> Figure:
    """Errors on own frames along the rollouts, means over replicas, with one panel per dataset.

    Parameters
    ----------
    records
        Records of a campaign, as returned by `records.read_all`.
    name
        ``"oracle_force_mae"`` (meV/Å), ``"oracle_energy_error"`` (meV/atom, model minus reference) or
        ``"oracle_fv"``.
    """
    found = [r for r in records if r.kind == "rollout" and name in r.curves]
    datasets = order_datasets({record.dataset for record in found}) or [None]
    figure, axes = plt.subplots(1, len(datasets), figsize=(7.4, 2.9), squeeze=False)
    for ax, dataset in zip(axes[0], datasets, strict=True):
        for record in (
            r for model in order_models({r.model for r in found}) for r in found if r.model == model
        ):
            if record.dataset == dataset:
                time = record.curves["oracle_steps"] * record.parameters["timestep"]
                label = titles.model_title(record.model)
                mean = plots.replica_mean(record.curves[name])
                own = record.model == REFERENCE
                ax.plot(
                    time, mean, **(plots.OWN_NOISE if own else look.model_line(record.model)), label=label
                )
        if dataset is None:
            ax.text(0.5, 0.5, tables.NOT_RUN, transform=ax.transAxes, ha="center", color="0.4")
        else:
            ax.set_title(short_title(dataset), fontsize="small", loc="left")
    lines = {line.get_label(): line for ax in axes[0] for line in ax.get_lines()}
    if lines:
        figure.legend(handles=lines.values(), loc="outside upper center", ncols=6, fontsize="small")
    figure.supxlabel("Time (fs)", fontsize="medium")
    axes[0, 0].set_ylabel(LABELS[name])
    return figure


def plot_apart(record, *, floor=None, own_noise=None, ax: Axes | None = None) -> Axes:
    """FV between the trajectories of model and reference, and FV on the model's own frames in black.

    Parameters
    ----------
    record
        Record of a rollout with the curves of :func:`egraff_utils.md.own_frames.label`.
    floor, own_noise
        As in :func:`egraff_utils.report.plots.plot_violations`.
    """
    ax = plots.plot_violations(record, "fv", floor=floor, own_noise=own_noise, ax=ax)
    time = record.curves["oracle_steps"] * record.parameters["timestep"]
    own = np.asarray(record.curves["oracle_fv"], dtype=float)
    ax.plot(time, own.T, color="0.2", linewidth=0.6, alpha=0.5)
    ax.plot(time, plots.replica_mean(own, geometric=True), color="black", linewidth=2, label="on own frames")
    ax.legend()
    return ax
