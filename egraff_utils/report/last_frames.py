"""Why do simulations break? The last frames of replicas that broke, and the atoms that broke them.

Symbols: L last frames, N atoms.
"""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase.geometry import find_mic
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy import stats

from egraff_utils import structure
from egraff_utils.breaks import Cause
from egraff_utils.md.stability import distances
from egraff_utils.report import look, structures
from egraff_utils.report.survival import COLUMNS, conditions, place_name, reference_frames, rows_of, runs
from egraff_utils.report.titles import model_title, short_title

MOVED_ON = "H now nearer to another"
"""Note on a bond whose hydrogen has changed its partner, which is a reaction rather than a defect."""

EVERYWHERE = "everywhere"
"""Place of a break that concerns the whole system."""

AROUND = 4.5
"""Radius around a failure in which the atoms of a periodic system are drawn, Å."""


class Offender(NamedTuple):
    """Atom or pair of atoms at which a replica broke, as seen in its last valid frame."""

    atoms: tuple
    """Indices of the atom or of the pair."""
    name: str
    """Name for readers, such as ``O-H bond``."""
    length: float
    """Length in the last valid frame, Å, of the bond, the contact, the distance to the nearest atom, or the
    last move."""
    usual: float
    """Mean length of a bond over the reference, Å; NaN for other causes."""


class Failure(NamedTuple):
    """A replica that broke, with its last valid frames."""

    row: pd.Series
    """Row of `replicas`."""
    record: object
    positions: np.ndarray
    """Positions, shape ``(L, N, 3)``, Å."""
    energy: np.ndarray
    """Potential energies, shape ``(L,)``, eV."""
    rise: float
    """Last energy relative to the mean of the run before the last frames, in its standard deviations."""
    warmth: float
    """Ratio of the last temperature to the target."""


def failures(found) -> list[Failure]:
    """Replicas that broke and whose records hold their last frames, in the order of `replicas`."""
    kept = []
    for kind, record in runs(found):
        curves = record.curves if record.status == "unstable" else {}
        rows = pd.DataFrame(rows_of(kind, record), columns=COLUMNS) if "last_positions" in curves else None
        for place, replica in enumerate(curves.get("broken", ()) if rows is not None else ()):
            before, last = _course(record, place, replica)
            spread = before.std() if len(before) > 1 and before.std() > 0 else np.nan
            rise = (last[-1] - before.mean()) / spread
            warm = curves["temperature"][replica]
            warm = warm[np.isfinite(warm)]
            warmth = (
                warm[-1] / rows.temperature[replica] if len(warm) and rows.temperature[replica] else np.nan
            )
            row = rows.loc[replica]
            kept.append(Failure(row, record, curves["last_positions"][place], last, rise, float(warmth)))
    return kept


def _course(record, place, replica):
    """Energies of a replica up to its last frames, and in its last frames, eV."""
    energy, last = record.curves["energy"][replica], record.curves["last_energy"][place]
    energy = energy[np.isfinite(energy)]
    return energy[: -len(last)], last


def offender(positions, atoms, cause: Cause, where, reference=None) -> Offender | None:
    """Atoms that violated a stability rule, with their distance in the last valid frame.

    The frame in which a replica broke is not stored.

    Parameters
    ----------
    positions
        Last valid frames, shape ``(L, N, 3)``, Å.
    atoms
        ``ase.Atoms`` of the system, which gives elements and cell.
    cause
        Cause of the break.
    where
        Indices of the atoms, as the record names them.
    reference
        Positions of the reference, for the mean lengths of bonds, shape ``(F, N, 3)``, Å.

    Returns
    -------
    Offender, or None if the break does not concern single atoms.
    """
    if not where:
        return None
    last = np.asarray(positions[-1], dtype=float)
    symbols = atoms.get_chemical_symbols()
    if cause in (Cause.MOVE, Cause.NOT_FINITE):
        (i,) = where
        moved = np.linalg.norm(last[i] - positions[-2][i]) if len(positions) > 1 else 0.0
        return Offender((i,), f"{symbols[i]} atom, last move", float(moved), np.nan)
    if cause == Cause.BOND:
        pairs, usual = structure.reference_bonds(
            atoms, atoms.positions[None] if reference is None else reference
        )
        i, j = where
        usual = usual[(np.sort(pairs) == sorted((i, j))).all(1)]
        now = distances(last, atoms)
        name = f"{symbols[i]}-{symbols[j]} bond{_transfer(now, symbols, (i, j))}"
        return Offender((i, j), name, float(now[i, j]), float(usual.mean()) if len(usual) else np.nan)
    now = distances(last, atoms)
    if len(where) == 1:
        (i,) = where
        return Offender((i,), f"{symbols[i]} atom, to the nearest", float(now[i].min()), np.nan)
    i, j = where
    return Offender((i, j), f"{symbols[i]}-{symbols[j]} contact", float(now[i, j]), np.nan)


