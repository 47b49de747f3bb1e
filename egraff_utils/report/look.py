"""What do all figures look like? The style of the book, colours and markers of models, and scales of axes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from egraff_utils.report.titles import model_title

STYLE = Path(__file__).with_name("book.mplstyle")


MODEL_COLORS = {
    "nequip": "#332288",
    "botnet": "#8f2557",
    "allegro": "#11733b",
    "mace": "#d55e00",
    "torchmd_net": "#3fa2dc",
    "equiformer": "#e3ae24",
}
"""Colour of every model. The lightness increases in even steps along the list (22 to 74 of 100), so the
colours can be distinguished in grey, and also by readers with red-green blindness."""


OTHER_MODEL_COLOR = "#777777"


REFERENCE_COLOR = "black"


FLOOR_COLOR = "0.55"


MARKERS = "osD^vPX*<>ph"


DASHES = ("-", (0, (5, 1.2)), (0, (1, 1)), (0, (6, 1.2, 1, 1.2)), (0, (3, 1)), (0, (4, 1, 1, 1, 1, 1)))
"""Dashes of lines, so that models can be distinguished without their colours."""


def style():
    """Context in which figures have the style of the book.

    Examples
    --------
    >>> with style():
    ...     figure, ax = plt.subplots()
    >>> plt.close(figure)
    """
    return plt.style.context(STYLE)


def model_color(name: str) -> str:
    """Colour of a model as a hexadecimal string; grey for a model that is not in the book.

    Examples
    --------
    >>> model_color("mace"), model_color("mine")
    ('#d55e00', '#777777')
    """
    return MODEL_COLORS.get(name, OTHER_MODEL_COLOR)


def take_axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    return plt.subplots()[1] if ax is None else ax


def set_log_scale(ax: Axes, axis: str) -> None:
    """Make axis ``"x"`` or ``"y"`` logarithmic, with plain numbers; call this function after drawing.

    Ticks are at 1, 2 and 5 of every decade, only at 1 if the axis spans more than two decades, and at more
    values if it spans less than one.
    """
    ax.set(**{f"{axis}scale": "log"})
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    ticks = getattr(ax, f"{axis}axis")
    subs = (1,) if high > 100 * low else (1, 2, 5) if high > 10 * low else (1, 2, 3, 5, 7)
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    ticks.set_minor_formatter(NullFormatter())


def short_number(value: float) -> str:
    """Text of a number at a tick.

    Examples
    --------
    >>> short_number(0.5), short_number(20000.0), short_number(2e-06), short_number(0.0005)
    ('0.5', '20000', '2e-6', '5e-4')
    """
    if 1e-3 <= abs(value) < 1e5 or value == 0:
        return f"{value:g}"
    digits, power = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def model_place(model: str) -> int:
    """Sorting key of a model, its place in the list of colours; unknown models come last."""
    names = list(MODEL_COLORS)
    return names.index(model) if model in names else len(names)


def model_marker(model: str) -> str:
    """Marker of a model, which is the same in the whole book."""
    return MARKERS[model_place(model) % len(MARKERS)]


def model_line(model: str) -> dict:
    """Colour and dash of the line of a model, which are the same in the whole book.

    Examples
    --------
    >>> model_line("nequip")
    {'color': '#332288', 'linestyle': '-'}
    """
    dash = DASHES[model_place(model) % len(DASHES)]
    return {"color": model_color(model), "linestyle": dash}


def model_handles(
    models: Iterable[str], *, markers: bool = False, dashes: bool = False, **style
) -> list[Line2D]:
    """Entries of a legend, one per model, with its title in its colour and, if asked for, its marker or dash.

    `style` is passed to ``Line2D``.

    Examples
    --------
    >>> [(line.get_label(), line.get_marker()) for line in model_handles(["mace"], markers=True)]
    [('MACE', '^')]
    """
    handles = []
    for name in models:
        own = model_line(name) if dashes else {"color": model_color(name)}
        own |= {"marker": model_marker(name)} if markers else {}
        handles.append(Line2D([], [], label=model_title(name), **own, **style))
    return handles


def error_bar(value: float, low: float, high: float) -> np.ndarray | None:
    """Distances from a value to the ends of its interval, shape ``(2, 1)``; ``None`` without an interval.

    Examples
    --------
    >>> error_bar(5.0, 4.0, 7.0)
    array([[1.],
           [2.]])
    """
    if np.isnan([low, high]).any():
        return None
    return np.array([[max(value - low, 0.0)], [max(high - value, 0.0)]])
