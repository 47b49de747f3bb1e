"""What did the paper find, and what did we? Records as tables, the published values beside ours.

A table is a pandas Styler that a notebook shows as it is, a text for the terminal, or a CSV behind a link.
In a table darker cells are better, as in the paper; a shaded cell sets its own text colour, so that it can
be read in the light and in the dark theme.
"""

from __future__ import annotations

import base64
from html import escape

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from IPython.display import HTML
from matplotlib.colors import LinearSegmentedColormap, to_hex

from egraff_utils.beside import (
    BOUND,
    COLUMNS,
    COUNTS,
    METRIC_NAMES,
    OURS,
    PAPER,
    Column,
    Layout,
    beside_values,
    budget,
    campaign_frames,
    campaign_name,
    columns_of,
    dataset_layout,
    dataset_title,
    layout_values,
    literature_values,
    model_title,
    paper_layout,
    paper_values,
    record_keys,
    short_title,
)

__all__ = ["Column", "beside_values", "budget", "literature_values", "paper_values"]

TEXT_GROUPS = ("accuracy", "structure", "dynamics")
NOT_RUN, NO_VALUE, FAILED, UNSTABLE = "not run", "–", "failed", "†"
FAILING = ("training", "failure")
TITLES = {"dataset": short_title, "trained_on": short_title, "model": model_title}

SHADES = {
    "accuracy": ("#f2f9ee", "#1b6b3a"),
    "structure": ("#eef4fb", "#1f4e8c"),
    "dynamics": ("#f6f1fa", "#5b2f86"),
    "cost": ("#fbf5ea", "#8a4b08"),
}
"""Colours of the worst and the best value in each group of columns."""


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that a leaderboard shows: trainings, and rollouts with the corrected protocol.

    Rows of the reference itself are left out.
    """
    return frame[frame.kind.isin(["training", "rollout", "failure"]) & (frame.model != "reference")]


def beside(frame: pd.DataFrame, metrics: tuple[str, ...], *, name: str | None = None, **options):
    """Some metrics as a styled table, the published value beside ours.

    Better values are darker, within one dataset and column. ``not run`` stands for a cell without a record,
    ``failed`` for one whose run failed, a dash for a value that is not published or does not exist, a dagger
    behind a value for a simulation in which a replica broke.

    Parameters
    ----------
    frame, metrics, options
        As those of `beside_values`.
    name
        Name of the table; made of the kind and the metrics by default.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML; `csv_link` saves its numbers.
    """
    kind = options.pop("kind", "rollout")
    frames = campaign_frames(frame, options.pop("beside", ()))
    layout = dataset_layout(frames, metrics, kind)
    numbers = layout_values(frames, layout, **options)
    return _styled(numbers, layout, frames, name or "-".join(["beside", kind, *metrics]))


def paper_table(frame: pd.DataFrame, number, *, beside: tuple[str, ...] = (), bounds: bool = False):
    """A table of the paper as a styled table, ours beside the published values; marks as in `beside`.

    In Tables 3 and 18 a smaller ± follows: the published standard deviation, half of our 95 % interval. In
    Table 17 rows are sources, and ours are further rows.

    Parameters
    ----------
    frame, beside, bounds
        As those of `beside_values`.
    number
        1 to 6, ``"7a"``, ``"7b"`` (no published values at hand), 17, 18 or 19.
    """
    name = f"table-{str(number).lower()}"
    if str(number) == "17":
        return _styled_literature(literature_values(frame, beside=beside), name)
    frames, layout = campaign_frames(frame, beside), paper_layout(number)
    numbers = layout_values(frames, layout, bounds=bounds, spread=layout.spread)
    return _styled(numbers, layout, frames, name)


def plain(values: pd.DataFrame, name: str, *, digits: int = 2, missing: str = NOT_RUN):
    """Any table of numbers as a styled table; datasets and models bear their titles.

    Parameters
    ----------
    values
        Numbers; its levels ``dataset`` and ``model`` are named so.
    name
        Name of the table.
    digits
        Digits behind the point, among the first four that count.
    missing
        What stands for NaN.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    styler = values.style.format(lambda value: missing if pd.isna(value) else _shown(value, digits))
    for axis, labels in (("index", values.index), ("columns", values.columns)):
        for level, title in enumerate(labels.names):
            styler.format_index(TITLES.get(title, str), axis=axis, level=level)
    return _finish(styler.hide(axis="columns", names=True), name)


