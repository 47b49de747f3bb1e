"""Where do scores saturate? Levels of independent trajectories and of models without physics."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import cards, quantities
from egraff_utils.config import Kind, changed
from egraff_utils.report import look
from egraff_utils.report.beside import (
    BOUND,
    LAYOUTS,
    OURS,
    PAPER,
    PERFECT,
    beside_values,
    paper_values,
    short_title,
)
from egraff_utils.report.levels import is_alike
from egraff_utils.report.survival import HOME, setting
from egraff_utils.report.values import listed, span

ENSEMBLE = "Temperature of the ensemble"
METRICS = quantities.SATURATING
"""Metrics that the page shows, in this order."""

NULLS = {"frozen": "Frozen frame", "ideal_gas": "Ideal gas", "einstein": "Einstein crystal"}
"""Null model, which gives a ceiling -> its title."""

MARKERS = {"frozen": "|", "ideal_gas": "x", "einstein": "+"}
SHIFTED = ("5", "6", "7a", "7b", "18", "19")
"""Tables of the paper on sets other than the main ones."""

COLUMNS = [
    "place",
    "frames",
    "home",
    "kind",
    "dataset",
    "model",
    "metric",
    OURS,
    PAPER,
    "floor",
    "low",
    "high",
    PERFECT,
    *NULLS,
]


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Values of rollouts, ours and the published ones, with their levels.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.

    Returns
    -------
    DataFrame with one row for every set of frames, model and metric in `METRICS` that has our or a published
    value. ``place`` names the rollouts for readers and ``frames`` their set of frames, which is the same for
    all that were simulated on benzene; ``home`` says whether they are in distribution. ``ours``, ``paper``,
    ``floor`` (the saturation level), its 95 % range ``low`` and ``high``, ``perfect`` (the perfect level,
    where it is known), and the values of the null models ``frozen``, ``ideal_gas`` and ``einstein`` are in
    the unit of the leaderboard's column; missing values are NaN.
    """
    main = beside_values(frame, METRICS, bounds=True, spread=True)
    names = main.index.unique("dataset")
    rows = _rows(main, {(name,): ("rollout", name) for name in names})
    for number in SHIFTED:
        values = paper_values(frame, number, bounds=True, spread=True)
        rows += _rows(values, LAYOUTS[number].rows)
    found = pd.DataFrame(rows, columns=COLUMNS[: -len(NULLS)])
    found = found.drop_duplicates(["kind", "dataset", "model", "metric"]).dropna(
        subset=[OURS, PAPER], how="all"
    )
    nulls = frame[frame.model.isin(NULLS)].pivot_table(
        index=["kind", "dataset", "metric"], columns="model", values="value"
    )
    kinds = found.kind.map(lambda kind: changed(kind, act="floor"))
    keys = pd.MultiIndex.from_arrays([kinds, found.dataset, found.metric])
    factors = [quantities.of(metric).factor for metric in found.metric]
    for name in NULLS:
        known = nulls[name] if name in nulls else pd.Series(dtype=float, index=nulls.index)
        found[name] = known.reindex(keys).to_numpy(float) * factors
    return found.reset_index(drop=True)


def _rows(values, places):
    """Rows of one table, without the null models."""
    rows = []
    for metric in METRICS:
        head = quantities.of(metric).head
        if head not in values.columns.get_level_values(0):
            continue
        wanted = [(head, name) for name in (OURS, PAPER, BOUND, f"{BOUND} low", f"{BOUND} high", PERFECT)]
        here = values.reindex(columns=wanted)
        for (*label, model), numbers in zip(here.index, here.to_numpy(float), strict=True):
            kind, dataset = places[tuple(label)]
            where = (_place(kind, dataset), _frames(kind, dataset), setting(kind, dataset) == HOME)
            rows.append([*where, kind, dataset, model, metric, *numbers])
    return rows


def _frames(kind, dataset):
    """Name of the set of frames of rollouts, which may be that of another dataset.

    >>> _frames("rollout_600K", "acac"), _frames("rollout_benzene", "ethanol")
    ('Acetylacetone, 600 K', 'Benzene')
    """
    shift = Kind.parse(kind).shift
    return short_title(shift) if shift in cards.datasets() else _place(kind, dataset)


def _place(kind, dataset):
    """Name of a set of frames, the dataset and the kind of frames if they are not its test set.

    >>> _place("rollout_600K", "acac"), _place("rollout_benzene", "ethanol")
    ('Acetylacetone, 600 K', 'Ethanol, benzene')
    """
    _, protocol, shift = Kind.parse(kind)
    shift = shift.replace("600K", "600 K").replace("300K", "300 K")
    return ", ".join(filter(None, [short_title(dataset), protocol.replace("_", " "), shift]))


