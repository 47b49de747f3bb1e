"""What did the paper find, and what did we? Tables of records show published values next to ours.

A table is a pandas Styler that a notebook displays, a text for the terminal, or a CSV file behind a link. As
in the paper, darker cells are better. A shaded cell sets its own text colour, so that it can be read in the
light and in the dark theme. A line below the table explains the marks.
"""

from __future__ import annotations

import base64
from html import escape
from numbers import Integral

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from IPython.display import HTML, display

from egraff_utils import cards, quantities, records
from egraff_utils.config import Kind
from egraff_utils.quantities import COLUMNS, METRIC_NAMES
from egraff_utils.report import windows
from egraff_utils.report.beside import (
    BOUND,
    OURS,
    Layout,
    beside_values,
    bound_of,
    campaign_frames,
    campaign_name,
    columns_of,
    dataset_layout,
    dataset_place,
    layout_values,
    literature_values,
    paper_layout,
    paper_values,
)
from egraff_utils.report.table_cells import (
    NO_VALUE,
    NOT_RUN,
    TITLES,
    cell_text,
    cell_texts,
    finish,
    legend,
    marked_up,
    number_text,
    range_text,
    ruled,
    shades,
    shading,
    titled,
)
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import say

__all__ = ["METRIC_NAMES", "beside_values", "literature_values", "paper_values", "say"]

FEW = 4
"""Largest number of rows of another campaign that are shown below a table instead of in a column."""


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


