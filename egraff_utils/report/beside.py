"""What did the paper find, and what did we? One data frame holds both, which `report.tables` displays.

A row is a model in a group, such as a dataset; a column is (head with unit, source). The sources are
``"paper"``, ``"ours"`` for the given records, further campaigns by name, ``"bound"`` and ``"perfect"``. The
bound is the saturation level of the metric, which is the score of an independent trajectory of the reference,
or the error of predicting zero. The perfect level is the score of the true force field under this very
protocol, where it is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from egraff_utils import cards, paper, quantities, records, statistics
from egraff_utils.config import FAILURES, Kind, changed
from egraff_utils.quantities import COLUMNS, Quantity
from egraff_utils.report import windows
from egraff_utils.report.levels import PROTOCOLS, floor_of, is_alike, perfect_of
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import listed

PAPER, OURS, BOUND, PERFECT = "paper", "ours", "bound", "perfect"
SPREAD = (" std", " low", " high")
MODELS = ("nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net")
DATASETS = ("acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "lips", "lips20", "gete")
"""Models and datasets in the order of the paper."""


COMPARED = tuple(column.metric for column in COLUMNS if column.group == "accuracy")
"""Errors of frames by which models are compared."""


class Layout(NamedTuple):
    """Rows and columns of a table that compares models."""

    metrics: tuple[str, ...]
    rows: dict
    """Label of a group of rows -> kind and dataset of our records."""
    names: tuple[str, ...] = ("dataset",)
    """Names of the parts of the label, which are also columns of the paper's table."""
    number: str = ""
    """Number of the paper's table; by default that of each column."""


MAIN = {(name,): ("rollout", name) for name in DATASETS}
TEMPERATURES = {
    ("acac", 300): ("rollout", "acac"),
    ("acac", 600): ("rollout_600K", "acac"),
    ("3bpa", 300): ("rollout_300K", "3bpa"),
    ("3bpa", 600): ("rollout", "3bpa"),
}
LIPS20 = {
    ("train",): ("rollout", "lips20"),
    ("crystal",): ("rollout_crystals", "lips20"),
    ("test",): ("rollout_compositions", "lips20"),
}
BENZENE = {(name,): ("rollout_benzene", name) for name in DATASETS[2:6]}
COOL = MAIN | {("3bpa",): TEMPERATURES["3bpa", 300]}
"""Rows of Tables 1 to 3. For 3BPA, Tables 2 and 3 repeat the 300 K rows of Tables 6 and 5, and errors as
small as those in Table 1 are of 300 K too; the test set of our 3BPA is the one at 600 K."""

AT_600K = {"2": "6", "3": "5"}
"""Number of a table -> number of the table with the published values at 600 K."""

STRUCTURE, DYNAMICS = ("jsd_raw", "wf"), ("ev_root", "fv")
LAYOUTS = {
    layout.number: layout
    for layout in (
        Layout(("energy_mae", "force_mae"), COOL, number="1"),
        Layout(STRUCTURE, COOL, number="2"),
        Layout(DYNAMICS, COOL, number="3"),
        Layout(("seconds_per_epoch", "ms_per_step"), MAIN, number="4"),
        Layout(DYNAMICS, TEMPERATURES, ("dataset", "temperature_k"), "5"),
        Layout(STRUCTURE, TEMPERATURES, ("dataset", "temperature_k"), "6"),
        Layout(DYNAMICS, LIPS20, ("structures",), "7a"),
        Layout(STRUCTURE, LIPS20, ("structures",), "7b"),
        Layout(DYNAMICS, BENZENE, ("trained_on",), "18"),
        Layout(STRUCTURE, BENZENE, ("trained_on",), "19"),
    )
}
"""Layouts of the tables of the paper that compare models, all but that of the literature (17)."""


