"""What did the paper find, and what did we? Tables of records show published values next to ours.

A table is a pandas Styler that a notebook displays, a text for the terminal, or a CSV file behind a link. As
in the paper, darker cells are better. A shaded cell sets its own text colour, so that it can be read in the
light and in the dark theme. A line below the table explains the marks.
"""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from functools import lru_cache
from html import escape

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from IPython.display import HTML, display
from matplotlib.colors import LinearSegmentedColormap, to_hex

from egraff_utils import cards, paths, quantities, records
from egraff_utils.config import Kind
from egraff_utils.quantities import COLUMNS, METRIC_NAMES
from egraff_utils.report import windows
from egraff_utils.report.beside import (
    BOUND,
    COMPARED,
    OURS,
    PAPER,
    PERFECT,
    Layout,
    beside_values,
    bound_of,
    budget,
    campaign_frames,
    campaign_name,
    columns_of,
    dataset_layout,
    dataset_place,
    dataset_title,
    floor_of,
    is_alike,
    layout_values,
    literature_values,
    model_title,
    paper_layout,
    paper_values,
    record_keys,
    short_title,
)
from egraff_utils.report.values import say

__all__ = ["METRIC_NAMES", "beside_values", "budget", "literature_values", "paper_values", "say"]

TEXT_GROUPS = ("accuracy", "structure", "dynamics")
NOT_RUN, NO_VALUE, FAILED, UNSTABLE, ALIKE = "not run", "–", "failed", "†", "≈"
KNOWN_PERFECT = "perfect "
FAILING = ("training", "failure")
FEW = 4
"""Largest number of rows of another campaign that are shown below a table instead of in a column."""

LEGEND = {
    r"\n\d": "small: 95 % interval",
    " ± ": "±: published standard deviation",
    ALIKE: f"{ALIKE} saturated: in the 95 % range of an independent trajectory (WF, JSD: or below)",
    f"\n{KNOWN_PERFECT}": "perfect: the true force field under this protocol",
    r"\^": "weights of one group that share a letter cannot be told apart",
    UNSTABLE: f"{UNSTABLE} a replica broke, the value is that of the part before",
    FAILED: f"{FAILED}: the run gave no value",
    NOT_RUN: f"{NOT_RUN}: no record",
    f"(^|\x00){NO_VALUE}": f"{NO_VALUE} no such value",
}
"""Pattern of a mark in the cells -> meaning of the mark."""

TITLES = {"dataset": short_title, "trained_on": short_title, "model": model_title}

