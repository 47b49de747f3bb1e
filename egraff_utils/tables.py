"""What did the paper find, and what did we? Records as tables, the published values beside ours.

A table is a pandas Styler that a notebook shows as it is, a text for the terminal, or a CSV behind a link.
In a table darker cells are better, as in the paper; a shaded cell sets its own text colour, so that it can
be read in the light and in the dark theme.
"""

from __future__ import annotations

import base64
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from IPython.display import HTML
from matplotlib.colors import LinearSegmentedColormap, to_hex

from egraff_utils import cards, paper

METRIC_NAMES = {
    "force_mae": "Force MAE",
    "energy_mae": "Energy MAE",
    "energy_mae_per_atom": "Energy MAE per atom",
    "zero_force_mae": "Force MAE of predicting zero",
    "wf": "Wright's factor",
    "jsd": "JSD",
    "jsd_raw": "JSD as published",
    "ev": "EV",
    "ev_root": "Root EV",
    "fv": "FV",
    "rmsd": "RMSD",
    "deviation": "Deviation from the reference",
    "temperature": "Temperature",
    "virial_temperature": "Virial temperature",
    "stable_fraction": "Stable fraction",
    "stable_steps": "Stable steps",
    "ms_per_step": "Time per MD step",
    "seconds_per_epoch": "Time per epoch",
    "replica_steps_per_second": "Speed, all replicas",
    "energy_drift": "Energy drift",
    "oracle_force_mae": "Force MAE on the model's own frames",
    "oracle_energy_mae": "Energy MAE on the model's own frames",
    "floor_wf": "Floor of Wright's factor",
    "floor_jsd": "Floor of JSD",
    "floor_jsd_raw": "Floor of JSD as published",
    "floor_ev_root": "Floor of root EV",
    "floor_fv": "Floor of FV",
    "reference_contiguous": "Reference contiguous in time",
    "steps": "Steps",
    "epochs": "Epochs",
    "seconds": "Training time",
    "parameters": "Trainable parameters",
}
"""Names of metrics as readers see them, in figures and tables."""

TEXT_GROUPS = ("accuracy", "structure", "dynamics")
COUNTS = ("steps", "stable_steps", "epochs", "parameters")
NOT_RUN, NOT_PUBLISHED, UNSTABLE = "not run", "–", "†"
PAPER, OURS = "paper", "ours"


class Column(NamedTuple):
    """One quantity of a leaderboard: where ours stands in the records, the paper's in its tables."""

    group: str
    """``accuracy``, ``structure``, ``dynamics`` or ``cost``."""
    head: str
    """Head of the column, with the unit."""
    metric: str
    """Metric of the records."""
    digits: int
    """Digits behind the point."""
    factor: float = 1.0
    """Unit of the record in units of the head."""
    table: int | None = None
    """Table of the paper that holds it."""
    published: str = ""
    """Column of that table."""
    published_factor: float = 1.0
    """Unit of the paper's table in units of the head."""
    lower_is_better: bool = True


COLUMNS = (
    Column("accuracy", "Force MAE (meV/Å)", "force_mae", 1, 1.0, 1, "force_mae_mev_per_ang"),
    Column("accuracy", "Energy MAE (meV)", "energy_mae", 1, 1.0, 1, "energy_mae_mev"),
    Column("structure", "WF (%)", "wf", 2, 1.0, 2, "wf_percent"),
    Column("structure", "JSD as published (nats)", "jsd_raw", 3, 1.0, 2, "jsd"),
    Column("structure", "JSD (nats)", "jsd", 5),
    Column("dynamics", "Root EV (1e-5)", "ev_root", 2, 1e5, 3, "ev_gmean_1e-5"),
    Column("dynamics", "FV (dimensionless)", "fv", 3, 1.0, 3, "fv_gmean"),
    Column("dynamics", "Stable fraction (dimensionless)", "stable_fraction", 2, lower_is_better=False),
    Column("cost", "Training (s/epoch)", "seconds_per_epoch", 2, 1.0, 4, "train_min_per_epoch", 60.0),
    Column("cost", "MD (ms/step)", "ms_per_step", 1, 1.0, 4, "inference_min_per_1000_steps", 60.0),
)
"""Columns of the leaderboard. Inference in the paper is in minutes per 1000 steps: one is 60 ms/step."""

