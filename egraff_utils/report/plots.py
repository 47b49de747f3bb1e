"""What does a record look like? Each function draws one figure of the book.

Every function draws into `ax` or into a new figure, labels both axes with their units, sets no title (the
caption is the title) and returns the axes. A model has the same colour in the whole book, the reference is
black, and a noise floor is a grey band. Symbols: R replicas, T frames, N atoms, B bins, P pairs of elements.
Figures over many records are in `figures`, which uses the functions at the end of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import natural_cutoffs, neighbor_list
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from egraff_utils import quantities
from egraff_utils.quantities import DIMENSIONLESS
from egraff_utils.report.beside import floor_of
from egraff_utils.report.tables import dataset_title, main_rows, model_title

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
VIOLATIONS = ("ev", "ev_root", "fv")
CURVE_LABELS = {
    "seconds": "Training time (s)",
    "step": "Optimiser steps (count)",
    "epoch": "Epochs (count)",
    "val_force_mae": "Validation force MAE (meV/Å)",
    "val_energy_mae": "Validation energy MAE (meV)",
    "train_loss": f"Training loss ({DIMENSIONLESS})",
    "val_loss": f"Validation loss ({DIMENSIONLESS})",
}
"""Curve of a training -> label of its axis."""


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


def plot_learning_curve(
    record,
    x: str = "seconds",
    *,
    metric: str = "val_force_mae",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Validation error of one training against its cost, on a logarithmic error axis.

    Parameters
    ----------
    record
        Record of kind ``training`` with the curves `x` and `metric`, which have the same shape.
    x
        ``"seconds"`` (s), ``"step"`` or ``"epoch"``.
    metric
        ``"val_force_mae"`` (meV/Å), ``"val_energy_mae"`` (meV), ``"train_loss"`` or ``"val_loss"``
        (dimensionless).
    label
        Entry of the legend; the model's title by default.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    ax.plot(
        read_curve(record, x),
        read_curve(record, metric),
        color=model_color(record.model),
        marker=model_marker(record.model),
        markevery=0.12,
        label=label or model_title(record.model),
    )
    ax.set(xlabel=CURVE_LABELS.get(x, x), ylabel=CURVE_LABELS.get(metric, metric))
    set_log_scale(ax, "y")
    return ax


def plot_rdf(record, *, floor=None, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Radial distribution function of a rollout and of its reference.

    Replicas are thin lines, their mean is a thick line, and the reference is black.

    Parameters
    ----------
    record
        Record of a rollout with curves ``rdf_r`` (B,) Å, ``rdf`` (R, B) and ``rdf_reference`` (B,),
        dimensionless.
    floor
        Record of the saturation level; the grey band is the range of a replica of an independent trajectory,
        bin by bin.
    label
        Entry of the legend; the model's title by default.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    r, reference = read_curve(record, "rdf_r"), read_curve(record, "rdf_reference")
    if floor is not None:
        plot_rdf_floor(ax, r, reference, floor)
    ax.plot(
        r,
        reference,
        color=REFERENCE_COLOR,
        linewidth=1.4,
        label=_reference_label(ax),
    )
    _plot_replicas(ax, r, read_curve(record, "rdf"), record.model, label)
    ax.set(xlabel="Distance r (Å)", ylabel=f"g(r) ({DIMENSIONLESS})", xlim=(0, r[-1]), ylim=(0, None))
    ax.legend()
    return ax


def plot_partial_rdfs(record, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Partial radial distribution functions, one pair of elements above the other.

    Each curve is divided by the maximum of its reference and shifted by its place in the list, so that pairs
    of very different height can be read in one picture. The zero of each pair is a thin grey line.

    Parameters
    ----------
    record
        Record of a rollout with curves ``rdf_r`` (B,) Å, ``rdf_partial`` (R, P, B),
        ``rdf_partial_reference`` (P, B) and ``pairs`` (P,), text such as ``Li-S``.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    r, pairs = read_curve(record, "rdf_r"), [str(pair) for pair in read_curve(record, "pairs")]
    generated, reference = read_curve(record, "rdf_partial"), read_curve(record, "rdf_partial_reference")
    reference_label = _reference_label(ax)
    for place, pair in enumerate(pairs):
        height = np.nanmax(reference[place]) or 1.0
        lift = 1.15 * place
        ax.axhline(lift, color="0.75", linewidth=0.6, zorder=0)
        ax.plot(
            r,
            reference[place] / height + lift,
            color=REFERENCE_COLOR,
            linewidth=1.3,
            label=reference_label if place == 0 else None,
        )
        shown = (label or model_title(record.model)) if place == 0 else "_nolegend_"
        _plot_replicas(ax, r, generated[:, place] / height + lift, record.model, shown)
        ax.text(r[0], lift + 0.12, pair, fontsize="small")
    ax.set(xlabel="Distance r (Å)", ylabel=f"Partial g(r), scaled ({DIMENSIONLESS})", xlim=(0, r[-1]))
    ax.set_yticks([1.15 * place for place in range(len(pairs))], ["0"] * len(pairs))
    ax.legend(loc="upper right")
    return ax


def plot_violations(
    record,
    metric: str = "fv",
    *,
    floor=None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Violation of energy or forces along the rollout, with the floor of unrelated frames of the reference.

    Replicas are thin lines, their geometric mean is a thick line. A curve that has risen to the grey floor
    shows only that the two trajectories have become independent.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and `metric` (R, T), dimensionless.
    metric
        ``"fv"``, ``"ev"`` or ``"ev_root"``.
    floor
        Record of the floor, whose range of the metric is drawn, or a number or an interval ``(low, high)``,
        dimensionless.

    Raises
    ------
    ValueError
        If the metric is unknown or the record has no such curve.
    """
    if metric not in VIOLATIONS:
        raise ValueError(f"{metric=} is not a violation; choose one of {sorted(VIOLATIONS)}")
    ax = take_axes(ax)
    values = np.asarray(read_curve(record, metric), float)
    values = np.where(values > 0, values, np.nan)
    if floor is not None:
        plot_floor(ax, _range(floor, metric))
    _plot_replicas(ax, read_curve(record, "time"), values, record.model, label, geometric=True)
    ax.set(xlabel="Time (fs)", ylabel=quantities.of(metric).written_out)
    set_log_scale(ax, "y")
    ax.legend()
    return ax


