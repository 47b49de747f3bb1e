"""How accurate are the models on test frames, and how far is that from the paper? Values of its page."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from egraff_utils import quantities
from egraff_utils.report import agreement
from egraff_utils.report.beside import MODELS, OURS, PAPER, winners
from egraff_utils.report.comparison import mean_rank_correlation
from egraff_utils.report.titles import dataset_title, model_title, short_title
from egraff_utils.report.values import count, span

FORCE, ENERGY = (quantities.of(metric).head for metric in ("force_mae", "energy_mae"))


def page_values(found, here: pd.DataFrame, errors: pd.DataFrame, ratios: pd.DataFrame) -> dict:
    """Values of the page, numbers and texts.

    Parameters
    ----------
    found
        Records of the campaign.
    here, errors
        DataFrames of `beside_values` and, for Table 1, `paper_values`, with bounds.
    ratios
        DataFrame of `bound_ratios` of the force errors, %.
    """
    cells = {head: agreement.matched(errors, head) for head in (FORCE, ENERGY)}
    relative = {s: ratios[s].stack() if s in ratios else pd.Series([np.nan]) for s in (OURS, PAPER)}
    epochs = [agreement.published_epochs(model) for model in MODELS]
    return {
        "relative": relative[OURS].median(),
        "relative_low": relative[OURS].min(),
        "relative_high": relative[OURS].max(),
        "relative_paper": relative[PAPER].median(),
        "ratio": _mean_ratio(cells[FORCE]),
        "energy_ratio": _mean_ratio(cells[ENERGY]),
        "cells": len(cells[FORCE]),
        "epochs_low": min(epochs),
        "epochs_high": max(epochs),
        "best": winners(here, FORCE),
        "best_energy": winners(here, ENERGY),
        "agreement": agreement.sentence(agreement.agreement_table({FORCE: cells[FORCE]}).loc[FORCE]),
        **_best_at_both(errors),
        **_progress(found),
    }


def _mean_ratio(cells):
    """Geometric mean of our values over published ones."""
    return float(np.exp(np.log(cells[OURS] / cells[PAPER]).mean()))


def against_paper(errors: pd.DataFrame, campaign: str) -> str:
    """How far the force errors of a campaign are from the published ones, cell by cell, as text.

    Examples
    --------
    >>> columns = pd.MultiIndex.from_tuples([(FORCE, PAPER), (FORCE, "day")])
    >>> errors = pd.DataFrame([[10.0, 10.0], [10.0, 14.0], [10.0, 28.0], [10.0, None]], columns=columns)
    >>> print(against_paper(errors, "day"))
    in campaign day they are 1.00 to 2.80 times the published ones (3 cells), at most 1.5 times in 2 of 3,
    at or below in 1 of 3
    """
    both = errors[FORCE][[PAPER, campaign]].astype(float).dropna()
    ratio = both[campaign] / both[PAPER]
    return (
        f"in campaign {campaign} they are {span(ratio)} times the published ones ({len(ratio)} cells), "
        f"at most 1.5 times in {count(ratio <= 1.5)}, at or below in {count(ratio <= 1)}"
    )


def plot_ratios(errors: pd.DataFrame) -> Axes:
    """Heat map of our force errors over the published ones, a row per dataset and a column per model.

    Parameters
    ----------
    errors
        DataFrame of `paper_values` for Table 1. Cells without both values stay empty.
    """
    ratio = (errors[FORCE][OURS].astype(float) / errors[FORCE][PAPER].astype(float)).unstack("model")
    rows = [name for name in errors.index.unique("dataset") if ratio.loc[name].notna().any()]
    ratio = ratio.loc[rows, [model for model in MODELS if model in ratio]]
    ratio = ratio.rename(index=short_title, columns=model_title)
    _, ax = plt.subplots(figsize=(7.2, 0.8 + 0.4 * max(len(rows), 1)))
    if not rows:
        return ax
    most = max(1.0, np.nanmax(np.abs(np.log10(ratio.to_numpy()))))  # decades from one, which is white
    sns.heatmap(
        ratio,
        norm=LogNorm(10**-most, 10**most),
        cmap="RdBu_r",
        annot=True,
        fmt=".2g",
        linewidths=0.5,
        cbar_kws={"label": "Force MAE over the published one (×)"},
        ax=ax,
    )
    ax.set(xlabel="", ylabel="")
    return ax


def _best_at_both(errors):
    """Number of datasets, and of those on which the same model is best at forces and at energies."""
    counts = {}
    for source, end in ((OURS, ""), (PAPER, "_paper")):
        rows = errors.xs(source, axis=1, level=1).dropna()
        best = rows.groupby("dataset")[[FORCE, ENERGY]].idxmin()
        counts |= {f"same{end}": (best[FORCE] == best[ENERGY]).sum(), f"datasets{end}": len(best)}
    return counts


def _progress(found):
    """What the second half of a training gains (%), and whether the first tells the order of the models."""
    trainings = [r for r in found if r.kind == "training" and len(r.curves.get("val_force_mae", ()))]
    rows = {(r.dataset, r.model): errors_on_the_way(r) for r in trainings}
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "model"])
    halves = pd.DataFrame(list(rows.values()), index=index, columns=["half", "end"])
    order = mean_rank_correlation(halves.half, halves.end)
    return {"count": len(rows), "gain": 100 * (1 - (halves.end / halves.half).median()), "half": order}


def errors_on_the_way(record) -> tuple[float, float]:
    """Least validation force error of a training by half of its time and by its end, meV/Å."""
    time, error = record.curves["seconds"], record.curves["val_force_mae"]
    early = error[time <= time[-1] / 2]
    return float(min(early, default=error[0])), float(min(error))


def literature_spread(values: pd.DataFrame) -> dict:
    """Ratio of the largest published force error of a model on a dataset to the smallest, for the page.

    Parameters
    ----------
    values
        Force errors of `literature_values`, with the index (dataset, source), without our own.
    """
    groups = values.groupby("dataset")
    factor = (groups.max() / groups.min()).stack()
    factor = factor[factor > 1]
    dataset, model = factor.idxmax()
    return {
        "literature": factor.median(),
        "literature_high": factor.max(),
        "literature_within": (values.max(axis=1) / values.min(axis=1)).median(),
        "literature_where": f"{model_title(model)} on {dataset_title(dataset)}",
    }
