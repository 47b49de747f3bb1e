"""What does a file of frames hold? It is read, described and checked before anything is trained on it."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.data import covalent_radii
from ase.io.formats import filetype

from egraff_utils import cards, data, paths, readers, schema, units
from egraff_utils.checks import audit
from egraff_utils.md.temperature import kinetic_temperature, rest
from egraff_utils.readers import Frame
from egraff_utils.sources import reader_of

FORCES = {"eV/Å": (0.1, 8), "kcal/mol/Å": (8, 120), "Hartree/Bohr": (0.002, 0.1)}
"""Unit of forces -> usual root mean square of a component in simulations at 300 to 1000 K, in that unit."""
SAME = 0.15
"""Relative difference up to which the change of the energy is the work of the forces."""
PROGRAMS = (
    *("abinit-out", "aims-output", "castep-castep", "castep-geom", "castep-md", "espresso-out"),
    *("gamess-us-out", "gaussian-out", "gpaw-out", "nwchem-out", "onetep-out", "orca-output"),
    *("vasp-out", "vasp-xml"),
)
"""Formats of ASE that are outputs of programs: their units are known, and ASE converts them to eV and Å."""
OPTIONAL = ("forces", "stress", "virial", "velocities", "masses")


@dataclass
class Description:
    """What was understood of a file of frames, what was guessed and why, and what is wrong with it."""

    path: Path
    card: cards.DatasetCard
    """Card that fits the file, with guessed units and contiguous splits."""
    frames: int
    facts: dict[str, str] = field(default_factory=dict)
    """What the file holds, by subject."""
    guesses: dict[str, str] = field(default_factory=dict)
    """Key of the card -> its guessed value, and the reason."""
    problems: list[str] = field(default_factory=list)
    """What must be mended before a training."""
    remarks: list[str] = field(default_factory=list)
    """What the reader did not take as it stands in the file."""
    findings: list[str] = field(default_factory=list)
    """What the audit remarks."""

    def __repr__(self) -> str:
        lines = [f"{self.path.name}: {self.frames} frames"]
        lines += [f"  {name:<14}{text}" for name, text in self.facts.items()]
        for title, rows in (
            ("guessed, to be checked by you", [f"{k}: {v}" for k, v in self.guesses.items()]),
            ("to be mended before a training", self.problems),
            ("remarks of the reader", self.remarks),
            ("remarks of the audit", self.findings),
        ):
            lines += [f"{title}:", *(f"  - {row}" for row in rows)] if rows else [f"{title}: nothing"]
        return "\n".join(lines)

    def card_text(self) -> str:
        """The card as YAML, with the guesses as comments."""
        card = self.card
        said = {
            "name": card.name,
            "system": card.system,
            "elements": card.elements,
            "temperature": card.temperature,
            "timestep": card.timestep,
            "reader": card.reader,
            "units": card.units,
            "keys": card.keys,
            "files": {key: file.path for key, file in card.files.items()},
            "splits": {name: {"source": "all", "slice": s.parts[0].slice} for name, s in card.splits.items()},
        }
        said = {name: value for name, value in said.items() if value}
        notes = "".join(f"# guessed: {key}: {text}\n" for key, text in self.guesses.items())
        return notes + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, default_flow_style=None)

    def write_card(self, path: Path | str | None = None) -> Path:
        """Write the card beside the file, or to another path in that folder, and return its path.

        Raises
        ------
        FileExistsError
            If there is a file of this name; it is not overwritten.
        ValueError
            If the path is in another folder, where the card would not find the file.
        """
        path = Path(path) if path else self.path.with_name(f"{self.card.name}.yml")
        if path.resolve().parent != self.path.resolve().parent:
            raise ValueError(f"{path}: a card stands in the folder of its file, {self.path.parent}")
        try:
            with paths.written(path, new=True) as temporary:
                temporary.write_text(self.card_text(), encoding="utf-8")
        except FileExistsError:
            said = f"{path} is there already and is not overwritten; move it away, or edit it"
            raise FileExistsError(said) from None
        return path


def _kinetic_temperature(frames: Sequence[Frame]) -> float | None:
    """Mean temperature of the velocities, K to three digits; None if a frame has none."""
    if any(frame.velocities is None or not np.any(frame.velocities) for frame in frames):
        return None
    kelvin = []
    for index, frame in enumerate(frames):
        atoms = frame.atoms("all", index)
        rest(atoms)
        kelvin.append(kinetic_temperature(atoms.get_momenta(), atoms.get_masses()))
    return float(f"{np.mean(kelvin):.3g}") or None


def describe(
    path: Path | str,
    *,
    keys: Mapping[str, str] | None = None,
    temperature: float | None = None,
    timestep: float = 0.5,
) -> Description:
    """Description of a file of frames.

    Parameters
    ----------
    path
        A file that a dataset card may name: npz, extended xyz (also compressed), or any that ASE reads.
    keys
        Names of ``energy``, ``forces`` and ``stress`` in the file, as under ``keys`` in a card, if they are
        none of those known.
    temperature, timestep
        Temperature (K) and timestep (fs) of simulations, for the card. Without a temperature it is that of
        the velocities in the file, or 300 K where there are none.

    Returns
    -------
    Description
        Its ``card`` can be given to everything that takes a dataset; ``write_card()`` stores it.

    Raises
    ------
    ValueError
        If there is no such file, or it cannot be read or holds no frames; the message says why.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise schema.no_file(path)
    reader = reader_of(path) or "ase"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frames = readers.raw(reader, [path], keys=tuple((keys or {}).items()))
    if len(frames) < 3:
        raise ValueError(f"{path} holds {len(frames) or 'no'} frames, but train, val and test need one each")
    chosen, why = (reader == "ase" and _known_units(path)) or guess_units(frames)
    system, periodicity = _system(frames, units.LENGTH[chosen.get("length", "Å")])
    measured = _kinetic_temperature(frames)
    if temperature is None:
        temperature = measured or 300.0
    content: dict[str, Any] = {  # as in the file of a card, which is checked when the card is made
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", path.name.partition(".")[0]) or "mine",
        "system": system,
        "elements": sorted({int(z) for frame in frames for z in frame.numbers}),
        "temperature": temperature,
        "timestep": timestep,
        "reader": reader,
        "units": chosen,
        "keys": dict(keys or {}),
        "files": {"all": path.name},
        "splits": _splits(len(frames)),
    }
    card = cards.DatasetCard(**content, folder=path.parent)
    why |= {
        "temperature": f"{temperature:g} K; "
        + (f"the velocities in the file have {measured:g} K" if measured else "the file does not say"),
        "timestep": f"{timestep:g} fs; the file does not say",
        "splits": "the first 80 % of the file, the next 10 and the last 10, to keep copies apart",
    }
    found = Description(path, card, len(frames), _facts(path, reader, frames), why)
    found.facts["periodicity"] = periodicity
    found.remarks = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
    _check(found)
    if (ratio := work_ratio(frames)) is not None and ratio < 0:
        found.problems.append(
            "the energy rises along the forces, which therefore are gradients; change their sign in the file"
        )
    return found


