"""Where does the paper hold up? Our values are compared with the published ones, within datasets.

A cell is one model in one group, which is a dataset, or a dataset at a temperature. Cells are a DataFrame
with the index (group, ..., model) and the columns ``"paper"`` and ``"ours"`` in the same unit. All measures
use only cells that have both values.
"""

from __future__ import annotations

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import cards, metrics, quantities, statistics
from egraff_utils.report import beside, look
from egraff_utils.report.beside import BOUND, OURS, PAPER
from egraff_utils.report.ranks import chance_of, detectable, rank_correlation
from egraff_utils.report.values import count, span

AS_PUBLISHED, REVERSED, UNDECIDED = "as published", "reversed", "not told from chance"
NOT_COMPARED = "not compared"
PROTOCOL_METRICS = ("wf", "ev_root", "fv")
"""Metrics of rollouts whose published values are compared with ours in both protocols."""
RESAMPLES = 1000
"""Number of resamples of every bootstrap."""

TABLES = ("1", "2", "3", "4", "5", "6", "7a", "18", "19")
"""Tables of the paper with values that ours can be compared with."""

COLUMNS = sum(len(beside.LAYOUTS[number].metrics) for number in TABLES)
"""Number of columns of these tables, each of which is tested for its order."""

PUBLISHED_FRAMES = {
    "acac": 500,
    "3bpa": 500,
    "aspirin": 950,
    "ethanol": 950,
    "naphthalene": 950,
    "salicylic_acid": 950,
    "lips": 19_000,
    "gete": 1500,
}
"""Numbers of training frames in the paper (Sec. 4.1, which gives none for LiPS20)."""


class Agreement(NamedTuple):
    """Agreement of our values with the published ones; nan where there are too few cells."""

    cells: int
    """Number of cells with both values."""
    groups: int
    """Number of groups with a rank correlation, which have at least three cells, not all equal."""
    within: float
    """Mean of the rank correlations of the groups, which says whether models are in the same order."""
    within_low: float
    within_high: float
    chance: float
    """Standard deviation of ``within`` for a random order within each group."""
    p: float
    """Two-sided probability of a mean at least this far from zero if models are shuffled within groups."""
    detectable: float
    """Mean correlation that the test of all :data:`COLUMNS` would find in 80 % of cases."""
    ratio: float
    """Geometric mean of the ratio of our values to the published ones."""
    ratio_low: float
    ratio_high: float
    spread: float
    """Geometric standard deviation of that ratio, which is 1 if it is the same in all cells."""


def table_cells(frame: pd.DataFrame) -> dict:
    """Cells of every column of :data:`TABLES`: (table, head with unit) -> cells of `matched`."""
    values = {number: beside.paper_values(frame, number) for number in TABLES}
    return {
        (n, head): matched(found, head) for n, found in values.items() for head in found.columns.unique(0)
    }


def matched(values: pd.DataFrame, head, *, source: str = OURS) -> pd.DataFrame:
    """Cells of one column that have both a published value and our value.

    Parameters
    ----------
    values
        Columns (head, source), as returned by `tables.beside_values`.
    head
        Head of the column.
    source
        Source of the values that are compared with the published ones.

    Returns
    -------
    DataFrame with the columns ``"paper"`` and ``"ours"``; it has no rows if either source is missing
    altogether.
    """
    cells = {name: values.get((head, key)) for name, key in ((PAPER, PAPER), (OURS, source))}
    empty = pd.Series(np.nan, index=values.index)
    filled = {name: empty if column is None else column for name, column in cells.items()}
    return pd.DataFrame(filled).astype(float).dropna()


def group_correlations(cells: pd.DataFrame) -> pd.Series:
    """Rank correlation within each group, over its models; groups for which it is undefined are left out."""
    groups = _groups(cells)
    found = {name: rank_correlation(here[PAPER], here[OURS]) for name, here in groups}
    return pd.Series(found, dtype=float).dropna()


def chance_deviation(cells: pd.DataFrame) -> float:
    r"""Standard deviation of the mean of the groups' rank correlations for random orders.

    For one group of n models it is :math:`1/\sqrt{n - 1}`, with or without ties, and for G groups it is

    .. math:: \frac1G \sqrt{\sum_{g=1}^{G} \frac{1}{n_g - 1}}

    Groups without a rank correlation are left out; the result is nan if no group has one.
    """
    sizes = _groups(cells).size().reindex(group_correlations(cells).index).to_numpy(float)
    return float(np.sqrt(np.sum(1 / (sizes - 1))) / len(sizes)) if len(sizes) else float("nan")