SHADES = {
    "accuracy": ("#f2f9ee", "#1b6b3a"),
    "structure": ("#eef4fb", "#1f4e8c"),
    "dynamics": ("#f6f1fa", "#5b2f86"),
    "cost": ("#fbf5ea", "#8a4b08"),
}
"""Colours of the worst and the best value in each group of columns."""


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that a leaderboard shows, those of trainings and of rollouts with the corrected protocol.

    Rows of the reference are left out.
    """
    return frame[frame.kind.isin(["training", "rollout", "failure"]) & (frame.model != "reference")]


def beside(frame: pd.DataFrame, metrics: tuple[str, ...], *, name: str | None = None, **options):
    """Some metrics as a styled table, with the published value, ours with its interval, and the saturation.

    Better values are darker, within one dataset and column. ``not run`` marks a cell without a record,
    ``failed`` a run that gave no value, a dash a value that is not published or does not exist, a dagger
    after a value a simulation in which a replica broke, and ≈ a value in the range of an independent
    trajectory of the reference. Weights that cannot be distinguished from each other share a letter. Below
    the saturation level stands the perfect one, where it is known. Values of another campaign are shown below
    the table if they are in only a few rows.

    Parameters
    ----------
    frame, metrics, options
        As in `beside_values`; bounds and spread are always included.
    name
        Name of the table; by default it is made from the kind and the metrics.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML; `csv_link` saves its numbers.
    """
    kind = options.pop("kind", "rollout")
    frames = campaign_frames(frame, options.pop("beside", ()))
    layout = dataset_layout(frames, metrics, kind)
    numbers = layout_values(frames, layout, bounds=True, spread=True)
    return _styled(numbers, layout, frames, name or "-".join(["beside", kind, *metrics]))


def paper_table(frame: pd.DataFrame, number, *, beside: tuple[str, ...] = (), bounds: bool = True):
    """A table of the paper, with our values next to the published ones; marks as in `beside`.

    In Tables 3 and 18 a smaller ± after the published value gives its standard deviation. In Table 17 rows
    are sources, and our values are further rows.

    Parameters
    ----------
    frame, beside, bounds
        As in `beside_values`.
    number
        1 to 6, ``"7a"``, ``"7b"`` (without published values), 17, 18 or 19.
    """
    name = f"table-{str(number).lower()}"
    if str(number) == "17":
        return _styled_literature(literature_values(frame, beside=beside), name)
    frames, layout = campaign_frames(frame, beside), paper_layout(number)
    numbers = layout_values(frames, layout, bounds=bounds, spread=True)
    return _styled(numbers, layout, frames, name)


def plain(values: pd.DataFrame, name: str, *, digits: int = 2, missing: str = NOT_RUN):
    """Any table of numbers as a styled table, in which datasets and models have their titles.

    Parameters
    ----------
    values
        DataFrame of numbers or texts; levels of datasets and models are named ``dataset`` and ``model``.
    name
        Name of the table.
    digits
        Number of decimal places, within at most four significant digits.
    missing
        Text that is shown for NaN.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """

    def text(value):
        return value if isinstance(value, str) else missing if pd.isna(value) else _shown(value, digits)

    styler = _titled(values.style.format(text))
    return _finish(styler.hide(axis="columns", names=True), name)


def bounds(frame: pd.DataFrame):
    """Ceiling and saturation levels of every dataset, with their 95 % ranges.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    names = pd.unique(frame.dataset[(frame.model == "reference") | (frame.kind == "rollout")])
    layout = Layout((), {(name,): ("rollout", name) for name in sorted(names, key=dataset_place)})
    index = pd.MultiIndex.from_tuples([(*key, "") for key in layout.rows], names=["dataset", "model"])
    cells, numbers = {}, {}
    for column in [c for c in COLUMNS if c.saturation or c.ceiling]:
        found = bound_of(column, layout, index, {OURS: frame}).droplevel("model")
        head = column.head if column.saturation else f"Zero force, MAE ({column.head_unit})"
        numbers |= {f"{head} {end}": values for end, values in found.items() if values.notna().any()}
        cells[head] = [
            _cell(value, column.digits, NO_VALUE, end=_range(low, high, column.digits))
            for value, low, high in found.to_numpy()
        ]
    texts = pd.DataFrame(cells, index=pd.Index(layout.rows).get_level_values(0) if names.size else [])
    styler = texts.style.format(_marked_up).format_index(short_title)
    styler.set_caption(_legend(texts))
    styler.numbers = pd.DataFrame(numbers, index=texts.index).rename_axis("dataset")
    return _finish(styler, "bounds")


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
        If the frame has no run, or none of `dataset`.
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
    """The leaderboard as a styled table; marks as in `beside`, arguments as in `leaderboard_values`.

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
    return styler if dataset is None else styler.hide(axis="index", level="dataset")


def text_leaderboard(frame: pd.DataFrame, *, groups: tuple[str, ...] = TEXT_GROUPS) -> str:
    """The leaderboard as plain text, with our values only, one block per dataset, sorted by force error."""
    blocks = []
    for dataset in main_rows(frame).dataset.sort_values().unique():
        values = leaderboard_values(frame, dataset, groups=groups)
        ours = values.loc[:, [key for key in values.columns if key[1] == OURS]]
        if (key := (quantities.of("force_mae").head, OURS)) in ours:
            ours = ours.sort_values(key)
        cells = _cells(ours, _leaderboard_layout(ours), {OURS: frame}, letters=False)
        cells.columns = [head.replace(" (dimensionless)", "") for head, _ in cells.columns]
        cells.index = [model_title(model) for _, model in cells.index]
        blocks.append(f"{dataset_title(dataset)}\n{cells.to_string()}")
    text = "\n\n".join(blocks)
    return "\n".join([text, *(LEGEND[mark] for mark in (ALIKE, UNSTABLE) if mark in text)])


def badges(frame: pd.DataFrame) -> dict:
    """Verdict of the gate on every trained model, ``pass`` or the checks that failed, by (dataset, model)."""
    rows = frame[(frame.kind == "gate") & (frame.metric == "passed") & frame.path.notna()]
    found = {(row.dataset, row.model): _record(paths.results() / row.path) for row in rows.itertuples()}
    return {key: "pass" if record["passed"] else f"fails\n{record.message}" for key, record in found.items()}


def survivors(frame: pd.DataFrame) -> dict:
    """Number of replicas that were stable to their end, as ``4 of 5``, by (dataset, model)."""
    rows = frame[(frame.kind == "rollout") & (frame.model != "reference") & frame.path.notna()]
    counts = {}
    for (dataset, model), found in rows.groupby(["dataset", "model"]):
        each = [stable_replicas(_record(paths.results() / path)) for path in found.path.unique()]
        counts[dataset, model] = "{} of {}".format(*np.sum(each, axis=0))
    return counts


def stable_replicas(record) -> tuple[int, int]:
    """Number of replicas of a rollout that were stable to its end, and number of all replicas."""
    parts = dict.fromkeys(str(name) for name in record.curves.get("composition", ()))
    if parts:
        files = [record.key.of(shift=part).path for part in parts]
        return tuple(np.sum([stable_replicas(_record(file)) for file in files if file.is_file()], axis=0))
    stable = np.asarray(record.curves.get("stable_step", ()))
    return int((stable >= (record["steps"] or 0)).sum()), len(stable)


@lru_cache(maxsize=1000)
def _record(file):
    return records.load(file)


def dataset(card, frames: dict[str, int] | None = None):
    """Table of a dataset with property, value and unit, and the number of frames of every split.

    Parameters
    ----------
    card
        `DatasetCard` of the dataset.
    frames
        Number of frames of each split, for example ``{name: len(data.load(card.name, name)) for name in
        splits}``.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    rows = [
        ("System", card.system, ""),
        ("Elements", ", ".join(chemical_symbols[z] for z in card.elements), ""),
        ("Temperature", f"{card.temperature:g}", "K"),
        ("MD timestep", f"{card.timestep:g}", "fs"),
        ("Reference at run time", cards.oracle_title(card.oracle) or "none", ""),
        ("Licence", card.licence, ""),
    ]
    for split, number in (frames or {}).items():
        interval = card.time_ordered.get(split)
        order = f"every {interval:g} fs" if interval else "not ordered in time"
        rows.append((f"Split {split}, {order}", f"{number:,}", "frames"))
    table = pd.DataFrame(rows, columns=["Property", "Value", "Unit"]).set_index("Property")
    return _finish(table.style, f"dataset-{card.name}")