def _splits(total: int) -> dict[str, dict[str, str]]:
    a = max(1, min(int(0.8 * total), total - 2))  # of three frames or more, none is empty
    b = max(2, min(int(0.9 * total), total - 1))
    slices = {"train": f":{a}", "val": f"{a}:{b}", "test": f"{b}:"}
    return {name: {"source": "all", "slice": text} for name, text in slices.items()}


def _facts(path: Path, reader: str, frames: Sequence[Frame]) -> dict[str, str]:
    """What the file holds, by subject."""
    sizes = [len(frame.numbers) for frame in frames]
    kinds = Counter(Atoms(frame.numbers).get_chemical_formula() for frame in frames)
    has = {name: sum(getattr(frame, name) is not None for frame in frames) for name in OPTIONAL}
    names = sorted(
        readers.labels(next(readers.structures(path))) if reader in ("extxyz", "ase") else np.load(path)
    )
    few = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(4))
    return {
        "atoms": f"{min(sizes)} to {max(sizes)} in a frame"
        if len(set(sizes)) > 1
        else f"{sizes[0]} in a frame",
        "compositions": few + (f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""),
        "names": ", ".join(names),
        "energies": f"{min(f.energy for f in frames):.6g} to {max(f.energy for f in frames):.6g}, as stored",
        "labels": ", ".join(f"{name} in {count} frames" for name, count in has.items() if count)
        or "energy only",
    }


