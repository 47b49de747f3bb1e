"""What is drawn in a figure? Its points, as a table with one row each, and as an interactive plot."""

from __future__ import annotations

import base64
import gzip
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

CSV = "application/vnd.egraff.points+json"
"""Type of an output that holds the points of a figure: CSV, compressed with gzip, as base64."""
PLOTLY = "application/vnd.plotly.v1+json"
"""Type of an output that holds an interactive plot, which JupyterLab shows where plotly is installed."""
COLUMNS = ["panel", "line", "series", "x label", "y label", "x", "y"]
MOST, FEW = 40_000, 20
"""Largest number of bytes of the compressed points of a figure, and of points of a line that keeps them."""


def show(figure: Figure | None = None, *, interactive: dict | None = None) -> None:
    """Display a figure, by default the current one, in one output that also holds its points.

    A notebook shows the picture. The book adds a link to the points below it, as CSV, and shows the
    interactive plot, if there is one, in place of the picture.

    Parameters
    ----------
    figure
        Figure, which is closed; nothing is displayed if there is none.
    interactive
        ``data`` and ``layout`` of plotly.
    """
    if figure is None and not plt.get_fignums():
        return
    figure = figure or plt.gcf()
    if shell := get_ipython():
        data, metadata = shell.display_formatter.format(figure)
        display(data | further(figure, interactive), metadata=metadata, raw=True)
    plt.close(figure)


def further(figure: Figure, interactive: dict | None = None) -> dict:
    """What the output of a figure holds beside the picture, by type.

    Of long lines only every second point is kept, or every fourth and so on, until the points fit `MOST`.
    """
    found, every = points(figure), 1
    while len(packed := _packed(found.iloc[_kept(found, every)])) > MOST and every < len(found):
        every *= 2
    kept = {CSV: {"gzip": packed, "every": every}} if len(found) else {}
    return kept | ({PLOTLY: interactive} if interactive and interactive["data"] else {})


def _packed(found):
    text = found.to_csv(index=False, float_format="%.4g")
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _kept(found, every):
    """Whether each point is kept: every k-th of a line, and all where there are few."""
    lines = found.groupby("line").x
    return ((lines.cumcount() % every == 0) | (lines.transform("size") <= FEW)).to_numpy()


def points(figure: Figure) -> pd.DataFrame:
    """Points of lines, scatters, bars and histograms of a figure, without intervals, bands and marks of axes.

    Returns
    -------
    DataFrame with one row per point: ``panel``, the title of its axes or their number; ``line``, a number;
    ``series``, the entry of the legend with its colour, marker or dash; the labels of both axes; ``x`` and
    ``y`` in their units.

    Examples
    --------
    >>> figure, ax = plt.subplots()
    >>> lines = ax.plot([0, 1], [2, 3], label="MACE")
    >>> points(figure)[["panel", "series", "x", "y"]].to_numpy().tolist()
    [['panel 1', 'MACE', 0.0, 2.0], ['panel 1', 'MACE', 1.0, 3.0]]
    >>> plt.close(figure)
    """
    keys, shared = list(_keys(figure)), [figure.get_supxlabel(), figure.get_supylabel()]
    tables = []
    for number, ax in enumerate(figure.axes, start=1):
        panel = ax.get_title() or ax.get_title("left") or f"panel {number}"
        labels = [ax.get_xlabel() or shared[0], ax.get_ylabel() or shared[1]]
        for artist, style, x, y in _series(ax):
            named = [panel, len(tables), _label(artist) or _name(keys, style), *labels]
            row = dict(zip(COLUMNS, named, strict=False))
            tables.append(pd.DataFrame({"x": x, "y": y}).assign(**row)[COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _series(ax):
    """Artist, style, x and y of everything in axes that has points."""
    for line in ax.lines:
        if line.get_transform() == ax.transData:
            yield line, _style(line), *(np.asarray(v, float) for v in line.get_data(orig=False))
    for drawn in ax.collections:
        if isinstance(drawn, PathCollection):
            colors = [*drawn.get_facecolors(), *drawn.get_edgecolors(), "black"]
            yield drawn, (to_hex(colors[0]), ""), *np.ma.filled(drawn.get_offsets().astype(float), np.nan).T
    for steps in ax.patches:
        if isinstance(steps, StepPatch):  # a histogram, whose points are at the centres of its bins
            values, edges, _ = steps.get_data()
            yield steps, (to_hex(steps.get_edgecolor()), ""), (edges[1:] + edges[:-1]) / 2, values
    for bars in ax.containers:
        if isinstance(bars, BarContainer):
            ends = np.array([(b.get_x() + b.get_width() / 2, b.get_y() + b.get_height()) for b in bars])
            yield bars, (to_hex(bars[0].get_facecolor()), ""), *ends.reshape(-1, 2).T


def _style(line):
    """Colour and marker, or else dash, of a line or an entry of a legend."""
    marker = line.get_marker()
    return to_hex(line.get_color()), line.get_linestyle() if marker in ("None", "", " ", None) else marker


def _label(artist):
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label


def _keys(figure):
    """Entries of the legends of a figure and its axes, with their styles."""
    for legend in filter(None, [*figure.legends, *(ax.get_legend() for ax in figure.axes)]):
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if isinstance(handle, Line2D):
                yield text.get_text(), _style(handle)


def _name(keys, style):
    """Entry of a legend with this colour and, where entries of one colour tell markers apart, this marker."""
    counts = Counter(color for _, (color, _) in keys)
    own = [text for text, other in keys if other == style]
    colored = own if counts[style[0]] > 1 else [text for text, (color, _) in keys if color == style[0]]
    marked = [text for text, (color, mark) in keys if mark == style[1] and counts[color] > 1 and mark != "-"]
    return ", ".join(dict.fromkeys([*colored[:1], *marked[:1]]))