def beside_values(
    frame: pd.DataFrame,
    metrics: tuple[str, ...],
    *,
    beside: tuple[str, ...] = (),
    kind: str = "rollout",
    bounds: bool = False,
    spread: bool = False,
) -> pd.DataFrame:
    """Values of some metrics for every dataset and model, published ones next to ours.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it; several seeds are averaged, but of costs the first
        counts.
    metrics
        Names of metrics of a training, and of records of this kind.
    beside
        Further campaigns whose values are shown too; those without records are left out.
    kind
        Kind of the records. Published values are added for the kinds in ``PROTOCOLS`` only; those of 3BPA are
        the ones at 600 K, the temperature of our test set. (Tables 1 to 3 hold those at 300 K, see
        `paper_values`.)
    bounds
        Whether to add the bound.
    spread
        Whether to add the published standard deviations and the 95 % intervals of ours and of the floor.

    Returns
    -------
    DataFrame with the index (dataset, model), first in the paper's order, then others, and the columns (head
    with unit, source) with the sources ``"paper"``, ``"ours"``, the names of further campaigns and
    ``"bound"``; with the spread also ``"paper std"``, ``"ours low"``, ``"ours high"``, ``"bound low"`` and so
    on. Missing values are NaN. For the kind ``rollout`` it has all rows of the paper's tables, and those of
    the records.
    """
    frames = campaign_frames(frame, beside)
    layout = dataset_layout(frames, metrics, kind)
    return layout_values(frames, layout, bounds=bounds, spread=spread)


def paper_values(frame: pd.DataFrame, number, *, beside: tuple[str, ...] = (), **options) -> pd.DataFrame:
    """Values of a table of the paper, ours next to the published ones.

    Parameters
    ----------
    frame, beside
        As in `beside_values`.
    number
        1 to 6, ``"7a"``, ``"7b"`` (its published values are not available), 18 or 19.
    options
        ``bounds`` and ``spread``, as in `beside_values`.

    Returns
    -------
    DataFrame like that of `beside_values`, but with the labels of the table in the index: in 5 and 6 the
    dataset and the temperature (K), in 7 the structures, in 18 and 19 the training dataset.

    Raises
    ------
    ValueError
        If there is no such table.
    """
    return layout_values(campaign_frames(frame, beside), paper_layout(number), **options)


def literature_values(frame: pd.DataFrame, *, beside: tuple[str, ...] = ()) -> pd.DataFrame:
    """Values of Table 17, errors from other papers and EGraFFBench, together with ours.

    Returns
    -------
    DataFrame with the index (quantity with unit, dataset, source) and a column for every model; NaN where a
    source gives no value, and no row where it gives none at all. Our values have the names of their
    campaigns.
    """
    table = paper.table(17).replace({"source": {"Ours": "EGraFFBench"}})
    datasets = table.dataset.unique()
    ours = {campaign_name(f) if s == OURS else s: f for s, f in campaign_frames(frame, beside).items()}
    blocks = {}
    for metric in ("force_mae", "energy_mae"):
        column = quantities.of(metric)
        rows = [
            table.rename(columns={column.published.column: "value"})[["dataset", "source", "model", "value"]]
        ]
        for name, found in ours.items():
            means = seed_means(found[found.kind == "training"], column).reset_index()
            rows.append(means[means.dataset.isin(datasets)].assign(source=name))
        rows = pd.concat(rows).dropna(subset="value")
        blocks[column.head] = rows.pivot(index=["dataset", "source"], columns="model", values="value")
    values = pd.concat(blocks, names=["quantity"])
    sources = dict.fromkeys(["EGraFFBench", *ours, *table.source])
    order = pd.MultiIndex.from_product([blocks, datasets, sources], names=values.index.names)
    values = values.reindex(order[order.isin(values.index)])
    return values[sorted(values.columns, key=model_place)].rename_axis(columns=None)


def bound_ratios(values: pd.DataFrame, head: str) -> pd.DataFrame:
    """Values of one column in units of their bound, with a row for every dataset and columns (source, model).

    Parameters
    ----------
    values
        Values of `beside_values` or `paper_values` with ``bounds``.
    head
        Head of the column.

    Returns
    -------
    DataFrame, dimensionless; NaN where value or bound is missing. Without bounds it has no column.
    """
    names = ["source", "model"]
    here = values[head] if head in values.columns.get_level_values(0) else pd.DataFrame(index=values.index)
    if BOUND not in here:
        return pd.DataFrame(
            index=values.index.unique(0), columns=pd.MultiIndex.from_tuples([], names=names), dtype=float
        )
    sources = [s for s in here if not s.startswith((BOUND, PERFECT)) and not s.endswith(SPREAD)]
    ratios = here[sources].div(here[BOUND], axis=0).rename_axis(columns="source")
    models = values.index.unique("model")
    order = [(source, model) for source in ratios.columns for model in models]
    return (
        ratios.unstack("model")
        .reindex(values.index.unique(0))
        .reindex(columns=order)
        .rename_axis(columns=names)
    )