def _system(frames: Sequence[Frame], length: float) -> tuple[str, str]:
    """``bulk`` or ``molecule``, and the reason."""
    stated = {tuple(map(bool, f.pbc)) for f in frames if f.pbc is not None and np.any(f.cell)}
    words = ", ".join(" ".join("FT"[side] for side in pbc) for pbc in sorted(stated))
    if not stated:
        cells = any(np.any(frame.cell) for frame in frames)
        return "bulk" if cells else "molecule", "not stated" + ("; cells are taken as periodic" * cells)
    if not any(any(pbc) for pbc in stated):
        return "molecule", f"pbc {words}"
    try:
        for frame in frames[:20]:
            readers.whole(np.asarray(frame.positions) * length, np.asarray(frame.cell) * length)
    except ValueError:
        return "bulk", f"pbc {words}"
    return "molecule", f"pbc {words}, but every frame is alone in its cell: taken as a molecule"


def _known_units(path: Path) -> tuple[dict[str, str], dict[str, str]] | None:
    """Units of the output of a program, and why, like those of :func:`guess_units`; None for other files."""
    if (name := filetype(str(path))) not in PROGRAMS:
        return None
    said = f"as ASE reads it from {name}"
    why = {"length": f"Å; {said}", "energy": f"eV; {said}", "forces": f"eV/Å; {said}"}
    return {"energy": "eV", "length": "Å"}, why


def guess_units(frames: Sequence[Frame]) -> tuple[dict[str, str], dict[str, str]]:
    """Units of length, forces and energy of frames as stored, and why they are taken to be these.

    The length follows from the shortest distances over covalent radii. The energy follows from that of free
    atoms, about -13.6 eV Z^2.41 with all electrons, where it is near it. Of the remaining pairs of units that
    one is taken in which the change of energy between neighbouring frames is the work of the forces, if the
    frames show it (:func:`work_ratio`), in which forces have their usual size, and in which both are units of
    one system, in this order.

    Parameters
    ----------
    frames
        ``list`` of :class:`~egraff_utils.readers.Frame` in the units of the file.

    Returns
    -------
    chosen, reasons : dict
        Units by quantity, and reasons for the same quantities.
    """
    contact = np.median([_contact(frame) for frame in frames[:50]])
    length = "Bohr" if 1.45 < contact < 2.6 else "Å"
    said = {
        "length": f"{length}; the shortest distance is {contact:.2f} times the sum of covalent radii in Å"
    }
    known, said["energy"] = _energy_unit(frames)
    forces = [np.asarray(frame.forces, dtype=float).ravel() for frame in frames if frame.forces is not None]
    if not forces:
        return {"energy": known or "eV", "length": length}, said
    size = np.sqrt(np.mean(np.concatenate(forces) ** 2))
    ratio = work_ratio(frames)
    energy, unit = _likeliest(known, length, size, ratio)
    if not known:
        said["energy"] = f"{energy}; as that of the forces, since {said['energy']}"
    elif energy != known:
        said["energy"] = f"{energy}; by the work of the forces, though as {said['energy']}"
    said["forces"] = f"{unit}; a component is {size:.3g} on average (root mean square)"
    low, high = FORCES.get(unit, (0, 0))
    if not low <= size < high:
        said["forces"] += ", unusual for simulations: check it"
    if ratio is not None:
        work = ratio * _per_work(energy, length, unit)
        said["forces"] += f"; the energy changes by {work:.2f} of their work between frames"
        said["forces"] += "" if abs(work - 1) < SAME else ": check both units" + _remark(work, frames)
    chosen = {"energy": energy, "length": length}
    return chosen if unit == f"{energy}/{length}" else chosen | {"forces": unit}, said


def _remark(work: float, frames: Sequence[Frame]) -> str:
    """What energies may be that change by another number than the work of the forces, in words."""
    atoms = np.mean([len(frame.numbers) for frame in frames])
    return "; are these energies per atom?" if abs(work * atoms - 1) < SAME else ""


def _likeliest(known: str | None, length: str, size: float, ratio: float | None) -> tuple[str, str]:
    """Units of energy and of forces that fit best; the work of the forces outweighs the energy's size."""

    def misfit(pair: tuple[str, str]) -> tuple:
        energy, unit = pair
        low, high = FORCES[unit]
        wrong = ratio is not None and abs(abs(ratio) * _per_work(energy, length, unit) - 1) > SAME
        unusual = max(0.0, np.log(low / size), np.log(size / high)) if size else 0.0
        other = known is not None and energy != known
        return wrong, other, unusual, unit != f"{energy}/{length}", energy != unit.rpartition("/")[0]

    energies = dict.fromkeys([*([known] if known else []), *(unit.rpartition("/")[0] for unit in FORCES)])
    return min(((energy, unit) for energy in energies for unit in FORCES), key=misfit)


