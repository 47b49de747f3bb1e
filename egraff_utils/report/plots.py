"""What does a record look like? Each function draws one figure of the book.

Every function draws into ``ax`` or into a new figure, labels both axes with their units, sets no title (the
caption is the title) and returns the axes. A model has the same colour in the whole book, the reference is
black, and a noise floor is a grey band. Symbols: R replicas, T frames, N atoms, B bins, P pairs of elements.
Figures over many records are in ``report.figures``, which uses the functions at the end of this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from egraff_utils import quantities
from egraff_utils.quantities import DIMENSIONLESS
from egraff_utils.report.look import (
    FLOOR_COLOR,
    REFERENCE_COLOR,
    model_color,
    model_marker,
    set_log_scale,
    take_axes,
)
from egraff_utils.report.titles import model_title

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
OWN_NOISE = {"color": "0.2", "linestyle": (0, (2, 1.2)), "linewidth": 1.2}
"""Line of the reference that is run as a model, with noise of its own."""


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
        Record of kind ``training`` with the curves ``x`` and ``metric``, which have the same shape.
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


def plot_rdf(record, *, floor=None, own_noise=None, label: str | None = None, ax: Axes | None = None) -> Axes:
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
    own_noise
        Record of the same rollout of the reference with noise of its own, whose mean is dashed, or None.
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
    _plot_own_noise(ax, "rdf_r", "rdf", own_noise)
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
    own_noise=None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Violation of energy or forces along the rollout, with the floor of unrelated frames of the reference.

    Replicas are thin lines, their geometric mean is a thick line. A curve that has risen to the grey floor
    shows only that the two trajectories have become independent.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``metric`` (R, T), dimensionless.
    metric
        ``"fv"``, ``"ev"`` or ``"ev_root"``.
    floor
        Record of the floor, whose range of the metric is drawn, or a number or an interval ``(low, high)``,
        dimensionless.
    own_noise
        As for `plot_rdf`; the start, which both share, is left out.

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
    _plot_own_noise(ax, "time", metric, own_noise, first=1, geometric=True)
    ax.set(xlabel="Time (fs)", ylabel=quantities.of(metric).written_out)
    set_log_scale(ax, "y")
    ax.legend()
    return ax


def plot_temperature(
    record, target: float, *, own_noise=None, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Instantaneous temperature of the replicas against the thermostat's target (K, dashed black).

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``temperature`` (R, T) K.
    target
        Temperature of the thermostat, K.
    own_noise
        As for `plot_rdf`.

    Raises
    ------
    ValueError
        If the record has no such curve.
    """
    ax = take_axes(ax)
    ax.axhline(target, color=REFERENCE_COLOR, linestyle="--", linewidth=1.2, label=f"target {target:g} K")
    _plot_replicas(ax, read_curve(record, "time"), read_curve(record, "temperature"), record.model, label)
    _plot_own_noise(ax, "time", "temperature", own_noise)
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


def plot_displacements(record, *, ax: Axes | None = None) -> Axes:
    """Mean square displacement of every element from the start, mean over replicas; dashed: the reference.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs, ``species`` (S,) and ``msd_species`` (R, S, T) Å^2,
        and, where the reference continues in time, ``msd_species_reference``. One that was made before these
        curves were stored is told in words.
    """
    ax = take_axes(ax)
    if "msd_species" not in record.curves:
        ax.text(0.5, 0.5, "not stored when this simulation was run", ha="center", transform=ax.transAxes)
        return ax
    time, own = read_curve(record, "time"), replica_mean(record.curves["msd_species"])
    expected = replica_mean(record.curves.get("msd_species_reference", np.full((1, *own.shape), np.nan)))
    for symbol, ours, theirs in zip(read_curve(record, "species"), own, expected, strict=True):
        (line,) = ax.plot(time, ours, label=str(symbol))
        known = np.isfinite(theirs)
        ax.plot(time[known], theirs[known], color=line.get_color(), linestyle="--", linewidth=1.2)
    ax.set(xlabel="Time (fs)", ylabel="Mean square displacement (Å$^2$)", ylim=(0, None))
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


# what figures share, here and in `figures`


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


def _plot_own_noise(ax, x, y, record, *, first=0, geometric=False):
    """Draw the mean over the replicas of the reference with noise of its own, if there is such a record."""
    if record is not None:
        mean = replica_mean(read_curve(record, y)[:, first:], geometric=geometric)
        ax.plot(read_curve(record, x)[first:], mean, **OWN_NOISE, label=model_title(record.model))
