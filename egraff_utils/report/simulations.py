"""What do the rollouts of all models say? Values of the pages on structure and dynamics."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egraff_utils import cards, quantities
from egraff_utils.report import agreement, plots
from egraff_utils.report.beside import OURS, PAPER, bound_ratios, count_alike, winners
from egraff_utils.report.comparison import mean_rank_correlation, order_datasets, order_models
from egraff_utils.report.leaderboards import stable_replicas
from egraff_utils.report.levels import floor_of
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import span

FORCE, WF, JSD, RAW, EV, FV = (
    quantities.of(metric).head for metric in ("force_mae", "wf", "jsd", "jsd_raw", "ev_root", "fv")
)


# -- structure ------------------------------------------------------------------------------------------


def structure_values(found, here: pd.DataFrame, values: pd.DataFrame, errors: pd.DataFrame) -> dict:
    """Values of the page on structure, numbers and texts.

    Parameters
    ----------
    found
        Records of the campaign.
    here, values
        DataFrames of `beside_values` and, for Table 2, `paper_values`, with bounds and spread.
    errors
        DataFrame of `paper_values` for Table 1.
    """
    cells, ratios = agreement.matched(values, WF), floor_ratios(here)
    near = ratios.median(axis=1).sort_values().index.map(short_title)
    names = ("floor", "floor_count", "floor_paper", "floor_paper_count")
    counts = (*count_alike(here, WF), *count_alike(values, WF, PAPER))
    numbers = {
        "count": len([r for r in found if r.kind == "rollout"]),
        "cells": len(cells),
        "ratio": np.exp(np.log(cells[OURS] / cells[PAPER]).mean()),
        "force": _order(here, FORCE, WF),
        "force_paper": _order(errors.join(values), FORCE, WF, PAPER),
        "forms": _order(here, JSD, RAW),
        "forms_wf": _order(here, JSD, WF),
        "raw_wf": _order(here, RAW, WF),
    }
    texts = {
        "best": winners(here, WF),
        "agreement": agreement.sentence(agreement.agreement_table({WF: cells}).loc[WF]),
        "near": near[0] if len(near) else "none",
        "far": near[-1] if len(near) else "none",
    }
    return dict(zip(names, counts, strict=True)) | numbers | texts | _peaks(found)


def floor_ratios(values: pd.DataFrame) -> pd.DataFrame:
    """WF of every dataset and model in units of its floor, without empty rows and columns."""
    ratios = bound_ratios(values, WF).get(OURS, pd.DataFrame())
    return ratios.dropna(how="all").dropna(how="all", axis=1)


def _order(values, first, second, source=OURS):
    pair = values.reindex(columns=[(first, source), (second, source)])
    return mean_rank_correlation(pair[first, source], pair[second, source])


def _peaks(found):
    """Largest differences of g(r) over all rollouts: the largest, where it is, and the median."""
    rollouts = [r for r in found if r.kind == "rollout" and "rdf" in r.curves]
    peaks = sorted((*largest_difference(r), r.model, r.dataset) for r in rollouts)
    if not peaks:
        return dict.fromkeys(("peak", "peak_r", "peak_median", "bonds"), np.nan) | {"peak_where": "none"}
    height, place, model, dataset = peaks[-1]
    return {
        "peak": height,
        "peak_r": place,
        "peak_median": np.median([peak[0] for peak in peaks]),
        "bonds": np.mean([peak[1] < BOND for peak in peaks]),
        "peak_where": f"{model_title(model)} on {short_title(dataset)}",
    }


BOND = 1.7
"""Distance below which a difference of g(r) is one of bonds, Å."""


def largest_difference(record) -> tuple[float, float]:
    """Largest difference of g(r), in units of the highest peak of the reference, and where, Å."""
    r, reference = record.curves["rdf_r"], record.curves["rdf_reference"]
    apart = abs(np.nanmean(record.curves["rdf"], axis=0) - reference)
    return float(apart.max() / reference.max()), float(r[apart.argmax()])


# -- dynamics -------------------------------------------------------------------------------------------


def dynamics_values(found, here: pd.DataFrame, values: pd.DataFrame, times: pd.DataFrame) -> dict:
    """Values of the page on dynamics, numbers and texts.

    Parameters
    ----------
    found
        Records of the campaign.
    here, values
        DataFrames of `beside_values` and, for Table 3, `paper_values`, with bounds and spread.
    times
        DataFrame of `forgetting_times`.
    """
    rollouts = [r for r in found if r.kind == "rollout" and "fv" in r.curves]
    whole, replicas = np.sum([stable_replicas(r) for r in rollouts] or [(0, 0)], axis=0)
    moved = [relative_displacement(r) for r in rollouts if "rmsd_reference" in r.curves]
    numbers = {
        "time": times.stack().median(),
        "whole": whole,
        "replicas": replicas,
        "early": mean_rank_correlation(here[FORCE, OURS], times.stack()),
        "apart": span((times.max(axis=1) - times.min(axis=1)).dropna(), ".1f"),
        "late": _order(here, FORCE, FV),
        "rmsd": np.nanmedian(moved) if moved else np.nan,
        "best": winners(here, FV),
        "contiguous": ", ".join(short_title(name) for name in times.index) or "none of these",
    }
    table = agreement.agreement_table({head: agreement.matched(values, head) for head in (EV, FV)})
    for name, head in (("ev", EV), ("fv", FV)):
        numbers |= {f"{name}_ratio": table.ratio[head]}
        numbers |= {f"{name}_agreement": agreement.sentence(table.loc[head])}
        for end, source, rows in (("", OURS, here), ("_paper", PAPER, values)):
            found = zip(("floor", "count"), count_alike(rows, head, source), strict=True)
            numbers |= {f"{name}_{kind}{end}": number for kind, number in found}
    return numbers


def warmth(values: pd.Series) -> pd.Series:
    """Temperature over target by dataset and model; a pooled value, over the mean target of its parts.

    Examples
    --------
    >>> index = pd.MultiIndex.from_tuples([("ethanol", "mace"), ("lips20", "mace")])
    >>> warmth(pd.Series([400.0, 2462.0], index)).tolist()
    [0.8, 1.0]
    """
    known = {name: cards.dataset(name) for name in values.index.unique(0)}
    targets = {
        name: np.mean([card.conditions(part)[0] for part in card.parts("test")])
        for name, card in known.items()
    }
    return (values / [targets[name] for name, _ in values.index]).dropna().rename("temperature over target")


def forgetting_times(found, frame: pd.DataFrame) -> pd.DataFrame:
    """`forgetting_time` of rollouts that start on a trajectory of the reference, fs, by dataset and model.

    Parameters
    ----------
    found, frame
        Records of a campaign, and its metrics as `records.read` returns them.
    """
    names = frame[(frame.metric == "reference_contiguous") & (frame.value == 1) & (frame.kind == "rollout")]
    floors = {name: floor_of(frame, "rollout", name, "fv")[0] for name in names.dataset.unique()}
    floors = {name: floor for name, floor in floors.items() if np.isfinite(floor)}
    rollouts = [r for r in found if r.kind == "rollout" and "fv" in r.curves and r.dataset in floors]
    times = [(r.dataset, r.model, forgetting_time(r, floors[r.dataset])) for r in rollouts]
    times = pd.DataFrame(times, columns=["dataset", "model", "time"])
    wide = times.pivot_table(index="dataset", columns="model", values="time", dropna=False)
    return wide.reindex(order_datasets(floors))[order_models(wide.columns)]


def forgetting_time(record, floor: float) -> float:
    """Time until FV, as geometric mean over replicas, is within 10 % of its floor, fs; NaN if it never is."""
    fv = plots.replica_mean(record.curves["fv"], geometric=True)
    late = np.flatnonzero(fv >= 0.9 * floor)
    return float(record.curves["time"][late[0]]) if len(late) else np.nan


def relative_displacement(record) -> float:
    """Last displacement of a rollout over that of its reference, means over replicas; NaN without one.

    The first frame, where both are zero, does not count.
    """
    names = ("rmsd", "rmsd_reference")
    model, reference = (plots.replica_mean(record.curves[name])[1:] for name in names)
    both = np.flatnonzero(np.isfinite(model) & np.isfinite(reference))
    return float(model[both[-1]] / reference[both[-1]]) if len(both) else np.nan
