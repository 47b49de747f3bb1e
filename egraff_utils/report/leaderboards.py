"""Which model does best on which dataset? The leaderboard, as a styled table and as text."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from egraff_utils import cards, paths, quantities
from egraff_utils.quantities import COLUMNS
from egraff_utils.report.agreement import winners
from egraff_utils.report.beside import BOUND, OURS, PAPER, Layout, beside_values, main_rows
from egraff_utils.report.table_cells import (
    ALIKE,
    LEGEND,
    SHADES,
    UNSTABLE,
    cell_texts,
)
from egraff_utils.report.tables import _styled
from egraff_utils.report.titles import dataset_title, model_title, short_title
from egraff_utils.report.values import listed
from egraff_utils.report.windows import stored

TEXT_GROUPS = ("accuracy", "structure", "dynamics")


def leaderboard_values(
    frame: pd.DataFrame,
    dataset: str | None = None,
    *,
    groups: tuple[str, ...] = tuple(SHADES),
    metrics: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """Values of the leaderboard, with a row for every dataset and model that was run, and published values.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it; several seeds are averaged.
    dataset
        Only dataset that is included; by default all are.
    groups
        Those of ``accuracy``, ``structure``, ``dynamics`` and ``cost`` that are included.
    metrics
        Only metrics of the groups that are included; by default all are.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns (head with unit, source), as in `beside_values`
    with bounds and spread; missing values are NaN. A quantity without any value, published or ours, has no
    column.

    Raises
    ------
    ValueError
        If the frame has no run, or none of this dataset.
    """
    rows = main_rows(frame)
    rows = rows if dataset is None else rows[rows.dataset == dataset]
    if rows.empty:
        raise ValueError(f"the records hold no run of {dataset or 'any dataset'}; run the campaign first")
    run = pd.MultiIndex.from_frame(rows[["dataset", "model"]].drop_duplicates())
    chosen = [c.metric for c in COLUMNS if c.group in groups and (metrics is None or c.metric in metrics)]
    values = beside_values(frame, tuple(chosen), bounds=True, spread=True)
    values = values[values.index.isin(run)].dropna(axis="columns", how="all")
    known = {head for head, source in values if source in (PAPER, OURS)}
    return values[[key for key in values if key[0] in known]]


def leaderboard(frame: pd.DataFrame, dataset: str | None = None, **selection):
    """The leaderboard as a styled table; marks as in `tables.beside`, arguments as in `leaderboard_values`.

    Datasets and models are links to the notebooks, in the book the pages, of their simulations and trainings.
    If there are such records, the accuracy is accompanied by whether the model passed the gate, and the
    dynamics by the number of stable replicas.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    values = leaderboard_values(frame, dataset, **selection)
    chosen = [name for names in selection.values() for name in names]
    name = "-".join(["leaderboard", dataset or "all", *chosen])
    groups = selection.get("groups", tuple(SHADES))
    more = {"Gate": badges(frame)} if "accuracy" in groups else {}
    more |= {"Stable replicas (count)": survivors(frame)} if "dynamics" in groups else {}
    styler = _styled(values, _leaderboard_layout(values), {OURS: frame}, name, more=more)
    for level, page in (("dataset", _dataset_link), ("model", _model_link)):
        styler.format_index(page, axis="index", level=level)
    return styler if dataset is None else styler.hide(axis="index", level="dataset")


def _dataset_link(dataset):
    return _link("rollout", dataset, short_title(dataset), cards.datasets())


def _model_link(model):
    return _link("training", model, model_title(model), cards.models())


def _link(room, name, title, known):
    """Link to the notebook of simulations of a dataset or of trainings of a model; plain if it has none."""
    return f'<a href="../{room}/{name}.ipynb">{escape(title)}</a>' if name in known else escape(title)


def text_leaderboard(frame: pd.DataFrame) -> str:
    """The leaderboard as plain text, with our values only, one block per dataset, sorted by force error."""
    blocks = []
    for dataset in main_rows(frame).dataset.sort_values().unique():
        values = leaderboard_values(frame, dataset, groups=TEXT_GROUPS)
        ours = values.loc[:, [key for key in values.columns if key[1] == OURS]]
        if (key := (quantities.of("force_mae").head, OURS)) in ours:
            ours = ours.sort_values(key)
        cells = cell_texts(ours, _leaderboard_layout(ours), {OURS: frame}, letters=False)
        cells.columns = [head.replace(" (dimensionless)", "") for head, _ in cells.columns]
        cells.index = [model_title(model) for _, model in cells.index]
        shown = cells.to_string() if cells.size else f"no values yet: {', '.join(cells.index)}"
        blocks.append(f"{dataset_title(dataset)}\n{shown}")
    text = "\n\n".join(blocks) or "no model has been trained or simulated yet"
    return "\n".join([text, *(LEGEND[mark] for mark in (ALIKE, UNSTABLE) if mark in text)])