def sets(found: pd.DataFrame, metric: str) -> pd.DataFrame:
    """First row of every set of frames whose saturation level and range are known, the least level first.

    Parameters
    ----------
    found
        DataFrame of `scores`.
    metric
        Name of a metric.

    Examples
    --------
    >>> row = {"metric": "fv", "place": "Ethanol, benzene", "frames": "Benzene", "floor": 0.7, "low": 0.6}
    >>> len(sets(pd.DataFrame([row, row | {"place": "Aspirin, benzene"}]), "fv"))
    1
    """
    known = found[found.metric == metric].dropna(subset=["floor", "low"])
    return known.drop_duplicates("frames").sort_values("floor")


def alike(found: pd.DataFrame, metric: str, source: str = OURS) -> tuple[int, int]:
    """Number of values that are saturated, and of values with a range.

    Parameters
    ----------
    found
        DataFrame of `scores`.
    metric, source
        Name of a metric; ``"ours"`` or ``"paper"``.

    Examples
    --------
    >>> row = {"metric": "wf", "ours": 0.3, "low": 0.2, "high": 0.4}
    >>> alike(pd.DataFrame([row, row | {"ours": 0.5}]), "wf")
    (1, 2)
    """
    rows = found.loc[found.metric == metric, [source, "low", "high"]].dropna().to_numpy(float)
    return sum(is_alike(metric, *row) for row in rows), len(rows)


def below(found: pd.DataFrame, metric: str, source: str = OURS) -> tuple[int, int]:
    """Number of values below the range of the saturation level, and of values with a range.

    EV and FV below it are information: the simulation still follows its reference.

    Examples
    --------
    >>> row = {"metric": "fv", "ours": 0.5, "low": 0.6, "high": 0.7}
    >>> below(pd.DataFrame([row, row | {"ours": 0.65}]), "fv")
    (1, 2)
    """
    rows = found.loc[found.metric == metric, [source, "low"]].dropna()
    return int((rows[source] < rows.low).sum()), len(rows)


def known_perfect(found: pd.DataFrame) -> str:
    """The sets whose perfect level of FV is known, with it, as text.

    Examples
    --------
    >>> places = {"A": 0.0, "B": 0.3, "C": np.nan}
    >>> rows = [{"metric": "fv", "place": place, "perfect": value} for place, value in places.items()]
    >>> known_perfect(pd.DataFrame(rows)), known_perfect(pd.DataFrame(rows[2:]))
    ('A (0) and B (0.3)', 'no set here, as none has a reference that can be run')
    """
    rows = found[found.metric == "fv"].drop_duplicates("place").dropna(subset=[PERFECT])
    words = [f"{row.place} ({row.perfect:.2g})" for row in rows.itertuples()]
    return listed(words) or "no set here, as none has a reference that can be run"


