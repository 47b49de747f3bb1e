"""Which frames are there? Source files are fetched, checked, and read as ``ase.Atoms`` in eV and Å."""

import bz2
import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
import pooch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from egraff_utils import cards, paths, records, reference

ENERGY_UNITS = {
    "eV": 1.0,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
}
LENGTH_UNITS = {"Å": 1.0, "Angstrom": 1.0, "Bohr": units.Bohr}
OF_FRAMES = ("elements", "system", "units", "energy_factor", "keys", "cell", "reference_energies")
"""Fields of a card that determine what a training sees, in addition to files and splits."""


def load(name, split):
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
        Positions in Å; ``get_potential_energy()`` in eV and ``get_forces()``, shape ``(N, 3)``, in eV/Å
        from a ``SinglePointCalculator`` (no forces where the source has none: scans along a path);
        ``info["source"]`` and ``info["frame"]`` are the source and the frame's index in it; velocities are
        set where they are stored.

    Raises
    ------
    ValueError
        If there is no such dataset or split (the message lists them), or a file does not match its hash.
    FileNotFoundError
        If a file is not available and cannot be downloaded.
    """
    card = cards.dataset(name)
    return [_atoms(card, *found) for found in _chosen(card, split)]


def positions(name, split, numbers):
    """Positions of the frames of a split that have these atomic numbers, shape ``(T, N, 3)``, Å.

    This function is faster than :func:`load`, whose parameters and errors it shares.
    """
    frames = [frame for *_, frame in _chosen(cards.dataset(name), split)]
    same = [frame.positions for frame in frames if np.array_equal(frame.numbers, numbers)]
    return np.reshape(same, (-1, len(numbers), 3))


def digest(name, splits=("train", "val", "test")):
    """Hash of everything that determines the frames of some splits.

    It is computed from the card: a file is read only if the card does not give its hash, and a generated
    dataset is not generated.
    """
    card = cards.dataset(name)
    parts = {split: [[p.source, p.slice, p.drop] for p in card.split(split).parts] for split in splits}
    fields = {field: getattr(card, field) for field in OF_FRAMES}
    if card.generate:
        return records.digest(fields, parts, reference.specification(card))
    keys = {key for split in parts.values() for source, *_ in split for key in card.files_of(source)}
    files = {key: [card.files[key].reader or card.reader, _hash(card, key)] for key in keys}
    return records.digest(fields, parts, files)


def _hash(card, key):
    """Hash of a file, as given in the card or else computed from its content."""
    if card.files[key].hash:
        return card.files[key].hash
    path = _locate(card, key)
    return file_hash(path, stamp=_stamp(path))


def check_splits(name, splits):
    """Reject splits that cannot be used for training, before time is spent on them.

    Parameters
    ----------
    name
        Name of a dataset, or its card.
    splits
        Name of a split -> its frames as returned by :func:`load`; the first is the one to be trained on.

    Raises
    ------
    ValueError
        If a split is empty, or a frame has no forces of shape ``(N, 3)``, is periodic with a cell of zero
        volume, holds a number that is not finite, or holds an element that the card does not list or that is
        absent from the first split. The message names the split, the frame and the remedy.
    """
    card = cards.dataset(name)
    known, whose = set(card.elements), "the elements of the card"
    for split, frames in splits.items():
        if not frames:
            raise ValueError(f"{card.name}/{split} has no frames; correct its source or slice in the card")
        for index, atoms in enumerate(frames):
            unseen = [chemical_symbols[z] for z in set(atoms.numbers.tolist()) - known]
            if found := f"holds {', '.join(unseen)}, not among {whose}" if unseen else _problem(atoms):
                origin = f"frame {atoms.info['frame']} of source {atoms.info['source']}"
                raise ValueError(
                    f"{card.name}/{split}: frame {index} ({origin}) {found}; "
                    "correct it, or leave it out by slice or drop in the card"
                )
        if whose != "the elements trained on":
            seen = np.concatenate([atoms.numbers for atoms in frames])
            known, whose = set(seen.tolist()), "the elements trained on"


def _problem(atoms):
    """Description of what is wrong with a labelled frame; empty if nothing is."""
    arrays = {"positions": atoms.positions, "a cell": atoms.cell.array, **atoms.calc.results}
    if "forces" not in arrays:
        return "holds no forces"
    if arrays["forces"].shape != atoms.positions.shape:
        return f"holds forces of shape {arrays['forces'].shape} for {len(atoms)} atoms"
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            return f"holds {name} not finite everywhere"
    return "is periodic, but its cell has no volume" if atoms.pbc.any() and not atoms.cell.volume else ""


def _chosen(card, split):
    """All frames of a split, each as (source, index in the source, frame)."""
    wanted = card.split(split)
    files = fetch(card, split)
    found = [
        (part.source, index, frames[index])
        for part in wanted.parts
        for frames in [_frames(card, part.source, files)]
        for index in part.indices(len(frames))
    ]
    if wanted.frames not in (None, len(found)):
        raise ValueError(
            f"{card.name}/{split}: the card says {wanted.frames} frames, the files hold {len(found)}"
        )
    return found


def _atoms(card, source, index, frame):
    """One frame as ``ase.Atoms``, with copies of all arrays."""
    info = {"source": source, "frame": index}
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=card.pbc, info=info)
    if frame.velocities is not None:
        atoms.set_velocities(frame.velocities)
    results = {"energy": frame.energy} | ({} if frame.forces is None else {"forces": frame.forces})
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def fetch(card, split=None):
    """Paths of a dataset's files, which are downloaded or generated if needed; hashes are always checked.

    Files are searched for in ``EGRAFF_DATA`` (a read-only mirror with the paths given in the cards) and then
    in ``data/``; a file that is in neither is downloaded into ``data/``. Datasets are generated once and
    kept.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard`, or its name.
    split
        Split whose files are needed; None for all files of the dataset.

    Returns
    -------
    dict of str to Path
        Key of the file in the card -> its path.

    Raises
    ------
    FileNotFoundError
        If a file is not available and cannot be downloaded; the message names the file, its address and its
        hash.
    ValueError
        If a file does not match its hash. The file is renamed to ``<name>.bad`` if its folder is writable.
    """
    card = cards.dataset(card)
    if card.generate:
        return {"frames": reference.make_dataset(card)}
    wanted = card.splits if split is None else [split]
    sources = dict.fromkeys(part.source for name in wanted for part in card.split(name).parts)
    return {key: _locate(card, key) for source in sources for key in card.files_of(source)}


def _locate(card, key):
    """Path of one file after its hash is checked; the file is downloaded if no folder holds it."""
    file = card.files[key]
    folders = [card.folder] if card.folder else []
    for folder in folders + paths.data():
        path = folder / file.path
        if path.exists():
            _check(path, file.hash)
            return path
    return _download(card, key)


def _download(card, key):
    """Download a file to ``data/`` under a temporary name, check its hash, then move it to its place."""
    file, url = card.files[key], card.url(key)
    path = paths.data()[-1] / file.path
    if url is None or file.hash is None:
        raise _missing(card, key, "the card gives no address and hash to download it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        pooch.HTTPDownloader(progressbar=True)(url, str(temporary), None)
        _check(temporary, file.hash, name=path)
        os.replace(temporary, path)
    except OSError as error:  # all errors of requests are OSErrors
        reason = f"the download failed ({type(error).__name__}: {error})"
        raise _missing(card, key, reason) from None  # the chained errors of requests add nothing
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _missing(card, key, reason):
    file = card.files[key]
    searched = ", ".join(str(folder) for folder in paths.data())
    return FileNotFoundError(
        f"{card.name}: {file.path} is not available and {reason}. Searched {searched}. "
        f"Address: {card.url(key) or 'none'}. Expected hash: {file.hash or 'none'}. "
        f"If you have a copy, put it at <folder>/{file.path} and set EGRAFF_DATA=<folder>."
    )


def _check(path, expected, *, name=None):
    """Move the file aside and raise ValueError if its hash is not the expected one."""
    if expected is None:
        return
    found = file_hash(path, expected.split(":")[0], stamp=_stamp(path))
    if found == expected:
        return
    name = name or path
    bad = name.with_name(name.name + ".bad")
    try:
        os.replace(path, bad)
        fate = f"It was moved to {bad}"
    except OSError:
        fate = "Its folder is read-only, so it was left in place"
    raise ValueError(f"{name} has the hash {found}, expected {expected}. {fate}; nothing of it was used.")


def _stamp(path):
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def file_hash(path, algorithm="sha256", *, stamp=None):
    """Hash of a file, as ``sha256:<hex>`` or as ``git:<hex>``, the id of a blob in a git repository.

    The latter is the SHA-1 of ``b"blob <length>\\0"`` and the content. ``stamp`` is only a key of the cache.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     file_hash(file.name, "git")
    'git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    if algorithm not in ("sha256", "git"):
        raise cards.unknown("hash algorithm", algorithm, ["sha256", "git"])
    digest = hashlib.sha256() if algorithm == "sha256" else hashlib.sha1()
    if algorithm == "git":
        digest.update(b"blob %d\0" % os.path.getsize(path))
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


class Frame(NamedTuple):
    """One structure of N atoms as arrays, in eV, Å and ASE units of velocity."""

    numbers: np.ndarray
    """Atomic numbers, shape ``(N,)``."""
    positions: np.ndarray
    """Positions, shape ``(N, 3)``, Å."""
    cell: np.ndarray
    """Cell vectors as rows, shape ``(3, 3)``, Å."""
    energy: float
    """Potential energy, eV."""
    forces: np.ndarray | None = None
    """Forces, shape ``(N, 3)``, eV/Å."""
    velocities: np.ndarray | None = None
    """Velocities, shape ``(N, 3)``, Å per ASE time unit."""


def _frames(card, source, files):
    """Frames of a source in eV and Å, read once per process unless the files change."""
    keys = ["frames"] if card.generate else card.files_of(source)
    reader = card.files[keys[0]].reader or card.reader if card.files else card.reader
    stamps = tuple((files[key], files[key].stat().st_mtime_ns) for key in keys)
    for name, known in (("energy", ENERGY_UNITS), ("length", LENGTH_UNITS)):
        if card.units.get(name) not in known:
            raise cards.unknown(f"unit of {name} of {card.name}", card.units.get(name), known)
    energy = card.energy_factor or ENERGY_UNITS[card.units["energy"]]
    factors = energy, LENGTH_UNITS[card.units["length"]]
    cell = None if card.cell is None else tuple(map(tuple, card.cell))
    return _read(reader, source, stamps, factors, tuple(card.keys.items()), cell)


@lru_cache(maxsize=64)
def _read(reader, source, stamps, factors, keys, cell):
    paths_of_source = [path for path, _ in stamps]
    energy, length = factors
    frames = READERS[reader](paths_of_source, source=source, keys=dict(keys))
    if cell is not None:
        frames = [frame._replace(cell=np.array(cell) / length) for frame in frames]
    return [_convert(frame, energy, length) for frame in frames]


def _convert(frame, energy, length):
    """The frame converted to eV and Å; velocities are already stored in ASE units."""
    return frame._replace(
        positions=np.asarray(frame.positions, dtype=float) * length,
        cell=np.asarray(frame.cell, dtype=float) * length,
        energy=float(frame.energy) * energy,
        forces=None if frame.forces is None else np.asarray(frame.forces, dtype=float) * (energy / length),
    )


def _read_npz(files, *, source, keys):
    """Frames of an npz file in nequip's format: ``pos``, ``energy``, ``forces``, ``cell``, numbers."""
    arrays = _arrays(files[0])
    energy = arrays[keys.get("energy", "energy")].reshape(-1)
    forces = arrays[keys.get("forces", "forces")]
    cell = arrays.get("cell", np.zeros((3, 3)))
    cells = np.broadcast_to(cell, (len(energy), 3, 3))
    numbers = np.broadcast_to(arrays["atomic_numbers"], arrays["pos"].shape[:2])
    return [Frame(*row) for row in zip(numbers, arrays["pos"], cells, energy, forces, strict=True)]


def _read_generated(files, *, source, keys):
    """Frames stored by :func:`egraff_utils.reference.make_dataset`; the source is the name of a split."""
    arrays = _arrays(files[0])
    fields = [arrays[f"{source}_{name}"] for name in ("positions", "energy", "forces", "velocities")]
    return [
        Frame(arrays["numbers"], positions, arrays["cell"], energy, forces, velocities)
        for positions, energy, forces, velocities in zip(*fields, strict=True)
    ]


def _read_rmd17(files, *, source, keys):
    """Frames of an rMD17 file, each of which is centred because the molecules drift."""
    arrays = _arrays(files[0])
    energy, forces = arrays[keys.get("energy", "energies")], arrays[keys.get("forces", "forces")]
    positions = arrays["coords"] - arrays["coords"].mean(axis=1, keepdims=True)
    numbers, cell = arrays["nuclear_charges"].astype(int), np.zeros((3, 3))
    return [Frame(numbers, *row) for row in zip(positions, [cell] * len(energy), energy, forces, strict=True)]


def _read_deepmd(files, *, source, keys):
    """Frames of a DeePMD folder: types, and a row per frame in ``box``, ``coord``, ``energy``, ``force``."""
    named = {path.stem: path for path in files}
    symbols = named["type_map"].read_text().split()
    atoms = Atoms([symbols[int(kind)] for kind in named["type"].read_text().split()])
    shape = {"box": (-1, 3, 3), "coord": (-1, len(atoms), 3), "energy": (-1,), "force": (-1, len(atoms), 3)}
    rows = [np.load(named[name], allow_pickle=False).reshape(shape[name]) for name in shape]
    return [Frame(atoms.numbers, p, box, e, f) for box, p, e, f in zip(*rows, strict=True)]


def _read_extxyz(files, *, source, keys):
    """Frames of an extended xyz file; the card may give other names of energy and forces."""
    return [_frame_of(atoms, keys) for atoms in ase.io.iread(files[0], index=":", format="extxyz")]


def _frame_of(atoms, keys):
    results = atoms.calc.results if atoms.calc else {}
    known = {**atoms.arrays, **atoms.info, **results}
    name = keys.get("energy", "energy")
    if name not in known:
        raise ValueError(
            f"a frame holds no '{name}'; it holds {', '.join(sorted(known))}: set keys in the card"
        )
    velocities = atoms.get_velocities() if atoms.has("momenta") else None
    forces = known.get(keys.get("forces", "forces"))
    return Frame(atoms.numbers, atoms.positions, np.array(atoms.cell), known[name], forces, velocities)


def _arrays(path):
    """Arrays of an npz file, which may also be compressed with bzip2; pickled objects are refused."""
    path = Path(path)
    file = io.BytesIO(bz2.decompress(path.read_bytes())) if path.suffix == ".bz2" else path
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


READERS = {
    "npz": _read_npz,
    "generated": _read_generated,
    "rmd17": _read_rmd17,
    "deepmd": _read_deepmd,
    "extxyz": _read_extxyz,
}