def _per_work(energy: str, length: str, force: str) -> float:
    """Units of energy over units of force and length, by which :func:`work_ratio` is multiplied."""
    return units.ENERGY[energy] / (readers.force_factor(force) * units.LENGTH[length])


def work_ratio(frames: Sequence[Frame]) -> float | None:
    r"""Change of energy between neighbouring frames over the work of the forces, in the units of the file.

    The slope, with an intercept, of :math:`E_{k+1} - E_k` over
    :math:`-\sum_i (F_{k,i} + F_{k+1,i}) \cdot (r_{k+1,i} - r_{k,i}) / 2`, which is one for forces that are
    the derivative of the energy, and small steps.

    Parameters
    ----------
    frames
        ``list`` of :class:`~egraff_utils.readers.Frame` in the units of the file.

    Returns
    -------
    float or None
        ``None`` if fewer than ten pairs of neighbours are of the same atoms, or the energy does not follow
        the work (correlation below 0.9), as between independent frames. Negative where forces have the sign
        of the gradient.
    """
    pairs = [
        (second.energy - first.energy, -0.5 * np.sum((first.forces + second.forces) * step))
        for first, second in pairwise(frames)
        if first.forces is not None and second.forces is not None
        if np.array_equal(first.numbers, second.numbers)
        for step in [np.asarray(second.positions) - np.asarray(first.positions)]
    ]
    if len(pairs) < 10:
        return None
    changes, works = np.array(pairs, dtype=float).T
    if not np.std(works) or not np.std(changes) or abs(np.corrcoef(works, changes)[0, 1]) < 0.9:
        return None
    return float(np.polyfit(works, changes, 1)[0])


def _contact(frame: Frame) -> float:
    """Shortest distance over the sum of covalent radii in Å."""
    pbc = frame.pbc if frame.pbc is not None else np.any(frame.cell)
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=pbc)
    if len(atoms) < 2:
        return 1.0
    distances = atoms.get_all_distances(mic=bool(np.any(pbc)))
    radii = covalent_radii[atoms.numbers]
    first, second = np.triu_indices(len(atoms), 1)
    return (distances[first, second] / (radii[first] + radii[second])).min()


def _energy_unit(frames: Sequence[Frame]) -> tuple[str | None, str]:
    """Unit of energy by the energies of free atoms with all electrons, or ``None``, and why."""
    free = np.array([-13.6 * np.sum(np.asarray(frame.numbers, dtype=float) ** 2.41) for frame in frames])
    ratio = np.median(np.array([frame.energy for frame in frames], dtype=float) / free)
    for unit, factor in units.ENERGY.items():
        if abs(ratio * factor - 1) < 0.15:
            return unit, f"{unit}; the energies are {ratio * factor:.3f} times those of free atoms in it"
    return None, f"energies are no totals with all electrons ({ratio:.2g} times those of free atoms in eV)"


def _check(found: Description) -> None:
    """Fill in the problems and the remarks of the audit."""
    try:
        data.checked(found.card, tuple(found.card.splits))
        frames = data.load(found.card, "train") + data.load(found.card, "val") + data.load(found.card, "test")
        findings, _, _ = audit.inspect(found.card, {"all": frames})
        found.findings = [f"{finding.text}. {finding.consequence}" for finding in findings]
        found.findings += rollout_remarks(found.card)
    except ValueError as error:
        found.problems = [str(error)]


def rollout_remarks(card: cards.DatasetCard) -> list[str]:
    """Why the test split of a dataset cannot be rolled out as by default, a list of one text or none."""
    from egraff_utils.md.rollout import RolloutConfig, check  # torch, which the audit does not need

    config = RolloutConfig(cards.REFERENCE, card)  # type: ignore[arg-type]  # it may not be known by name
    try:
        check(config)
    except (ValueError, OSError) as error:
        return [f"No rollout of {config.replicas} replicas is possible: {error}"]
    return []
