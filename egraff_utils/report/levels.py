"""What would the truth score? The saturation and the perfect level of a metric, from the records."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egraff_utils import cards, quantities
from egraff_utils.config import AS_CODED, Kind, changed

PROTOCOLS = (str(Kind("rollout")), str(Kind("rollout", AS_CODED)))


def floor_of(frame: pd.DataFrame, kind: str, dataset: str, metric: str) -> tuple[float, float, float]:
    """Saturation level of a metric of rollouts, the score of an independent trajectory, with its 95 % range.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.
    kind
        Kind of the rollouts. The level of ``rollout_600K`` is in records of kind ``floor_600K``. If there is
        none, both protocols use the level of ``rollout`` and then ``floor_<metric>`` of the dataset's record,
        which has no range.
    dataset, metric
        Names of the dataset and the metric.

    Returns
    -------
    Value, low and high in the unit of the record; NaN where there is none.

    Examples
    --------
    >>> row = {"kind": "floor", "dataset": "lips", "model": "reference", "metric": "fv"}
    >>> floor_of(pd.DataFrame([row | {"value": 0.7, "low": 0.6, "high": 0.8}]), "rollout", "lips", "fv")
    (0.7, 0.6, 0.8)
    """
    places = [(changed(kind, act="floor"), metric)]
    places += [("floor", metric), ("dataset", f"floor_{metric}")] if kind in PROTOCOLS else []
    rows = frame[(frame.dataset == dataset) & (frame.model == "reference")]
    for place, name in places:
        found = rows.loc[(rows.kind == place) & (rows.metric == name), ["value", "low", "high"]].astype(float)
        if found.value.notna().any():
            return tuple(float(value) for value in found.mean())
    return (np.nan,) * 3


def perfect_of(frame: pd.DataFrame, kind: str, dataset: str, metric: str) -> float:
    """Perfect level of a metric of rollouts, the score of the true force field under this very protocol.

    Where the reference is run live (a dataset with an oracle, corrected protocol) it shares starts,
    velocities and noise with the model, and the level of EV and FV is zero. That of other metrics is not
    known there: each replica is compared with the mean over all references, from which it scatters. Where
    the rollouts are compared with stored frames, it is the value of the rollout of the oracle, which has the
    model ``reference``. For a dataset without an oracle it is not known.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.
    kind
        Kind of the rollouts.
    dataset, metric
        Names of the dataset and of a metric with a saturation level.

    Returns
    -------
    Value in the unit of the record; NaN if it is not known.

    Examples
    --------
    >>> row = {"kind": "rollout_as_coded", "dataset": "ethanol_xtb", "model": "reference", "metric": "fv"}
    >>> frame = pd.DataFrame([row | {"value": 0.5}])
    >>> [perfect_of(frame, kind, "ethanol_xtb", "fv") for kind in ("rollout", "rollout_as_coded")]
    [0.0, 0.5]
    >>> perfect_of(frame, "rollout", "ethanol", "fv"), perfect_of(frame, "rollout", "ethanol_xtb", "wf")
    (nan, nan)
    """
    known = dataset in cards.datasets() and cards.dataset(dataset).oracle is not None
    if known and Kind.parse(kind).protocol != AS_CODED:
        return 0.0 if metric in ("ev", "ev_root", "fv") else np.nan
    here = (frame.kind == kind) & (frame.dataset == dataset) & (frame.model == "reference")
    return float(frame.value[here & (frame.metric == metric)].astype(float).mean())


def is_alike(metric: str, value: float, low: float, high: float) -> bool:
    """Whether a value is saturated, as it is in the range that an independent trajectory would have.

    If zero is best, a value below the range counts too: a simulation can be closer to the reference than the
    reference is to itself only by chance. EV and FV below the range are information: the simulation still
    follows the trajectory of the reference. Saturated is not perfect, see `perfect_of`.

    Examples
    --------
    >>> is_alike("wf", 0.1, 0.2, 0.4), is_alike("fv", 0.1, 0.6, 0.8), is_alike("fv", 0.7, float("nan"), 0.8)
    (True, False, False)
    """
    return bool(value <= high and (value >= low or quantities.of(metric).best_at_zero))
