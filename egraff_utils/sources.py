"""What may a dataset card name? Source files, sets of their frames, and the calculator that labelled them."""

import re
from collections.abc import Collection
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from egraff_utils import units
from egraff_utils.schema import (
    AtLeastOne,
    Count,
    Name,
    Number,
    Positive,
    Seed,
    Slice,
    Value,
    Whole,
    checked,
    unknown,
    validated,
)


def _class_path(text):
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text):
        raise ValueError(f"write the calculator as package.module.Class, not '{text}'")
    return text


ClassPath = Annotated[str, AfterValidator(_class_path)]
"""Class of an ASE calculator, ``package.module.Class``."""


@checked()
class Oracle:
    """An ASE calculator that labels any structure of a dataset."""

    calculator: ClassPath
    """Class of the calculator, ``package.module.Class``."""
    arguments: dict[str, Value] = field(default_factory=dict)
    """Keyword arguments of the class."""
    title: str = ""
    """Name for readers; by default that of the class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.calculator.rpartition(".")[2])


ORACLES = {
    "gfn2": Oracle("tblite.ase.TBLite", {"method": "GFN2-xTB", "verbosity": 0}, "GFN2-xTB"),
    "emt": Oracle("ase.calculators.emt.EMT", title="EMT"),
}
"""Oracles with short names: GFN2-xTB for molecules, effective medium theory for metals."""


def oracle(value: str | dict[str, Any], *, where: str) -> Oracle:
    """:class:`Oracle` from the entry of a card, a name in :data:`ORACLES` or a mapping of the fields.

    Raises
    ------
    ValueError
        If the name or a key is unknown, or the calculator is not written as ``package.module.Class``.

    Examples
    --------
    >>> oracle({"calculator": "ase.calculators.lj.LennardJones"}, where="of the card of argon").title
    'LennardJones'
    """
    if isinstance(value, dict):
        return validated(Oracle, value, where=f"oracle {where}")
    if value not in ORACLES:
        raise unknown(f"oracle {where}", value, ORACLES)
    return ORACLES[value]


def oracle_title(value: str | dict[str, Any] | None) -> str | None:
    """Name for readers of a card's oracle, or None if the card has none.

    >>> oracle_title("gfn2")
    'GFN2-xTB'
    """
    return None if value is None else oracle(value, where="of a card").title


def _inside(path):
    if "://" in path:
        raise ValueError(f"'{path}' is an address; write it as url, and a path under which it is kept")
    if Path(path).is_absolute() or path.startswith("~") or ".." in Path(path).parts or not path.strip():
        raise ValueError(
            f"'{path}' must lie in the folder of the card or a data folder: write the path relative to it, "
            "and set EGRAFF_DATA=<folder> if the file lies elsewhere"
        )
    return path


def _hash(text):
    if not re.fullmatch("sha256:[0-9a-f]{64}|git:[0-9a-f]{40}", text):
        raise ValueError(f"'{text}' is no hash; write sha256: and 64, or git: and 40, hexadecimal digits")
    return text


def _address(text):
    if not re.match("https?://", text):
        raise ValueError(f"'{text}' is no address that begins with https:// or http://")
    return text


Reader = Literal["npz", "extxyz", "ase", "deepmd", "rmd17", "generated"]
READERS = {
    "npz": "A numpy archive of frames of one size: positions `pos`, `coords` or `R`, (T, N, 3); numbers `z`, "
    "`atomic_numbers` or `nuclear_charges`, (N,) or (T, N); `energy` or `E`, (T,); `forces` or `F`, "
    "(T, N, 3); if there, `cell`, `pbc`, `masses`, `stress`, `virial`.",
    "extxyz": "Extended xyz, plain or compressed (gz, bz2, xz), with `energy`, `forces` and, if there, "
    "`stress` or `virial` of every frame, from a calculator, `info` or `arrays`.",
    "ase": "One file in any format that ASE reads and that holds energies and forces, such as traj, db or "
    "the output of a program; compressed ones too where ASE does.",
    "deepmd": "The files of one DeePMD folder, each listed as `<source>/<role>`: `type.raw`, `type_map.raw`, "
    "`box.npy`, `coord.npy`, `energy.npy`, `force.npy`, and if there `virial.npy` and `nopbc` (an empty "
    "file, for frames that are not periodic).",
    "rmd17": "The numpy archive of a molecule of revised MD17: `nuclear_charges`, `coords`, `energies`, "
    "`forces`; each frame is centred, as the molecules drift.",
    "generated": "No file: the frames are made here at their first use, as `generate` says.",
}
"""Reader -> the files and keys that it wants. Other names of the energy, the forces and the stress are given
under ``keys`` in the card."""
ENDINGS = {".npz": "npz", ".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "ase", ".db": "ase"}
"""Ending of a file, without that of a compression -> its reader."""
COMPRESSED = (".gz", ".bz2", ".xz")


def reader_of(path: str | Path) -> str | None:
    """Reader of a file by its ending, or None.

    >>> reader_of("water.xyz.gz"), reader_of("runs/MD.TRAJ"), reader_of("OUTCAR")
    ('extxyz', 'ase', None)
    """
    endings = [ending for ending in map(str.lower, Path(path).suffixes) if ending not in COMPRESSED]
    return ENDINGS.get(endings[-1]) if endings else None


@checked()
class SourceFile:
    """A file that holds frames, and the hash that identifies it."""

    path: Annotated[str, AfterValidator(_inside)]
    """Path relative to the folder of the card or to a data folder (``EGRAFF_DATA`` or ``data/``)."""
    hash: Annotated[str, AfterValidator(_hash)] | None = None
    """``sha256:<hex>`` or ``git:<hex>`` (blob id); required for a file that is downloaded."""
    url: Annotated[str, AfterValidator(_address)] | None = None
    """Address of the file, if ``origin`` of the card does not give it."""
    reader: Reader | None = None
    """Reader of this file, if it is not that of the card."""


@checked()
class Part:
    """Frames of one source that belong to a split."""

    source: str
    """Name of a source, a key of ``files``."""
    slice: Slice = ":"
    """Frames of the source that are taken, ``start:stop:step``."""
    drop: Slice | list[Count] | tuple[Count, ...] = ()
    """Frames of the source that are left out, a list of indices or a slice."""

    def indices(self, total: int) -> list[int]:
        """Indices of the frames in a source of ``total`` frames, in order.

        >>> Part("train", slice="1:9", drop="::4").indices(10)
        [1, 2, 3, 5, 6, 7]
        """
        dropped: Collection[int] | str = self.drop
        if isinstance(dropped, str):
            dropped = range(total)[_slice(dropped)]
        return [i for i in range(total)[_slice(self.slice)] if i not in set(dropped)]


def _slice(text: str) -> slice:
    return slice(*(int(number) if number.strip() else None for number in text.split(":")))


@checked()
class Split:
    """A named set of frames."""

    parts: Annotated[list[Part], Field(min_length=1)]
    """Frames of one source each: ``source``, ``slice`` and ``drop``. A split with one part may give these
    itself, or be the name of its source; a list of names or parts stands for ``parts``."""
    frames: Whole | None = None
    """Number of frames, which is checked on loading."""
    subset_of: list[str] = field(default_factory=list)
    """Splits that contain these frames too; every other pair of splits is disjoint."""
    note: str = ""
    """Remark for readers."""


def _source_file(value):
    return {"path": value} if isinstance(value, str) else value


def _split(value):
    """A split from YAML: a mapping, a list of parts or sources, a single part, or the name of a source."""
    if isinstance(value, list):
        value = {"parts": [{"source": part} if isinstance(part, str) else part for part in value]}
    if isinstance(value, str):
        value = {"source": value}
    if not isinstance(value, dict) or "parts" in value:
        return value
    own = ("source", "slice", "drop")
    rest = {name: item for name, item in value.items() if name not in own}
    return rest | {"parts": [{name: value[name] for name in own if name in value}]}


File = Annotated[SourceFile, BeforeValidator(_source_file)]
FrameSet = Annotated[Split, BeforeValidator(_split)]


def _unit(text):
    energy, _, length = text.rpartition("/")
    if text not in units.ENERGY | units.LENGTH and (energy not in units.ENERGY or length not in units.LENGTH):
        raise unknown("unit", text, units.ENERGY | units.LENGTH)
    return text


Unit = Annotated[str, AfterValidator(_unit)]
Vector = Annotated[list[Number], Field(min_length=3, max_length=3)]
Cell = Annotated[list[Vector], Field(min_length=3, max_length=3)]


@checked()
class Stage:
    """A part of the trajectory of which a dataset is made here."""

    frames: AtLeastOne
    """Number of frames."""
    stride: AtLeastOne
    """Steps between frames."""
    friction: Positive
    """Friction of the thermostat, 1/fs."""
    temperature: Positive | None = None
    """Temperature, K, if it is not that of the card."""
    split: Name | None = None
    """Source that the frames become; those of a stage without are discarded."""


@checked()
class Recipe:
    """How the frames of a dataset are made here: its first structure, and the stages of its trajectory."""

    seed: Seed
    """Seed of the noise."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Parts of the trajectory, in order."""
    velocities: Literal["drawn", "rescaled"] = "drawn"
    """How the trajectory begins: ``drawn`` at the temperature over 3N - 3 degrees of freedom, or ``rescaled``
    to it over 3N by ASE, too hot by N / (N - 1)."""
    structure: list[str] | None = None
    """Atoms, as ``C 0.0 0.0 0.0`` (Å); or give ``molecule``, or ``bulk``."""
    molecule: str | None = None
    """Name of a molecule that ASE knows."""
    cell: Cell | list[Positive] | None = None
    """Cell of a structure or molecule, Å."""
    bulk: str | None = None
    """Symbol of a cubic crystal, with ``lattice_constant`` (Å) and ``repeat``."""
    lattice_constant: Positive | None = None
    repeat: AtLeastOne | None = None

    def __post_init__(self) -> None:
        given = {"structure": ["cell"], "molecule": ["cell"], "bulk": ["lattice_constant", "repeat"]}
        chosen = [name for name in given if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ValueError("give one of structure, molecule and bulk")
        for name in given[chosen[0]]:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing, which {chosen[0]} needs")


def _recipe(value):
    """The mapping as it stands in the card, which is part of digests, if it is a :class:`Recipe`."""
    if value:
        validated(Recipe, value, where="the recipe")
    return value


Generated = Annotated[dict[str, Value], AfterValidator(_recipe)]  # an entry of a card: how frames are made
