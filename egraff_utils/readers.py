"""How is a file of frames read? As arrays in eV and Å, with what the file says of periodicity and masses."""

from __future__ import annotations

import base64
import bz2
import io
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError
from ase.stress import full_3x3_to_voigt_6_stress
from matscipy.neighbours import neighbour_list

from egraff_utils import units
from egraff_utils.paths import stamp

if TYPE_CHECKING:
    from egraff_utils.cards import DatasetCard

NAMES = {
    "positions": ("pos", "coords", "R", "positions"),
    "numbers": ("atomic_numbers", "nuclear_charges", "z", "numbers"),
    "energy": (
        "energy",
        "REF_energy",
        "dft_energy",
        "TotEnergy",
        "total_energy",
        "free_energy",
        "energies",
        "E",
    ),
    "forces": ("forces", "REF_forces", "dft_forces", "force", "F", "dft_force"),
    "stress": ("stress", "REF_stress", "dft_stress"),
    "virial": ("virial", "REF_virial", "virials", "REF_virials", "dft_virial"),
}
"""Quantity -> its names in files, of which the first is taken that a frame has and the card names none."""
BOX = 20.0
"""Edge of the cube around a molecule where neither file nor card gives a cell, Å; sets the height of g(r)."""
CONTACT = 4.0
"""Distance below which atoms of a molecule count as neighbours, through the boundary of a cell too, Å."""


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
    pbc: np.ndarray | None = None
    """Which cell vectors are periodic, shape ``(3,)``; None if the file does not say."""
    masses: np.ndarray | None = None
    """Masses, shape ``(N,)``, atomic mass units, where the file gives them."""
    stress: np.ndarray | None = None
    """Stress in Voigt order, shape ``(6,)``, eV/Å^3."""
    virial: np.ndarray | None = None
    """Virial as in the file, eV."""

    def atoms(self, source: str, index: int) -> Atoms:
        """The frame as ``ase.Atoms``, with copies of all arrays."""
        info = {"source": source, "frame": index}
        if self.virial is not None:
            info["virial"] = self.virial.copy()
        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc, info=info)
        if self.masses is not None:
            atoms.set_masses(self.masses)
        if self.velocities is not None:
            atoms.set_velocities(self.velocities)
        return atoms


def read(card: DatasetCard, source: str, found: Mapping[str, Path]) -> list[Frame]:
    """Frames of a source of a card, read once per process unless the files change.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard`.
    source
        Name of the source, whose files are read one after the other.
    found
        Key of a file -> its path, from ``files.fetch``.

    Raises
    ------
    ValueError
        If a file cannot be read, has no energies under a known name, or contradicts the card about its
        periodicity. The message names the file and, where it is one, the frame.
    """
    keys = ["frames"] if card.generate else card.files_of(source)
    kinds = {"generated"} if card.generate else {card.reader_of(key) for key in keys}
    if len(kinds) > 1:
        raise ValueError(
            f"{card.name}: source {source}: its files are read differently: "
            f"{', '.join(sorted(map(str, kinds)))}; make a source of each, and list them in the split"
        )
    (reader,) = kinds
    stamps = tuple((found[key], stamp(found[key])) for key in keys)
    energy = card.energy_factor or units.ENERGY[card.units["energy"]]
    length = units.LENGTH[card.units["length"]]
    forces = card.units.get("forces")
    factors = energy, length, force_factor(forces) if forces else energy / length
    cell = None if card.cell is None else tuple(map(tuple, card.cell))
    return _read(reader, source, stamps, factors, tuple(card.keys.items()), cell, card.pbc)


def force_factor(unit: str) -> float:
    """A unit of forces such as ``kcal/mol/Å`` in eV/Å.

    >>> force_factor("eV/Å")
    1.0
    """
    energy, _, length = unit.rpartition("/")
    return units.ENERGY[energy] / units.LENGTH[length]


@lru_cache(maxsize=64)
def _read(reader, source, stamps, factors, keys, cell, periodic):
    paths = [path for path, _ in stamps]
    groups = [paths] if reader == "deepmd" else [[path] for path in paths]
    return [
        frame
        for group in groups
        for index, stored in enumerate(raw(reader, group, source, keys))
        for frame in [_settled(_convert(stored, *factors), cell, periodic, f"{group[0]}, frame {index}")]
    ]


