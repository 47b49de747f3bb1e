"""Over which time can runs be compared? Rollouts that the clock cut short are compared over the shortest."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from egraff_utils import cards, paths, quantities, records
from egraff_utils.md import averages

TIMED = ("energy", "energy_reference", "temperature", "ev_root", "fv", "rmsd", "rmsd_reference", "deviation")
"""Curves of shape (R, T) that a window cuts."""

ENDS = ["value", "low", "high"]


def window(rollouts: list) -> int | None:
    """Number of steps that all rollouts of one dataset made, or None if none was cut short.

    A rollout is cut short if it reached its time limit before its last step. One whose replicas all broke is
    not: it had the time, and its length is a result.

    Examples
    --------
    >>> from types import SimpleNamespace as Record
    >>> runs = [Record(metrics={"steps": n}, stable=[n, n - 9], asked=1000) for n in (620, 1000)]
    >>> def record(run):
    ...     curves = {"stable_step": np.array(run.stable)}
    ...     found = Record(curves=curves, parameters={"steps": run.asked})
    ...     return type("R", (), vars(found) | {"__getitem__": lambda self, name: run.metrics[name]})()
    >>> window([record(run) for run in runs]), window([record(run) for run in runs[1:]])
    (620, None)
    """
    cut = [int(r["steps"]) for r in rollouts if _is_cut(r)]
    return min(cut, default=None)


def _is_cut(record):
    stable, asked = record.curves.get("stable_step"), getattr(record, "parameters", {}).get("steps")
    if stable is None or asked is None or "composition" in record.curves:
        return False
    return record["steps"] < asked and bool((stable >= record["steps"]).any())


def within(record, steps: int | None):
    """A rollout up to a step: the record with cut curves, and metrics and intervals of that part.

    Curves over time end at the step; radial distributions are those of the whole blocks before it.
    Vibrational spectra, which are stored of the whole run only, are left out. Metrics of the end of a run, of
    stability and of cost stay as they are.

    Parameters
    ----------
    record
        Record of a rollout.
    steps
        Number of steps; with None, or for a shorter rollout, the record is returned unchanged.
    """
    if steps is None or record["steps"] <= steps:
        return record
    curves = {name: curve for name, curve in record.curves.items() if not name.startswith("spectrum")}
    kept = curves["time"] <= curves["time"][-1] * steps / record["steps"] * (1 + 1e-6)
    curves |= {name: curves[name][:, kept] for name in TIMED if name in curves}
    curves["time"] = curves["time"][kept]
    if "rdf_blocks" in curves:
        blocks = max(1, int(averages.BLOCKS * steps / record.parameters["steps"]))
        cut = ["block_frames", *(f"{name}_blocks" for name in averages.STRUCTURE)]
        curves |= {name: curves[name][:, :blocks] for name in cut if name in curves}
    values = averages.block_values(curves)
    fresh = {name: averages.summary(name, values[name]) for name in values if name != "stable_steps"}
    left = [metric for metric in record.metrics if quantities.of(metric.name).average != "spectrum"]
    found = replace(record, metrics=[fresh.get(metric.name, metric) for metric in left])
    found.__dict__["curves"] = curves
    return found


def alike(rollouts: list) -> list:
    """Rollouts of one dataset, all up to the same step."""
    steps = window(rollouts)
    return [within(record, steps) for record in rollouts]


def common(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of `records.read` in which the rollouts of a dataset cover the same time.

    Returns
    -------
    DataFrame
        The frame with the values and intervals of rollouts that are longer than the window of their dataset
        and kind replaced by those within it. Only rollouts of different lengths are read.
    """
    changed = []
    for (kind, dataset), steps in windows(frame).items():
        rows = frame[(frame.kind == kind) & (frame.dataset == dataset) & frame.path.notna()]
        for path, block in rows.groupby("path"):
            found = _values(paths.results() / path, steps)
            fresh = [found.get(name, (np.nan,) * 3) for name in block.metric]
            changed.append(pd.DataFrame(fresh, index=block.index, columns=ENDS, dtype=float))
    if not changed:
        return frame
    frame = frame.copy()
    for block in changed:
        frame.loc[block.index, ENDS] = block
    return frame


@lru_cache(maxsize=200)
def _values(file, steps):
    """Value and ends of the interval by metric, of a stored rollout up to a step."""
    return {m.name: (m.value, m.low, m.high) for m in within(stored(file), steps).metrics}


def windows(frame: pd.DataFrame) -> dict:
    """(kind, dataset) -> common number of steps, of the rollouts of which the clock cut one short."""
    steps = frame[frame.kind.str.startswith("rollout") & (frame.metric == "steps") & frame.path.notna()]
    found = {}
    for place, block in steps.groupby(["kind", "dataset"]):
        if block.value.nunique() > 1:
            limit = window([stored(paths.results() / path) for path in block.path.unique()])
            found |= {place: limit} if limit else {}
    return found


def censored(frame: pd.DataFrame, metric: str) -> set[tuple]:
    """Cells (kind, dataset, model) whose runs ended before their horizon, so that it is a lower bound.

    Of several seeds one is enough, as their mean is a lower bound then.
    """
    rows = frame[(frame.metric == f"{metric}_reached") & (frame.value == 0)]
    return set(rows[["kind", "dataset", "model"]].itertuples(index=False, name=None))


def sentence(frame: pd.DataFrame, places=None) -> str:
    """The windows of a frame in words, for the text below a table; empty if all runs have their full length.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.
    places
        Pairs (kind, dataset) that are included; by default all are.
    """
    words = []
    for (kind, dataset), steps in windows(frame).items():
        if places is not None and (kind, dataset) not in places:
            continue
        rows = frame[(frame.kind == kind) & (frame.dataset == dataset) & (frame.metric == "steps")]
        record = stored(paths.results() / rows.path[rows.value == rows.value.max()].iloc[0])
        time = record.curves["time"][-1] * steps / record["steps"]
        asked, title = record.parameters["steps"], cards.dataset(dataset).title.partition(",")[0]
        words.append(f"{title} over the first {steps} of {asked} steps ({time:.0f} fs)")
    return f"Compared over the time that all runs reached: {'; '.join(words)}." if words else ""


@lru_cache(maxsize=1000)
def stored(file):
    """Record in a file; a file is read once."""
    return records.load(file)