SHADES = {
    "accuracy": ("#f2f9ee", "#1b6b3a"),
    "structure": ("#eef4fb", "#1f4e8c"),
    "dynamics": ("#f6f1fa", "#5b2f86"),
    "cost": ("#fbf5ea", "#8a4b08"),
}
"""Colours of the worst and the best value in each group of columns."""


def model_title(name: str) -> str:
    """Name of a model as readers see it: its card's title, or the name itself where there is no card."""
    return cards.model(name).title if name in cards.models() else name


def dataset_title(name: str) -> str:
    """Name of a dataset as readers see it: its card's title up to a comma, or the name itself."""
    return cards.dataset(name).title.partition(",")[0] if name in cards.datasets() else name


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that a leaderboard shows: trainings, and rollouts with the corrected protocol.

    Rows of the reference itself are left out.
    """
    return frame[frame.kind.isin(["training", "rollout", "failure"]) & (frame.model != "reference")]


def leaderboard_values(
    frame: pd.DataFrame,
    dataset: str | None = None,
    *,
    groups: tuple[str, ...] = tuple(SHADES),
    metrics: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """Numbers of the leaderboard: a row for every dataset and model, the paper's value beside ours.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it; several seeds are averaged.
    dataset
        Only this dataset; all of them by default.
    groups
        Which of ``accuracy``, ``structure``, ``dynamics`` and ``cost`` to show.
    metrics
        Only these metrics of the groups; all of them by default.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns (head with unit, ``"paper"`` or ``"ours"``);
    missing values are NaN. A quantity that neither the paper nor we have for any row has no column.

    Raises
    ------
    ValueError
        If the frame has no run, or none of `dataset`.
    """
    rows = main_rows(frame)
    rows = rows if dataset is None else rows[rows.dataset == dataset]
    if rows.empty:
        raise ValueError(f"the records hold no run of {dataset or 'any dataset'}; run the campaign first")
    index = _index(rows)
    values = {}
    for column in COLUMNS:
        if column.group in groups and (metrics is None or column.metric in metrics):
            values[column.head, PAPER] = _published(column, index)
            values[column.head, OURS] = _ours(column, rows, index)
    return pd.DataFrame(values, index=index).dropna(axis="columns", how="all")


def leaderboard(frame: pd.DataFrame, dataset: str | None = None, **selection):
    """The leaderboard as a styled table; arguments as those of `leaderboard_values`.

    Better values are darker, within one dataset and column. ``not run`` stands for a cell without a record,
    a dash for a value that the paper does not give, a dagger behind a model for a run that broke the
    stability rule or failed.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    values = leaderboard_values(frame, dataset, **selection)
    marks = _marked(main_rows(frame))
    shown = values.reset_index()
    shown["model"] = [_model_cell(d, m, marks) for d, m in values.index]
    shown["dataset"] = [dataset_title(d) for d, _ in values.index]
    shown = shown.set_index(["dataset", "model"])
    if dataset is not None:
        shown = shown.droplevel("dataset")
    datasets = values.index.get_level_values("dataset")
    css = pd.DataFrame("", index=range(len(values)), columns=values.columns)
    for head, source in values.columns:
        for name in datasets.unique():
            here = np.flatnonzero(datasets == name)
            css.iloc[here, css.columns.get_loc((head, source))] = _shading(
                values.iloc[here][head, source], head
            )
    css.index = shown.index
    styler = shown.style.apply(lambda _: css, axis=None)
    styler = styler.format(_formats(values))
    chosen = [name for names in selection.values() for name in names]
    styler = _finish(styler, "-".join(["leaderboard", dataset or "all", *chosen]))
    return styler.set_table_styles([{"selector": "td", "props": "white-space: nowrap"}], overwrite=False)