def _transfer(apart, symbols, pair):
    """Note for a stretched bond whose hydrogen is nearer to another atom than to its partner; else empty."""
    for h, partner in (pair, pair[::-1]):
        others = [k for k in range(len(symbols)) if k not in pair and symbols[k] != "H"]
        if symbols[h] == "H" and others:
            new = min(others, key=lambda k: apart[h, k])
            if apart[h, new] < apart[h, partner]:
                return f", {MOVED_ON} {symbols[new]}"
    return ""


def offender_of(failure: Failure) -> Offender | None:
    """`offender` of a failure; also None if its dataset is not available."""
    frames = reference_frames(failure.record)
    if frames is None or len(frames[0]) != failure.positions.shape[1]:
        return None
    reference = np.stack([a.positions for a in frames]) if failure.row.cause == Cause.BOND else None
    where = {end.replica: end.where for end in failure.record.breaks}[failure.row.replica]
    return offender(failure.positions, frames[0], failure.row.cause, where, reference)


def failure_table(table: pd.DataFrame, kept=()) -> pd.DataFrame:
    """Place, time and reason of every failure, as texts for readers; no value is NaN.

    Parameters
    ----------
    table
        DataFrame of `replicas`.
    kept
        List of `failures`.
    """
    known = {(f.row.path, f.row.replica): f for f in kept}
    rows = []
    for row in table[table.broke].itertuples():
        failure = known.get((row.path, row.replica))
        found = offender_of(failure) if failure else None
        place = f"{short_title(row.dataset)}{', ' + row.composition if row.composition else ''}"
        usual = f" (usually {found.usual:.2f})" if found and np.isfinite(found.usual) else ""
        rows.append(
            {
                "Setting": row.setting,
                "Dataset": place,
                "Model": model_title(row.model),
                "Seed": row.seed,
                "Replica": row.replica,
                "Step": row.step,
                "Time (fs)": round(row.time, 1),
                "Reason": row.cause.words,
                "Where": f"{found.name} {found.length:.2f} Å{usual}" if found else _elsewhere(row.cause),
                "Energy (σ)": _signed(failure.rise) if failure else "not kept",
                "T over target (×)": f"{failure.warmth:.2f}"
                if failure and np.isfinite(failure.warmth)
                else "not kept",
            }
        )
    heads = ["Setting", "Dataset", "Model", "Seed", "Replica", "Step", "Time (fs)", "Reason", "Where"]
    return pd.DataFrame(rows, columns=[*heads, "Energy (σ)", "T over target (×)"])


def downhill(kept) -> tuple[str, str]:
    """How many replicas lost energy in their last frames, and which way that says they go, as texts.

    The second is a claim only if a sign test rejects equal chances at 5 %.

    Examples
    --------
    >>> downhill([])
    ('0 of 0', 'goes downhill as often as uphill')
    """
    fell = sum(failure.energy[-1] < failure.energy[0] for failure in kept)
    words = "goes downhill as often as uphill"
    if kept and stats.binomtest(fell, len(kept)).pvalue < 0.05:
        words = "usually goes uphill, as a hot one does"
        if fell > len(kept) / 2:
            words = "usually goes downhill, as into a hole of its surface"
    return f"{fell} of {len(kept)}", words


def _elsewhere(cause):
    return EVERYWHERE if cause in (Cause.HEATED, Cause.STRUCTURE) else "not kept"


def _signed(value):
    return f"{value:+.1f}" if np.isfinite(value) else "no value"


def pick(kept, *, most: int = 4) -> list[Failure]:
    """A few failures to show, with as many different causes, datasets and models as possible."""
    chosen, left = [], [f for f in kept if reference_frames(f.record) is not None]
    while left and len(chosen) < most:
        seen = {name: {f.row[name] for f in chosen} for name in ("cause", "dataset", "model")}
        left.sort(key=lambda f: sum(f.row[name] in values for name, values in seen.items()))
        chosen.append(left.pop(0))
    return chosen


