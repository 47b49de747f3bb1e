"""How far from the published errors is a campaign, and how long would its trainings have to be to reach them?

It is assumed that the error falls as a power of the length of a training. The searches of the recipe and the
campaign's own trainings give two or three lengths on one dataset.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils.report import look
from egraff_utils.report.accuracy import FORCE
from egraff_utils.report.beside import OURS, PAPER
from egraff_utils.report.comparison import order_models
from egraff_utils.report.panels import WIDTH, add_legend, legend_entries
from egraff_utils.report.values import MISSING, count, say, span

DATASET = "ethanol"
"""The dataset on which the search trained."""
SEARCHES = ("search_recipe", "search_rate")
NEAR = 1.5
"""Ratio to the published error that counts as close to it."""


def points(searched: list, trained: list) -> pd.DataFrame:
    """Validation error against the length of a training, each point a training of its own.

    Parameters
    ----------
    searched
        Records of a search; of the kinds ``SEARCHES`` on ``DATASET`` the least error of all tries counts.
    trained
        Records of a campaign; those of trainings on ``DATASET`` count, the seeds of a model as their mean.

    Returns
    -------
    DataFrame with ``model``, ``seconds`` and ``error``, the least validation error of the forces, meV/Å, in
    the order of models and seconds.
    """
    names = ["model", "seconds", "error"]
    tries = [
        (r.model, float(r.parameters["seconds"]), r["best_force_mae"])
        for r in searched
        if r.kind in SEARCHES and r.dataset == DATASET
    ]
    runs = [
        (r.model, r["seconds"], float(np.nanmin(r.curves["val_force_mae"])))
        for r in trained
        if r.kind == "training" and r.dataset == DATASET and len(r.curves.get("val_force_mae", ()))
    ]
    means = pd.DataFrame(runs, columns=names).groupby("model", as_index=False).mean()
    frame = pd.concat([pd.DataFrame(tries, columns=names), means]).dropna()
    return frame.sort_values(["model", "seconds"], ignore_index=True)


def exponents(found: pd.DataFrame) -> pd.Series:
    """Exponent with which the error of each model falls with time, a fit of logarithms, by model.

    Models with fewer than two lengths of training are left out.

    Examples
    --------
    >>> found = pd.DataFrame({"model": "mace", "seconds": [1.0, 4.0, 16.0], "error": [8.0, 4.0, 2.0]})
    >>> float(exponents(found)["mace"].round(6))
    0.5
    """
    fits = {
        model: -np.polyfit(np.log(part.seconds), np.log(part.error), 1)[0]
        for model, part in found.groupby("model")
        if part.seconds.max() > 1.5 * part.seconds.min()
    }
    return pd.Series(fits, dtype=float)


def steps_of(found: pd.DataFrame) -> pd.DataFrame:
    """Exponents between neighbouring lengths, of the models with three or more, by model; the first is that
    of the shortest trainings.

    Examples
    --------
    >>> found = pd.DataFrame({"model": "mace", "seconds": [1.0, 4.0, 16.0], "error": [8.0, 4.0, 4.0]})
    >>> steps_of(found).loc["mace"].round(6).tolist()
    [0.5, 0.0]
    """
    rows = {
        model: np.diff(-np.log(part.error)) / np.diff(np.log(part.seconds))
        for model, part in found.groupby("model")
        if len(part) > 2
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def distances(errors: pd.DataFrame, seconds: pd.Series, falls: pd.Series) -> pd.DataFrame:
    """Every cell of a campaign beside the published error.

    Parameters
    ----------
    errors
        DataFrame of `beside.paper_values` for Table 1.
    seconds
        Length of the trainings, s, with the index (dataset, model).
    falls
        Result of `exponents`.

    Returns
    -------
    DataFrame with the index (dataset, model) of the cells that both have: ``error`` and ``published``,
    meV/Å; their ``ratio``; ``hours``, the length of the training; ``near`` and ``equal``, lengths in hours
    that it would need in all for `NEAR` times the published error and for that itself if the power law of
    its model held, NaN without a law.
    """
    both = errors[FORCE][[OURS, PAPER]].astype(float).dropna()
    found = both.set_axis(["error", "published"], axis=1)
    found["ratio"] = found.error / found.published
    hours = seconds.reindex(found.index).astype(float) / 3600
    fall = pd.Series(found.index.get_level_values("model").map(falls), index=found.index, dtype=float)
    found["hours"] = hours
    found["near"] = hours * (found.ratio / NEAR) ** (1 / fall)
    found["equal"] = hours * found.ratio ** (1 / fall)
    return found


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """`distances` with titles and texts; a dash where the error is reached already."""

    def time(hours, reached):
        return "–" if reached else MISSING if np.isnan(hours) else f"{hours:.1f}"

    return pd.DataFrame(
        {
            "Force MAE (meV/Å)": found.error.map("{:.1f}".format),
            "Published": found.published.map("{:.1f}".format),
            "Ratio": found.ratio.map("{:.2f}".format),
            f"Length for {NEAR} × published (h)": [
                time(*row) for row in zip(found.near, found.ratio <= NEAR, strict=True)
            ],
            "Length for published (h)": [
                time(*row) for row in zip(found.equal, found.ratio <= 1, strict=True)
            ],
        },
        index=found.index,
    )


def values(found: pd.DataFrame, along: pd.DataFrame) -> dict[str, str]:
    """What a page says of `distances` and of the `points` behind them, as texts by name."""
    steps = steps_of(along)
    above = found.near[found.ratio > NEAR]
    return {
        "cells": str(len(found)),
        "ratio": span(found.ratio),
        "near": count(found.ratio <= NEAR),
        "reached": count(found.ratio <= 1),
        "fall": span(exponents(along)),
        "early": span(steps[0] if len(steps) else []),
        "late": span(steps.iloc[:, -1] if len(steps) else []),
        "slowed": str(len(steps)),
        "above": str(len(above)),
        "had": span(found.hours),
        "hours": say(above.median() if len(above) else None, ".1f"),
        "hours_span": span(above, ".1f"),
    }


def lengths(frame: pd.DataFrame) -> pd.Series:
    """Mean length of the trainings of every cell, s, with the index (dataset, model)."""
    rows = frame[(frame.kind == "training") & (frame.metric == "seconds")]
    return rows.groupby(["dataset", "model"]).value.mean()


def plot_falls(found: pd.DataFrame) -> Figure:
    """Validation error against the length of a training, a marker per training and the fitted power laws."""
    falls = exponents(found)
    figure, ax = plt.subplots(figsize=(WIDTH * 0.7, 3.4))
    for model, part in found.groupby("model"):
        color = look.model_color(model)
        ax.plot(part.seconds, part.error, look.model_marker(model), color=color, markersize=6)
        if model in falls:
            ends = np.array([part.seconds.min(), 4 * part.seconds.max()])
            middle = np.exp([np.log(part.seconds).mean(), np.log(part.error).mean()])
            law = middle[1] * (ends / middle[0]) ** -falls[model]
            ax.plot(ends, law, **look.model_line(model), linewidth=1)
    ax.set(xlabel="Length of the training (s)", ylabel="Force MAE, validation (meV/Å)")
    for axis in "xy":
        look.set_log_scale(ax, axis)
    return add_legend(figure, legend_entries(order_models(set(found.model))), columns=6)
