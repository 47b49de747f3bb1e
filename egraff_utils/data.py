"""Which frames are there, and can they be learnt from? Splits of a card as ``ase.Atoms`` in eV and Å."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.geometry import find_mic
from scipy.spatial import cKDTree

from egraff_utils import cards, files, readers, records, reference
from egraff_utils.cards import DatasetCard
from egraff_utils.files import fetch, file_hash  # noqa: F401

OF_FRAMES = ("elements", "system", "units", "energy_factor", "keys", "cell", "reference_energies")
"""Fields of a card that determine what a training sees, in addition to files and splits."""
COINCIDENT = 0.1
"""Distance below which two atoms of a frame are taken for one atom given twice, Å."""


def load(name: str | Path | DatasetCard, split: str) -> list[Atoms]:
    """Frames of a split of a dataset, with the energies and forces of the reference attached.

    Every call returns new copies, which may be changed. Only the files that the split needs are fetched, if
    they are not available yet.

    Parameters
    ----------
    name
        Name of a dataset, path of a user's card (``.yml``), or a :class:`~egraff_utils.cards.DatasetCard`.
    split
        ``"train"``, ``"val"``, ``"test"`` or another split named in the card.

    Returns
    -------
    list of ase.Atoms
        Positions in Å, of a molecule put together if the file wraps it into a periodic cell;
        ``get_potential_energy()`` in eV, ``get_forces()``, shape ``(N, 3)``, in eV/Å (none where the source
        has none: scans along a path) and ``get_stress()``, shape ``(6,)``, in eV/Å^3 where stored, from a
        ``SinglePointCalculator``; ``info["source"]`` and ``info["frame"]`` are the source and the frame's
        index in it, ``info["virial"]`` is the virial in eV where stored; velocities and masses are set where
        they are stored.

    Raises
    ------
    ValueError
        If there is no such dataset or split (the message lists them), a file does not match its hash or
        cannot be read, or its periodicity is not that of the card.
    FileNotFoundError
        If a file is not available and cannot be downloaded.
    """
    card = cards.dataset(name)
    return [_atoms(*found) for found in _chosen(card, split)]


def checked(name: str | Path | DatasetCard, splits: Sequence[str], **options: bool) -> dict[str, list[Atoms]]:
    """Frames of some splits of a dataset, by split, after all checks (:func:`check_splits`)."""
    card = cards.dataset(name)
    found = {split: load(card, split) for split in splits}
    mark = card.name, digest(card, tuple(splits)), *splits, *sorted(options.items())
    if mark not in _sound:
        check_splits(card, found, **options)
        _sound.add(mark)
    return found


_sound: set[tuple] = set()


def positions(name: str | Path | DatasetCard, split: str, numbers: np.ndarray) -> np.ndarray:
    """Positions of the frames of a split that have these atomic numbers, shape ``(T, N, 3)``, Å.

    This function is faster than :func:`load`, whose parameters and errors it shares.
    """
    frames = [frame for *_, frame in _chosen(cards.dataset(name), split)]
    same = [frame.positions for frame in frames if np.array_equal(frame.numbers, numbers)]
    return np.reshape(same, (-1, len(numbers), 3))


def compositions(frames: Sequence[Atoms]) -> list[list[Atoms]]:
    """Frames grouped by system: the same atoms in one order, with the same periodicity and masses.

    Cells may differ within a group. The groups, a list of lists of frames, are in the order in which their
    systems first occur.

    Examples
    --------
    >>> from ase import Atoms
    >>> [len(group) for group in compositions([Atoms("OH2"), Atoms("CO"), Atoms("OH2")])]
    [2, 1]
    """
    groups: dict[tuple[bytes, bytes, bytes], list[Atoms]] = {}
    for atoms in frames:
        key = atoms.numbers.tobytes(), atoms.pbc.tobytes(), atoms.get_masses().round(5).tobytes()
        groups.setdefault(key, []).append(atoms)
    return list(groups.values())


def thinned(frames: list[Atoms], most: int | None) -> list[Atoms]:
    """At most ``most`` frames of every source, equally spaced; all if it is None."""
    if most is None:
        return frames
    by_source: dict[str, list[Atoms]] = {}
    for atoms in frames:
        by_source.setdefault(atoms.info["source"], []).append(atoms)
    return [
        part[i]
        for part in by_source.values()
        for i in np.unique(np.linspace(0, len(part) - 1, min(most, len(part))).astype(int))
    ]


def digest(name: str | Path | DatasetCard, splits: Sequence[str] = ("train", "val", "test")) -> str:
    """Hash of everything that determines the frames of some splits.

    It is computed from the card: a file is read only if the card does not give its hash, and a generated
    dataset is not generated. Records made of these frames are used again only while it is the same.
    """
    card = cards.dataset(name)
    parts: dict[str, list[list[Any]]] = {
        split: [[p.source, p.slice, p.drop] for p in card.split(split).parts] for split in splits
    }
    fields = {field: getattr(card, field) for field in OF_FRAMES}
    if card.generate:
        return records.digest(fields, parts, reference.specification(card))
    keys = {key for split in parts.values() for source, *_ in split for key in card.files_of(source)}
    found = {key: [card.reader_of(key), files.identity(card, key)] for key in keys}
    return records.digest(fields, parts, found)


def scene_digest(name: str | Path | DatasetCard, split: str) -> str:
    """Hash of everything that determines a simulation from a split and what it is compared with.

    These are the frames of the split and of ``train``, from which the fixed bonds of a molecule are known,
    and what the card says of the split's order in time and of the oracle.
    """
    card = cards.dataset(name)
    order = card.time_ordered.get(split), card.first_contiguous.get(split, 0)
    splits = tuple(dict.fromkeys(name for name in (split, "train") if name in card.splits))
    return records.digest(digest(card, splits), order, card.oracle)


def _chosen(card: DatasetCard, split: str) -> list[tuple[str, int, readers.Frame]]:
    """All frames of a split, each as (source, index in the source, frame)."""
    wanted = card.split(split)
    found = fetch(card, split)
    chosen = [
        (part.source, index, frames[index])
        for part in wanted.parts
        for frames in [readers.read(card, part.source, found)]
        for index in part.indices(len(frames))
    ]
    if wanted.frames not in (None, len(chosen)):
        raise ValueError(
            f"{card.name}/{split}: the card says {wanted.frames} frames, the files hold {len(chosen)}"
        )
    return chosen


def _atoms(source: str, index: int, frame: readers.Frame) -> Atoms:
    atoms = frame.atoms(source, index)
    names = ("energy", "forces", "stress")
    results = {name: getattr(frame, name) for name in names if getattr(frame, name) is not None}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


# -- checks ---------------------------------------------------------------------------------------------


def strain_derivative(atoms: Atoms) -> np.ndarray | None:
    """Derivative of the energy by a strain, shape ``(3, 3)``, eV; None for a frame without stress.

    It is the stress, in the sign of ASE, times the volume, or minus the virial: files of DeePMD, GAP and mace
    give the virial the sign of a pressure. (On LiPS20 a network trained on the forces confirms it.)

    Examples
    --------
    >>> import ase
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> box = ase.Atoms("Cu", cell=[2, 2, 2], pbc=True)
    >>> box.calc = SinglePointCalculator(box, energy=0.0, stress=[0.5, 0, 0, 0, 0, 0])
    >>> round(float(strain_derivative(box)[0, 0]), 6)
    4.0
    """
    if atoms.cell.rank < 3:
        return None
    if "stress" in atoms.calc.results:
        return atoms.get_stress(voigt=False) * atoms.get_volume()
    virial = atoms.info.get("virial")
    return None if virial is None else -np.reshape(virial, (3, 3))


def check_stress(name: str | Path | DatasetCard, splits: Mapping[str, Sequence[Atoms]]) -> None:
    """Reject frames that have no stress, before it is trained.

    Raises
    ------
    ValueError
        If a frame has neither stress nor virial, or no volume; the message names split, frame and remedy.
    """
    card = cards.dataset(name)
    for split, frames in splits.items():
        for index, atoms in enumerate(frames):
            if strain_derivative(atoms) is None:
                raise ValueError(
                    f"{card.name}/{split}: frame {index} ({_origin(atoms)}) has no stress, but virial_weight "
                    "is not 0; set it to 0, or leave the frame out by slice or drop in the card"
                )


def check_splits(
    name: str | Path | DatasetCard,
    splits: Mapping[str, Sequence[Atoms]],
    *,
    forces: bool = True,
    across: bool = True,
) -> None:
    """Reject frames that cannot be worked with, before time is spent on them.

    Parameters
    ----------
    name
        Name of a dataset, or its card.
    splits
        Name of a split -> its frames as returned by :func:`load`.
    forces
        Whether every frame must have forces.
    across
        Whether splits are compared with each other and with the elements of the card.

    Raises
    ------
    ValueError
        If a split is empty; if a frame has no forces of shape ``(N, 3)``, is periodic with a cell of zero
        volume, holds a number that is not finite, a stress or virial of another shape, an atom without mass,
        two atoms closer than :data:`COINCIDENT`, or an element
        that the card does not list or that is absent from ``train``; if the card lists an element that no
        frame of ``train`` has; if two splits share a frame, and none is a ``subset_of`` the other; if frames
        that the card calls ordered in time are not. The message names split, frame and remedy.
    """
    card = cards.dataset(name)
    for split, frames in splits.items():
        if not frames:
            raise ValueError(f"{card.name}/{split} has no frames; correct its source or slice in the card")
        for find in FRAME_CHECKS:
            if (bad := find(frames, card, forces)) is not None:
                index, text = bad
                raise ValueError(
                    f"{card.name}/{split}: frame {index} ({_origin(frames[index])}) {text}; "
                    "correct it, or leave it out by slice or drop in the card"
                )
        if split in card.time_ordered:
            check_order(card, split, frames[card.first_contiguous.get(split, 0) :])
    if across:
        _check_elements(card, splits)
        _check_overlap(card, splits)


def _origin(atoms):
    return f"frame {atoms.info.get('frame')} of source {atoms.info.get('source')}"


def _first(wrong):
    """Index of the first true value, or None."""
    return int(np.argmax(wrong)) if np.any(wrong) else None


def _not_finite(frames, card, forces):
    for name in ("positions", "a cell", "energy", "forces", "stress", "virial", "masses", "momenta"):
        wrong = [not np.isfinite(_values(atoms, name)).all() for atoms in frames]
        if (index := _first(wrong)) is not None:
            return index, f"holds {name} not finite everywhere"
    return None


def _values(atoms, name, missing=0.0):
    if name == "a cell":
        return atoms.cell.array
    known = {**atoms.arrays, "virial": atoms.info.get("virial", missing), **atoms.calc.results}
    return known.get(name, missing)


def _misshapen(frames, card, forces):
    for index, atoms in enumerate(frames):
        for name, size in (("stress", 6), ("virial", 9)):
            found = _values(atoms, name, missing=None)
            if found is not None and np.size(found) != size:
                return index, f"holds a {name} of {np.size(found)} numbers, not {size}"
        if np.min(_values(atoms, "masses", missing=1.0)) <= 0:
            return index, "holds an atom without a mass"
    return None


def _without_forces(frames, card, forces):
    for index, atoms in enumerate(frames):
        found = atoms.calc.results.get("forces")
        if not len(atoms):
            return index, "holds no atoms"
        if found is None and forces:
            return index, "holds no forces"
        if found is not None and found.shape != atoms.positions.shape:
            return index, f"holds forces of shape {found.shape} for {len(atoms)} atoms"
    return None


def _without_volume(frames, card, forces):
    volumes = np.abs(np.linalg.det([atoms.cell.array for atoms in frames]))
    index = _first((volumes < 1e-6) & [atoms.pbc.any() for atoms in frames])
    return None if index is None else (index, "is periodic, but its cell has no volume")


def _not_listed(frames, card, forces):
    known = set(card.elements)
    for index, atoms in enumerate(frames):
        if unseen := set(atoms.numbers.tolist()) - known:
            return index, f"holds {_symbols(unseen)}, not among the elements of the card"
    return None


def _coincident(frames, card, forces):
    """First frame with two atoms in one place; a fourth dimension keeps frames apart in one search."""
    owner = np.repeat(np.arange(len(frames)), [len(atoms) for atoms in frames])
    if frames[0].pbc.any():
        places = np.concatenate([atoms.get_scaled_positions() for atoms in frames]) % 1.0
        heights = [1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0) for atoms in frames]
        box, reach = [1, 1, 1, 0], COINCIDENT / np.min(heights)
    else:
        places, box, reach = np.concatenate([atoms.positions for atoms in frames]), None, COINCIDENT
    apart = 2 * reach * owner
    found = cKDTree(np.column_stack([places, apart]), boxsize=box).query_pairs(reach, output_type="ndarray")
    for i, j in found[np.argsort(owner[found[:, 0]], kind="stable")] if len(found) else ():
        atoms, start = frames[owner[i]], np.searchsorted(owner, owner[i])
        first, second = sorted((int(i - start), int(j - start)))
        if (distance := atoms.get_distance(first, second, mic=True)) < COINCIDENT:
            return int(owner[i]), f"has its atoms {first} and {second} in one place ({distance:.2g} Å apart)"
    return None


FRAME_CHECKS = (_not_finite, _without_forces, _misshapen, _without_volume, _not_listed, _coincident)
"""Checks of the frames of a split: functions of frames, card and whether forces are needed, which give the
index of the first bad frame and what is wrong with it, or None."""


def check_order(card: DatasetCard, split: str, frames: Sequence[Atoms]) -> None:
    """Reject frames that cannot be a trajectory, as the card says that they are.

    Raises
    ------
    ValueError
        If they are of several systems, or those that follow each other are as far apart as others.
    """
    check_one_system(card, split, frames)
    if _shuffled(frames):
        raise ValueError(
            f"{card.name}/{split}: the card says time_ordered, but frames that follow each other differ "
            "as much as frames drawn at random; take the split out of time_ordered"
        )


def check_one_system(card: DatasetCard, split: str, frames: Sequence[Atoms]) -> None:
    """Reject frames of several systems, which the card says are consecutive in time."""
    if len(systems := compositions(frames)) > 1:
        names = ", ".join(dict.fromkeys(group[0].get_chemical_formula() for group in systems))
        raise ValueError(
            f"{card.name}/{split}: the card says time_ordered, but its frames are of {len(systems)} systems "
            f"({names}); take the split out of time_ordered"
        )


def _shuffled(frames):
    """Whether frames that follow each other are as far apart as frames drawn at random, of ten or more."""
    if len(frames) < 10:
        return False
    x = np.stack([atoms.positions for atoms in frames])
    pairs = np.random.default_rng(0).integers(len(x), size=(2, 200))
    first, second = pairs[:, pairs[0] != pairs[1]]
    steps, apart = (_shortest(v, frames[0]) for v in (np.diff(x, axis=0)[:1000], x[first] - x[second]))
    return np.median(np.sqrt((steps**2).mean((1, 2)))) > 0.5 * np.sqrt((apart**2).mean())


def _shortest(vectors, atoms):
    if not atoms.pbc.any():
        return vectors
    return find_mic(vectors.reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(vectors.shape)


def _check_elements(card, splits):
    if "train" not in splits:
        return
    seen = {int(z) for atoms in splits["train"] for z in np.unique(atoms.numbers)}
    if unused := set(card.elements) - seen:
        raise ValueError(
            f"{card.name}: the card lists {_symbols(unused)}, which no frame of train holds, so that nothing "
            "can be learnt about it; take it out of elements, or add such frames"
        )
    for split, frames in splits.items():
        for index, atoms in enumerate(frames):
            if unseen := set(atoms.numbers.tolist()) - seen:
                raise ValueError(
                    f"{card.name}/{split}: frame {index} ({_origin(atoms)}) holds {_symbols(unseen)}, not "
                    "among the elements trained on; add such frames to train, or leave it out by drop"
                )


def _check_overlap(card, splits):
    where = {}
    for split, frames in splits.items():
        for index, atoms in enumerate(frames):
            place = atoms.numbers.tobytes() + np.round(atoms.positions, 6).tobytes()
            other, first = where.setdefault(place, (split, index))
            if other != split and not _related(card, split, other):
                raise ValueError(
                    f"{card.name}: frame {index} of {split} ({_origin(atoms)}) is frame {first} of {other}; "
                    f"leave it out by slice or drop, or say `subset_of: [{other}]` in {split} if it is meant"
                )


def _related(card, first, second):
    return second in card.split(first).subset_of or first in card.split(second).subset_of


def _symbols(numbers):
    return ", ".join(chemical_symbols[z] for z in sorted(numbers))