def count_alike(values: pd.DataFrame, head: str, source: str = OURS) -> tuple[int, int]:
    """Number of values that are saturated, and of values with a range.

    Parameters
    ----------
    values
        Values of `beside_values` or `paper_values` with ``bounds`` and ``spread``.

    Examples
    --------
    >>> heads = pd.MultiIndex.from_product([["WF (%)"], [OURS, "bound low", "bound high"]])
    >>> count_alike(pd.DataFrame([[0.1, 0.2, 0.4], [0.5, 0.2, 0.4]], columns=heads), "WF (%)")
    (1, 2)
    """
    names = {column.head: column.metric for column in COLUMNS}
    here = values.reindex(columns=[(head, name) for name in (source, f"{BOUND} low", f"{BOUND} high")])
    rows = here.dropna().to_numpy(float)
    return sum(is_alike(names.get(head, head), *row) for row in rows), len(rows)


def winners(values: pd.DataFrame, head: str, source: str = OURS) -> str:
    """Models with the lowest value of a column and their datasets, in words; ``none`` without values.

    Datasets with a single value are left out, as they allow no comparison.

    Examples
    --------
    >>> heads = pd.MultiIndex.from_product([["WF (%)"], [OURS]])
    >>> rows = pd.MultiIndex.from_product([["acac", "lips"], ["mace", "nequip"]], names=["dataset", "model"])
    >>> winners(pd.DataFrame([[1.0], [2.0], [1.0], [3.0]], columns=heads, index=rows), "WF (%)")
    'MACE on Acetylacetone and LiPS'
    """
    found = values[head, source].dropna() if (head, source) in values else values.iloc[:0, 0]
    found = found[found.groupby("dataset").transform("size") > 1]
    places = {}
    for dataset, model in found.groupby("dataset", sort=False).idxmin() if len(found) else ():
        places.setdefault(model_title(model), []).append(short_title(dataset))
    return "; ".join(f"{model} on {listed(names)}" for model, names in places.items()) or "none"


def dataset_place(name: str) -> tuple:
    """Sorting key of a dataset: first the paper's order, then others by name."""
    return (DATASETS.index(name) if name in DATASETS else len(DATASETS), name)


def model_place(name: str) -> tuple:
    """Sorting key of a model: first the paper's order, then others by name."""
    return (MODELS.index(name) if name in MODELS else len(MODELS), name)


def cell_place(cell: tuple) -> tuple:
    """Sorting key of a dataset and a model, and of what follows them."""
    dataset, model, *rest = cell
    return (*dataset_place(dataset), *model_place(model), *rest)


def campaign_name(frame: pd.DataFrame) -> str:
    """Campaign of the records of a frame; ``"ours"`` if they do not say."""
    known = frame.path.dropna()
    return known.iloc[0].split("/")[0] if len(known) else OURS


def campaign_frames(frame: pd.DataFrame, beside: tuple[str, ...] = ()) -> dict:
    """Source -> its records, for ``"ours"`` and further campaigns that have records.

    Rollouts of one dataset cover the same time, see `windows.common`.
    """
    others = {name: records.read(name) for name in beside}
    found = {OURS: frame} | {name: found for name, found in others.items() if len(found)}
    return {name: windows.common(rows) for name, rows in found.items()}


def column_of(metric: str, units: dict | None = None) -> Quantity:
    """Column of a metric; `units` gives the unit if `quantities` does not know the metric."""
    return quantities.of(metric, (units or {}).get(metric))


def columns_of(layout: Layout, frames: dict) -> list[Quantity]:
    """Columns of a layout, with the units of the records."""
    every = pd.concat([frame[["metric", "unit"]] for frame in frames.values()]).dropna()
    units = dict(zip(every.metric, every.unit, strict=True))
    return [column_of(metric, units) for metric in layout.metrics]


def paper_layout(number) -> Layout:
    """Layout of a table of the paper.

    Raises
    ------
    ValueError
        If there is no such table; the message lists the available ones.
    """
    if (key := str(number).lower()) not in LAYOUTS:
        raise cards.unknown("table", number, LAYOUTS)
    return LAYOUTS[key]


