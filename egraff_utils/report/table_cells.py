"""What stands in a cell of a table? A number, its interval, and marks that a line below explains."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_hex

from egraff_utils import cards, paths
from egraff_utils.config import FAILURES
from egraff_utils.report.beside import (
    BOUND,
    COMPARED,
    OURS,
    PAPER,
    PERFECT,
    columns_of,
    of_shown_cost,
    record_keys,
)
from egraff_utils.report.levels import floor_of, is_alike
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.windows import censored, stored

NOT_RUN, NO_VALUE, FAILED, UNSTABLE, ALIKE, OVER = "not run", "–", "failed", "†", "≈", "> "
KNOWN_PERFECT = "perfect "
FAILING = ("training", *FAILURES)
LEGEND = {
    r"\n\d": "small: 95 % interval",
    " ± ": "±: published standard deviation",
    ALIKE: f"{ALIKE} saturated: in the 95 % range of an independent trajectory (WF, JSD: or below)",
    f"\n{KNOWN_PERFECT}": "perfect: the true force field under this protocol",
    r"\^": "weights of one group that share a letter cannot be told apart",
    UNSTABLE: f"{UNSTABLE} a replica broke, the value is that of the part before",
    f"(^|\x00){OVER}": ">: simulations ended before it",
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


def legend(texts):
    """Explanation of the marks that occur in some texts."""
    every = "\x00".join(map(str, texts.to_numpy().ravel()))
    found = "; ".join(meaning for mark, meaning in LEGEND.items() if re.search(mark, every))
    return found[:1].upper() + found[1:] + "." if found else ""


def ruled(styler, groups):
    """Add lines between groups of rows, and prevent line breaks in cells and names of rows."""
    starts = [row for row in range(1, len(groups)) if groups[row] != groups[row - 1]]
    rules = ", ".join(f".row{row}" for row in starts) or ".row0"
    styles = [
        {"selector": "td, th.row_heading", "props": "white-space: nowrap"},
        {"selector": "th.row_heading", "props": "vertical-align: top"},
        {"selector": rules, "props": "border-top: 1px solid #888"},
    ]
    return styler.set_table_styles(styles, overwrite=False)


def shades(numbers, columns, frames):
    """CSS of every cell, by comparison of the values within one group of rows and one column."""
    css = pd.DataFrame("", index=numbers.index, columns=numbers.columns)
    groups = numbers.index.droplevel("model")
    for place, (head, source) in enumerate(numbers.columns):
        for group in groups.unique() if source in (PAPER, *frames) else ():
            here = np.flatnonzero(groups == group)
            css.iloc[here, place] = shading(numbers[head, source].iloc[here], columns[head])
    return css


def cell_texts(numbers, layout, frames, *, letters=True):
    """Text of every cell: its number with marks and its interval in a second line, or why it has no value."""
    columns = {column.head: column for column in columns_of(layout, frames)}
    cells = {}
    for head, source in [key for key in numbers if key[1] in (PAPER, BOUND, *frames)]:
        column, values = columns[head], numbers[head, source]
        signs, marks = [""] * len(values), [(NO_VALUE, "")] * len(values)
        if source in frames:
            keys = record_keys(column, layout, numbers.index)
            marks = marks_of(frames[source], keys, column)
            signs = _signs(column, keys, values, frames[source], frames[OURS], letters=letters)
        rows = zip(values, marks, signs, _spread(numbers, head, source, column.digits), strict=True)
        texts = [cell_text(value, column.digits, *mark, sign, end) for value, mark, sign, end in rows]
        if source in frames and (late := censored(frames[source], column.metric)):
            bounds = zip(values, texts, keys, strict=True)
            texts = [f"{OVER}{value:.0f}" if key in late else text for value, text, key in bounds]
        if source == BOUND and (known := numbers.get((head, PERFECT))) is not None:
            ends = [f"\n{KNOWN_PERFECT}{number_text(p, column.digits)}" if pd.notna(p) else "" for p in known]
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

    return significance.letters([stored(file) for file in files], metric)


def marks_of(frame, keys, column=None):
    """The text for a missing value, and a dagger if a replica broke, by (kind, dataset, model).

    A periodic system has no value of a metric of bonds, whatever became of its runs. Beside a cost counts the
    seed whose cost is shown, beside another value every seed.
    """
    bonded = column is not None and column.average in ("bonds", "angles")
    if column is not None and column.group == "cost":
        frame = of_shown_cost(frame, column.metric)
    found = frame.groupby(["kind", "dataset", "model"])["status"].agg(set).to_dict()
    failed = {key[1:] for key, status in found.items() if key[0] in FAILING and "failed" in status}
    marks = []
    for key in keys:
        status = found.get(key, set())
        dagger = f"\u00a0{UNSTABLE}" if "unstable" in status else ""
        none = status == {"complete"} or (bonded and _is_periodic(key[1]))
        missing = NOT_RUN if not status else NO_VALUE if none else FAILED + dagger
        marks.append((FAILED if key[1:] in failed else missing, dagger))
    return marks


def _is_periodic(dataset):
    return cards.is_dataset(dataset) and cards.dataset(dataset).system == "bulk"


def _spread(numbers, head, source, digits):
    """Text of the published standard deviation, or of the interval in a second line; empty without one."""
    found = [numbers.get((head, f"{source} {end}")) for end in ("std", "low", "high")]
    std, low, high = (pd.Series(np.nan, numbers.index) if column is None else column for column in found)
    texts = [f" ± {number_text(value, digits)}" if pd.notna(value) else "" for value in std]
    return [text + range_text(*ends, digits) for text, *ends in zip(texts, low, high, strict=True)]


def range_text(low, high, digits):
    """Second line of a cell, its interval; empty if the interval has no width."""
    return f"\n{number_text(low, digits)} to {number_text(high, digits)}" if low < high else ""


def cell_text(value, digits, missing, dagger="", sign="", end=""):
    return missing if pd.isna(value) else number_text(value, digits) + sign + dagger + end


def marked_up(text):
    """HTML of a cell, with superscript letters and in small print what follows ± and the second line."""
    value, _, below = text.partition("\n")
    value = re.sub(r" \^(\w+)", r"<sup>\1</sup>", value)
    value = re.sub(r" (± .*)", r" <small>\1</small>", value)
    below = below.replace("\n", "<br>")
    return f"{value}<br><small>{below}</small>" if below else value


def number_text(value, digits):
    """Text of a number with at most ``digits`` decimal places, and two to four significant digits.

    Examples
    --------
    >>> [number_text(value, 3) for value in (0.96, 24.55, 1130600.0, 0.00091)]
    ['0.960', '24.55', '1,130,600', '0.00091']
    """
    size = int(np.floor(np.log10(abs(value)))) if value else 0
    digits = max(digits, min(1 - size, 6)) if size < 0 else max(0, min(digits, 3 - size))
    return f"{value:,.{digits}f}"


def shading(values, column):
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


def titled(styler):
    """Show datasets and models, whose levels are named so, by their titles."""
    for axis in ("index", "columns"):
        for level, title in enumerate(getattr(styler, axis).names):
            styler.format_index(TITLES.get(title, str), axis=axis, level=level)
    return styler


def finish(styler, identity):
    """Set fixed ids, so that pages are reproducible, and the class ``dataframe``, which follows the theme."""
    styler.set_uuid(identity).hide(axis="index", names=True)
    cells = {
        "selector": "th, td",
        "props": "padding: 0.25em 0.35em; text-align: left; vertical-align: middle",
    }
    below = (
        "caption-side: bottom; text-align: left; white-space: normal; font-size: small; padding-top: 0.4em"
    )
    heads = {"selector": "th.col_heading", "props": "vertical-align: bottom"}
    small = {"selector": "small", "props": "white-space: nowrap"}
    styler.set_table_styles([cells, heads, small, {"selector": "caption", "props": below}])
    styler.set_table_attributes('class="dataframe"')
    return styler