def leaderboard_values(
    frame: pd.DataFrame,
    dataset: str | None = None,
    *,
    groups: tuple[str, ...] = tuple(SHADES),
    metrics: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """Numbers of the leaderboard: a row for every dataset and model that was run, the paper's value beside.

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
    run = pd.MultiIndex.from_frame(rows[["dataset", "model"]].drop_duplicates())
    chosen = [c.metric for c in COLUMNS if c.group in groups and (metrics is None or c.metric in metrics)]
    values = beside_values(frame, tuple(chosen))
    return values[values.index.isin(run)].dropna(axis="columns", how="all")


def leaderboard(frame: pd.DataFrame, dataset: str | None = None, **selection):
    """The leaderboard as a styled table, marked as by `beside`; arguments as those of `leaderboard_values`.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    values = leaderboard_values(frame, dataset, **selection)
    chosen = [name for names in selection.values() for name in names]
    name = "-".join(["leaderboard", dataset or "all", *chosen])
    styler = _styled(values, _leaderboard_layout(values), {OURS: frame}, name)
    return styler if dataset is None else styler.hide(axis="index", level="dataset")


def text_leaderboard(frame: pd.DataFrame, *, groups: tuple[str, ...] = TEXT_GROUPS) -> str:
    """The leaderboard for a terminal: ours only, a block for each dataset, the least force error first."""
    blocks = []
    for dataset in main_rows(frame).dataset.sort_values().unique():
        values = leaderboard_values(frame, dataset, groups=groups)
        ours = values.loc[:, [key for key in values.columns if key[1] == OURS]]
        if ("Force MAE (meV/Å)", OURS) in ours:
            ours = ours.sort_values(("Force MAE (meV/Å)", OURS))
        cells = _cells(ours, _leaderboard_layout(ours), {OURS: frame})
        cells.columns = [head.replace(" (dimensionless)", "") for head, _ in cells.columns]
        cells.index = [model_title(model) for _, model in cells.index]
        blocks.append(f"{dataset_title(dataset)}\n{cells.to_string()}")
    text = "\n\n".join(blocks)
    return text + (f"\n{UNSTABLE} a replica broke the stability rule" if UNSTABLE in text else "")


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


def runs(found: list, *, name: str = "runs"):
    """How many runs a page rests on and their wall time (h), by kind, hardware and device.

    Parameters
    ----------
    found
        Records, of any kinds.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    columns = ["kind", "hardware", "device", "wall_time"]
    made = pd.DataFrame([{**r.provenance, "kind": r.kind} for r in found], columns=columns)
    made["wall_time"] = made.wall_time.astype(float) / 3600
    total = made.groupby(columns[:3], dropna=False).wall_time.agg(["count", "sum"]).reset_index()
    heads = ["Kind", "Hardware", "Device", "Runs (count)", "Wall time (h)"]
    table = total.set_axis(heads, axis=1).set_index("Kind")
    return _finish(table.style.format({"Wall time (h)": "{:.2f}"}), name)


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
    table = flat_csv(getattr(frame, "numbers", getattr(frame, "data", frame)))
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


def _leaderboard_layout(values):
    metrics = {column.head: column.metric for column in COLUMNS}
    heads = values.columns.get_level_values(0).unique()
    rows = {(dataset,): ("rollout", dataset) for dataset in values.index.unique("dataset")}
    return Layout(tuple(metrics[head] for head in heads), rows)


def _styled(numbers, layout, frames, name):
    """Styler of the texts of numbers, with titles, marks and shades; ``csv_link`` finds the numbers in it."""
    numbers = numbers[[key for key in numbers if key[1] in frames or numbers[key].notna().any()]]
    columns = {column.head: column for column in columns_of(layout, frames)}
    texts = _cells(numbers, layout, frames)
    titles = [(head, _source_title(columns[head], source, frames)) for head, source in texts.columns]
    heads = pd.MultiIndex.from_tuples(titles) if titles else texts.columns
    css = _shades(numbers[texts.columns], columns, frames).set_axis(heads, axis=1)
    styler = texts.set_axis(heads, axis=1).style.apply(lambda _: css, axis=None).format(_small)
    for level, title in enumerate(texts.index.names):
        styler.format_index(TITLES.get(title, str), axis="index", level=level)
    styler.numbers = _named(numbers, campaign_name(frames[OURS]))
    return _ruled(_finish(styler, name), texts.index.droplevel("model"))


def _ruled(styler, groups):
    """Lines between groups of rows; no cell and no name of a row is broken."""
    starts = [row for row in range(1, len(groups)) if groups[row] != groups[row - 1]]
    rules = ", ".join(f".row{row}" for row in starts) or ".row0"
    styles = [
        {"selector": "td, th.row_heading", "props": "white-space: nowrap"},
        {"selector": "th.row_heading", "props": "vertical-align: top"},
        {"selector": rules, "props": "border-top: 1px solid #888"},
    ]
    return styler.set_table_styles(styles, overwrite=False)


def _shades(numbers, columns, frames):
    """CSS of every cell; values are compared within one group of rows and one column."""
    css = pd.DataFrame("", index=numbers.index, columns=numbers.columns)
    groups = numbers.index.droplevel("model")
    for place, (head, source) in enumerate(numbers.columns):
        for group in groups.unique() if source in (PAPER, *frames) else ():
            here = np.flatnonzero(groups == group)
            css.iloc[here, place] = _shading(numbers[head, source].iloc[here], columns[head])
    return css


def _named(numbers, campaign):
    """Numbers with the campaign's name for ours."""
    names = [(head, source.replace(OURS, campaign, source.split()[0] == OURS)) for head, source in numbers]
    return numbers.set_axis(pd.MultiIndex.from_tuples(names), axis=1) if names else numbers


def _source_title(column, source, frames):
    bound = "floor" if column.bound.startswith("floor") else "zero force"
    return {OURS: campaign_name(frames[OURS]), BOUND: bound}.get(source, source)


def _styled_literature(values, name):
    """Styler of Table 17; the best value of each dataset is darkest, whoever published it."""
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


def _cells(numbers, layout, frames):
    """Text of every cell: its number with spread and mark, or why there is none."""
    columns = {column.head: column for column in columns_of(layout, frames)}
    cells = {}
    for head, source in [key for key in numbers if key[1] in (PAPER, BOUND, *frames)]:
        keys = record_keys(columns[head], layout, numbers.index)
        marks = _marks(frames[source], keys) if source in frames else [(NO_VALUE, "")] * len(keys)
        rows = zip(numbers[head, source], _spread(numbers, head, source), marks, strict=True)
        cells[head, source] = [
            _cell(value, error, columns[head].digits, *mark) for value, error, mark in rows
        ]
    heads = pd.MultiIndex.from_tuples(cells) if cells else numbers.columns
    return pd.DataFrame(dict(enumerate(cells.values())), index=numbers.index).set_axis(heads, axis=1)


def _marks(frame, keys):
    """For every (kind, dataset, model) what stands for a missing value, and a dagger if a replica broke."""
    found = frame.groupby(["kind", "dataset", "model"])["status"].agg(set).to_dict()
    failed = {key[1:] for key, status in found.items() if key[0] in FAILING and "failed" in status}
    marks = []
    for key in keys:
        status = found.get(key, set())
        dagger = f"\u00a0{UNSTABLE}" if "unstable" in status else ""
        missing = FAILED if "failed" in status or key[1:] in failed else NOT_RUN
        marks.append((NO_VALUE + dagger if status - {"failed"} else missing, dagger))
    return marks


def _spread(numbers, head, source):
    """Published standard deviation, or half of the interval; NaN where the frame has neither."""
    if (head, f"{source} std") in numbers:
        return numbers[head, f"{source} std"]
    low, high = (numbers.get((head, f"{source} {end}"), np.nan) for end in ("low", "high"))
    return (high - low) / 2 + pd.Series(0.0, index=numbers.index)


def _cell(value, spread, digits, missing, dagger):
    if pd.isna(value):
        return missing
    text = _shown(value, digits) + dagger
    return text if pd.isna(spread) else f"{text} ± {_shown(spread, digits)}"


def _small(text):
    value, sign, spread = text.partition(" ± ")
    return f"{value} <small>± {spread}</small>" if sign else value


def _shown(value, digits):
    """Number with at most so many digits behind the point, and no more than four that count before them.

    Examples
    --------
    >>> _shown(0.96, 3), _shown(24.55, 3), _shown(1130600.0, 3), _shown(0.00012, 5)
    ('0.960', '24.55', '1,130,600', '0.00012')
    """
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, min(digits, 4 - whole)) if whole else digits}f}"


def _shading(values, column):
    """CSS of a column within one group: the best value darkest; logarithmic where all are positive."""
    scale = LinearSegmentedColormap.from_list(column.group, SHADES[column.group])
    return [_cell_css(scale(s)) if s >= 0 else "" for s in _score(np.asarray(values, float), column)]


def _cell_css(rgba):
    """Background and the text colour, black or white, that contrasts more with it."""
    red, green, blue = (((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    text = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"
    return f"background-color: {to_hex(rgba)}; color: {text}"


def _score(values, column):
    """Place between the worst (0) and the best (1) value; NaN where there is nothing to compare."""
    finite = np.isfinite(values)
    if finite.sum() < 2 or np.ptp(values[finite]) == 0 or column.lower_is_better is None:
        return np.full(len(values), np.nan)
    scaled = np.log(values) if (values[finite] > 0).all() else values
    low, high = scaled[finite].min(), scaled[finite].max()
    score = (scaled - low) / (high - low)
    return 1 - score if column.lower_is_better else score


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