def paper_table(frame: pd.DataFrame, number, *, beside: tuple[str, ...] = ()):
    """A table of the paper, with our values next to the published ones; marks as in `beside`.

    In Tables 3 and 18 a smaller ± after the published value gives its standard deviation. In Table 17 rows
    are sources, and our values are further rows.

    Parameters
    ----------
    frame, beside
        As in `beside_values`.
    number
        1 to 6, ``"7a"``, ``"7b"`` (without published values), 17, 18 or 19.
    """
    name = f"table-{str(number).lower()}"
    if str(number) == "17":
        return _styled_literature(literature_values(frame, beside=beside), name)
    frames, layout = campaign_frames(frame, beside), paper_layout(number)
    numbers = layout_values(frames, layout, bounds=True, spread=True)
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
        Number of decimal places, within at most four significant digits; whole numbers have none.
    missing
        Text that is shown for NaN.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """

    def text(value):
        if isinstance(value, Integral):
            return f"{value:,}"
        return value if isinstance(value, str) else missing if pd.isna(value) else number_text(value, digits)

    styler = titled(values.style.format(text))
    return finish(styler.hide(axis="columns", names=True), name)


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
            cell_text(value, column.digits, NO_VALUE, end=range_text(low, high, column.digits))
            for value, low, high in found.to_numpy()
        ]
    texts = pd.DataFrame(cells, index=pd.Index(layout.rows).get_level_values(0) if names.size else [])
    styler = texts.style.format(marked_up).format_index(short_title)
    styler.set_caption(legend(texts))
    styler.numbers = pd.DataFrame(numbers, index=texts.index).rename_axis("dataset")
    return finish(styler, "bounds")


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
    return finish(table.style, f"dataset-{card.name}")


def record_table(record, *, own_noise=None):
    """Metrics of one record, with value, 95 % interval, unit and number n of values (replicas, frames) used.

    What the record of a dataset leaves out stands below the table.

    Parameters
    ----------
    record
        Record of any kind.
    own_noise
        Record of the same rollout of the reference with noise of its own, whose values stand in a column, or
        None.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML.
    """
    rows = [
        (
            quantities.of(m.name).name,
            _number(m.value),
            records.interval_text(m),
            records.unit_text(m),
            m.n or "",
        )
        for m in record.metrics
    ]
    columns = ["Metric", "Value", "95 % interval", "Unit", "n"]
    table = pd.DataFrame(rows, columns=columns).set_index("Metric")
    if not any(table["95 % interval"]):
        table = table.drop(columns=["95 % interval", "n"])
    if own_noise is not None:
        values = {quantities.of(m.name).name: _number(m.value) for m in own_noise.metrics}
        table[model_title(own_noise.model)] = [values.get(name, NO_VALUE) for name in table.index]
    styler = table.style
    if record.kind == "dataset" and record.message:
        styler.set_caption(escape(record.message))
    return finish(styler, f"record-{record.kind}-{record.dataset}-{record.model}-s{record.seed}")


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


def runs(found: list):
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
    return finish(table.style.format({"Wall time (h)": "{:.2f}"}), "runs")


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
        table = titled(styler).set_table_attributes('class="dataframe"')
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


def _styled(numbers, layout, frames, name, more=None):
    """Styler of values as texts, with titles, marks and shades; ``csv_link`` finds the values in it.

    `more` holds further columns of texts by (dataset, model).
    """
    numbers = numbers[[k for k in numbers if k[1] in (OURS, *frames) or numbers[k].notna().any()]]
    filled = {source: _filled(numbers, source) for source in frames}
    few = [source for source in frames if source != OURS and len(filled[source]) <= FEW]
    columns = {column.head: column for column in columns_of(layout, frames)}
    every = cell_texts(numbers, layout, frames)
    texts = every[[key for key in every if key[1] not in few]]
    titles = [(head, _source_title(columns[head], source, frames)) for head, source in texts.columns]
    css = shades(numbers[texts.columns], columns, frames)
    for head, found in (more or {}).items():
        if found:
            titles.append((head, campaign_name(frames[OURS])))
            texts[titles[-1]] = [found.get(key[-2:], NOT_RUN) for key in texts.index]
            css[titles[-1]] = ""
    heads = pd.MultiIndex.from_tuples(titles) if titles else texts.columns
    css = css.set_axis(heads, axis=1)
    styler = texts.set_axis(heads, axis=1).style.apply(lambda _: css, axis=None).format(marked_up)
    for level, title in enumerate(texts.index.names):
        styler.format_index(TITLES.get(title, str), axis="index", level=level)
    notes = [_note(every.loc[filled[s]], s) for s in few if len(filled[s])]
    if any(quantities.of(metric).average for metric in layout.metrics):
        notes.append(windows.sentence(frames[OURS], set(layout.rows.values())))
    styler.set_caption("<br>".join(filter(None, [legend(texts), *notes])))
    styler.numbers = _named(numbers, campaign_name(frames[OURS]))
    return ruled(finish(styler, name), texts.index.droplevel("model"))


def _filled(numbers, source):
    """Rows in which a source has a value."""
    found = numbers[[key for key in numbers if key[1] == source]].notna().any(axis=1)
    return numbers.index[found]


def _note(rows, source):
    """Sentence with the values of a source that has only a few rows."""
    words = []
    for (*labels, model), row in rows.iterrows():
        where = ", ".join(TITLES.get(n, str)(v) for n, v in zip(rows.index.names, labels, strict=False))
        cells = [f"{head} {marked_up(text)}" for (head, name), text in row.items() if name == source]
        words.append(f"{model_title(model)} on {where}: {', '.join(cells)}".replace("<br>", " "))
    return f"Campaign {source}: {'; '.join(words)}."


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
        shades = shading(block.to_numpy(float).ravel(), columns[quantity])
        css.loc[block.index] = np.reshape(shades, block.shape)
    texts = values.map(lambda value: NO_VALUE if pd.isna(value) else number_text(value, 2))
    styler = texts.style.apply(lambda _: css, axis=None).format_index(model_title, axis="columns")
    styler.numbers = values
    styler.format_index(lambda head: head.replace(" (", "<br>("), axis="index", level=0)
    styler.format_index(short_title, axis="index", level=1)
    return ruled(finish(styler, name), texts.index.droplevel("source"))


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _list(mapping):
    return ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in mapping.items())


def thermometers(record):
    """Temperatures of every split by its labels and by a candidate for its sampler, one row per split.

    Parameters
    ----------
    record
        Record of ``checks.audit.sampler.compare``.
    """
    rows = {}
    for split in record.parameters["splits"]:
        for side, of in (("labels", "of the labels"), ("candidate", "of the candidate")):
            virial = record.metric(f"virial_{side}_{split}")
            shown = f"{virial.value:,.0f} ± {virial.high - virial.value:,.0f}"
            rows.setdefault(split, {}).update(
                {f"Virial {of}": shown, f"Spread {of}": f"{record[f'spread_{side}_{split}']:,.0f}"}
            )
    return pd.DataFrame(rows).T.rename_axis("Split (K)")