def text_leaderboard(frame: pd.DataFrame, *, groups: tuple[str, ...] = TEXT_GROUPS) -> str:
    """The leaderboard for a terminal: ours only, a block for each dataset, the least force error first."""
    marks = _marked(main_rows(frame))
    blocks = []
    for dataset in sorted(main_rows(frame).dataset.unique()):
        values = leaderboard_values(frame, dataset, groups=groups)
        ours = values.loc[:, [key for key in values.columns if key[1] == OURS]]
        if not ours.empty and "Force MAE (meV/Å)" in ours.columns.get_level_values(0):
            ours = ours.sort_values(("Force MAE (meV/Å)", OURS))
        formats = _formats(values)
        cells = pd.DataFrame(
            {
                key[0].replace(" (dimensionless)", ""): [formats[key](v) for v in ours[key]]
                for key in ours.columns
            },
            index=[_model_cell(d, m, marks) for d, m in ours.index],
        )
        blocks.append(f"{dataset_title(dataset)}\n{cells.to_string()}")
    note = f"\n{UNSTABLE} a rollout broke the stability rule, or a run failed" if marks else ""
    return "\n\n".join(blocks) + note


def dataset(card, frames: dict[str, int] | None = None):
    """Table of a dataset: property, value and unit, and the number of frames of every split.

    Parameters
    ----------
    card
        Its `DatasetCard`.
    frames
        Number of frames of each split, for example ``{name: len(data.load(card.name, name)) for name in
        splits}``.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    oracles = {"gfn2": "GFN2-xTB", "emt": "EMT"}
    rows = [
        ("System", card.system, ""),
        ("Elements", ", ".join(chemical_symbols[z] for z in card.elements), ""),
        ("Temperature", f"{card.temperature:g}", "K"),
        ("MD timestep", f"{card.timestep:g}", "fs"),
        ("Reference at run time", oracles.get(card.oracle, card.oracle or "none"), ""),
        ("Licence", card.licence, ""),
    ]
    for split, number in (frames or {}).items():
        interval = card.time_ordered.get(split)
        order = f"every {interval:g} fs" if interval else "not ordered in time"
        rows.append((f"Split {split}, {order}", f"{number:,}", "frames"))
    table = pd.DataFrame(rows, columns=["Property", "Value", "Unit"]).set_index("Property")
    return _finish(table.style, f"dataset-{card.name}")


def record_table(record):
    """Metrics of one record: value, 95 % interval over replicas, unit and number of replicas.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    rows = [
        (METRIC_NAMES.get(m.name, m.name), _number(m.value), _interval(m), _unit(m), m.n or "")
        for m in record.metrics
    ]
    columns = ["Metric", "Value", "95 % interval", "Unit", "Replicas"]
    table = pd.DataFrame(rows, columns=columns).set_index("Metric")
    if not any(table["95 % interval"]):
        table = table.drop(columns=["95 % interval", "Replicas"])
    return _finish(table.style, f"record-{record.kind}-{record.dataset}-{record.model}-s{record.seed}")


def provenance(record) -> HTML:
    """A closed box "How this page was made": command, hardware, wall time, versions and commit.

    Returns
    -------
    HTML of a ``details`` element, which a notebook shows folded.
    """
    made = {key: escape(str(value)) for key, value in record.provenance.items()}
    rows = {
        "Command": f"<code>make campaign CAMPAIGN={escape(record.campaign)}</code>",
        "Parameters": _list(record.parameters),
        "Hardware": made.get("hardware"),
        "Device": f"{made.get('device', 'cpu')}, threads: {made.get('threads', 'not recorded')}",
        "Started": made.get("started"),
        "Wall time": f"{made['wall_time']} s" if "wall_time" in made else None,
        "Peak memory": f"{made['peak_memory']} MB" if "peak_memory" in made else None,
        "Versions": _list(record.provenance.get("versions", {})),
        "Commit": f"<code>{made['commit']}</code>" if "commit" in made else None,
    }
    left = "style='text-align: left'"
    body = "".join(
        f"<tr><th scope='row' {left}>{name}</th><td {left}>{text or 'not recorded'}</td></tr>"
        for name, text in rows.items()
    )
    summary = "<summary>How this page was made</summary>"
    return HTML(f"<details>{summary}<table class='dataframe'>{body}</table></details>")


def csv_link(frame: pd.DataFrame, name: str) -> HTML:
    """Link that saves a table as ``<name>.csv``; the data are in the page itself.

    A head of two rows becomes one, joined by a comma.

    Parameters
    ----------
    frame
        The numbers, or the Styler that shows them.
    name
        File name without ending.
    """
    table = flat_csv(getattr(frame, "data", frame))
    content = base64.b64encode(table.encode()).decode()
    address = f"data:text/csv;charset=utf-8;base64,{content}"
    name = escape(name)
    return HTML(f'<a style="color: #0b5394" download="{name}.csv" href="{address}">{name}.csv</a>')