def dataset_layout(frames: dict, metrics, kind: str = "rollout") -> Layout:
    """Layout with a group of rows per dataset of the records and, for the main kind, of the paper."""
    kinds = [kind, "training", *FAILURES] if kind in PROTOCOLS[:1] else [kind]
    found = {name for frame in frames.values() for name in frame.dataset[_runs(frame, kinds)]}
    if kind in PROTOCOLS[:1] and any(quantities.of(metric).published for metric in metrics):
        found |= set(DATASETS)
    return Layout(tuple(metrics), {(name,): (kind, name) for name in sorted(found, key=dataset_place)})


def layout_values(
    frames: dict, layout: Layout, *, bounds: bool = False, spread: bool = False
) -> pd.DataFrame:
    """Values of a layout, a DataFrame like that of `beside_values`."""
    index = _index(frames, layout)
    values = {}
    for column in columns_of(layout, frames):
        published = _published(column, layout, index)
        values[column.head, PAPER] = published["value"]
        if spread and column.published and column.published.std:
            values[column.head, f"{PAPER} std"] = published["std"]
        for source, frame in frames.items():
            found = seed_means(frame, column).reindex(record_keys(column, layout, index))
            values[column.head, source] = found["value"].to_numpy()
            if spread:
                values[column.head, f"{source} low"] = found["low"].to_numpy()
                values[column.head, f"{source} high"] = found["high"].to_numpy()
        if bounds:
            found = bound_of(column, layout, index, frames)
            values[column.head, BOUND] = found["value"].to_numpy()
            if column.saturation and (known := _perfect(column, layout, index, frames)).notna().any():
                values[column.head, PERFECT] = known.to_numpy()
            if spread and column.saturation:
                values[column.head, f"{BOUND} low"] = found["low"].to_numpy()
                values[column.head, f"{BOUND} high"] = found["high"].to_numpy()
    heads = pd.MultiIndex.from_tuples(values, names=[None, None])
    return pd.DataFrame(dict(enumerate(values.values())), index=index).set_axis(heads, axis=1)


def record_keys(column: Quantity, layout: Layout, index: pd.MultiIndex) -> list[tuple]:
    """Kind, dataset and model of the records that give every row of a column."""
    labels = [(layout.rows[tuple(label)], model) for *label, model in index]
    return [(_kind(column.metric, kind), dataset, model) for (kind, dataset), model in labels]


def _kind(metric, kind):
    """Kind of the records that hold a metric, given the kind of the rollouts."""
    own = quantities.of(metric).kind
    if Kind.parse(kind).act != "rollout" or own == "rollout":
        return kind
    return own if own != "errors" else "training" if kind in PROTOCOLS else changed(kind, act="errors")


def _index(frames, layout):
    keys = []
    for label, (kind, dataset) in layout.rows.items():
        models = set(MODELS if dataset in DATASETS else ())
        for frame in frames.values():
            here = _runs(frame, [kind, "training", *FAILURES]) & (frame.dataset == dataset)
            models |= set(frame.model[here])
        keys += [(*label, model) for model in sorted(models, key=model_place)]
    return pd.MultiIndex.from_tuples(keys, names=[*layout.names, "model"])


def _runs(frame, kinds):
    """Rows of some kinds that belong to models, not to the reference or to a notebook without a dataset."""
    return frame.kind.isin(kinds) & (frame.model != "reference") & (frame.dataset != "all")


def seed_means(frame, column):
    """Mean over seeds of a metric and its interval, in the unit of the head, index (kind, dataset, model).

    With three seeds or more the interval is that of a mean over seeds, which vary more than the replicas of
    one. Two seeds do not bound their mean, whose 95 % interval is 13 times its standard error: there is none.
    """
    rows = of_first_seeds(frame[(frame.metric == column.metric) & (frame.model != "reference")])
    groups = rows.groupby(["kind", "dataset", "model"])
    found = groups[["value", "low", "high"]].mean()
    for place, block in groups if "seed" in rows else ():
        if block.seed.nunique() > 1:
            found.loc[place, ["low", "high"]] = _seed_interval(block.value.to_numpy(float), column)
    return found * column.factor


