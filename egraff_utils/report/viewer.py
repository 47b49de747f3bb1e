"""What does a structure look like from the other side? The output of a cell shows an interactive 3D view.

The view is one piece of HTML that holds its data and its program (``viewer.js``). It needs neither a network
nor a library, works in a notebook and in the built book, and is the same text for the same structures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from itertools import product
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.data.colors import jmol_colors
from IPython.display import HTML
from matplotlib.colors import to_hex

PROGRAM = Path(__file__).with_name("viewer.js")
RESOLUTION = 0.01
"""Length of which stored lengths are multiples, Å."""

KEYS = "Drag or arrow keys turn, wheel (after a click), pinch, + or − zoom, 0 resets"

STYLE = """
.structure-viewer {color: inherit; max-width: 44em; font-size: 0.9em}
.structure-viewer canvas {display: block; width: 100%; cursor: grab; touch-action: pan-y}
.structure-viewer canvas:focus {touch-action: none; outline-offset: -3px}
.structure-viewer div {display: flex; flex-wrap: wrap; gap: 0.3em 0.8em; align-items: center; padding: 0.2em}
.structure-viewer input {flex: 1; min-width: 6em}
.structure-viewer [hidden] {display: none}
.structure-viewer small {flex-basis: 100%; opacity: 0.8}
"""


def show(structures, *, height: int = 360, label: str | None = None) -> HTML:
    """Interactive view of structures, which can be rotated, enlarged and, if they are trajectories, played.

    Spheres have 0.55 times the covalent radius. In each frame, a bond is drawn between atoms of the same
    image that are closer than 1.15 times the sum of their radii (`structures.plot_structure`). A periodic
    structure is wrapped into its cell, whose edges are drawn.

    Parameters
    ----------
    structures
        One ``Atoms``; a list of them with the same atoms, which is a trajectory; or a mapping from names to
        either, from which a reader chooses. Positions are in Å. The cell is that of the first frame.
    height
        Height of the picture, pixels; it is as wide as the text.
    label
        Description of the view for screen readers; by default the chemical formulas.

    Raises
    ------
    ValueError
        If there is no structure, or the frames of a trajectory do not hold the same atoms.

    Examples
    --------
    >>> water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    >>> len(show({"water": water, "two frames": [water, water]}).data) < 15_000
    True
    """
    named = structures if isinstance(structures, Mapping) else {"": structures}
    if not named:
        raise ValueError("no structures: a view needs at least one")
    stored = [_structure(str(name), frames) for name, frames in named.items()]
    symbols = sorted({symbol for structure in stored for symbol in structure["symbols"]})
    data = {"elements": {symbol: _element(symbol) for symbol in symbols}, "structures": stored}
    texts = [structure["text"] for structure in stored]
    return HTML(_page(data, [str(name) for name in named], height, label or "; ".join(texts)))


def _structure(name, frames):
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise ValueError(f"no frames in the trajectory {name!r}")
    first = frames[0]
    for k, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, first.numbers):
            raise ValueError(
                f"frame {k} of {name!r} is {atoms.symbols}, frame 0 is {first.symbols}; "
                "name structures of different atoms in a mapping"
            )
    cell = np.asarray(first.cell) if first.pbc.any() else np.zeros((3, 3))
    middle = cell.sum(0) / 2 if cell.any() else first.positions.mean(0)
    positions = [(atoms.get_positions(wrap=bool(cell.any())) - middle) for atoms in frames]
    edges = _edges(cell) if cell.any() else np.zeros((0, 6))
    ends = np.concatenate([*positions, edges.reshape(-1, 3)])
    symbols = sorted(set(first.symbols))
    return {
        "text": _text(name, first, len(frames)),
        "symbols": symbols,
        "kinds": [symbols.index(symbol) for symbol in first.symbols],
        "size": _stored(np.linalg.norm(ends, axis=1).max() + covalent_radii[first.numbers].max()),
        "edges": _stored(edges),
        "frames": [_stored(frame.ravel()) for frame in positions],
    }


def _text(name, atoms, frames):
    formula = atoms.get_chemical_formula(empirical=False)
    parts = [name, formula, f"{len(atoms)} atoms", f"{frames} frames" if frames > 1 else ""]
    return ", ".join(part for part in parts if part)


def _edges(cell):
    """Twelve edges of a cell centred at the origin, each as two corners, shape ``(12, 6)``, Å."""
    corners = np.array(list(product((0, 1), repeat=3)))
    pairs = [(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1]
    return ((corners - 0.5) @ cell)[np.array(pairs)].reshape(12, 6)


def _stored(lengths):
    """Lengths, Å, as whole multiples of the resolution; noise in the last digits does not affect rounding."""
    return np.rint(np.round(np.asarray(lengths) / RESOLUTION, 6)).astype(int).tolist()


def _element(symbol):
    number = atomic_numbers[symbol]
    return to_hex(jmol_colors[number]), _stored(covalent_radii[number])


def _page(data, names, height, label):
    text = json.dumps(data, separators=(",", ":"), sort_keys=True)
    for character in "<>&":  # so that no text can close the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    options = "".join(f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(names))
    hidden = " hidden" if len(names) == 1 else ""
    heard = escape(f"3D view: {label}. {KEYS}.")
    return (
        f'<div class="structure-viewer"><style>{STYLE}</style>'
        f'<canvas tabindex="0" role="application" aria-label="{heard}" style="height: {int(height)}px">'
        f'</canvas><div><select aria-label="Structure"{hidden}>{options}</select>'
        '<button type="button" hidden>Play</button>'
        '<input type="range" min="0" value="0" aria-label="Frame" hidden><output></output>'
        f"<small>{escape(KEYS)}</small></div>"
        f'<script type="application/json">{text}</script></div><script>{PROGRAM.read_text()}</script>'
    )