def flat_csv(frame: pd.DataFrame) -> str:
    """A table as CSV text with one row of heads; the index is kept where it is named.

    Examples
    --------
    >>> frame = pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("WF (%)", "paper")]))
    >>> flat_csv(frame)
    '"WF (%), paper"\\n1.0\\n'
    """
    heads = [", ".join(map(str, head)) if isinstance(head, tuple) else head for head in frame.columns]
    return frame.set_axis(heads, axis=1).to_csv(index=any(frame.index.names))


def _index(rows):
    keys = rows[["dataset", "model"]].drop_duplicates()
    keys = keys.sort_values(["dataset", "model"], key=_place)
    return pd.MultiIndex.from_frame(keys)


def _place(names):
    """Models in the paper's order, unknown ones behind; datasets by name."""
    order = ["nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net"]
    if names.name == "dataset":
        return names
    return names.map(lambda name: (order.index(name) if name in order else len(order), name))


def _published(column, index):
    if column.table is None:
        return np.full(len(index), np.nan)
    table = paper.table(column.table).set_index(["dataset", "model"])[column.published]
    return table.reindex(index).to_numpy(float) * column.published_factor


def _ours(column, rows, index):
    rows = rows[rows.metric == column.metric]
    mean = rows.groupby(["dataset", "model"])["value"].mean()
    return mean.reindex(index).to_numpy(float) * column.factor


def _marked(rows):
    """Pairs (dataset, model) with an unstable or failed run."""
    bad = rows[rows.status.isin(["unstable", "failed"])]
    return set(zip(bad.dataset, bad.model, strict=True))


def _model_cell(dataset, model, marks):
    return f"{model_title(model)}\u00a0{UNSTABLE}" if (dataset, model) in marks else model_title(model)


def _shading(values, head):
    """CSS of a column of one dataset: the best value darkest; logarithmic where all are positive."""
    column = next(column for column in COLUMNS if column.head == head)
    scale = LinearSegmentedColormap.from_list(column.group, SHADES[column.group])
    return [_cell_css(scale(s)) if s >= 0 else "" for s in _score(values.to_numpy(float), column)]


def _cell_css(rgba):
    """Background and the text colour, black or white, that contrasts more with it."""
    red, green, blue = (((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    text = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"
    return f"background-color: {to_hex(rgba)}; color: {text}"


def _score(values, column):
    """Place between the worst (0) and the best (1) value; NaN where there is nothing to compare."""
    finite = np.isfinite(values)
    if finite.sum() < 2 or np.ptp(values[finite]) == 0:
        return np.full(len(values), np.nan)
    scaled = np.log(values) if (values[finite] > 0).all() else values
    low, high = scaled[finite].min(), scaled[finite].max()
    score = (scaled - low) / (high - low)
    return 1 - score if column.lower_is_better else score


def _formats(values):
    digits = {column.head: column.digits for column in COLUMNS}
    missing = {PAPER: NOT_PUBLISHED, OURS: NOT_RUN}
    return {key: _format(digits[key[0]], missing[key[1]]) for key in values.columns}


def _format(digits, missing):
    return lambda value: missing if pd.isna(value) else f"{value:,.{digits}f}"


def _finish(styler, identity):
    """Fixed ids: a page made twice is the same page. Class ``dataframe``: the table follows the theme."""
    styler.set_uuid(identity).hide(axis="index", names=True)
    cells = {"selector": "th, td", "props": "padding: 0.25em 0.6em; text-align: left; vertical-align: middle"}
    styler.set_table_styles([cells, {"selector": "th.col_heading", "props": "vertical-align: bottom"}])
    styler.set_table_attributes('class="dataframe"')
    return styler


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _interval(metric):
    return "" if metric.low is None or metric.high is None else f"{metric.low:.4g} to {metric.high:.4g}"


def _unit(metric):
    if metric.unit not in ("1", "", None):
        return metric.unit
    return "count" if metric.name in COUNTS else "dimensionless"


def _list(mapping):
    return ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in mapping.items())