def of_first_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the costs of further seeds: a time is that of one program, so seeds have no mean of it."""
    first = rows.groupby(["kind", "dataset", "model"]).seed.transform("min") if "seed" in rows else None
    return rows if first is None else rows[~rows.metric.isin(quantities.COSTS) | ~(rows.seed > first)]


def of_shown_cost(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows without those of seeds whose cost is not shown, where another seed of the cell has one."""
    cell = ["kind", "dataset", "model"]
    costs = of_first_seeds(frame[(frame.metric == metric) & frame.value.notna()])
    shown = frame[cell].merge(costs[[*cell, "seed"]].drop_duplicates(cell), "left", on=cell).seed
    return frame[shown.isna().to_numpy() | (frame.seed.to_numpy() == shown.to_numpy())]


def _seed_interval(values, column):
    if len(values) < 3:
        return np.nan, np.nan
    if column.interval == "fraction":
        return statistics.fraction_interval(values)
    positive = column.interval == "log" or column.metric in COMPARED
    return statistics.replica_interval(values, positive=positive)


def _published(column, layout, index):
    """Published value and standard deviation of every row; NaN where the paper gives none."""
    values = pd.DataFrame(np.nan, index=index, columns=["value", "std"])
    if not (place := column.published):
        return values
    number = layout.number or (place.table if _is_main(layout) else "")
    if number in paper.tables():
        table = paper.table(number).set_index(list(index.names))
        for name, source in (("value", place.column), ("std", place.std)):
            if source in table:
                values[name] = table[source].reindex(index).to_numpy(float) * (place.factor * column.factor)
    if not layout.number and place.table in ("1", *AT_600K):
        warm = _published_at_600K(column).reindex(index)[index.isin(["3bpa"], level="dataset")]
        values.loc[warm.index] = warm
    return values


def _published_at_600K(column):
    """Published values of 3BPA at the temperature of our test set, without errors, index (dataset, model)."""
    nothing = pd.MultiIndex.from_tuples([], names=["dataset", "model"])
    values = pd.DataFrame(columns=["value", "std"], index=nothing, dtype=float)
    place = column.published
    if number := AT_600K.get(place.table):
        table = paper.table(number).query("temperature_k == 600").set_index(["dataset", "model"])
        values["value"] = table[place.column] * (place.factor * column.factor)
    return values


def bound_of(column: Quantity, layout: Layout, index: pd.MultiIndex, frames: dict) -> pd.DataFrame:
    """Bound of every row with its range, in the unit of the head, from the first source that has one.

    The columns are ``value``, ``low`` and ``high``, NaN where there is none.
    """
    kinds = [layout.rows[tuple(label)] for *label, _ in index]
    known = {}
    for kind, dataset in set(kinds):
        each = (_bound(column, kind, dataset, frame) for frame in frames.values())
        known[kind, dataset] = next((b for b in each if np.isfinite(b[0])), (np.nan,) * 3)
    rows = np.array([known[place] for place in kinds], dtype=float).reshape(-1, 3)
    return pd.DataFrame(rows * column.factor, index=index, columns=["value", "low", "high"])


def _perfect(column, layout, index, frames):
    """Perfect level of every row in the unit of the head, from the first source that has one."""
    places = [layout.rows[tuple(label)] for *label, _ in index]
    known = {
        place: next(
            (p for f in frames.values() if np.isfinite(p := perfect_of(f, *place, column.metric))), np.nan
        )
        for place in set(places)
    }
    return pd.Series([known[place] for place in places], index=index, dtype=float) * column.factor


def _bound(column, kind, dataset, frame):
    """Saturation level of a metric, or the error of predicting zero on frames of a kind, with its range."""
    if column.saturation:
        return floor_of(frame, kind, dataset, column.metric)
    own = ("dataset", "training") if kind in PROTOCOLS else (_kind(column.metric, kind),)
    rows = frame[(frame.metric == column.ceiling) & (frame.dataset == dataset) & frame.kind.isin(own)]
    return rows.value.astype(float).mean(), np.nan, np.nan


def _is_main(layout):
    return all(kind in PROTOCOLS for kind, _ in layout.rows.values())


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that a leaderboard shows, those of trainings and of rollouts with the corrected protocol.

    Rows of the reference are left out.
    """
    return frame[frame.kind.isin(["training", "rollout", *FAILURES]) & (frame.model != "reference")]