def plot_temperature(record, target: float, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Instantaneous temperature of the replicas against the thermostat's target (K, dashed black).

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``temperature`` (R, T) K.
    target
        Temperature of the thermostat, K.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    ax.axhline(target, color=REFERENCE_COLOR, linestyle="--", linewidth=1.2, label=f"target {target:g} K")
    _plot_replicas(ax, read_curve(record, "time"), read_curve(record, "temperature"), record.model, label)
    ax.set(xlabel="Time (fs)", ylabel=quantities.of("temperature").axis)
    ax.legend()
    return ax


def plot_rmsd(record, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Root mean square displacement of the replicas from the reference trajectory.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``rmsd`` (R, T) Å.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    _plot_replicas(ax, read_curve(record, "time"), read_curve(record, "rmsd"), record.model, label)
    ax.set(xlabel="Time (fs)", ylabel=quantities.of("rmsd").axis, ylim=(0, None))
    ax.legend()
    return ax


def plot_distance(record, *, ax: Axes | None = None) -> Axes:
    """Distance of the replicas from the reference, and in black of the reference from its start.

    Only times at which there is a frame of the reference are drawn; nothing is, without such a reference.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``fv`` (R, T), and, Å, ``deviation`` (R, T) and
        ``rmsd_reference`` (R, T).

    Raises
    ------
    ValueError
        If the record has no curve ``time`` or ``fv``.
    """
    ax = take_axes(ax)
    seen = np.isfinite(read_curve(record, "fv")).any(axis=0)
    time, missing = read_curve(record, "time")[seen], np.full((1, len(seen)), np.nan)
    reference, own = (record.curves.get(name, missing)[:, seen].T for name in ("rmsd_reference", "deviation"))
    black = ax.plot(time, reference, color=REFERENCE_COLOR, linewidth=0.6, alpha=0.5)
    lines = ax.plot(time, own, color=model_color(record.model), linewidth=1.2)
    labels = [f"{model_title(record.model)} from the reference", "reference from its start"]
    ax.legend([lines[0], black[0]], labels)
    ax.set(xlabel="Time (fs)", ylabel="Root mean square distance (Å)", ylim=(0, None))
    return ax


def plot_forces_parity(
    predicted: np.ndarray,
    reference: np.ndarray,
    *,
    model: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Predicted force components against those of the reference, with the diagonal of perfect agreement.

    Parameters
    ----------
    predicted
        Forces of the model, of any shape such as ``(T, N, 3)``, eV/Å.
    reference
        Forces of the reference, with the same shape, eV/Å.
    model
        Name of the model, for its colour.
    label
        Entry of the legend; by default the title of the model and the mean absolute error (meV/Å).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    predicted, reference = np.asarray(predicted), np.asarray(reference)
    if predicted.shape != reference.shape:
        raise ValueError(f"{predicted.shape=} but {reference.shape=}")
    error = 1000 * np.abs(predicted - reference).mean()
    label = label or f"{model_title(model) if model else 'model'}, MAE {error:.1f} meV/Å"
    ax = take_axes(ax)
    ax.plot(
        reference.ravel(),
        predicted.ravel(),
        ".",
        markersize=2,
        alpha=0.5,
        rasterized=True,
        color=model_color(model or ""),
        label=label,
    )
    ends = [min(reference.min(), predicted.min()), max(reference.max(), predicted.max())]
    ax.plot(ends, ends, color=REFERENCE_COLOR, linewidth=0.9)
    ax.set(
        xlabel="Reference force component (eV/Å)", ylabel="Predicted force component (eV/Å)", aspect="equal"
    )
    ax.legend(markerscale=4)
    return ax


def plot_energy_histogram(
    frames: Sequence[Atoms], *, zero: float | None = None, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Distribution of the energies of a set of frames, per atom.

    Parameters
    ----------
    frames
        T frames with energies (eV) attached.
    zero
        Energy per atom that is subtracted, eV; by default the mean of `frames`. Pass the mean of the training
        set to draw several splits on one axis.

    Raises
    ------
    ValueError
        If there are no frames.
    """
    energies = energies_per_atom(frames)
    zero = energies.mean() if zero is None else zero
    ax = take_axes(ax)
    ax.hist(1000 * (energies - zero), bins=40, density=True, histtype="step", linewidth=1.8, label=label)
    ax.set(xlabel="Energy above the mean (meV/atom)", ylabel="Density (atom/meV)")
    if label:
        ax.legend()
    return ax


def plot_energies(frames: Mapping[str, Sequence[Atoms]], *, ax: Axes | None = None) -> Axes:
    """Distributions of the energies per atom of several splits above the mean of the split ``train``.

    Parameters
    ----------
    frames
        Split -> frames with energies (eV) attached.
    """
    ax, zero = take_axes(ax), energies_per_atom(frames["train"]).mean()
    for split, part in frames.items():
        plot_energy_histogram(part, zero=zero, label=split, ax=ax)
    return ax


def energies_per_atom(frames: Sequence[Atoms]) -> np.ndarray:
    """Potential energy of every frame divided by its number of atoms, shape ``(T,)``, eV.

    Raises
    ------
    ValueError
        If there are no frames.
    """
    if not len(frames):
        raise ValueError("no frames: an energy distribution needs at least one")
    return np.array([atoms.get_potential_energy() / len(atoms) for atoms in frames])


def plot_force_distribution(
    frames: Sequence[Atoms], *, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Distribution of the length of the forces, one curve for each element.

    Parameters
    ----------
    frames
        T frames with forces (eV/Å) attached.
    label
        Prefix of all entries of the legend, such as the name of the split.

    Raises
    ------
    ValueError
        If there are no frames.
    """
    if not len(frames):
        raise ValueError("no frames: a force distribution needs at least one")
    lengths = np.concatenate([np.linalg.norm(atoms.get_forces(), axis=1) for atoms in frames])
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    ax = take_axes(ax)
    edges = np.linspace(0, np.quantile(lengths, 0.999), 60)
    lines = ("-", "--", "-.", ":")
    for place, number in enumerate(np.unique(numbers)):
        density, _ = np.histogram(lengths[numbers == number], edges, density=True)
        ax.plot(
            (edges[1:] + edges[:-1]) / 2,
            density,
            lines[place % 4],
            label=f"{label + ' ' if label else ''}{chemical_symbols[number]}",
        )
    ax.set(xlabel="Length of the force on an atom (eV/Å)", ylabel="Density (Å/eV)", ylim=(0, None))
    ax.legend()
    return ax


def plot_structure(
    atoms: Atoms,
    *,
    rotation: tuple[float, float] = (20.0, -12.0),
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Picture of a structure, with atoms as balls, bonds as sticks, and a periodic cell as thin lines.

    A bond is drawn if two atoms of the same image are closer than 1.15 times the sum of their covalent radii.
    More distant atoms are paler.

    Parameters
    ----------
    atoms
        Structure of N atoms, positions in Å.
    rotation
        Rotation about the vertical axis and tilt towards the reader, degrees.
    label
        Text in the upper left corner.
    """
    ax = take_axes(ax)
    turn = _rotation(*rotation)
    origin = atoms.positions.mean(0)
    points = (atoms.positions - origin) @ turn.T
    depth = _depth(points[:, 2])
    _draw_bonds(ax, atoms, points, depth)
    for i in np.argsort(points[:, 2]):
        color = 1 - (1 - jmol_colors[atoms.numbers[i]]) * (0.45 + 0.55 * depth[i])
        ax.add_patch(
            Circle(
                points[i, :2],
                0.55 * covalent_radii[atoms.numbers[i]],
                facecolor=color,
                edgecolor="0.2",
                linewidth=0.7,
                zorder=3 + depth[i],
            )
        )
    if atoms.pbc.any():
        _draw_cell(ax, (np.asarray(atoms.cell), origin), turn)
    _element_legend(ax, atoms)
    if label:
        ax.text(0.02, 0.97, label, transform=ax.transAxes, va="top")
    ax.autoscale_view()
    ax.margins(0.08)
    ax.grid(False)
    ax.set(xlabel="Projected x (Å)", ylabel="Projected y (Å)", aspect="equal")
    return ax


def plot_leaderboard(
    frame: pd.DataFrame,
    x: str = "force_mae",
    y: str = "wf",
    *,
    dataset: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One metric against another, with a point and the intervals over replicas for every model and dataset.

    The colour denotes the model, the marker the dataset; a grey band shows the floor of `y` on a dataset, as
    wide as its points. An axis is logarithmic if all its values are positive.

    Parameters
    ----------
    frame
        One row per metric, as `records.read` returns it.
    x, y
        Names of the two metrics, for example ``"force_mae"`` (meV/Å) and ``"wf"`` (%).
    dataset
        Only dataset that is shown; by default all are.
    label
        Prefix of all entries of the legend.

    Raises
    ------
    ValueError
        If no model has both metrics.
    """
    frame = frame if dataset is None else frame[frame.dataset == dataset]
    points = _pair_metrics(frame, x, y)
    ax = take_axes(ax)
    markers = dict(zip(sorted(points.dataset.unique()), MARKERS * 4, strict=False))
    for row in points.itertuples():
        ax.errorbar(
            row.x,
            row.y,
            xerr=error_bar(row.x, row.x_low, row.x_high),
            yerr=error_bar(row.y, row.y_low, row.y_high),
            color=model_color(row.model),
            marker=markers[row.dataset],
            markeredgecolor="0.2",
            markeredgewidth=0.6,
            linestyle="none",
            elinewidth=1,
        )
    for name, here in points.groupby("dataset"):
        _, low, high = floor_of(frame, "rollout", name, y)
        if np.isfinite([low, high]).all():
            ends = here.x.min() / 1.1, here.x.max() * 1.1
            ax.fill_between(ends, low, high, color=FLOOR_COLOR, alpha=0.35, linewidth=1.5, zorder=0)
    for model in sorted(points.model.unique(), key=model_place):
        ax.plot([], [], "o", color=model_color(model), label=f"{label or ''}{model_title(model)}")
    for name, marker in markers.items():
        if len(markers) > 1:
            ax.plot([], [], marker, color="0.5", linestyle="none", label=dataset_title(name))
    for axis, values in (("x", points.x), ("y", points.y)):
        if (values > 0).all() and values.max() > 3 * values.min():
            set_log_scale(ax, axis)
    ax.set(xlabel=metric_label(frame, x), ylabel=metric_label(frame, y))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


# what figures share, here and in `figures`


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


def read_curve(record, name: str) -> np.ndarray:
    """A curve of a record.

    Raises
    ------
    ValueError
        If the record has no such curve; the message lists those that it has.
    """
    if name not in record.curves:
        raise ValueError(
            f"the {record.kind} record of {record.model} on {record.dataset} has no curve {name!r}; "
            f"it has {sorted(record.curves)}"
        )
    return np.asarray(record.curves[name])


def model_place(model: str) -> int:
    """Sorting key of a model, its place in the list of colours; unknown models come last."""
    names = list(MODEL_COLORS)
    return names.index(model) if model in names else len(names)


def model_marker(model: str) -> str:
    """Marker of a model, which is the same in the whole book."""
    return MARKERS[model_place(model) % len(MARKERS)]


def model_handles(models: Iterable[str], *, markers: bool = False, **style) -> list[Line2D]:
    """Entries of a legend, one per model, with its title in its colour and, with `markers`, its marker.

    `style` is passed to ``Line2D``.

    Examples
    --------
    >>> [(line.get_label(), line.get_marker()) for line in model_handles(["mace"], markers=True)]
    [('MACE', '^')]
    """
    handles = []
    for name in models:
        own = {"marker": model_marker(name)} if markers else {}
        handles.append(Line2D([], [], color=model_color(name), label=model_title(name), **own, **style))
    return handles


def replica_mean(values: np.ndarray, *, geometric: bool = False) -> np.ndarray:
    """Mean over the replicas that have a value, shape ``(R, T)`` -> ``(T,)``; NaN where none has.

    Examples
    --------
    >>> replica_mean(np.array([[1.0, 4.0], [3.0, np.nan]]))
    array([2., 4.])
    """
    values = np.ma.masked_invalid(values)
    mean = np.ma.exp(np.ma.log(values).mean(0)) if geometric else values.mean(0)
    return np.ma.filled(mean.astype(float), np.nan)


def plot_floor(ax: Axes, floor: float | Sequence[float], *, label: str | None = None) -> None:
    """Draw a grey band over an interval ``(low, high)``, or a line at one value; nothing for NaN."""
    low, high = np.broadcast_to(np.asarray(floor, dtype=float), 2)
    if low < high:
        ax.axhspan(
            low, high, color=FLOOR_COLOR, alpha=0.35, linewidth=0, zorder=0, label=label or "saturation"
        )
    elif np.isfinite(low):
        style = {"color": FLOOR_COLOR, "alpha": 0.45, "linewidth": 7, "zorder": 0}
        ax.axhline(low, label=label or f"saturation {low:.3g}", **style)


def plot_rdf_floor(ax: Axes, r: np.ndarray, reference: np.ndarray, floor, *, mean: bool = False) -> None:
    """Draw a grey band, the 95 % range of g(r) of an independent trajectory of the reference.

    Parameters
    ----------
    r, reference
        Distance, Å, and the function of the reference (or zeros, for differences), shape ``(B,)``.
    floor
        Record of a floor with curve ``rdf_spread`` (2, B); without this curve no band is drawn.
    mean
        Whether the band is that of the mean over replicas instead of a single replica.
    """
    if "rdf_spread" in floor.curves:
        spread = floor.curves["rdf_spread"][int(mean)]
        low, high = np.maximum(reference - spread, 0 if reference.any() else -np.inf), reference + spread
        style = {"color": FLOOR_COLOR, "alpha": 0.35, "linewidth": 0, "zorder": 0}
        ax.fill_between(r, low, high, **style, label="saturation")


def _range(floor, metric):
    """Range of a metric in the record of a floor; anything but a record is returned unchanged."""
    if not hasattr(floor, "metric"):
        return floor
    found = floor.metric("ev_root" if metric == "ev" else metric)
    ends = np.array([found.low, found.high] if found.low is not None else [found.value] * 2, dtype=float)
    return ends**2 if metric == "ev" else ends


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


def metric_label(frame: pd.DataFrame, metric: str) -> str:
    """Name of a metric with its unit, for an axis."""
    units = frame.loc[frame.metric == metric, "unit"].dropna()
    return quantities.of(metric, *units[:1]).axis


def _reference_label(ax):
    drawn = ax.get_legend_handles_labels()[1]
    return None if "reference" in drawn else "reference"


def _plot_replicas(ax, x, values, model, label, *, geometric=False):
    """Draw replicas as thin lines and their mean as a thick line, over the frames that have a value."""
    color, mean = model_color(model), replica_mean(values, geometric=geometric)
    known = np.isfinite(mean)
    ax.plot(x[known], values[:, known].T, color=color, linewidth=0.6, alpha=0.35)
    ax.plot(x[known], mean[known], color=color, linewidth=2.0, label=label or model_title(model))


def _rotation(turn, tilt):
    a, b = np.radians([turn, tilt])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_x @ about_y


def _depth(z):
    """Depth scaled to [0, 1], where one is the nearest atom."""
    return (z - z.min()) / (np.ptp(z) or 1.0)


def _draw_bonds(ax, atoms, points, depth):
    first, second, images = neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=1.15))
    keep = (first < second) & ~images.any(1)
    for i, j in zip(first[keep], second[keep], strict=True):
        ax.plot(
            *points[[i, j], :2].T,
            color="0.35",
            linewidth=2.2,
            solid_capstyle="round",
            zorder=3 + min(depth[i], depth[j]) - 1e-3,
        )


def _draw_cell(ax, box, turn):
    cell, origin = box
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    points = (corners @ cell - origin) @ turn.T
    edges = [(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1]
    lines = LineCollection([points[[a, b], :2] for a, b in edges], colors="0.5", linewidths=0.7, zorder=1)
    ax.add_collection(lines)


def _element_legend(ax, atoms):
    for symbol in sorted(set(atoms.symbols), key=lambda s: atomic_numbers[s]):
        color = jmol_colors[atomic_numbers[symbol]]
        ax.plot([], [], "o", color=color, markeredgecolor="0.2", label=symbol)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _pair_metrics(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """One row per dataset and model with both metrics; seeds and protocols are treated as in `main_rows`."""
    sides = []
    for name, side in ((x, "x"), (y, "y")):
        rows = main_rows(frame)
        rows = rows[(rows.metric == name) & rows.value.notna()]
        mean = rows.groupby(["dataset", "model"])[["value", "low", "high"]].mean()
        sides.append(mean.rename(columns={"value": side, "low": f"{side}_low", "high": f"{side}_high"}))
    points = sides[0].join(sides[1], how="inner").reset_index()
    if points.empty:
        raise ValueError(
            f"no model has both {x!r} and {y!r}; the frame has {sorted(frame.metric.dropna().unique())}"
        )
    return points
