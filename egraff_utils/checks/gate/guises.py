"""In which forms is a frame the same? Each function makes a guise of it, with what is required of that."""

from collections.abc import Callable
from typing import NamedTuple

import ase
import numpy as np
from ase.geometry import wrap_positions
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

FAR = 100.0
"""Distance between copies or atoms that must not interact, Å."""


class Guise(NamedTuple):
    """An equivalent form of a frame, and how energy and forces transform."""

    atoms: ase.Atoms
    forces: Callable[[np.ndarray], np.ndarray]
    """Function from the forces on the frame, shape ``(N, 3)``, to those required on the guise, shape ``(N',
    3)``, eV/Å."""
    copies: int = 1
    """Ratio of the required energy to that of the frame."""


def turned(atoms: ase.Atoms, matrix: ArrayLike) -> ase.Atoms:
    """Copy of a structure whose positions are multiplied by an orthogonal matrix, about the mean position."""
    copy = atoms.copy()
    middle = atoms.positions.mean(0)
    copy.positions = (atoms.positions - middle) @ np.asarray(matrix).T + middle
    copy.cell = np.asarray(atoms.cell) @ np.asarray(matrix).T
    return copy


def rotated(atoms: ase.Atoms, rng: np.random.Generator) -> Guise:
    """:class:`Guise` of a random rotation."""
    matrix = Rotation.random(rng=rng).as_matrix()
    return Guise(turned(atoms, matrix), lambda forces: forces @ matrix.T)


def inverted(atoms: ase.Atoms, rng: np.random.Generator | None = None) -> Guise:
    """:class:`Guise` of an inversion, which is a reflection combined with a rotation."""
    return Guise(turned(atoms, -np.eye(3)), lambda forces: -forces)


def translated(atoms: ase.Atoms, rng: np.random.Generator) -> Guise:
    """:class:`Guise` of a translation by up to 10 Å along every axis; atoms are not wrapped."""
    moved = atoms.copy()
    moved.positions += rng.uniform(-10, 10, 3)
    return Guise(moved, lambda forces: forces)


def permuted(atoms: ase.Atoms, rng: np.random.Generator) -> Guise:
    """:class:`Guise` of a random permutation of the atoms."""
    order = rng.permutation(len(atoms))
    return Guise(atoms[order], lambda forces: forces[order])


def imaged(atoms: ase.Atoms, rng: np.random.Generator) -> Guise:
    """:class:`Guise` of wrapped atoms, each of which is then moved by random lattice vectors."""
    moved = atoms.copy()
    moved.positions = wrap_positions(atoms.positions, atoms.cell, atoms.pbc)
    images = rng.integers(-1, 2, (len(atoms), 3)) * atoms.pbc + rng.integers(1, 3, 3) * atoms.pbc
    moved.positions += images @ np.asarray(atoms.cell)
    return Guise(moved, lambda forces: forces)


def doubled(atoms: ase.Atoms, rng: np.random.Generator | None = None) -> Guise:
    """:class:`Guise` of a cell repeated along its first periodic vector, or of two molecules far apart."""
    if atoms.pbc.any():
        twice = atoms.repeat(np.where(np.arange(3) == np.argmax(atoms.pbc), 2, 1))
    else:
        other = atoms.copy()
        other.positions += [FAR, 0, 0]
        twice = atoms + other
    return Guise(twice, lambda forces: np.tile(forces, (2, 1)), copies=2)


GUISES = {
    "rotation": rotated,
    "reflection": inverted,
    "translation": translated,
    "permutation": permuted,
    "images": imaged,
    "extensivity": doubled,
}
"""Name of a check -> function of a frame and a random generator, which makes the guise."""
