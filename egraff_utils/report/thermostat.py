"""Is a simulation at its temperature? The temperatures that were reached are compared with expectations.

Replicas that broke are left out of every mean here, as an explosion is hot for other reasons (`survival`
counts them). Symbols: R replicas, T frames, K blocks of equal time, S elements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from egraff_utils import statistics
from egraff_utils.breaks import Cause
from egraff_utils.report import relaxation, survival, windows
from egraff_utils.report.beside import cell_place
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import MISSING, count, span

AT_TARGET, TOO_COLD, TOO_HOT, NO_VERDICT = "at target", "too cold", "too hot", "no verdict"
CORRECTED, AS_CODED = "rollout", "rollout_as_coded"
PROTOCOLS = {AS_CODED: "as coded", CORRECTED: "corrected"}


NOT_RUN = f"{MISSING} (not run)"
COLD = (
    "Ethanol stands at {:.2f} of its target, means over models: its starts lie in the first half of a "
    "trajectory that began at the minimum, hold {:.2f} of the energy, which predicts {:.2f}."
)

# -- theory ---------------------------------------------------------------------------------------------


class Equilibration(NamedTuple):
    """Equilibrated part of a series."""

    start: int
    """First frame of the equilibrated part."""
    effective: float
    """Number of independent samples in it."""


def equilibration(series) -> Equilibration:
    r"""Cut that leaves the most independent samples (Chodera, J. Chem. Theory Comput. 12, 1799, 2016).

    .. math:: t_0 = \arg\max_t \frac{T - t}{g(t)}

    where g is the statistical inefficiency of the series from t onwards. Forty equally spaced cuts are tried,
    of at most half of the series.

    Parameters
    ----------
    series
        Values in any unit, shape ``(T,)``.

    Raises
    ------
    ValueError
        If the series is not finite or has fewer than four frames.
    """
    series = np.asarray(series, dtype=float)
    if len(series) < 4 or not np.isfinite(series).all():
        raise ValueError(f"a series of four finite values or more is needed, not {len(series)} with gaps")
    best = Equilibration(0, 1.0)
    for start in np.unique(np.linspace(0, 0.5 * len(series), 40).astype(int)):
        time = statistics.autocorrelation_time(series[start:])
        time = time if np.isfinite(time) else len(series) - start
        if (len(series) - start) / time > best.effective:
            best = Equilibration(int(start), float((len(series) - start) / time))
    return best


# -- what was reached -----------------------------------------------------------------------------------


def temperatures(found) -> pd.DataFrame:
    """Temperature of every rollout after its equilibration cut, compared with target and expectation.

    Intervals are those of a mean over replicas (Student's t, `statistics.replica_interval`). Replicas are
    independent, whereas frames are not, since the relaxation time of the thermostat is longer than a run.
    Compositions of one set are pooled, each in units of its own target.

    Parameters
    ----------
    found
        Records of any kind, as returned by `records.read_all`.

    Returns
    -------
    DataFrame with the index (kind, dataset, model): ``replicas`` (valid ones) and ``broke``, counts; ``cut``
    (fs; the longest of several); ``ratio``, ``low``, ``high`` and ``expected``, in units of the target;
    ``verdict`` (`verdict` of the interval for 1); ``excess``, ``excess low``, ``excess high``, the reached
    minus the expected temperature, and its ``surprise`` (`verdict` of it for 0); ``start`` (mean of the
    temperatures of velocities and positions at the start, hence its energy), in units of the target. NaN if
    all replicas broke.
    """
    groups = {}
    for kind, record in survival.runs(found):
        if "temperature" in record.curves:
            groups.setdefault((kind, record.dataset, record.model), []).append(_replica_ratios(record))
    rows = [_reached(parts) for parts in groups.values()]
    names = ["kind", "dataset", "model"]
    index = pd.MultiIndex.from_tuples(groups, names=names)
    columns = ["replicas", "broke", "cut", "start", "ratio", "low", "high", "expected", "excess"]
    table = pd.DataFrame(rows, index=index, columns=[*columns, "excess low", "excess high"], dtype=float)
    table["verdict"] = [verdict(low, high, 1.0) for low, high in zip(table.low, table.high, strict=True)]
    pairs = zip(table["excess low"], table["excess high"], strict=True)
    table["surprise"] = [verdict(low, high, 0.0) for low, high in pairs]
    return table


def _replica_ratios(record):
    """Reached and expected temperatures of valid replicas over the target; counts, cut (fs) and start."""
    curve, time = np.asarray(record.curves["temperature"], float), record.curves["time"]
    names = record.curves.get("composition", [""] * len(curve))
    targets = np.array([survival.conditions(record, str(name))[0] or np.nan for name in names])
    sound = np.ones(len(curve), bool)
    sound[[end.replica for end in record.breaks if end.cause != Cause.HEATED]] = False  # heat is the question
    start = relaxation.start_temperatures(record, targets[0]) / targets[0]
    counts = {"broke": int((~sound).sum())}
    ratios = curve[sound] / targets[sound, None]
    ends = np.isfinite(ratios).all(0)
    if not sound.any() or ends.sum() < 4:
        return counts | {"cut": 0.0} | dict.fromkeys(("reached", "expected", "start"), np.empty(0))
    ratios, time = ratios[:, ends], time[ends]
    cut = equilibration(ratios.mean(0)).start
    given = {"target": relaxation.stationary_ratio(record), "friction": relaxation.friction_rate(record)}
    first = relaxation.velocity_temperatures(record)[sound] / targets[sound]
    expected = [
        relaxation.expected_temperature(time[cut:], kinetic=kinetic, potential=warm, **given).mean()
        for kinetic, warm in zip(first, start[sound], strict=True)
    ]
    reached = ratios[:, cut:].mean(1)
    energy = (first + start[sound]) / 2
    found = {"cut": float(time[cut]), "reached": reached, "expected": np.array(expected), "start": energy}
    return counts | found


def _reached(parts):
    """Row of `temperatures` from the parts of one or several records, whose compositions are groups."""
    reached, expected, start = (
        np.concatenate([p[name] for p in parts]) for name in ("reached", "expected", "start")
    )
    groups = np.repeat(np.arange(len(parts)), [len(p["reached"]) for p in parts])
    row = {"replicas": len(reached), "broke": sum(p["broke"] for p in parts)}
    row |= {"cut": max(p["cut"] for p in parts)}
    if not len(reached):
        return row
    row["start"] = start.mean()
    low, high = _interval(reached, groups)
    excess = reached - expected
    row |= {"ratio": reached.mean(), "low": low, "high": high, "expected": expected.mean()}
    low, high = _interval(excess, groups)
    return row | {"excess": excess.mean(), "excess low": low, "excess high": high}


def _interval(values, groups=None, **options):
    """Interval of a mean over replicas; nan for fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    several = None if groups is None or len(set(groups)) == 1 else groups
    return statistics.replica_interval(np.asarray(values, float)[:, None], groups=several, **options)


def verdict(low: float, high: float, target: float) -> str:
    """Verdict of an interval on a target: ``at target``, ``too cold``, ``too hot``, or ``no verdict``.

    Examples
    --------
    >>> verdict(0.9, 1.1, 1.0), verdict(0.5, 0.6, 1.0), verdict(1.1, 1.3, 1.0), verdict(np.nan, np.nan, 1.0)
    ('at target', 'too cold', 'too hot', 'no verdict')
    """
    if not np.isfinite([low, high]).all():
        return NO_VERDICT
    return TOO_COLD if high < target else TOO_HOT if low > target else AT_TARGET


def verdict_table(table: pd.DataFrame) -> pd.DataFrame:
    """Temperature of every rollout as text, the ratio to the target with its interval, and the verdict.

    Returns
    -------
    DataFrame of texts with rows (setting, dataset) and columns models; ``not run`` without a rollout.
    """
    texts = {}
    for (kind, dataset, model), row in table.iterrows():
        mark = {AT_TARGET: "", TOO_COLD: " ↓", TOO_HOT: " ↑", NO_VERDICT: ""}[row.verdict]
        text = "all broke" if not row.replicas else f"{row.ratio:.2f}{mark}"
        if np.isfinite(row.low):
            text += f" ({row.low:.2f} to {row.high:.2f})"
        texts.setdefault((survival.setting(kind, dataset), dataset), {})[model] = text
    names = {name for _, name in texts}
    order = [(s, d) for s in survival.ORDER for d in order_datasets(names) if (s, d) in texts]
    index = pd.MultiIndex.from_tuples(order, names=["setting", "dataset"]) if order else None
    columns = order_models({model for row in texts.values() for model in row})
    wide = pd.DataFrame([texts[key] for key in order], index=index, columns=columns)
    return wide.fillna("not run").rename(columns=model_title)


# -- equipartition --------------------------------------------------------------------------------------


def equipartition(found) -> pd.DataFrame:
    r"""Ratio of the temperature of each element to that of all atoms, which is one by equipartition.

    .. math:: q_s = \frac{\langle T_s \rangle}{\langle T \rangle}

    The ratio is a mean over valid replicas, each over its whole run. The level of the interval is corrected
    for the number of elements (Bonferroni), so that by chance one rollout in twenty fails, not one element in
    twenty. A system of a single element is left out.

    Returns
    -------
    DataFrame with the index (kind, dataset, model, element): ``ratio``, ``low``, ``high`` (dimensionless),
    ``replicas`` (count) and ``equal``, whether the interval holds 1. Rollouts without the curve
    ``temperature_species`` are left out.
    """
    groups = {}
    for kind, record in survival.runs(found):
        if len(record.curves.get("species", ())) > 1:
            for symbol, ratios in _element_ratios(record).items():
                groups.setdefault((kind, record.dataset, record.model, symbol), []).append(ratios)
    elements = pd.Series([key[:3] for key in groups], dtype=object).value_counts()
    rows = []
    for key, parts in groups.items():
        ratios = np.concatenate(parts)
        which = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        low, high = _interval(ratios, which, level=1 - 0.05 / elements[key[:3]])
        mean = ratios.mean() if len(ratios) else np.nan
        rows.append((mean, low, high, len(ratios), bool(low <= 1 <= high)))
    names = ["kind", "dataset", "model", "element"]
    index = pd.MultiIndex.from_tuples(groups, names=names)
    table = pd.DataFrame(rows, index=index, columns=["ratio", "low", "high", "replicas", "equal"])
    return table.astype({"ratio": float, "low": float, "high": float, "equal": bool})


def _element_ratios(record):
    """Ratios of the valid replicas, ``{element: (R,)}``."""
    curves = record.curves
    broke = {end.replica for end in record.breaks}
    sound = [r for r in range(len(curves["stable_step"])) if r not in broke]
    weights = np.asarray(curves["block_frames"], float)[sound]
    species = np.nan_to_num(np.asarray(curves["temperature_species"], float)[sound])
    means = np.einsum("rk,rks->rs", weights, species) / weights.sum(1)[:, None]
    whole = np.nanmean(np.asarray(curves["temperature"], float)[sound], axis=1)
    symbols = map(str, curves["species"])
    return {symbol: means[:, s] / whole for s, symbol in enumerate(symbols) if means.shape[0]}


# -- the two protocols ----------------------------------------------------------------------------------


def protocols(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics of both protocols where both were run, over the time that all runs of a dataset reached.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns (metric, ``"as coded"`` or ``"corrected"``), in
    the units of the records.
    """
    metrics = ("wf", "ev_root", "fv", "temperature")
    frame = windows.common(frame)
    rows = frame[frame.kind.isin(PROTOCOLS) & frame.metric.isin(metrics) & (frame.model != "reference")]
    wide = rows.pivot_table(index=["dataset", "model"], columns=["metric", "kind"], values="value")
    columns = pd.MultiIndex.from_product([metrics, PROTOCOLS])
    wide = wide.reindex(columns=columns).dropna(how="all")
    wide.columns = pd.MultiIndex.from_product([metrics, PROTOCOLS.values()], names=["metric", "protocol"])
    both = wide.notna().T.groupby(level="protocol").any().T.all(axis=1)
    wide = wide[both] if len(wide) else wide
    return wide.reindex(sorted(wide.index, key=cell_place))


def protocol_ratio(values: pd.DataFrame, metric: str) -> float:
    """Geometric mean over cells of the ratio of a metric as coded to corrected; NaN without cells."""
    pair = values[metric].dropna() if len(values) else pd.DataFrame()
    return float(np.exp(np.log(pair["as coded"] / pair["corrected"]).mean())) if len(pair) else np.nan


# -- in words --------------------------------------------------------------------------------------


def page_values(table: pd.DataFrame, shares: pd.DataFrame, pair: pd.DataFrame) -> dict:
    """Values of the page that shows thermostats, numbers and texts.

    Parameters
    ----------
    table, shares, pair
        DataFrames of `temperatures`, `equipartition` and `protocols`.
    """
    kinds, datasets = (table.index.get_level_values(name) for name in ("kind", "dataset"))
    home = [survival.setting(k, d) == survival.HOME for k, d in zip(kinds, datasets, strict=True)]
    home = table[np.array(home, dtype=bool)]
    known = home.surprise[home.surprise != NO_VERDICT]
    sound = table.low.notna()  # a single replica that did not break tells no range
    ethanol = table[(kinds == "rollout") & (datasets == "ethanol")]
    values = {
        "coded": span(table.ratio[(kinds == AS_CODED) & sound], missing=NOT_RUN),
        "corrected": span(home.ratio[home.low.notna()], missing=NOT_RUN),
        "expected": count(known == AT_TARGET),
        "surprises": _surprises(table[kinds != AS_CODED]),
        "ethanol": COLD.format(*ethanol[["ratio", "start", "expected"]].mean()) if len(ethanol) else "",
        "spread": _spreads(pair),
    }
    for end, kind in (("", CORRECTED), ("_coded", AS_CODED)):
        part = shares[(shares.index.get_level_values("kind") == kind) & shares.low.notna()]
        values[f"equal{end}"] = count(part.equal)
        values[f"hydrogen{end}"] = part.ratio[part.index.get_level_values("element") == "H"].mean()
    metrics = {"wf": "wf", "ev": "ev_root", "fv": "fv"}
    return values | {name: protocol_ratio(pair, metric) for name, metric in metrics.items()}


def _surprises(table):
    """Datasets whose temperature is not the expected one, with the number of models and the mean excess.

    Models that are too hot and models that are too cold are counted apart.
    """
    off = table[table.surprise.isin([TOO_COLD, TOO_HOT])]
    found = off.groupby(["kind", "dataset", "surprise"]).excess.agg(["mean", "size"])
    words = []
    for (kind, dataset, _), mean, n in found.itertuples():
        task = "" if kind == "rollout" else f" ({kind[8:]})"
        words.append(f"{short_title(dataset)}{task}: {n:.0f} model{'s' * (n > 1)}, {mean:+.2f}")
    return "; ".join(words) or "none"


def _spreads(pair):
    """Ratio of the largest WF of a model on a dataset to the smallest, range over datasets by protocol."""
    if not len(pair):
        return MISSING
    by = pair["wf"].groupby("dataset")
    ratios = by.max() / by.min()
    return " and ".join(f"{span(ratios[name], '.1f')} {name}" for name in reversed(PROTOCOLS.values()))


def coded_ratio(found, dataset: str) -> float | None:
    """`stationary_ratio` of the first rollout as coded on a dataset; ``None`` without one."""
    runs = [r for kind, r in survival.runs(found) if kind == AS_CODED and r.dataset == dataset]
    return relaxation.stationary_ratio(runs[0]) if runs else None