def _groups(cells):
    """Cells grouped by all levels of the index but the last, which is the model."""
    levels = list(range(cells.index.nlevels - 1))
    return cells.groupby(level=levels if len(levels) > 1 else levels[0])


def agreement(cells: pd.DataFrame) -> Agreement:
    """All measures of the agreement of one column.

    There is no rank correlation over all cells: it would say which datasets are hard. Intervals are 95 %
    bootstrap intervals; for the mean within groups, groups are drawn, for the ratio cells. Ratios need
    positive values, so cells with a zero (JSD, as published for bulk systems) count for the ranks only.
    """
    pairs = cells[[PAPER, OURS]].to_numpy(float).reshape(-1, 2)
    within = group_correlations(cells)
    mean = float(within.mean()) if len(within) else float("nan")
    groups = dict(iter(_groups(cells)))
    judged = [groups[name][[PAPER, OURS]].to_numpy(float).T for name in within.index]
    positive = pairs[(pairs > 0).all(axis=1)]
    ratios = positive[:, 1] / positive[:, 0]
    return Agreement(
        len(pairs),
        len(within),
        mean,
        *statistics.bootstrap_interval(within.to_numpy(), resamples=RESAMPLES),
        chance_deviation(cells),
        chance_of(judged, mean),
        detectable([pair.shape[1] for pair in judged], COLUMNS),
        metrics.geometric_mean(ratios) if len(ratios) else float("nan"),
        *statistics.bootstrap_interval(ratios, metrics.geometric_mean, resamples=RESAMPLES),
        float(np.exp(np.std(np.log(ratios), ddof=1))) if len(ratios) > 1 else float("nan"),
    )


def verdict(found: Agreement) -> str:
    """Verdict on the order of models within groups.

    It needs both a p value below 5 % over all columns of all tables (Bonferroni) and an interval that
    excludes zero.

    Examples
    --------
    >>> models = pd.MultiIndex.from_product([list("abcdef"), ["x", "y", "z"]])
    >>> cells = pd.DataFrame({"paper": [1.0, 2.0, 4.0] * 6, "ours": [7.0, 5.0, 3.0] * 6}, index=models)
    >>> verdict(agreement(cells))
    'reversed'
    """
    if not np.isfinite(found.within):
        return NOT_COMPARED
    sure = found.p * COLUMNS < 0.05 and found.within_low * found.within_high > 0
    if not sure:
        return UNDECIDED
    return AS_PUBLISHED if found.within > 0 else REVERSED


def agreement_table(columns: dict) -> pd.DataFrame:
    """Measures and verdict of several columns, with one row per column.

    Parameters
    ----------
    columns
        Cells by name; names that are tuples (table, head) give an index of two levels.
    """
    found = {name: agreement(cells) for name, cells in columns.items()}
    rows = [measures._asdict() | {"order": verdict(measures)} for measures in found.values()]
    names = list(found)
    index = pd.MultiIndex.from_tuples(names) if names and isinstance(names[0], tuple) else names
    return pd.DataFrame(rows, index=index, columns=[*Agreement._fields, "order"])


def sentence(row) -> str:
    """One row of `agreement_table` as text for a page.

    Examples
    --------
    >>> models = pd.MultiIndex.from_product([["a"], ["x", "y", "z"]])
    >>> cells = pd.DataFrame({"paper": [1.0, 2.0, 4.0], "ours": [2.0, 4.0, 8.0]}, index=models)
    >>> sentence(agreement_table({"t": cells}).loc["t"])
    '2 times the published ones; the order of the models is not told from chance (rank correlation 1.00)'
    """
    words = [f"{_short(row.ratio)} times the published ones"] if np.isfinite(row.ratio) else []
    if np.isfinite(row.within):
        words += [f"the order of the models is {row.order} (rank correlation {row.within:.2f})"]
    return "; ".join(words) or NOT_COMPARED


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """An `agreement_table` as texts with short heads for readers, without the intervals of the ratios."""
    paired = zip(table.within, table.within_low, table.within_high, strict=True)
    ratios = zip(table.ratio, table.spread, strict=True)
    shown = {
        "Cells": table.cells.map("{:.0f}".format),
        "Within groups (95 %)": [_correlation(*each) for each in paired],
        "Found in 80 % from": [_known("{:.2f}" if d <= 1 else "none", d) for d in table.detectable],
        "Ours / paper": [_known("{}", _short(r)) + _known(" ×÷ {:.2g}", s, "") for r, s in ratios],
        "Order": table.order.replace({UNDECIDED: "chance"}),
    }
    shown = pd.DataFrame(shown, index=table.index)
    return shown.rename(index=lambda head: head.partition(" (")[0], level=-1) if len(shown) else shown


