"""What does a step out of the training distribution cost? Shifted values are compared with unshifted ones.

In every task models are evaluated on a set that they were not trained for. In tables, ``in`` is the value on
frames like those of the training set, and ``out`` that on the shifted set; the ratio of the two follows, ours
and the paper's.
"""

from __future__ import annotations

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egraff_utils import cards, data, paper, quantities
from egraff_utils.config import Kind
from egraff_utils.report import look, table_cells, tables, titles, windows
from egraff_utils.report.beside import DATASETS, MODELS
from egraff_utils.report.levels import floor_of, is_alike

IN, OUT, FLOOR, RATIO, PAPER_RATIO = "in", "out", "saturation of out", "ratio (×)", "paper's ratio (×)"
RATIOS = (RATIO, PAPER_RATIO)


class Shift(NamedTuple):
    """A shifted set on which models are evaluated, and the set like their training data."""

    dataset: str
    """Dataset on which the models are trained."""
    away: str
    """Shifted split."""
    target: str | None = None
    """Dataset of the shifted split, if it is another one."""
    home: str = "test"
    """Split that is like the training set."""
    title: str = ""
    """Name for readers, if that of the dataset is not sufficient."""

    @property
    def name(self):
        """Name in the index of rows, which is the title, or the dataset."""
        return self.title or self.dataset

    def kinds(self, side, *, rollout):
        """Kinds of the records of a side, ``in`` or ``out``; a later one is used if earlier ones are missing.

        >>> Shift("3bpa", "test", home="test_300K").kinds("in", rollout=False)
        ['errors_300K']
        """
        place = cards.shift(self.home) if side == IN else cards.shift(self.away, self.target)
        if rollout:
            return [str(Kind("rollout", shift=place))]
        return [str(Kind("errors", shift=place))] if place else ["errors_test", "training"]

    def frames(self, side):
        """Frames of a side, a list of ``ase.Atoms``."""
        if side == IN:
            return data.load(self.dataset, self.home)
        return data.load(self.target or self.dataset, self.away)


TASKS = {
    "temperature": (
        Shift("acac", "test_600K"),
        Shift("3bpa", "test", home="test_300K"),
        Shift("acac_xtb", "test_600K"),
    ),
    "lips20_crystals": (Shift("lips20", "crystals"),),
    "lips20_compositions": (Shift("lips20", "compositions"),),
    "benzene": tuple(
        Shift(name, "test", "benzene") for name in ("aspirin", "ethanol", "naphthalene", "salicylic_acid")
    ),
    "acac_dihedral": (
        Shift("acac", "dihedral", title="Dihedral scan"),
        Shift("acac", "H_transfer", title="Proton transfer"),
    ),
}
"""Sets of every task out of distribution. For 3BPA, the test set of the paper is the shifted one. Sets that
are not in the paper are shown if they were run (:func:`shown`)."""


class Shown(NamedTuple):
    """A group of columns for one metric in and out of distribution."""

    group: str
    """``accuracy`` for static errors, ``structure`` or ``dynamics`` for simulations; it sets the colours."""
    head: str
    """Head of the group, with the unit."""
    metric: str
    digits: int
    """Number of decimal places, within at most four significant digits."""
    factor: float
    """Unit of the record in units of the head."""
    lower_is_better: bool | None
    """``None`` if neither direction is better."""
    over: str = ""
    """Metric by which it is divided, if any."""
    ratio: bool = True
    """Whether the ratio of out to in is meaningful."""


def _shown(group, metric, digits, *, head="", **options):
    """Columns of a metric under its own head, or another."""
    known = quantities.of(metric)
    return Shown(group, head or known.head, metric, digits, known.factor, known.lower_is_better, **options)


_RELATIVE = {"over": "zero_force_mae", "ratio": False, "head": "Force MAE over that of zero (×)"}
ERRORS = (
    _shown("accuracy", "force_mae", 1),
    _shown("accuracy", "force_mae", 2, **_RELATIVE),
    _shown("accuracy", "energy_mae", 1, ratio=False),
    _shown("accuracy", "energy_mae_shifted", 1),
)
"""Static errors; the last one is what remains after subtracting the mean error of each composition."""

STRUCTURE = (
    _shown("structure", "wf", 2),
    _shown("structure", "jsd", 5),
    _shown("structure", "stable_fraction", 2, ratio=False, head="Stable fraction (×)"),
)
"""Structure of the simulations, and the stable fraction of their time."""

DYNAMICS = (
    _shown("dynamics", "ev_root", 2),
    _shown("dynamics", "fv", 3),
    _shown("dynamics", "temperature", 0, ratio=False),
)
"""Dynamics of the simulations."""

GROUPS = (ERRORS, STRUCTURE, DYNAMICS)