def ranges(found: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Levels, and ranges of the values of the paper's models and of ours, as texts.

    Parameters
    ----------
    found
        DataFrame of `scores`.
    metric
        Name of a metric.

    Returns
    -------
    DataFrame of texts with one row per set of frames for which anything is known.
    """
    rows = {}
    for place, block in found[found.metric == metric].groupby("place", sort=False):
        first = block.iloc[0]
        rows[place] = {"Saturation": _text(first.floor), "95 % range": _span(first.low, first.high)}
        rows[place]["Perfect"] = "not known" if pd.isna(first.perfect) else _text(first.perfect)
        rows[place] |= {
            "Published": _span(block[PAPER].min(), block[PAPER].max()),
            "Ours": _span(block[OURS].min(), block[OURS].max()),
        }
        rows[place] |= {title: _text(first[name]) for name, title in NULLS.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Set")


def main_levels(found: pd.DataFrame, metrics: tuple[str, ...], columns: tuple[str, ...]) -> pd.DataFrame:
    """Some columns of `ranges` for the sets of Tables 1 to 3 of the paper, by metric.

    Parameters
    ----------
    found
        DataFrame of `scores`.
    metrics, columns
        Names of metrics, and titles of columns.
    """
    places = [_place(*place) for place in LAYOUTS["3"].rows.values()]
    parts = {quantities.of(metric).head: ranges(found, metric) for metric in metrics}
    shown = [part.reindex(columns=[c for c in columns if c in part]) for part in parts.values()]
    return pd.concat(shown, axis=1, keys=parts).reindex([p for p in places if p in set(found.place)])


def _text(value):
    return "–" if pd.isna(value) else f"{value:.3g}"


def _span(low, high):
    return "–" if pd.isna(low) else _text(low) if low == high else f"{_text(low)} to {_text(high)}"


def plot_ranges(found: pd.DataFrame) -> Figure:
    """Range of the saturation level, ceilings, published values and ours on each set, one panel per metric.

    Parameters
    ----------
    found
        DataFrame of `scores`.
    """
    metrics = ("wf", "ev_root", "fv")
    places = list(dict.fromkeys(found.place))
    height = 1.6 + 0.3 * max(len(places), 1)
    figure, axes = plt.subplots(1, len(metrics), figsize=(10, height), sharey=True, squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        _draw(ax, found[found.metric == metric], {place: y for y, place in enumerate(places)})
        ax.set_xlabel(quantities.of(metric).head)
        if metric != "fv":
            look.set_log_scale(ax, "x")
    axes[0, 0].set_yticks(range(len(places)), places)
    axes[0, 0].set_ylim(len(places) - 0.5, -0.5)
    figure.legend(handles=_handles(found), loc="outside upper center", ncols=4)
    return figure


def _draw(ax, found, places):
    for place, block in found.groupby("place"):
        y, first = places[place], block.iloc[0]
        if first.low < first.high:
            ax.fill_betweenx(
                [y - 0.4, y + 0.4], first.low, first.high, color=look.FLOOR_COLOR, alpha=0.4, linewidth=0
            )
        elif np.isfinite(first.floor):
            ax.plot([first.floor] * 2, [y - 0.4, y + 0.4], color=look.FLOOR_COLOR)
        for name, marker in MARKERS.items():
            if first[name] > 0:
                ax.plot(first[name], y, marker, color="black", markersize=7)
        ax.plot(
            block[PAPER], [y - 0.2] * len(block), "o", color="black", markerfacecolor="none", markersize=4
        )
        ax.scatter(
            block[OURS], [y + 0.2] * len(block), s=16, c=[look.model_color(m) for m in block.model], zorder=3
        )


def _handles(found):
    point = {"linestyle": "", "color": "black"}
    handles = [plt.Rectangle((0, 0), 1, 1, color=look.FLOOR_COLOR, alpha=0.4, label="saturation, 95 %")]
    handles += [Line2D([], [], marker="o", markerfacecolor="none", label="published", **point)]
    models = sorted(set(found.model[found[OURS].notna()]), key=look.model_place)
    handles += look.model_handles(models, marker="o", linestyle="")
    return handles + [Line2D([], [], marker=MARKERS[n], label=title, **point) for n, title in NULLS.items()]


def coverage(found) -> pd.DataFrame:
    """How many intervals cover, in percent, over repetitions of a rollout by a perfect model.

    Repetitions have the same starts and other noise. An interval is right for these starts if it holds the
    mean of the other repetitions, and right for the ensemble if it holds the temperature of the thermostat.

    Parameters
    ----------
    found
        Records, of which those of kind ``bench_coverage`` count, at least two of a dataset.

    Returns
    -------
    DataFrame with one row per dataset: the number of repetitions, a column for each metric, and the
    temperature of the ensemble.
    """
    rows = {}
    runs = [record for record in found if record.kind == "bench_coverage" and record.status == "complete"]
    for dataset in dict.fromkeys(record.dataset for record in runs):
        here = [record for record in runs if record.dataset == dataset]
        intervals = {m.name: [] for m in here[0].metrics}
        for record in here:
            for m in record.metrics:
                intervals[m.name].append((m.value, m.low, m.high))
        row = {"Repetitions (count)": len(here)}
        row |= {quantities.METRIC_NAMES[name]: _covered(triples) for name, triples in intervals.items()}
        target = cards.dataset(dataset).temperature
        rows[dataset] = row | {ENSEMBLE: _covered(intervals["temperature"], target)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("dataset")


def coverage_texts(table: pd.DataFrame) -> dict[str, str]:
    """Number of repetitions, and percentages for the same starts and for the ensemble, of `coverage`.

    Examples
    --------
    >>> table = pd.DataFrame({"Repetitions (count)": [40], "FV": [90.0], "RMSD": [100.0], ENSEMBLE: [55.0]})
    >>> coverage_texts(table)
    {'coverage_runs': '40', 'coverage_same': '90 to 100', 'coverage_ensemble': '55'}
    """
    if table.empty:
        return dict.fromkeys(("coverage_runs", "coverage_same", "coverage_ensemble"), "(not measured)")
    same = table.drop(columns=["Repetitions (count)", ENSEMBLE])
    parts = {"runs": table["Repetitions (count)"], "same": same, "ensemble": table[ENSEMBLE]}
    return {f"coverage_{name}": span(np.ravel(values), ".0f") for name, values in parts.items()}


def _covered(intervals, truth=None):
    """Percentage of intervals (value, low, high) that hold the truth, by default the mean of the others."""
    values, low, high = np.array(intervals, dtype=float).T
    if truth is None:
        truth = (values.sum() - values) / (len(values) - 1) if len(values) > 1 else np.nan
    return 100 * float(np.mean((low <= truth) & (truth <= high)))