def _correlation(mean, low, high):
    interval = "" if np.isnan(low) else f"<br><small>{low:.2f} to {high:.2f}</small>"
    return _known("{:.2f}", mean) + interval


def _known(text, value, missing="–"):
    return missing if value is None or (isinstance(value, float) and np.isnan(value)) else text.format(value)


def _short(value):
    """Text with two significant digits, without powers of ten for large numbers; ``None`` for NaN."""
    if np.isnan(value):
        return None
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def published_epochs(model: str) -> int:
    """Number of epochs of a model in the paper (Tables 11 to 16), from its card."""
    return cards.model(model).training("paper").max_epochs


def budget_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Length of our trainings as fractions of those in the paper.

    Returns
    -------
    DataFrame with the index (dataset, model) of the trainings and the columns ``epochs`` (fraction of the
    published number of epochs) and ``frames`` (fraction of the published frames times epochs; NaN where the
    paper gives no number of frames), dimensionless.
    """
    epochs = _metric(frame, "training", "epochs")
    frames = _metric(frame, "dataset", "frames_train").droplevel("model")
    known = epochs.index.get_level_values("model").isin(cards.models())
    epochs = epochs[known & epochs.index.get_level_values("dataset").isin(beside.DATASETS)]
    datasets, models = (epochs.index.get_level_values(level) for level in ("dataset", "model"))
    shares = epochs / [published_epochs(model) for model in models]
    published = pd.Series(PUBLISHED_FRAMES, dtype=float)
    larger = (frames / published).reindex(datasets).to_numpy(float)
    return pd.DataFrame({"epochs": shares, "frames": shares * larger})


def _metric(frame, kind, name):
    """Mean over seeds of a metric, index (dataset, model)."""
    rows = frame[(frame.kind == kind) & (frame.metric == name)]
    return rows.groupby(["dataset", "model"])["value"].mean()


def budget(frame: pd.DataFrame, *, others: tuple[str, ...] = ()) -> pd.DataFrame:
    """Fraction of the paper's training and its effect on the force error, by dataset of the paper.

    Returns
    -------
    DataFrame of geometric means over models, and of the force errors of MACE in the paper, in the records,
    and in further campaigns; heads have units.
    """
    errors = beside.paper_values(frame, 1, beside=others)[quantities.of("force_mae").head]
    found = budget_shares(frame).join((errors[OURS] / errors[PAPER]).rename("ratio"))
    means = np.exp(np.log(found).groupby("dataset").mean())
    means[["epochs", "frames"]] *= 100
    means.columns = ["Epochs (% of paper)", "Frames seen (% of paper)", "Force MAE (× paper)"]
    mace = errors.xs("mace", level="model").rename(columns="MACE, {} (meV/Å)".format)
    return means.reindex([name for name in beside.DATASETS if name in means.index]).join(mace)


def protocols(frame: pd.DataFrame) -> pd.DataFrame:
    """What the cold start of the published protocol explains, metric by metric and dataset by dataset.

    Returns
    -------
    DataFrame with the index (metric, dataset), 3BPA at 600 K, and geometric means over the models that the
    paper has and that both protocols ran: ``"paper"``, ``"as coded"``, ``"corrected"``, and the ratios
    ``"as coded / corrected"``, which is the effect of the protocol on the same weights, and
    ``"paper / as coded"``, which the protocol does not explain.
    """
    coded, corrected = (
        beside.beside_values(frame, PROTOCOL_METRICS, kind=kind) for kind in ("rollout_as_coded", "rollout")
    )
    tables = {}
    for metric in PROTOCOL_METRICS:
        head = beside.column_of(metric).head
        columns = {"paper": coded[head, PAPER], "as coded": coded[head, OURS]}
        cells = pd.DataFrame(columns | {"corrected": corrected[head, OURS]}).dropna()
        tables[head] = np.exp(np.log(cells).groupby("dataset").mean()).reindex(beside.DATASETS).dropna()
    table = pd.concat(tables, names=["metric", "dataset"])
    table["as coded / corrected"] = table["as coded"] / table["corrected"]
    table["paper / as coded"] = table["paper"] / table["as coded"]
    return table


def protocol_texts(table: pd.DataFrame) -> dict[str, str]:
    """Ranges over datasets of the ratios of `protocols`, and on how many the paper is within a factor of two.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([[beside.column_of("wf").head], ["aspirin", "ethanol"]])
    >>> ratios = {"as coded / corrected": [16.2, 5.9], "paper / as coded": [1.9, 4.1]}
    >>> protocol_texts(pd.DataFrame(ratios, index))  # doctest: +NORMALIZE_WHITESPACE
    {'wf_cold': '5.9 to 16', 'wf_left': '1.9 to 4.1', 'wf_near': '1 of 2', 'ev_root_cold': '(not run)',
    'ev_root_left': '(not run)', 'ev_root_near': '0 of 0', 'fv_cold': '(not run)', 'fv_left': '(not run)',
    'fv_near': '0 of 0'}
    """
    texts = {}
    for metric in PROTOCOL_METRICS:
        rows = table[table.index.get_level_values(0) == beside.column_of(metric).head]
        for name, column in (("cold", "as coded / corrected"), ("left", "paper / as coded")):
            texts[f"{metric}_{name}"] = span(rows[column], ".2g", missing="(not run)")
        texts[f"{metric}_near"] = count(rows["paper / as coded"].between(0.5, 2))
    return texts


def data_at_hand(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers of training frames, ours and the paper's, and temperatures of the data, for every dataset."""
    found = {name: _metric(frame, "dataset", name) for name in ("frames_train", "virial_temperature")}
    names = [name for name in beside.DATASETS if name in found["frames_train"].index.unique("dataset")]
    known = pd.DataFrame({k: column.droplevel("model") for k, column in found.items()}).reindex(names)
    return pd.DataFrame(
        {
            "Training frames (count)": known.frames_train,
            "in the paper (count)": known.index.map(PUBLISHED_FRAMES.get).astype(float),
            "Temperature stated (K)": [cards.dataset(n).conditions("test")[0] for n in names],
            "of the frames, by the virial (K)": known.virial_temperature,
        }
    )


