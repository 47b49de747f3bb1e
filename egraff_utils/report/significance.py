"""Which models differ significantly? Letters for the columns of a table, from paired differences."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.stats import fisher_exact

from egraff_utils import quantities, statistics
from egraff_utils.md import averages
from egraff_utils.report import windows
from egraff_utils.report.beside import COMPARED

STABILITY = ("stable_fraction", "stable_steps")
"""Metrics for which models are compared by the number of replicas that broke."""

FRAMES_IN_BLOCKS = 10
"""Number of frames in a block over which errors are averaged, as consecutive frames are similar."""


def letters(records: list, metric: str) -> dict[str, str]:
    """Letters of the models on one dataset; two models that share a letter do not differ significantly.

    Letters compare trained weights, not architectures. Replica r of every model starts from the same frame
    with the same velocities and noise. Models are therefore compared by their differences replica by replica,
    relative to the models' means for positive metrics, by Tukey's range test (`statistics.told_apart`). The
    stability of runs is compared by the number of replicas that broke (Fisher 1922), or of trainings of which
    one broke where there are several, as replicas of a training are alike.

    Parameters
    ----------
    records
        Records of one dataset and one kind, which are rollouts, compared over the time that all of them
        reached, or trainings and errors on a set of frames; of the latter, ``force_mae`` and ``energy_mae``
        are compared.
    metric
        Name of a metric.

    Returns
    -------
    Model -> letters, where ``a`` is the group of the best (the lowest value, or the highest for stable runs).
    Empty if the record of a model does not hold the curves of the metric.

    Examples
    --------
    >>> from types import SimpleNamespace as Record
    >>> time = np.linspace(0.0, 1.0, 40)
    >>> curves = {m: {"temperature": t + np.cos(9 * np.outer([1, 2, 3], time)), "stable_step": np.ones(3)}
    ...           for m, t in {"mace": 300.0, "nequip": 300.0, "botnet": 400.0}.items()}
    >>> records = [Record(model=m, seed=0, curves=found) for m, found in curves.items()]
    >>> letters(records, "temperature")
    {'mace': 'a', 'nequip': 'a', 'botnet': 'b'}
    """
    values = model_values(windows.alike(records), metric)
    known = {model: found for model, found in values.items() if np.isfinite(found).any()}
    means = {model: np.nanmean(np.nanmean(_known(v), axis=1)) for model, v in known.items()}
    order = sorted(known, key=means.get, reverse=quantities.of(metric).lower_is_better is False)
    if metric in STABILITY:
        different = _broken_apart(known)
    else:
        scaled = {model: known[model] / means[model] for model in order}
        logs = {model: scaled[model] - 1 + np.log(means[model]) for model in order if means[model] > 0}
        groups = None if metric in COMPARED else _groups(records)
        positive = (quantities.of(metric).interval == "log" or metric in COMPARED) and len(logs) == len(order)
        different = statistics.told_apart(logs if positive else known, groups=groups)
    found = statistics.compact_letters(order, different) if len(order) > 1 else {}
    return {model: found.get(model, "") for model in values}


def model_values(records: list, metric: str) -> dict:
    """Values of a metric, model -> shape (R, K), of replicas and blocks, or of seeds if there are several.

    If all models were trained with several seeds, the same for all, rows are the means of the seeds, since
    the replicas of one training say nothing of another. Otherwise the rows are the replicas of one seed that
    all models have. Values are NaN with shape (1, 1) if the curves do not hold the metric.
    """
    values = {}
    for record in sorted(records, key=lambda record: record.seed):
        values.setdefault(record.model, {})[record.seed] = _values(record, metric)
    shared = sorted(set.intersection(*(set(found) for found in values.values()))) if values else []
    if not shared:
        return {model: averages.stacked(list(found.values())) for model, found in values.items()}
    if len(shared) == 1:
        return {model: found[shared[0]] for model, found in values.items()}
    means = {m: [[np.nanmean(_known(found[s]))] for s in shared] for m, found in values.items()}
    return {model: np.array(rows) for model, rows in means.items()}


def _values(record, metric):
    if not record.curves:
        return np.full((1, 1), np.nan)
    if metric in COMPARED and "force_error" in record.curves:
        blocks = np.array_split(_frame_errors(record.curves, metric), FRAMES_IN_BLOCKS)
        return np.array([[block.mean()] for block in blocks if len(block)])
    if "stable_step" not in record.curves:
        return np.full((1, 1), np.nan)
    if metric == "stable_fraction":
        return averages.stable_fractions(record)[:, None]
    return averages.block_values(record.curves).get(metric, np.full((1, 1), np.nan))


def _frame_errors(curves, metric):
    return (
        curves["force_error"]
        if metric == "force_mae"
        else np.abs(curves["energy"] - curves["energy_reference"])
    )


def _known(values):
    return values[np.isfinite(values).any(1)]


def _groups(records):
    """Composition of every replica, if it is the same in all records of one seed; rows of seeds have none."""
    seeds = {model: {r.seed for r in records if r.model == model} for model in {r.model for r in records}}
    shared = set.intersection(*seeds.values())
    found = [r.curves.get("composition") for r in records if r.seed == min(shared, default=None)]
    if len(shared) != 1 or any(names is None or not np.array_equal(names, found[0]) for names in found):
        return None
    return found[0]


def _broken_apart(values):
    """Pairs of models of which one broke in significantly more replicas than the other."""
    pairs = list(combinations(values, 2))
    top = max((np.nanmax(found) for found in values.values()), default=0)
    counts = {m: ((found < top).sum(), (found >= top).sum()) for m, found in values.items()}
    adjusted = statistics.holm([fisher_exact([counts[a], counts[b]]).pvalue for a, b in pairs])
    return [pair for pair, p in zip(pairs, adjusted, strict=True) if p < 0.05]
