"""Is a replica still the system that it started as? The rules by which a simulation counts as broken."""

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from egraff_utils import data, structure
from egraff_utils.breaks import Cause, Verdict
from egraff_utils.cards import DatasetCard
from egraff_utils.md.temperature import first_too_hot, hottest

RULE_WINDOW = 50
"""Smallest number of frames whose radial distribution is judged; that of fewer frames is too noisy."""

Rule = Callable[[np.ndarray, np.ndarray], Verdict | None]
"""Function of positions and temperatures, as :func:`~egraff_utils.md.dynamics.simulate` takes it."""


def rule(card: DatasetCard, frames: Sequence[Atoms], *, temperature: float, interval: float) -> Rule:
    """Stability rule of a rollout, as :func:`~egraff_utils.md.dynamics.simulate` expects it.

    A replica is broken by its structure, by the rules of a molecule or of a bulk system (Fu et al. 2023), or
    by its temperature (:func:`~egraff_utils.md.temperature.hottest`): a model that heats a molecule from 480
    to 860 K in 200 fs has left its reference, even if no bond is broken yet.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard` of the frames.
    frames
        Frames of the reference, a list of ``ase.Atoms``.
    temperature
        Temperature at which the thermostat is stationary, K.
    interval
        Time between recorded frames, fs.
    """
    positions = np.stack([atoms.positions for atoms in frames])
    if card.system == "molecule":
        numbers = frames[0].numbers
        trained = data.positions(card, "train", numbers) if "train" in card.splits else positions[:0]
        by_structure = bond_rule(frames[0], positions, trained)
    else:
        by_structure = bulk_rule(frames[0], positions)

    def judge(new: np.ndarray, temperatures: np.ndarray) -> Verdict | None:
        found = by_structure(new), heat_rule(new, temperatures, temperature=temperature, interval=interval)
        return min(filter(None, found), key=lambda verdict: verdict.frame, default=None)

    return judge


def heat_rule(
    new: np.ndarray, temperatures: np.ndarray, *, temperature: float, interval: float
) -> Verdict | None:
    """Verdict on the first frame whose temperature has become too high.

    Parameters
    ----------
    new
        Positions of the frames that are judged, shape ``(T, N, 3)``.
    temperatures
        Temperatures of all frames from the start to the last of these, shape ``(F,)``, K. The limit is that
        of the start if it is hotter than ``temperature``: a perfect model keeps for a picosecond the heat
        that it is given.
    temperature, interval
        As in :func:`rule`.
    """
    limit = hottest(max(temperature, temperatures[0]), new.shape[1])
    frame = first_too_hot(temperatures, limit, interval=interval)
    return None if frame is None else Verdict(frame - len(temperatures) + len(new), Cause.HEATED)


def bond_rule(
    atoms: Atoms, reference_positions: np.ndarray, training_positions: np.ndarray
) -> Callable[..., Verdict | None]:
    """Rule of a molecule.

    A bond that breaks in the training frames, such as that of a hopping proton, does not count as fixed.
    """
    pairs, lengths = structure.reference_bonds(atoms, reference_positions)
    change = np.abs(structure.bond_lengths(training_positions, pairs) - lengths)
    fixed = (change <= structure.BOND_TOLERANCE).all(axis=0)
    pairs, lengths = pairs[fixed], lengths[fixed]

    def judge(positions: np.ndarray, temperatures: np.ndarray | None = None) -> Verdict | None:
        frame = structure.unstable_step_molecule(positions, pairs, lengths)
        if frame is None:
            return None
        if structure.unstable_bonds(positions, pairs, lengths) == frame:
            return Verdict(frame, Cause.BOND, worst_bond(positions[frame], pairs, lengths))
        return Verdict(frame, Cause.CONTACT_OR_ESCAPE, stray_atoms(positions[frame], atoms))

    return judge


def bulk_rule(atoms: Atoms, reference_positions: np.ndarray) -> Callable[..., Verdict | None]:
    """Rule of a bulk system."""
    r_max = min(structure.as_coded_r_max(atoms), structure.RDF_RANGE)
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    g = structure.radial_distributions(reference_positions, atoms.numbers, r_max=r_max, **box).total

    def judge(positions: np.ndarray, temperatures: np.ndarray | None = None) -> Verdict | None:
        settings = {"g_ref": g, "r_max": r_max, "window": max(RULE_WINDOW, min(100, len(positions))), **box}
        frame = structure.unstable_step_bulk(positions, atoms.numbers, **settings)
        if frame is None:
            return None
        if structure.unstable_contacts(positions[frame : frame + 1], **box) is not None:
            return Verdict(frame, Cause.CONTACT, stray_atoms(positions[frame], atoms, escape=False))
        return Verdict(frame, Cause.STRUCTURE)

    return judge


# -- which atoms ----------------------------------------------------------------------------------------


def worst_bond(positions: np.ndarray, pairs: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
    """Atoms of the bond that is farthest from its mean length, a tuple of two indices.

    Parameters
    ----------
    positions
        Positions of a frame, shape ``(N, 3)``, Å.
    pairs, lengths
        Bonds, as returned by :func:`~egraff_utils.structure.reference_bonds`.
    """
    change = np.abs(structure.bond_lengths(positions[None], pairs)[0] - lengths)
    first, second = pairs[change.argmax()]
    return int(first), int(second)


def stray_atoms(positions: np.ndarray, atoms: Atoms, *, escape: bool = True) -> tuple[int, ...]:
    """The closest pair of atoms, or the loneliest atom if that is farther beyond its limit.

    Parameters
    ----------
    positions
        Positions of a frame, shape ``(N, 3)``, Å.
    atoms
        ``ase.Atoms`` that gives the cell.
    escape
        Whether an atom can be lonely, as in a molecule.

    Examples
    --------
    >>> from ase import Atoms
    >>> molecule = Atoms("H3", [[0, 0, 0], [0.4, 0, 0], [2, 0, 0]])
    >>> stray_atoms(molecule.positions, molecule)
    (0, 1)
    """
    apart = distances(positions, atoms)
    lonely = int(apart.min(1).argmax())
    too_far = apart.min(1)[lonely] / structure.MAXIMUM_DISTANCE
    if escape and too_far > structure.MINIMUM_DISTANCE / apart.min():
        return (lonely,)
    return tuple(sorted(map(int, np.unravel_index(apart.argmin(), apart.shape))))


def distances(positions: np.ndarray, atoms: Atoms) -> np.ndarray:
    """All distances by minimum image, shape ``(N, N)``, Å; infinite on the diagonal."""
    vectors = (positions[:, None] - positions).reshape(-1, 3)
    lengths = find_mic(vectors, atoms.cell, atoms.pbc)[1].reshape(len(positions), -1)
    np.fill_diagonal(lengths, np.inf)
    return lengths