def mean_ranks(column: pd.Series) -> pd.Series:
    """Mean rank of every model, 1 for the lowest value, over the groups in which all models have a value.

    Parameters
    ----------
    column
        Values with the index (group, model).

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([["a", "b"], ["x", "y"]], names=["dataset", "model"])
    >>> mean_ranks(pd.Series([1.0, 2.0, 5.0, np.nan], index)).to_dict()
    {'x': 1.0, 'y': 2.0}
    """
    table = column.unstack("model")
    return table.dropna().rank(axis=1).mean()


def winners(column: pd.Series) -> pd.Series:
    """Number of groups in which each model has the lowest value; groups with one value do not count."""
    known = column.dropna()
    several = known.groupby(level=0).transform("size") > 1
    least = known[several].groupby(level=0).idxmin().map(lambda key: key[-1])
    return least.value_counts()


def standings(frame: pd.DataFrame) -> pd.DataFrame:
    """Standings of the models that were run, with one row per model and units in the heads.

    The columns are the mean ranks in force error and WF, over the datasets on which all models have a value,
    of WF one of a `whole` simulation; the number of datasets with the lowest force error; and the mean stable
    fraction.
    """
    values = own_values(frame)
    ran = values.dropna(how="all").index.unique("model")
    values = values[values.index.isin(ran, level="model")]
    table = pd.DataFrame(
        {
            "Force error, mean place": mean_ranks(values.force_mae),
            "Force error, datasets won (count)": winners(values.force_mae),
            "WF, mean place": mean_ranks(whole(frame, values.wf)),
            quantities.of("stable_fraction").head: values.stable_fraction.groupby("model").mean(),
        }
    )
    table = table.reindex(sorted(ran, key=beside.model_place)).rename_axis("model")
    return table.fillna({"Force error, datasets won (count)": 0})