def badges(frame: pd.DataFrame) -> dict:
    """Verdict of the gate on every trained model, ``pass`` or the checks that failed, by (dataset, model)."""
    rows = frame[(frame.kind == "gate") & (frame.metric == "passed") & frame.path.notna()]
    found = {(row.dataset, row.model): stored(paths.results() / row.path) for row in rows.itertuples()}
    return {key: "pass" if record["passed"] else f"fails\n{record.message}" for key, record in found.items()}


def best(column: pd.Series) -> str:
    """On how many datasets each model has the lowest value, as text.

    Parameters
    ----------
    column
        Values with the index (dataset, model), such as the force errors of a campaign.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([["acac", "lips"], ["mace", "nequip"]])
    >>> best(pd.Series([1.0, 2.0, 1.0, 3.0], index)), best(pd.Series([], pd.MultiIndex.from_arrays([[], []])))
    ('MACE on 2 of 2 datasets', 'none yet')
    """
    counts = winners(column)
    words = [f"{model_title(model)} on {number}" for model, number in counts.items()]
    return f"{', '.join(words)} of {counts.sum()} datasets" if words else "none yet"


def above(values: pd.DataFrame, head: str) -> str:
    """Datasets on which all of our values of a column are above the range of the saturation level, as text.

    Parameters
    ----------
    values
        Values of `beside_values` with bounds and spread.
    head
        Head of the column.

    Examples
    --------
    >>> heads = pd.MultiIndex.from_product([["WF (%)"], [OURS, f"{BOUND} high"]])
    >>> rows = pd.MultiIndex.from_product([["acac", "lips"], ["mace", "nequip"]], names=["dataset", "model"])
    >>> above(pd.DataFrame([[3, 2], [4, 2], [3, 2], [1, 2.0]], columns=heads, index=rows), "WF (%)")
    'Acetylacetone'
    """
    known = values.reindex(columns=[(head, OURS), (head, f"{BOUND} high")]).dropna()
    over = (known.iloc[:, 0] > known.iloc[:, 1]).groupby("dataset", sort=False).all()
    return listed([short_title(name) for name in over.index[over]]) or "none"


def gaps(absent: list, wanted: list) -> str:
    """How many runs are missing, and of which seeds, as a sentence; empty if none is.

    Parameters
    ----------
    absent, wanted
        Runs as tuples (kind, dataset, model, seed).

    Examples
    --------
    >>> wanted = [("training", "ethanol", "mace", seed) for seed in range(3)]
    >>> gaps(wanted[1:], wanted), gaps(wanted, wanted)
    ('2 of 3 runs are missing, all of further seeds (seed 1: 1, seed 2: 1).', '3 of 3 runs are missing.')
    """
    seeds = [run[-1] for run in absent]
    counts = ", ".join(f"seed {seed}: {seeds.count(seed)}" for seed in sorted(set(seeds)))
    further = absent and min(seeds) > min(run[-1] for run in wanted)
    start = f"{len(absent)} of {len(wanted)} runs are missing"
    return f"{start}, all of further seeds ({counts})." if further else f"{start}." if absent else ""


def survivors(frame: pd.DataFrame) -> dict:
    """Number of replicas that were stable to their end, as ``4 of 5``, by (dataset, model)."""
    rows = frame[(frame.kind == "rollout") & (frame.model != "reference") & frame.path.notna()]
    counts = {}
    for (dataset, model), found in rows.groupby(["dataset", "model"]):
        each = [stable_replicas(stored(paths.results() / path)) for path in found.path.unique()]
        counts[dataset, model] = "{} of {}".format(*np.sum(each, axis=0))
    return counts


def stable_replicas(record) -> tuple[int, int]:
    """Number of replicas of a rollout that were stable to its end, and number of all replicas."""
    parts = dict.fromkeys(str(name) for name in record.curves.get("composition", ()))
    if parts:
        files = [record.key.of(shift=part).path for part in parts]
        return tuple(np.sum([stable_replicas(stored(file)) for file in files if file.is_file()], axis=0))
    stable = np.asarray(record.curves.get("stable_step", ()))
    return int((stable >= (record["steps"] or 0)).sum()), len(stable)


def _leaderboard_layout(values):
    metrics = {column.head: column.metric for column in COLUMNS}
    heads = values.columns.get_level_values(0).unique()
    rows = {(dataset,): ("rollout", dataset) for dataset in values.index.unique("dataset")}
    return Layout(tuple(metrics[head] for head in heads), rows)