def raw(
    reader: str,
    paths: Sequence[Path],
    source: str = "all",
    keys: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> list[Frame]:
    """Frames as stored, in the units of the file; every error of a reader becomes one that names the file."""
    keys = dict(keys)
    if "grad" in keys.get("forces", "").lower():
        raise ValueError(
            f"{paths[0]}: '{keys['forces']}' is a gradient, and forces are minus that; store forces, and "
            "name them under keys in the card"
        )
    try:
        if found := READERS[reader](paths, source=source, keys=keys):
            return found
        raise ValueError("it holds no frames; put them back, or name another file in the card")
    except (FileNotFoundError, PermissionError):
        raise
    except UnknownFileTypeError as error:
        raise ValueError(
            f"{paths[0]} is in no format that ASE reads ({error}); write its frames as .extxyz, .traj or .npz"
        ) from error
    except Exception as error:  # readers raise errors of many types
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{paths[0]} cannot be read as {reader}: {kind}{said}") from error


def _convert(frame, energy, length, force):
    """The frame converted to eV and Å; velocities are already stored in ASE units."""
    scaled = {"forces": force, "stress": energy / length**3, "virial": energy}
    optional = {name: getattr(frame, name) for name in scaled if getattr(frame, name) is not None}
    if np.size(optional.get("stress")) == 9:
        optional["stress"] = full_3x3_to_voigt_6_stress(np.reshape(optional["stress"], (3, 3)))
    return frame._replace(
        positions=np.asarray(frame.positions, dtype=float) * length,
        cell=np.asarray(frame.cell, dtype=float) * length,
        energy=float(frame.energy) * energy,
        **{name: np.asarray(value, dtype=float) * scaled[name] for name, value in optional.items()},
    )


# -- periodicity ----------------------------------------------------------------------------------------


def _settled(frame, cell, periodic, where):
    """The frame with the periodicity of the card, which may not contradict the file, and the card's cell."""
    pbc = frame.pbc if frame.pbc is not None and frame.cell.any() else np.full(3, periodic)
    words = " ".join("FT"[int(p)] for p in pbc)
    if pbc.any() and not pbc.all():
        raise ValueError(
            f"{where} is periodic in some directions only (pbc {words}); slabs are not supported"
        )
    if periodic and not pbc.all():
        raise ValueError(
            f"{where} is not periodic (pbc {words}), but the card says system: bulk; correct one"
        )
    if frame.cell.any() and not periodic and (pbc.any() or frame.pbc is None):
        try:
            frame = frame._replace(positions=whole(frame.positions, frame.cell))
        except ValueError as error:
            if frame.pbc is not None:
                raise ValueError(
                    f"{where} is periodic (pbc {words}), but the card says system: molecule, and {error}; "
                    "write system: bulk"
                ) from None
    return frame._replace(cell=_cell(frame.cell, cell, periodic, where), pbc=np.full(3, periodic))


def _cell(own, cell, periodic, where):
    """Cell of a frame: its own or that of the card, which may not differ where they are periodic."""
    if cell is None:
        return own if periodic or own.any() else BOX * np.eye(3)
    if periodic and own.any() and not np.allclose(own, cell, rtol=0, atol=1e-5):
        raise ValueError(
            f"{where} has the cell {own.tolist()}, but the card says {np.array(cell).tolist()}; "
            "take cell out of the card"
        )
    return np.array(cell, dtype=float)


def whole(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Positions of a molecule that was wrapped into a periodic cell, put together again.

    Atoms closer than :data:`CONTACT` are neighbours; a walk over neighbours gives every atom the image that
    is next to those already placed. Positions of a molecule that is whole are returned as they are.

    Parameters
    ----------
    positions
        Shape ``(N, 3)``, Å.
    cell
        Cell vectors as rows, shape ``(3, 3)``, Å.

    Raises
    ------
    ValueError
        If an atom is that close to two images of another, or of itself: the structure is no molecule alone
        in its cell.

    Examples
    --------
    >>> whole(np.array([[0.2, 0, 0], [9.5, 0, 0]]), 10 * np.eye(3))
    array([[ 0.2,  0. ,  0. ],
           [-0.5,  0. ,  0. ]])
    """
    if not np.isfinite(positions).all() or abs(np.linalg.det(cell)) < 1e-6:
        return positions  # reported by the checks of the frames
    inverse = np.linalg.inv(cell)  # its columns are as long as the cell is high, inverted
    if (np.ptp(positions @ inverse, axis=0) + CONTACT * np.linalg.norm(inverse, axis=0) < 1).all():
        return positions  # no atom is near an image; a list of neighbours in a huge cell takes gigabytes
    atoms = Atoms(numbers=np.ones(len(positions), int), positions=positions, cell=cell, pbc=True)
    first, second, images = neighbour_list("ijS", atoms, CONTACT)
    if not images.any():
        return positions
    offsets = _walk(len(positions), first, second, images)
    torn = np.flatnonzero((offsets[first] + images != offsets[second]).any(1))
    if len(torn):
        i, j = first[torn[0]], second[torn[0]]
        raise ValueError(f"its atoms {i} and {j} are less than {CONTACT:g} Å apart through the boundary")
    return positions + offsets @ cell


def _walk(total, first, second, images):
    """Image of every atom next to its neighbours, shape ``(N, 3)``; the first atom of each group stays."""
    neighbours = [[] for _ in range(total)]
    for i, j, image in zip(first.tolist(), second.tolist(), images, strict=True):
        neighbours[i].append((j, image))
    offsets, placed = np.zeros((total, 3), int), np.zeros(total, bool)
    for start in range(total):
        queue = deque([] if placed[start] else [start])
        placed[start] = True
        while queue:
            i = queue.popleft()
            for j, image in neighbours[i]:
                if not placed[j]:
                    offsets[j], placed[j] = offsets[i] + image, True
                    queue.append(j)
    return offsets


# -- readers --------------------------------------------------------------------------------------------


def _read_npz(paths, *, source, keys):
    """Frames of an npz file in the formats of nequip (``pos``), rMD17 (``coords``) and sGDML (``R``)."""
    arrays = _arrays(paths[0])
    positions, numbers = (_get(arrays, _name(q, {}, arrays, paths[0])) for q in ("positions", "numbers"))
    numbers = numbers.astype(int)
    energy = _get(arrays, _name("energy", keys, arrays, paths[0])).reshape(-1)
    forces = _get(arrays, _name("forces", keys, arrays, paths[0]))
    for name, values, shape in (("energy", energy, positions.shape[:1]), ("forces", forces, positions.shape)):
        if values.shape != shape:
            raise ValueError(f"its {name} has the shape {values.shape}, its positions {positions.shape}")
    cells = np.broadcast_to(arrays.get("cell", np.zeros((3, 3))), (len(energy), 3, 3))
    numbers = np.broadcast_to(numbers, positions.shape[:2])
    shapes = {"pbc": (len(energy), 3), "masses": numbers.shape}
    more = {name: np.broadcast_to(arrays[name], shape) for name, shape in shapes.items() if name in arrays}
    for quantity in ("stress", "virial"):
        if (name := _name(quantity, keys, arrays, paths[0])) in arrays:
            more[quantity] = arrays[name]
    for name in {"velocities", "momenta"} & set(arrays):
        warnings.warn(
            f"{paths[0]}: its {name} are not read, as an npz file does not say their unit; write frames with "
            "velocities as .traj or .extxyz by ASE",
            stacklevel=2,
        )
    rows = zip(numbers, positions, cells, energy, forces, strict=True)
    return [
        Frame(*row)._replace(**{name: values[index] for name, values in more.items()})
        for index, row in enumerate(rows)
    ]


def _read_generated(paths, *, source, keys):
    """Frames stored by :func:`egraff_utils.reference.make_dataset`; the source is the name of a split."""
    arrays = _arrays(paths[0])
    fields = [arrays[f"{source}_{name}"] for name in ("positions", "energy", "forces", "velocities")]
    return [
        Frame(arrays["numbers"], positions, arrays["cell"], energy, forces, velocities)
        for positions, energy, forces, velocities in zip(*fields, strict=True)
    ]


def _read_rmd17(paths, *, source, keys):
    """Frames of an rMD17 file, each of which is centred because the molecules drift."""
    arrays = _arrays(paths[0])
    energy = _get(arrays, keys.get("energy", "energies"))
    forces = _get(arrays, keys.get("forces", "forces"))
    positions = _get(arrays, "coords")
    positions = positions - positions.mean(axis=1, keepdims=True)
    numbers, cell = _get(arrays, "nuclear_charges").astype(int), np.zeros((3, 3))
    return [Frame(numbers, *row) for row in zip(positions, [cell] * len(energy), energy, forces, strict=True)]


def _read_deepmd(paths, *, source, keys):
    """Frames of a DeePMD folder: types, and a row per frame in ``box``, ``coord``, ``energy``, ``force`` and,
    if the card names it, ``virial``; they are periodic unless it names ``nopbc``."""
    named = {path.stem: path for path in paths}
    symbols = _get(named, "type_map").read_text().split()
    atoms = Atoms([symbols[int(kind)] for kind in _get(named, "type").read_text().split()])
    shape = {"box": (-1, 3, 3), "coord": (-1, len(atoms), 3), "energy": (-1,), "force": (-1, len(atoms), 3)}
    shape |= {"virial": (-1, 3, 3)} if "virial" in named else {}
    rows = [np.load(_get(named, name), allow_pickle=False).reshape(shape[name]) for name in shape]
    pbc = np.full(3, "nopbc" not in named)
    return [
        Frame(atoms.numbers, p, box, e, f, pbc=pbc, virial=virial[0] if virial else None)
        for box, p, e, f, *virial in zip(*rows, strict=True)
    ]


def _read_extxyz(paths, *, source, keys):
    """Frames of an extended xyz file, which may be compressed."""
    return _of_all(ase.io.iread(paths[0], index=":", format="extxyz"), keys, paths[0])


def _read_ase(paths, *, source, keys):
    """Frames of any file that ASE reads, such as a trajectory or a database."""
    frames = _of_all(structures(paths[0]), keys, paths[0])
    forces = any(np.any(frame.forces) for frame in frames if frame.forces is not None)
    if forces and not any(frame.energy for frame in frames):
        raise ValueError(
            "its energies are all 0, which ASE fills in for a dump of LAMMPS; write frames with their "
            "energies as .extxyz or .traj"
        )
    return frames


def structures(path: str | Path) -> Iterator[Atoms]:
    """Structures of a file that ASE reads; of a database with its key-value pairs and ``data``."""
    if Path(path).suffix != ".db":
        yield from ase.io.iread(path, index=":")
        return
    with ase.db.connect(path, serial=True) as database:
        for row in database.select():
            yield row.toatoms(add_additional_information=True)


def _of_all(structures, keys, path):
    """Frames of a file, in which a quantity has one name: that of the first frame which has it."""
    frames, keys, held = [], dict(keys), 0
    for index, atoms in enumerate(structures):
        held += bool(atoms.constraints)
        known = labels(atoms)
        keys |= {q: name for q in NAMES if (name := _name(q, keys, known, path)) in known}
        try:
            frames.append(_of_atoms(atoms, keys, known))
        except ValueError as error:
            raise ValueError(f"frame {index}: {error}") from None
    if held:
        warnings.warn(
            f"{path}: {held} of {len(frames)} frames have constraints, such as fixed atoms, not kept: "
            "forces are those without them, and all atoms move in simulations",
            stacklevel=2,
        )
    return frames


def _of_atoms(atoms, keys, known):
    energy = _get(known, keys.get("energy", "energy"))
    found = {name: known.get(keys.get(name)) for name in ("forces", "stress", "virial")}
    velocities = atoms.get_velocities() if atoms.has("momenta") else None
    masses = atoms.get_masses() if atoms.has("masses") else None
    return Frame(
        atoms.numbers, atoms.positions, np.array(atoms.cell), energy, velocities=velocities, pbc=atoms.pbc,
        masses=masses, **found,
    )  # fmt: skip


def labels(atoms: Atoms) -> dict[str, Any]:
    """Everything that a structure holds besides atoms and cell, by name."""
    stored = {name: atoms.info.get(name) or {} for name in ("key_value_pairs", "data")}  # of a database
    info = {name: value for name, value in atoms.info.items() if name not in stored}
    results = atoms.calc.results if atoms.calc else {}
    return {**_decoded(stored["data"]), **stored["key_value_pairs"], **atoms.arrays, **info, **results}


def _decoded(stored):
    """The ``data`` of a row; arrays of early versions of SchNetPack are texts with a shape and a type."""
    found = {}
    for name, value in stored.items():
        if f"_shape_{name}" in stored:
            flat = np.frombuffer(base64.b64decode(value), dtype=stored[f"_dtype_{name}"])
            value = flat.reshape(stored[f"_shape_{name}"])
        if not name.startswith(("_shape_", "_dtype_")):
            found[name] = value
    return {name: value.item() if np.size(value) == 1 else value for name, value in found.items()}


def _name(quantity, keys, known, path):
    """Name of a quantity: that of the card, or the first of :data:`NAMES` that is there, which is said."""
    if quantity in keys:
        return keys[quantity]
    found = next((name for name in NAMES[quantity] if name in known), NAMES[quantity][0])
    if quantity == "energy" and found != "energy":
        warnings.warn(
            f"{path}: energies are taken from '{found}'; name them under keys in the card", stacklevel=2
        )
    return found


def _get(known, name):
    if name not in known:
        raise ValueError(f"it holds no '{name}'; it holds {', '.join(sorted(known))}: set keys in the card")
    return known[name]


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
    "ase": _read_ase,
}