def plot_last_frame(failure: Failure, *, ax=None):
    """Last valid frame of a replica that broke, with rings around the offending atom or pair.

    For a periodic system, only the atoms within :data:`AROUND` of them are drawn.
    """
    ax = look.take_axes(ax)
    atoms = reference_frames(failure.record)[0].copy()
    atoms.positions = failure.positions[-1]
    found = offender_of(failure)
    ring = list(found.atoms) if found else []
    if atoms.pbc.any():
        atoms, ring = _cut_out(atoms, ring or [0], wanted=ring)
    axes = _view(atoms.positions, ring)
    atoms.positions = (atoms.positions - atoms.positions.mean(0)) @ axes.T
    structures.plot_structure(atoms, rotation=(0.0, 0.0), ax=ax)
    points = atoms.positions - atoms.positions.mean(0)
    if len(ring) == 2:
        ax.plot(*points[ring, :2].T, color="#d1001f", linewidth=2.2, linestyle=":", zorder=9)
    for i in ring:
        ax.add_patch(Circle(points[i, :2], 0.55, fill=False, edgecolor="#d1001f", linewidth=1.8, zorder=9))
    where = failure.row.composition or place_name(failure.row.dataset, failure.row.setting)
    what = f"{found.name.split(',')[0]} {found.length:.2f} Å" if found else failure.row.cause.words
    lines = [f"{model_title(failure.row.model)}, step {failure.row.step}", where, what]
    ax.set_title("\n".join(fill(line, 26) for line in lines), fontsize="small", loc="left")
    return ax


def _cut_out(atoms, centre, *, wanted):
    """Cluster of the atoms around the first offending one, without a cell, and new indices of the wanted."""
    vectors, apart = find_mic(atoms.positions - atoms.positions[centre[0]], atoms.cell, atoms.pbc)
    near = np.flatnonzero(apart < AROUND)
    cluster = atoms[near]
    cluster.positions = vectors[near]
    cluster.pbc, cluster.cell = False, None
    places = {int(old): new for new, old in enumerate(near)}
    return cluster, [places[i] for i in wanted if i in places]


def _view(positions, ring):
    """Rotation with rows right, up and towards the reader; a pair is in the plane, a molecule lies flat."""
    centred = positions - positions.mean(0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]
    if len(ring) == 2:
        pair = positions[ring[1]] - positions[ring[0]]
        if abs(axes[2] @ pair) > 0.6 * np.linalg.norm(pair):
            axes = np.linalg.qr(np.column_stack([pair, axes[0], axes[1]]))[0].T
    return axes if np.linalg.det(axes) > 0 else axes * np.array([[1], [1], [-1]])


def failure_grid(kept) -> Figure:
    """Last valid frames of a few failures, and below each the energy of its last frames against time.

    The energy is relative to the mean of the run before those frames, whose standard deviation is a band.
    """
    chosen = pick(kept)
    columns = max(len(chosen), 1)
    figure, axes = plt.subplots(2, columns, figsize=(7.5, 4.6), squeeze=False, height_ratios=[1.6, 1])
    for (top, bottom), failure in zip(axes.T, chosen, strict=False):
        plot_last_frame(failure, ax=top)
        top.set(xlabel="", ylabel="", xticks=[], yticks=[])
        if top.get_legend():
            top.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, columnspacing=0.8)
        _draw_energy(bottom, failure)
    axes[1, 0].set_ylabel("Energy above its mean (eV)" if chosen else "")
    for ax in axes[:, 0] if not chosen else ():
        ax.set_axis_off()
    if not chosen:
        axes[0, 0].text(0.5, 0.5, "no last frames kept", ha="center", va="center", color="0.4")
    return figure


def _draw_energy(ax, failure):
    place = list(failure.record.curves["broken"]).index(failure.row.replica)
    before, _ = _course(failure.record, place, failure.row.replica)
    mean, spread = (before.mean(), before.std()) if len(before) > 1 else (failure.energy[0], 0.0)
    timestep = conditions(failure.record, failure.row.composition)[1]
    time = (np.arange(len(failure.energy)) + 1 - len(failure.energy)) * timestep
    time *= failure.record.parameters.get("record_every", 1)
    ax.axhspan(-spread, spread, color="0.55", alpha=0.3, linewidth=0)
    ax.plot(time, failure.energy - mean, "o-", color=look.model_color(failure.row.model), markersize=3.5)
    ax.set_xlabel("Time before the break (fs)", fontsize="small")
