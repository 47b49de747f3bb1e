"""What do frames look like? Pictures of structures, and distributions of their energies and forces.

As in `plots`, every function draws into `ax` or into a new figure and returns the axes. Symbols: T frames, N
atoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import natural_cutoffs, neighbor_list
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle

from egraff_utils.report.look import (
    take_axes,
)


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
    density, edges = np.histogram(1000 * (energies - zero), bins=40, density=True)
    ax.stairs(density, edges, linewidth=1.8, label=label)
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