def record_table(record):
    """Metrics of one record, with value, 95 % interval, unit and number n of values (replicas, frames) used.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    rows = [
        (quantities.of(m.name).name, _number(m.value), records.interval_text(m), _unit(m), m.n or "")
        for m in record.metrics
    ]
    columns = ["Metric", "Value", "95 % interval", "Unit", "n"]
    table = pd.DataFrame(rows, columns=columns).set_index("Metric")
    if not any(table["95 % interval"]):
        table = table.drop(columns=["95 % interval", "n"])
    return _finish(table.style, f"record-{record.kind}-{record.dataset}-{record.model}-s{record.seed}")


def provenance(record) -> HTML:
    """A folded box "How this page was made" with command, hardware, wall time, versions and commit.

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


def runs(found: list, *, name: str = "runs"):
    """Number and wall time (h) of the runs that a page uses, by kind (without suffix), hardware and device.

    Parameters
    ----------
    found
        Records of any kind.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    columns = ["kind", "hardware", "device", "wall_time"]
    made = [{**r.provenance, "kind": Kind.parse(r.kind).act} for r in found if r.provenance]
    made = pd.DataFrame(made, columns=columns)
    made["wall_time"] = made.wall_time.astype(float) / 3600
    total = made.groupby(columns[:3], dropna=False).wall_time.agg(["count", "sum"]).reset_index()
    heads = ["Kind", "Hardware", "Device", "Runs (count)", "Wall time (h)"]
    table = total.set_axis(heads, axis=1).set_index("Kind")
    return _finish(table.style.format({"Wall time (h)": "{:.2f}"}), name)


def show(table, name: str, *, of: str = "", **formats) -> None:
    """Display a table with the link that saves it.

    Parameters
    ----------
    table
        Styler, or a DataFrame, whose numbers are shown to two decimal places and whose levels of datasets and
        models, named ``dataset`` and ``model``, with their titles.
    name
        Name of the table and, without ending, of the file.
    of
        Campaign whose name ends that of the file.
    formats
        Arguments of ``Styler.format`` for a DataFrame, where they are not ``precision=2, na_rep="–"``.
    """
    if isinstance(table, pd.DataFrame):
        styler = table.style.format(**{"precision": 2, "na_rep": NO_VALUE} | formats).set_uuid(name)
        table = _titled(styler).set_table_attributes('class="dataframe"')
    display(table, csv_link(table, f"{name}-{of}" if of else name))


def csv_link(frame: pd.DataFrame, name: str) -> HTML:
    """Link that saves a table as ``<name>.csv``, with the data in the page itself.

    The two rows of a head are joined to one by a comma.

    Parameters
    ----------
    frame
        DataFrame of the values, or the Styler that shows them.
    name
        File name without ending.
    """
    table = flat_csv(getattr(frame, "numbers", getattr(frame, "data", frame)))
    content = base64.b64encode(table.encode()).decode()
    address = f"data:text/csv;charset=utf-8;base64,{content}"
    name = escape(name)
    return HTML(f'<a style="color: #0b5394" download="{name}.csv" href="{address}">{name}.csv</a>')


def flat_csv(frame: pd.DataFrame) -> str:
    """A table as CSV text with one row of heads; named levels of the index are kept.

    Examples
    --------
    >>> frame = pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("WF (%)", "paper")]))
    >>> flat_csv(frame)
    '"WF (%), paper"\\n1.0\\n'
    """
    heads = [", ".join(map(str, head)) if isinstance(head, tuple) else head for head in frame.columns]
    return frame.set_axis(heads, axis=1).to_csv(index=any(frame.index.names))


def _leaderboard_layout(values):
    metrics = {column.head: column.metric for column in COLUMNS}
    heads = values.columns.get_level_values(0).unique()
    rows = {(dataset,): ("rollout", dataset) for dataset in values.index.unique("dataset")}
    return Layout(tuple(metrics[head] for head in heads), rows)


def _styled(numbers, layout, frames, name, more=None):
    """Styler of values as texts, with titles, marks and shades; ``csv_link`` finds the values in it.

    `more` holds further columns of texts by (dataset, model).
    """
    numbers = numbers[[k for k in numbers if k[1] in (OURS, *frames) or numbers[k].notna().any()]]
    filled = {source: _filled(numbers, source) for source in frames}
    few = [source for source in frames if source != OURS and len(filled[source]) <= FEW]
    columns = {column.head: column for column in columns_of(layout, frames)}
    every = _cells(numbers, layout, frames)
    texts = every[[key for key in every if key[1] not in few]]
    titles = [(head, _source_title(columns[head], source, frames)) for head, source in texts.columns]
    css = _shades(numbers[texts.columns], columns, frames)
    for head, found in (more or {}).items():
        if found:
            titles.append((head, campaign_name(frames[OURS])))
            texts[titles[-1]] = [found.get(key[-2:], NOT_RUN) for key in texts.index]
            css[titles[-1]] = ""
    heads = pd.MultiIndex.from_tuples(titles) if titles else texts.columns
    css = css.set_axis(heads, axis=1)
    styler = texts.set_axis(heads, axis=1).style.apply(lambda _: css, axis=None).format(_marked_up)
    for level, title in enumerate(texts.index.names):
        styler.format_index(TITLES.get(title, str), axis="index", level=level)
    notes = [_note(every.loc[filled[s]], s) for s in few if len(filled[s])]
    if any(quantities.of(metric).average for metric in layout.metrics):
        notes.append(windows.sentence(frames[OURS], set(layout.rows.values())))
    styler.set_caption("<br>".join(filter(None, [_legend(texts), *notes])))
    styler.numbers = _named(numbers, campaign_name(frames[OURS]))
    return _ruled(_finish(styler, name), texts.index.droplevel("model"))


def _filled(numbers, source):
    """Rows in which a source has a value."""
    found = numbers[[key for key in numbers if key[1] == source]].notna().any(axis=1)
    return numbers.index[found]


def _note(rows, source):
    """Sentence with the values of a source that has only a few rows."""
    words = []
    for (*labels, model), row in rows.iterrows():
        where = ", ".join(TITLES.get(n, str)(v) for n, v in zip(rows.index.names, labels, strict=False))
        cells = [f"{head} {_marked_up(text)}" for (head, name), text in row.items() if name == source]
        words.append(f"{model_title(model)} on {where}: {', '.join(cells)}".replace("<br>", " "))
    return f"Campaign {source}: {'; '.join(words)}."


def _legend(texts):
    """Explanation of the marks that occur in some texts."""
    every = "\x00".join(map(str, texts.to_numpy().ravel()))
    found = "; ".join(meaning for mark, meaning in LEGEND.items() if re.search(mark, every))
    return found[:1].upper() + found[1:] + "." if found else ""


def _ruled(styler, groups):
    """Add lines between groups of rows, and prevent line breaks in cells and names of rows."""
    starts = [row for row in range(1, len(groups)) if groups[row] != groups[row - 1]]
    rules = ", ".join(f".row{row}" for row in starts) or ".row0"
    styles = [
        {"selector": "td, th.row_heading", "props": "white-space: nowrap"},
        {"selector": "th.row_heading", "props": "vertical-align: top"},
        {"selector": rules, "props": "border-top: 1px solid #888"},
    ]
    return styler.set_table_styles(styles, overwrite=False)


def _shades(numbers, columns, frames):
    """CSS of every cell, by comparison of the values within one group of rows and one column."""
    css = pd.DataFrame("", index=numbers.index, columns=numbers.columns)
    groups = numbers.index.droplevel("model")
    for place, (head, source) in enumerate(numbers.columns):
        for group in groups.unique() if source in (PAPER, *frames) else ():
            here = np.flatnonzero(groups == group)
            css.iloc[here, place] = _shading(numbers[head, source].iloc[here], columns[head])
    return css


def _named(numbers, campaign):
    """Values whose source ``ours`` is renamed to the campaign."""
    names = [(head, source.replace(OURS, campaign, source.split()[0] == OURS)) for head, source in numbers]
    return numbers.set_axis(pd.MultiIndex.from_tuples(names), axis=1) if names else numbers


def _source_title(column, source, frames):
    bound = "saturation" if column.saturation else "zero force"
    return {OURS: campaign_name(frames[OURS]), BOUND: bound}.get(source, source)


def _styled_literature(values, name):
    """Styler of Table 17; the best value of each dataset is darkest, whatever its source."""
    css = pd.DataFrame("", index=values.index, columns=values.columns)
    columns = {column.head: column for column in COLUMNS}
    for (quantity, _), block in values.groupby(level=["quantity", "dataset"]):
        shades = _shading(block.to_numpy(float).ravel(), columns[quantity])
        css.loc[block.index] = np.reshape(shades, block.shape)
    texts = values.map(lambda value: NO_VALUE if pd.isna(value) else _shown(value, 2))
    styler = texts.style.apply(lambda _: css, axis=None).format_index(model_title, axis="columns")
    styler.numbers = values
    styler.format_index(lambda head: head.replace(" (", "<br>("), axis="index", level=0)
    styler.format_index(short_title, axis="index", level=1)
    return _ruled(_finish(styler, name), texts.index.droplevel("source"))


def _cells(numbers, layout, frames, *, letters=True):
    """Text of every cell: its number with marks and its interval in a second line, or why it has no value."""
    columns = {column.head: column for column in columns_of(layout, frames)}
    cells = {}
    for head, source in [key for key in numbers if key[1] in (PAPER, BOUND, *frames)]:
        column, values = columns[head], numbers[head, source]
        signs, marks = [""] * len(values), [(NO_VALUE, "")] * len(values)
        if source in frames:
            keys = record_keys(column, layout, numbers.index)
            marks = _marks(frames[source], keys)
            signs = _signs(column, keys, values, frames[source], frames[OURS], letters=letters)
        rows = zip(values, marks, signs, _spread(numbers, head, source, column.digits), strict=True)
        texts = [_cell(value, column.digits, *mark, sign, end) for value, mark, sign, end in rows]
        if source == BOUND and (known := numbers.get((head, PERFECT))) is not None:
            ends = [f"\n{KNOWN_PERFECT}{_shown(p, column.digits)}" if pd.notna(p) else "" for p in known]
            texts = [text + end for text, end in zip(texts, ends, strict=True)]
        cells[head, source] = _once(texts, numbers.index) if source == BOUND else texts
    heads = pd.MultiIndex.from_tuples(cells) if cells else numbers.columns
    return pd.DataFrame(dict(enumerate(cells.values())), index=numbers.index).set_axis(heads, axis=1)


def _once(texts, index):
    """Only the first text of every group of rows, as a bound is the same for all models."""
    groups = index.droplevel("model")
    first = [not row or groups[row] != groups[row - 1] for row in range(len(groups))]
    return [text if here else "" for text, here in zip(texts, first, strict=True)]


def _signs(column, keys, values, frame, other, *, letters):
    """Letters of significance, and ≈ for values in the range of the saturation level, for every row."""
    if not (column.saturation or column.metric in COMPARED):
        return [""] * len(keys)
    floors = {key[:2]: _floor(frame, other, *key[:2], column) for key in keys}
    alike = [
        is_alike(column.metric, value, *floors[key[:2]]) for key, value in zip(keys, values, strict=True)
    ]
    groups = {place: _letters(frame, *place, column.metric) for place in (floors if letters else ())}
    found = [groups.get(key[:2], {}).get(key[2], "") for key in keys]
    return [
        (f" ^{letter}" if letter else "") + (f"\u00a0{ALIKE}" if a else "")
        for letter, a in zip(found, alike, strict=True)
    ]


def _floor(frame, other, kind, dataset, column):
    """Range of the saturation level in the unit of the head, of the same campaign or else of another."""
    each = [np.array(floor_of(f, kind, dataset, column.metric)[1:]) * column.factor for f in (frame, other)]
    return each[0] if np.isfinite(each[0]).all() else each[1]


def _letters(frame, kind, dataset, metric):
    """Letters of significance of the models on one dataset; none for a single model."""
    here = (frame.kind == kind) & (frame.dataset == dataset) & (frame.model != "reference")
    rows = frame[here & frame.path.notna() & (frame.metric == metric)]
    if rows.model.nunique() < 2:
        return {}
    return _found_letters(tuple(paths.results() / path for path in rows.path.unique()), metric)


@lru_cache(maxsize=1000)
def _found_letters(files, metric):
    from egraff_utils.report import significance

    return significance.letters([_record(file) for file in files], metric)


def _marks(frame, keys):
    """By (kind, dataset, model), the text for a missing value, and a dagger if a replica broke."""
    found = frame.groupby(["kind", "dataset", "model"])["status"].agg(set).to_dict()
    failed = {key[1:] for key, status in found.items() if key[0] in FAILING and "failed" in status}
    marks = []
    for key in keys:
        status = found.get(key, set())
        dagger = f"\u00a0{UNSTABLE}" if "unstable" in status else ""
        missing = NOT_RUN if not status else NO_VALUE if status == {"complete"} else FAILED + dagger
        marks.append((FAILED if key[1:] in failed else missing, dagger))
    return marks


def _spread(numbers, head, source, digits):
    """Text of the published standard deviation, or of the interval in a second line; empty without one."""
    found = [numbers.get((head, f"{source} {end}")) for end in ("std", "low", "high")]
    std, low, high = (pd.Series(np.nan, numbers.index) if column is None else column for column in found)
    texts = [f" ± {_shown(value, digits)}" if pd.notna(value) else "" for value in std]
    return [text + _range(*ends, digits) for text, *ends in zip(texts, low, high, strict=True)]


def _range(low, high, digits):
    """Second line of a cell, its interval; empty if the interval has no width."""
    return f"\n{_shown(low, digits)} to {_shown(high, digits)}" if low < high else ""


def _cell(value, digits, missing, dagger="", sign="", end=""):
    return missing if pd.isna(value) else _shown(value, digits) + sign + dagger + end


def _marked_up(text):
    """HTML of a cell, with superscript letters and in small print what follows ± and the second line."""
    value, _, below = text.partition("\n")
    value = re.sub(r" \^(\w+)", r"<sup>\1</sup>", value)
    value = re.sub(r" (± .*)", r" <small>\1</small>", value)
    below = below.replace("\n", "<br>")
    return f"{value}<br><small>{below}</small>" if below else value


def _shown(value, digits):
    """Text of a number with at most ``digits`` decimal places, and two to four significant digits.

    Examples
    --------
    >>> _shown(0.96, 3), _shown(24.55, 3), _shown(1130600.0, 3), _shown(0.00091, 3), _shown(0.0, 2)
    ('0.960', '24.55', '1,130,600', '0.00091', '0.00')
    """
    size = int(np.floor(np.log10(abs(value)))) if value else 0
    digits = max(digits, min(1 - size, 6)) if size < 0 else max(0, min(digits, 3 - size))
    return f"{value:,.{digits}f}"


def _shading(values, column):
    """CSS of a column within one group, darkest for the best value; logarithmic if all are positive."""
    scale = LinearSegmentedColormap.from_list(column.group, SHADES[column.group])
    return [_cell_css(scale(s)) if s >= 0 else "" for s in _score(np.asarray(values, float), column)]


def _cell_css(rgba):
    """CSS of a background, with text in black or white, whichever has the higher contrast."""
    red, green, blue = (((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    text = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"
    return f"background-color: {to_hex(rgba)}; color: {text}"


def _score(values, column):
    """Position between the worst (0) and the best (1) value; NaN if there is nothing to compare."""
    finite = np.isfinite(values)
    if finite.sum() < 2 or np.ptp(values[finite]) == 0 or column.lower_is_better is None:
        return np.full(len(values), np.nan)
    scaled = np.log(values) if (values[finite] > 0).all() else values
    low, high = scaled[finite].min(), scaled[finite].max()
    score = (scaled - low) / (high - low)
    return 1 - score if column.lower_is_better else score


def _titled(styler):
    """Show datasets and models, whose levels are named so, by their titles."""
    for axis in ("index", "columns"):
        for level, title in enumerate(getattr(styler, axis).names):
            styler.format_index(TITLES.get(title, str), axis=axis, level=level)
    return styler


def _finish(styler, identity):
    """Set fixed ids, so that pages are reproducible, and the class ``dataframe``, which follows the theme."""
    styler.set_uuid(identity).hide(axis="index", names=True)
    cells = {"selector": "th, td", "props": "padding: 0.25em 0.6em; text-align: left; vertical-align: middle"}
    below = (
        "caption-side: bottom; text-align: left; white-space: normal; font-size: small; padding-top: 0.4em"
    )
    heads = {"selector": "th.col_heading", "props": "vertical-align: bottom"}
    small = {"selector": "small", "props": "white-space: nowrap"}
    styler.set_table_styles([cells, heads, small, {"selector": "caption", "props": below}])
    styler.set_table_attributes('class="dataframe"')
    return styler


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _unit(metric):
    return replace(quantities.of(metric.name), unit=metric.unit or "1").unit_text


def _list(mapping):
    return ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in mapping.items())