def find(task: str, dataset: str) -> Shift:
    """The shift of a task for models trained on a dataset, the first one if there are several.

    Raises
    ------
    ValueError
        If there is no such task, or it has no such dataset.
    """
    shifts = {shift.dataset: shift for shift in reversed(shifts_of(task))}
    if dataset not in shifts:
        raise cards.unknown(f"dataset of the task {task}", dataset, shifts)
    return shifts[dataset]


def shown(task: str, frame: pd.DataFrame) -> tuple[Shift, ...]:
    """Shifts of a task, those of the paper and others that the records hold.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    here = {*DATASETS, *frame.dataset}
    return tuple(shift for shift in shifts_of(task) if shift.dataset in here)


def shifts_of(task):
    if isinstance(task, Shift):
        return (task,)
    if task not in TASKS:
        raise cards.unknown("task", task, TASKS)
    return TASKS[task]


# -- values ---------------------------------------------------------------------------------------------


def compare(frame: pd.DataFrame, task: str, groups: tuple[Shown, ...]) -> pd.DataFrame:
    """Values in and out of distribution, their ratio, and the paper's ratio.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`; several seeds are averaged. Rollouts of a set
        cover the same time (`windows`).
    task
        Name of one of :data:`TASKS`, or a `Shift` of your own.
    groups
        Groups that are compared, :data:`ERRORS`, :data:`STRUCTURE` or :data:`DYNAMICS`.

    Returns
    -------
    DataFrame with the index (set, model), with every set of the task, the models of the paper and others in
    the records. Columns are (head with unit, ``in``, ``out``, ``saturation of out``, ``ratio (×)`` or
    ``paper's ratio (×)``); missing values are NaN. Floors and ratios without any value are left out, and so
    are groups without a shifted value, unless no group has any.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    frame = windows.common(frame)
    known = frame.groupby(["kind", "dataset", "model", "metric"])["value"].mean()
    cells = cells_of(frame, task)
    index = pd.MultiIndex.from_tuples([(s.name, m) for s, m in cells], names=["set", "model"])
    values = {}
    for quantity in groups:
        for side in (IN, OUT):
            found = [_value(known, quantity, shift, side, model) for shift, model in cells]
            values[quantity.head, side] = pd.Series(found, index, dtype=float)
        floors = [_floor(frame, quantity, shift, OUT)[0] for shift, _ in cells]
        values[quantity.head, FLOOR] = pd.Series(floors, index, dtype=float)
        if quantity.ratio:
            values[quantity.head, RATIO] = values[quantity.head, OUT] / values[quantity.head, IN]
            values[quantity.head, PAPER_RATIO] = _published_ratio(task, quantity.metric, index)
    kept = {key: value for key, value in values.items() if key[1] in (IN, OUT) or value.notna().any()}
    there = {head for (head, side), value in kept.items() if side == OUT and value.notna().any()}
    return pd.DataFrame({key: value for key, value in kept.items() if key[0] in there or not there})


def cells_of(frame, task):
    """Pairs of a shift and a model that a table shows."""
    shifts = shown(task, frame)
    runs = frame.kind.str.startswith(("training", "rollout", "errors")) & (frame.model != "reference")
    there = frame[frame.dataset.isin([shift.dataset for shift in shifts]) & runs]
    others = sorted(set(there.model) - set(MODELS))
    return [(shift, model) for shift in shifts for model in (*MODELS, *others)]


def _value(known, quantity, shift, side, model):
    """Value of a quantity in the unit of its head, of the first kind of record that has it."""
    for kind in shift.kinds(side, rollout=quantity.group != "accuracy"):
        value = known.get((kind, shift.dataset, model, quantity.metric), np.nan) * quantity.factor
        if quantity.over:
            value /= known.get((kind, shift.dataset, model, quantity.over), np.nan)
        if np.isfinite(value):
            return value
    return np.nan


def _floor(frame, quantity, shift, side):
    """Floor of a quantity and its range, in the unit of its head; NaN without a floor."""
    if quantity.group == "accuracy":
        return (np.nan,) * 3
    (kind,) = shift.kinds(side, rollout=True)
    found = floor_of(frame, kind, shift.dataset, quantity.metric)
    return tuple(value * quantity.factor for value in found)


def _published_ratio(task, metric, index):
    published = published_values(task)
    if (metric, OUT) not in published:
        return pd.Series(np.nan, index)
    return (published[metric, OUT] / published[metric, IN]).reindex(index)


def published_values(task: str) -> pd.DataFrame:
    """The paper's values for a task, with index (set, model) and columns (metric, ``in`` or ``out``).

    They come from Tables 5 and 6 for ``temperature``, from 7a for LiPS20, and from 2, 3, 18 and 19 for
    ``benzene``; there are none for ``acac_dihedral``. Units are those of the records.

    Examples
    --------
    >>> float(published_values("temperature").loc[("acac", "mace"), ("wf", "out")])
    28.708
    """
    values = {}
    for home, away in () if isinstance(task, Shift) else _published_pairs(task):
        for side, published in ((IN, home), (OUT, away)):
            published = published.set_index(["set", "model"])
            for metric in ("ev_root", "fv", "wf"):
                place = quantities.of(metric).published
                if place.column in published:
                    values[metric, side] = published[place.column] * place.factor
    return pd.DataFrame(values)


def _published_pairs(task):
    """The paper's tables of the unshifted and the shifted set, with the names of rows in a column ``set``."""
    if task == "temperature":
        for number in (5, 6):
            both = paper.table(number).rename(columns={"dataset": "set"})
            yield both[both.temperature_k == 300], both[both.temperature_k == 600]
    elif task.startswith("lips20"):
        every = paper.table("7a").assign(set="lips20")
        away = "crystal" if task == "lips20_crystals" else "test"
        yield every[every.structures == "train"], every[every.structures == away]
    elif task == "benzene":
        for home, away in ((3, 18), (2, 19)):
            home, away = paper.table(home), paper.table(away)
            yield home.rename(columns={"dataset": "set"}), away.rename(columns={"trained_on": "set"})


def spread(values: pd.DataFrame, head: str, side: str = RATIO, *, only: str = "", digits: int = 2) -> str:
    """Median of a column over models and sets, and its range, as text; ``not run`` without any value.

    Parameters
    ----------
    values
        DataFrame of `compare`.
    head, side
        Head and side of the column.
    only
        Name of the only set that is used; by default all are.
    digits
        Number of decimal places.

    Examples
    --------
    >>> index = pd.MultiIndex.from_tuples([("acac", m) for m in "abc"], names=["set", "model"])
    >>> values = pd.DataFrame({("WF (%)", "ratio (×)"): [1.0, 1.5, 4.0]}, index=index)
    >>> spread(values, "WF (%)")
    '1.50 (1.00 to 4.00)'
    """
    if (head, side) not in values:
        return tables.NOT_RUN
    rows = values.index.get_level_values("set") == only if only else slice(None)
    return spread_of(values[head, side][rows], digits=digits)


def summary(static, structure, dynamics, *, digits: int = 2) -> dict:
    """Values of a task's page, medians over models and sets with their ranges, as texts.

    Parameters
    ----------
    static, structure, dynamics
        DataFrames of `compare` for :data:`ERRORS`, :data:`STRUCTURE` and :data:`DYNAMICS`.
    digits
        Number of decimal places of force errors in units of that of predicting zero.
    """
    relative, stable, wf = "Force MAE over that of zero (×)", "Stable fraction (×)", "WF (%)"
    texts = {
        "force": spread(static, "Force MAE (meV/Å)"),
        "energy": spread(static, "Energy MAE without its offset (meV)"),
        "wf": spread(structure, wf),
        "wf-paper": spread(structure, wf, PAPER_RATIO),
    }
    for side in (IN, OUT):
        texts[f"fraction-{side}"] = spread(static, relative, side, digits=digits)
        texts[f"stable-{side}"] = spread(structure, stable, side)
        texts[f"wf-{side}"] = spread(structure, wf, side)
    for name, head in (("ev", "Root EV (1e-5)"), ("fv", "FV (dimensionless)")):
        texts |= {name: spread(dynamics, head), f"{name}-paper": spread(dynamics, head, PAPER_RATIO)}
    return texts


def spread_of(values: pd.Series, *, digits: int = 2) -> str:
    """Median of some values and, for more than one, their range, as text; ``not run`` without any value."""
    found = values.dropna()
    if found.empty:
        return tables.NOT_RUN
    middle, low, high = (f"{v:,.{digits}f}" for v in (found.median(), found.min(), found.max()))
    return middle if len(found) == 1 else f"{middle} ({low} to {high})"


# -- tables ---------------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, task: str, groups: tuple[Shown, ...]):
    """The comparison as a styled table, with the arguments of `compare`.

    Better values are darker, within one set and column; other marks are those of `tables.beside`.

    Returns
    -------
    pandas Styler, which a notebook shows as HTML; `tables.csv_link` saves its numbers.
    """
    values = compare(frame, task, groups)
    by_head = {quantity.head: quantity for quantity in groups}
    cells = cells_of(frame, task)
    texts, css = {}, {}
    for key in values:
        quantity = by_head[key[0]]
        texts[key] = _texts(frame, values[key], quantity, cells)
        shaded = values[key] * (np.nan if key[1] == FLOOR else 1)
        css[key] = shaded.groupby("set").transform(lambda part, q=quantity: table_cells.shading(part, q))
    names = {shift.name: shift.title or titles.short_title(shift.dataset) for shift in shifts_of(task)}
    styler = styled(pd.DataFrame(texts, values.index), pd.DataFrame(css, values.index), values)
    styler.format_index(names.get, axis="index", level=0)
    styler.format_index(titles.model_title, axis="index", level=1)
    styler.set_caption(table_cells.legend(styler.data))
    name = task if isinstance(task, str) else task.dataset
    return finished(styler, f"{name}-{groups[0].group}")


def finished(styler, name):
    """Apply the style of the book, with lines between groups of rows and no line breaks in cells."""
    index = styler.data.index
    groups = index.get_level_values(0) if index.nlevels > 1 else [""] * len(index)
    return table_cells.ruled(table_cells.finish(styler, name), groups)


def styled(texts, css, values):
    styler = texts.style.apply(lambda _: css, axis=None)
    styler.numbers = values
    return styler


def _texts(frame, values, quantity, cells):
    side = values.name[1]
    if side == FLOOR:
        return [
            "" if np.isnan(value) else table_cells.number_text(value, quantity.digits) for value in values
        ]
    if side in RATIOS:
        return [tables.NO_VALUE if np.isnan(value) else f"{value:,.2f}" for value in values]
    rollout = quantity.group != "accuracy"
    keys = [(shift.kinds(side, rollout=rollout)[0], shift.dataset, model) for shift, model in cells]
    ranges = [_floor(frame, quantity, shift, side)[1:] for shift, _ in cells]
    alike = [
        is_alike(quantity.metric, *three) for three in zip(values, *zip(*ranges, strict=True), strict=True)
    ]
    texts = texts_of(frame, values, quantity, keys)
    return [text + f"\u00a0{table_cells.ALIKE}" * mark for text, mark in zip(texts, alike, strict=True)]


def texts_of(frame, values, quantity, keys):
    marks = table_cells.marks_of(frame, list(keys))
    return [
        table_cells.cell_text(value, quantity.digits, *mark)
        for value, mark in zip(values, marks, strict=True)
    ]


# -- figures --------------------------------------------------------------------------------------------


def plot_shift(values: pd.DataFrame, head: str, *, legend: bool = True, ax: Axes | None = None) -> Axes:
    """Value out of distribution against that in distribution, with one point per model and set.

    The colour denotes the model, the marker the set. A point on the diagonal has the same value on both sets.

    Parameters
    ----------
    values
        DataFrame of `compare`.
    head
        Group of columns that is drawn, such as ``"WF (%)"``.
    legend
        Whether to draw the legend next to the axes.
    """
    ax = look.take_axes(ax)
    sets, points = values.index.unique("set"), _points(values, head)
    markers = dict(zip(sets, look.MARKERS * 4, strict=False))
    for (name, model), (x, y) in points.iterrows():
        edge = {"markeredgecolor": "0.2", "markeredgewidth": 0.6}
        ax.plot(x, y, markers[name], color=look.model_color(model), **edge)
    for model in points.index.unique("model"):
        ax.plot([], [], "o", color=look.model_color(model), label=titles.model_title(model))
    for name in points.index.unique("set") if len(sets) > 1 else ():
        ax.plot([], [], markers[name], color="0.5", label=titles.short_title(name))
    _set_diagonal(ax, points)
    ax.set(xlabel=f"In distribution: {head}", ylabel=f"Shifted: {head}")
    return legend_or_note(ax, points, legend)


def plot_shifts(static: pd.DataFrame, structure: pd.DataFrame) -> Figure:
    """Force MAE and WF out of distribution against those in distribution, as `plot_shift` draws them."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.7))
    plot_shift(static, "Force MAE (meV/Å)", legend=False, ax=axes[0])
    plot_shift(structure, "WF (%)", ax=axes[1])
    return figure


def _points(values, head):
    """Columns ``in`` and ``out`` of a head, restricted to rows that have both values."""
    wanted = pd.MultiIndex.from_product([[head], [IN, OUT]])
    return values.reindex(columns=wanted).droplevel(0, axis=1).dropna()


def _set_diagonal(ax, points):
    """Give both axes the same range, logarithmic if the values span more than a factor of three."""
    if points.empty:
        return
    low, high = points.min(axis=None), points.max(axis=None)
    wide = low > 0 and high > 3 * low
    margin = 0.15 * (high - low) or 1.0
    ends = (low / 1.3, high * 1.3) if wide else (low - margin, high + margin)
    ax.plot(ends, ends, color=look.REFERENCE_COLOR, linewidth=0.9, zorder=0)
    ax.set(xlim=ends, ylim=ends)
    for axis in "xy" if wide else "":
        look.set_log_scale(ax, axis)
    ax.set_aspect("equal")


def legend_or_note(ax, values, legend=True):
    """Add a legend next to the axes, or the text ``not run`` if nothing is drawn."""
    if values.empty:
        ax.text(0.5, 0.5, tables.NOT_RUN, transform=ax.transAxes, ha="center")
    elif legend:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