def whole(frame: pd.DataFrame, column: pd.Series) -> pd.Series:
    """A column of `own_values` without cells in which a replica broke, whose value is of the time before."""
    broken = frame[(frame.kind == "rollout") & (frame.status == "unstable")]
    return column.drop(pd.MultiIndex.from_frame(broken[["dataset", "model"]]), errors="ignore")


def own_values(frame: pd.DataFrame) -> pd.DataFrame:
    """Values of ``force_mae`` (meV/Å), ``wf`` (%) and ``stable_fraction``, with index (dataset, model)."""
    names = ("force_mae", "wf", "stable_fraction")
    found = beside.beside_values(frame, names)
    return pd.DataFrame({name: found[quantities.of(name).head, OURS] for name in names})


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """The general conclusions of the paper as numbers, from its values and from ours on the same cells.

    Returns
    -------
    DataFrame with the columns ``"paper"`` and ``"ours"`` and the rows ``datasets`` (number with cells),
    ``force_winners`` and ``wf_winners`` (number of models that are best on at least one dataset),
    ``correlation`` (mean over datasets of the rank correlation of force error and WF) and ``chance`` (its
    standard deviation for random orders).
    """
    force, wf = (
        matched(beside.paper_values(frame, quantities.of(metric).published.table), quantities.of(metric).head)
        for metric in ("force_mae", "wf")
    )
    shared = force.index.intersection(wf.index)
    found = {}
    for source in (PAPER, OURS):
        x, y = force.loc[shared, source], wf.loc[shared, source]
        pair = agreement(pd.DataFrame({PAPER: x, OURS: y}))
        found[source] = {
            "datasets": len(shared.unique(0)),
            "force_winners": len(winners(x)),
            "wf_winners": len(winners(y)),
            "correlation": pair.within,
            "chance": pair.chance,
        }
    return pd.DataFrame(found)


def floor_ratios(values: pd.DataFrame) -> pd.DataFrame:
    """Mean ratio to the floor of the values in every column, the paper's and ours.

    Parameters
    ----------
    values
        Values of `beside.paper_values` with ``bounds``.

    Returns
    -------
    DataFrame with a row for every head that has floors and the columns ``"paper"`` and ``"ours"``, geometric
    means of the ratio of value to floor over the cells that have all three.
    """
    rows = {}
    for head in values.columns.unique(0):
        here = values[head].reindex(columns=[PAPER, OURS, BOUND]).dropna()
        here = here[(here > 0).all(axis=1)]
        if len(here):
            rows[head] = {k: metrics.geometric_mean(here[k] / here[BOUND]) for k in (PAPER, OURS)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[PAPER, OURS])


def plot_agreement(columns: dict) -> Figure:
    """Our values against the published ones, with one panel per column and logarithmic axes.

    The colour denotes the model; the two values are equal on the black diagonal. Cells with a zero are left
    out.

    Parameters
    ----------
    columns
        (table, head with unit) -> cells, as returned by `table_cells`.
    """
    shown = {name: cells[(cells > 0).all(axis=1)] for name, cells in columns.items()}
    shown = {name: cells for name, cells in shown.items() if len(cells)}
    rows = max(1, -(-len(shown) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(7.5, 2.7 * rows), squeeze=False)
    for ax, (name, cells) in zip(axes.flat, shown.items(), strict=False):
        _plot_cells(ax, name, cells)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    models = {model for cells in shown.values() for model in cells.index.get_level_values("model")}
    handles = look.model_handles(sorted(models, key=look.model_place), marker="o", linestyle="")
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def _plot_cells(ax, name, cells):
    colors = [look.model_color(model) for model in cells.index.get_level_values("model")]
    ax.scatter(cells[PAPER], cells[OURS], c=colors, s=22, edgecolor="0.2", linewidth=0.4, zorder=3)
    low, high = cells.to_numpy().min() / 1.4, cells.to_numpy().max() * 1.4
    ax.plot([low, high], [low, high], color=look.REFERENCE_COLOR, linewidth=0.9)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in "xy":
        look.set_log_scale(ax, axis)
    number, head = name
    ax.set_xlabel(f"Paper, Table {number}, same unit", fontsize=8.5)
    ax.set_ylabel(f"Ours, {head}", fontsize=8.5)
