"""How do metrics with different units compare? By common scales and correlations, as in Figures 6 and 7.

In the paper's scaling a value is divided by the largest value on its dataset, so that it depends on which
other models were run. The fixed scales here have bounds that come from the reference data or are plain
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from egraff_utils import paper, quantities
from egraff_utils.quantities import COLUMNS, SATURATING
from egraff_utils.report import beside
from egraff_utils.report.levels import floor_of


class Scale(NamedTuple):
    """One spoke of the radial plots, a metric between a bound for a good and one for a useless model."""

    metric: str
    """Name of the metric in the records."""
    centre: float | str
    """Value at the centre, a number or the name of the metric in the dataset's record that holds it."""
    rim: float | str
    """Value at the rim, likewise."""
    log: bool = True
    """Whether the scale is logarithmic instead of linear."""
    factor: tuple[float, float] = (1.0, 1.0)
    """Factors by which the two values are multiplied."""
    meaning: str = ""
    """Description of the two bounds."""
    name: str = ""
    """Name at the spoke, if it is not that of the metric."""

    @property
    def label(self) -> str:
        """Name at the spoke."""
        return self.name or quantities.of(self.metric).spoke

    def place(self, values: pd.DataFrame) -> pd.Series:
        """Position of every row between centre (0) and rim (1), clipped; NaN where a bound is missing."""
        low, high = (
            values.get(bound, np.nan) if isinstance(bound, str) else bound
            for bound in (self.centre, self.rim)
        )
        low, high = low * self.factor[0], high * self.factor[1]
        found = values.get(self.metric, pd.Series(np.nan, values.index)).astype(float)
        if self.log:
            tiny = np.finfo(float).tiny
            found, low, high = (np.log(np.maximum(x, tiny)) for x in (found, low, high))
        return ((found - low) / (high - low)).clip(0, 1)


SCALES = (
    Scale(
        "force_mae",
        "zero_force_mae",
        "zero_force_mae",
        factor=(1e-3, 1.0),
        meaning="a thousandth of the error of predicting zero force; that error",
    ),
    Scale(
        "energy_mae",
        "energy_std",
        "energy_std",
        factor=(1e-3, 1.0),
        meaning="a thousandth of the standard deviation of the reference energies; that deviation",
    ),
    Scale("wf", "floor_wf", 100.0, meaning="the saturation level; 100 %"),
    Scale("jsd", "floor_jsd", float(np.log(2)), meaning="the saturation level; ln 2, its largest value"),
    Scale(
        "ev_root",
        "floor_ev_root",
        "floor_ev_root",
        factor=(0.1, 10.0),
        meaning="a tenth of the saturation level; ten times it",
    ),
    Scale("fv", 0.0, "floor_fv", log=False, meaning="zero; the saturation level (two unrelated frames)"),
    Scale("unstable_fraction", 0.0, 1.0, log=False, meaning="no step lost; all steps lost", name="broken"),
    Scale("ms_per_step", 1.0, 1e4, meaning="1 ms per MD step of all replicas; 10,000 ms", name="time"),
)
"""Fixed scales, with bounds that come from the reference data or are numbers, so that no model changes the
position of another. Zero, the centre, is the best value; values outside a scale are drawn at its end."""

PAPER_SPOKES = {column.metric: column.spoke for column in COLUMNS if column.published}
"""Spokes for the paper's scaling, the eight metrics of Tables 1 to 4."""

ALIKE = 0.01
"""Fraction of a scale within which models count as alike."""

PAIRS = (
    ("ev_root", "fv"),
    ("jsd_raw", "wf"),
    ("seconds_per_epoch", "ms_per_step"),
    ("energy_mae", "force_mae"),
)
"""Pairs of metrics in Figure 7 of the paper."""


def metric_values(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics of every dataset and model in the units of the records, with floors and ceilings.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it; several seeds are averaged.

    Returns
    -------
    DataFrame with the index (dataset, model), in the paper's order, and one column per metric;
    ``unstable_fraction`` is one minus the stable fraction, ``floor_wf_low`` and ``floor_wf_high`` are the
    range of the floor.
    """
    rows = beside.of_first_seeds(beside.main_rows(frame))
    rows = rows[rows.metric.notna() & rows.value.notna()]
    values = rows.pivot_table(index=["dataset", "model"], columns="metric", values="value")
    bounds = frame[frame.kind == "dataset"].pivot_table(index="dataset", columns="metric", values="value")
    bounds = bounds[[name for name in bounds if name not in values]]
    bounds = bounds.reindex(values.index.unique("dataset"))
    for metric in SATURATING:
        floors = [floor_of(frame, "rollout", name, metric) for name in bounds.index]
        for end, column in zip(("", "_low", "_high"), zip(*floors, strict=True), strict=False):
            if np.isfinite(column).any():
                bounds[f"floor_{metric}{end}"] = column
    values = values.join(bounds, on="dataset") if len(bounds) else values
    if "stable_fraction" in values:
        values["unstable_fraction"] = 1 - values.stable_fraction
    return _in_order(values)


def published_values() -> pd.DataFrame:
    """Tables 1 to 4 of the paper in the form and units of `metric_values`.

    Examples
    --------
    >>> float(published_values().loc[("acac", "nequip"), "force_mae"])
    4.59
    """
    return _in_order(pd.concat([paper.values(metric) for metric in PAPER_SPOKES], axis=1))


def scaled_values(values: pd.DataFrame, scale: str = "fixed") -> pd.DataFrame:
    """Metrics on a scale from zero, the best value, to one, for the radial plots.

    Parameters
    ----------
    values
        Values as returned by `metric_values`.
    scale
        With ``"fixed"``, values are placed between the bounds of `SCALES`. With ``"paper"``, they are divided
        by the largest value of a model on the dataset, and so depend on which other models were run.

    Returns
    -------
    DataFrame with the index of `values` and a column for every metric of `SCALES` (or of `PAPER_SPOKES`) that
    it holds.

    Raises
    ------
    ValueError
        If the scale is unknown.
    """
    if scale == "fixed":
        scaled = {s.metric: s.place(values) for s in SCALES if s.metric in values}
    elif scale == "paper":
        found = values[[name for name in PAPER_SPOKES if name in values]]
        largest = found.groupby(level="dataset").transform("max")
        scaled = (found / largest).mask(largest == 0, 0.0)
    else:
        raise ValueError(f"{scale=} is neither 'fixed' nor 'paper'")
    return pd.DataFrame(scaled, index=values.index).dropna(axis="columns", how="all")


def floor_places(values: pd.DataFrame, scale: str = "fixed") -> dict:
    """Ends of the range of every floor on the scales of `scaled_values`, by (dataset, metric)."""
    found = [m for m in SATURATING if m in values and f"floor_{m}_low" in values]
    largest = values.groupby(level="dataset")[found].max()
    places = {}
    for end in ("_low", "_high"):
        floors = values.assign(**{metric: values[f"floor_{metric}{end}"] for metric in found})
        if scale == "paper":
            scaled = floors[found].groupby(level="dataset").first() / largest
        else:
            scaled = scaled_values(floors, scale).groupby(level="dataset").first()
        for metric in [m for m in found if m in scaled]:
            for dataset, place in scaled[metric].dropna().items():
                places.setdefault((dataset, metric), []).append(min(place, 1.0))
    return places


def scale_table() -> pd.DataFrame:
    """Meaning of the centre and the rim of the radial plots, with one row per spoke."""
    rows = [(s.label, *s.meaning.split("; "), "logarithmic" if s.log else "linear") for s in SCALES]
    return pd.DataFrame(rows, columns=["Spoke", "Centre", "Rim", "Scale"]).set_index("Spoke")


def spreads(values: pd.DataFrame) -> pd.Series:
    """Spread of the models on every spoke of the fixed scales, worst minus best, median over datasets.

    Parameters
    ----------
    values
        Values as returned by `metric_values`; datasets with one model are left out.
    """
    scaled = scaled_values(values)
    scaled = scaled.rename(columns={s.metric: s.label for s in SCALES})
    groups = scaled.groupby(level="dataset")
    ranges = (groups.max() - groups.min())[groups.size() > 1]
    return ranges.median().dropna()


def best_counts(values: pd.DataFrame) -> pd.DataFrame:
    """Number of spokes of the fixed scales on which each model is the best on its dataset.

    Spokes on which all models are alike, to :data:`ALIKE`, or that only one model has, do not count. A shared
    best value counts for every model that has it.

    Parameters
    ----------
    values
        Values as returned by `metric_values`.

    Returns
    -------
    DataFrame with one row per dataset, one column per model (NaN where it was not run) and the column
    ``spokes``, the number of spokes that count.
    """
    scaled = scaled_values(values)
    groups = scaled.groupby(level="dataset")
    counts = groups.transform("max") - groups.transform("min") > ALIKE
    best = (scaled == groups.transform("min")) & counts
    table = best.sum(axis=1).unstack("model")
    table = table.reindex(index=order_datasets(table.index), columns=order_models(table.columns))
    table["spokes"] = counts.groupby(level="dataset").max().sum(axis=1)
    return table.rename_axis(columns=None)


def roster_effects(values: pd.DataFrame, scale: str = "paper") -> pd.DataFrame:
    """Effect of leaving out one model on the overall scores of the others, which are means over spokes.

    Parameters
    ----------
    values
        Values as returned by `metric_values` or `published_values`.
    scale
        As in `scaled_values`; there can be no effect on the fixed scales.

    Returns
    -------
    DataFrame with the index (dataset, model left out) and the columns ``change``, the largest change of a
    score (dimensionless), and ``reordered``, whether two other models changed places.
    """
    rows = {}
    scores = scaled_values(values, scale).mean(axis=1)
    for left_out in values.index.unique("model"):
        others = values.drop(index=left_out, level="model")
        after = scaled_values(others, scale).mean(axis=1).dropna()
        for dataset, here in after.groupby(level="dataset"):
            if (dataset, left_out) in values.index and len(here) > 1:
                before = scores.reindex(here.index)
                moved = not before.rank().equals(here.rank())
                rows[dataset, left_out] = ((here - before).abs().max(), moved)
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "left out"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["change", "reordered"])


def rank_correlations(values: pd.DataFrame, *, pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Spearman's rank correlation of pairs of metrics within the datasets.

    Datasets differ in size and scale more than models do, which would dominate a correlation over all points.
    So values are first ranked in each dataset; only datasets with three models or more count.

    Parameters
    ----------
    values
        Values as returned by `metric_values` or `published_values`.
    pairs
        Pairs of metrics.

    Returns
    -------
    DataFrame with one row per pair and the columns ``within`` (NaN where undefined), ``points`` and
    ``datasets``, the number of datasets that count.
    """
    rows = []
    for x, y in pairs:
        points = values.reindex(columns=[x, y]).dropna()
        counted = points.groupby(level="dataset").filter(lambda group: len(group) >= 3)
        ranks = counted.groupby(level="dataset").rank()
        centred = ranks - ranks.groupby(level="dataset").transform("mean")
        datasets = counted.index.get_level_values(0).nunique()
        rows.append((_correlation(centred), len(points), datasets))
    index = pd.MultiIndex.from_tuples(list(pairs), names=["x", "y"])
    return pd.DataFrame(rows, index=index, columns=["within", "points", "datasets"])


def mean_rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Spearman's rank correlation over models, mean over the datasets in which it is defined; else NaN.

    Parameters
    ----------
    first, second
        Values with levels ``dataset`` and ``model``, and perhaps others, in the index; only those with both
        values count.
    """
    pair = pd.concat([first, second], axis=1, keys=("first", "second")).dropna()
    groups = pair.groupby([name for name in pair.index.names if name != "model"])
    found = [_correlation(part.rank()) for _, part in groups]
    return float(np.nanmean(found)) if np.isfinite(found).any() else np.nan


def _correlation(ranks):
    varied = len(ranks) > 2 and (ranks.std() > 0).all()
    return float(ranks.corr().iloc[0, 1]) if varied else np.nan


def order_datasets(names: Iterable[str]) -> list[str]:
    """Datasets in the order of the paper's tables, followed by others, sorted by name.

    Examples
    --------
    >>> order_datasets({"mine", "lips", "acac"})
    ['acac', 'lips', 'mine']
    """
    return sorted(names, key=beside.dataset_place)


def order_models(names: Iterable[str]) -> list[str]:
    """Models in the order of the paper's tables, followed by others, sorted by name.

    Examples
    --------
    >>> order_models(["mine", "mace", "nequip"])
    ['nequip', 'mace', 'mine']
    """
    return sorted(names, key=beside.model_place)


def _in_order(values):
    return values.reindex(sorted(values.index, key=beside.cell_place))
