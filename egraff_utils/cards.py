"""What is a dataset, and what is a model? Frozen cards are read from the YAML files in ``cards/``."""

import dataclasses
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import yaml
from ase.data import chemical_symbols

FOLDER = Path(__file__).parent / "cards"


def unknown(kind, name, known):
    """``ValueError`` for a name that is not among the known ones; it suggests the nearest.

    >>> unknown("model", "mase", ["mace", "nequip"])
    ValueError("unknown model 'mase'; did you mean 'mace'? Known: mace, nequip")
    """
    near = get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return ValueError(f"unknown {kind} '{name}'{hint} Known: {', '.join(sorted(known))}")


def from_mapping(cls, mapping, *, where):
    """Instance of a dataclass from a mapping, all of whose keys must be fields.

    Raises
    ------
    ValueError
        If a key is not a field, or a required field is missing; the message names it.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            raise unknown(f"key in {where}", key, fields)
    required = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**mapping)


def changed(instance):
    """Fields of a dataclass that differ from their defaults, a dictionary.

    It does not change when a field with a default is added to the class later.

    >>> changed(TrainingHyperparameters(batch_size=5, loss="mae", second_stage=SecondStage(start=0.5)))
    {'loss': 'mae', 'second_stage': {'start': 0.5}}
    """
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {
        name: changed(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
        if value != instance.__dataclass_fields__[name].default
    }


@dataclass(frozen=True)
class SecondStage:
    """Second stage of training ("SWA" in mace), with other loss weights and another learning rate."""

    start: float = 0.75
    """Fraction of the budget after which the stage begins."""
    learning_rate: float = 0.001
    energy_weight: float = 1000.0
    force_weight: float = 1.0


@dataclass(frozen=True)
class TrainingHyperparameters:
    """Training hyperparameters of a model; the defaults are those of most tables of the paper."""

    batch_size: int = 5
    """Structures per step."""
    learning_rate: float = 0.01
    optimizer: str = "adam"
    """``adam``, ``adamw`` or ``muon``, see :mod:`egraff_utils.train.optimizers`."""
    momentum: float = 0.95
    """Decay of the running mean of the gradients of matrices, used by ``muon`` only."""
    amsgrad: bool = True
    weight_decay: float = 0.0
    loss: str = "mse"
    """``mse``, ``mae``, or ``l2mae`` (mean norm of the force error per atom)."""
    energy_weight: float = 1.0
    force_weight: float = 1.0
    energy_per_atom: bool = True
    """Whether the energy error is divided by the number of atoms before it enters the loss."""
    energy_loss_ema: float | None = None
    """Weight of the newest value in the running mean of the energy loss (TorchMD-NET's alpha)."""
    ema_decay: float | None = 0.99
    """Decay of the moving average of the parameters; the averaged parameters are validated and kept."""
    clip_norm: float | None = 10.0
    scheduler: str = "plateau"
    """``plateau``, ``cosine`` or ``none``."""
    plateau_factor: float = 0.8
    plateau_patience: int = 50
    """Epochs without improvement of the validation loss after which the learning rate is reduced."""
    min_learning_rate: float = 0.0
    """Lower bound of the learning rate."""
    stop_learning_rate: float | None = None
    """Training ends once the learning rate is below this value."""
    warmup_epochs: int = 0
    warmup_steps: int = 0
    early_stopping_patience: int | None = None
    """Epochs without improvement after which training ends."""
    max_epochs: int = 1500
    second_stage: SecondStage | None = None
    kept_as: str = "float32"
    """Precision in which large parameters are kept, ``float32`` or ``float16``: they are rounded before the
    test (:func:`~egraff_utils.models.round_large`)."""

    def __post_init__(self):
        for name, allowed in {
            "kept_as": ("float32", "float16"),
            "optimizer": ("adam", "adamw", "muon"),
            "loss": ("mse", "mae", "l2mae"),
            "scheduler": ("plateau", "cosine", "none"),
        }.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if isinstance(self.second_stage, dict):
            stage = from_mapping(SecondStage, self.second_stage, where="second_stage")
            object.__setattr__(self, "second_stage", stage)


@dataclass(frozen=True)
class ModelCard:
    """Card of an architecture: where it comes from, and its hyperparameters at every preset."""

    name: str
    title: str
    citation: str
    """Key in ``book/references.bib``."""
    table: int
    """Table of the paper that lists its hyperparameters."""
    package: str
    parameters_paper: int
    """Trainable parameters at preset ``paper`` for the elements H, C, O."""
    presets: dict[str, dict[str, dict[str, Any]]]
    notes: list[str] = field(default_factory=list)
    """Remarks on where today's names of hyperparameters differ from those in the table."""
    version: int = 1
    """Number to raise when the same weights give other energies; models are then trained anew."""

    def network(self, preset, **overrides):
        """Keyword arguments of ``build_network`` at a preset, with overrides."""
        return {**self._preset(preset)["network"], **overrides}

    def training(self, preset, **overrides):
        """:class:`TrainingHyperparameters` at a preset, with overrides."""
        mapping = {**self._preset(preset)["training"], **overrides}
        where = f"training parameters of {self.name}"
        return from_mapping(TrainingHyperparameters, mapping, where=where)

    def _preset(self, preset):
        if preset not in self.presets:
            raise unknown(f"preset of {self.name}", preset, self.presets)
        return self.presets[preset]


def read_yaml(path):
    """Content of a YAML file."""
    return yaml.safe_load(Path(path).read_text())


def models():
    """Names of the models that have a card."""
    return sorted(path.stem for path in (FOLDER / "models").glob("*.yml"))


@cache
def model(name):
    """:class:`ModelCard` of a model.

    Raises
    ------
    ValueError
        If there is no card of this name; the message names the nearest.
    """
    if name not in models():
        raise unknown("model", name, models())
    return from_mapping(ModelCard, read_yaml(FOLDER / "models" / f"{name}.yml"), where=f"card of {name}")


@dataclass(frozen=True)
class Oracle:
    """An ASE calculator that labels any structure of a dataset."""

    calculator: str
    """Class of the calculator, ``package.module.Class``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    title: str = ""
    """Name for readers; by default that of the class."""

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or self.calculator.rpartition(".")[2])


ORACLES = {
    "gfn2": Oracle("tblite.ase.TBLite", {"method": "GFN2-xTB", "verbosity": 0}, "GFN2-xTB"),
    "emt": Oracle("ase.calculators.emt.EMT", title="EMT"),
}
"""Oracles with short names: GFN2-xTB for molecules, effective medium theory for metals."""


def oracle(value, *, where):
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
        found = from_mapping(Oracle, value, where=f"oracle {where}")
        if "" in found.calculator.split(".") or "." not in found.calculator:
            raise ValueError(
                f"oracle {where}: write the calculator as package.module.Class, not '{found.calculator}'"
            )
        return found
    if value not in ORACLES:
        raise unknown(f"oracle {where}", value, ORACLES)
    return ORACLES[value]


def oracle_title(value):
    """Name for readers of a card's oracle, or None if the card has none.

    >>> oracle_title("gfn2")
    'GFN2-xTB'
    """
    return None if value is None else oracle(value, where="of a card").title


@dataclass(frozen=True)
class SourceFile:
    """A file that holds frames, and the hash that identifies it."""

    path: str
    """Path relative to a data folder (``EGRAFF_DATA`` or ``data/``) or to the card, or absolute."""
    hash: str | None = None
    """``sha256:<hex>`` or ``git:<hex>`` (blob id); required for a file that is downloaded."""
    url: str | None = None
    """Address of the file, if ``origin`` of the card does not give it."""
    reader: str | None = None
    """Reader of this file, if it is not that of the card."""


@dataclass(frozen=True)
class Part:
    """Frames of one source that belong to a split."""

    source: str
    slice: str = ":"
    """Frames of the source that are taken, ``start:stop:step``."""
    drop: Any = ()
    """Frames of the source that are left out, a list of indices or a slice."""

    def indices(self, total):
        """Indices of the frames in a source of ``total`` frames, in order.

        >>> Part("train", slice="1:9", drop="::4").indices(10)
        [1, 2, 3, 5, 6, 7]
        """
        dropped = self.drop
        if isinstance(dropped, str):
            dropped = range(total)[_slice(dropped)]
        return [i for i in range(total)[_slice(self.slice)] if i not in set(dropped)]


def _slice(text):
    return slice(*(int(number) if number.strip() else None for number in text.split(":")))


@dataclass(frozen=True)
class Split:
    """A named set of frames."""

    parts: list[Part]
    frames: int | None = None
    """Number of frames, which is checked on loading."""
    subset_of: list[str] = field(default_factory=list)
    """Splits that contain these frames too; every other pair of splits is disjoint."""
    note: str = ""

    def __post_init__(self):
        where = "part of a split"
        parts = [p if isinstance(p, Part) else from_mapping(Part, p, where=where) for p in self.parts]
        object.__setattr__(self, "parts", parts)


def shift(split, target=None):
    """Name of the set on which a model is evaluated; empty for the test set of its own dataset.

    >>> shift("test"), shift("test_600K"), shift("crystals"), shift("test", "benzene")
    ('', '600K', 'crystals', 'benzene')
    """
    words = [target or "", "" if split == "test" else split.removeprefix("test_")]
    return "_".join(word for word in words if word)


@dataclass(frozen=True, eq=False)
class DatasetCard:
    """Card of a dataset: where its frames come from, their units, and how they are split."""

    name: str
    system: str
    """``molecule`` (no periodic images) or ``bulk`` (periodic)."""
    elements: list[int]
    """Atomic numbers, sorted."""
    temperature: float
    """Temperature of the simulations, K (Table 10)."""
    timestep: float
    """Timestep of the simulations, fs (Table 10)."""
    reader: str
    """``npz``, ``extxyz``, ``deepmd``, ``rmd17`` or ``generated``."""
    splits: dict[str, Split]
    """``train``, ``val``, ``test`` and further splits, by name."""
    files: dict[str, SourceFile] = field(default_factory=dict)
    """Source files; those of a source with several files are named ``<source>/<role>``."""
    title: str = ""
    citation: str = ""
    """Key in ``book/references.bib``."""
    licence: str = ""
    units: dict[str, str] = field(default_factory=lambda: {"energy": "eV", "length": "Å"})
    """Units in the files: ``energy`` (eV, kcal/mol, kJ/mol, Hartree) and ``length`` (Å, Bohr)."""
    energy_factor: float | None = None
    """Energy unit in eV, if the authors of the files used another conversion factor than today's."""
    keys: dict[str, str] = field(default_factory=dict)
    """Names of ``energy`` and ``forces`` in the files, if they differ from these."""
    origin: dict[str, str] = field(default_factory=dict)
    """First folder of ``path`` -> address to which the rest of the path is appended."""
    time_ordered: dict[str, float] = field(default_factory=dict)
    """Split whose frames are consecutive in time -> time between two frames, fs."""
    first_contiguous: dict[str, int] = field(default_factory=dict)
    """Time-ordered split -> first frame after its last jump; 0 for a split that is not named."""
    temperatures: dict[str, float] = field(default_factory=dict)
    """Split -> temperature, K, if it is not that of the card."""
    timesteps: dict[str, float] = field(default_factory=dict)
    """Split -> timestep, fs, if it is not that of the card."""
    reference_energies: dict[int, float] = field(default_factory=dict)
    """Atomic number -> prior energy of an atom, eV (Table 13); may be empty."""
    cell: list[list[float]] | None = None
    """Cell vectors, Å, for files that hold none."""
    oracle: str | dict[str, Any] | None = None
    """Calculator that gives energies and forces of any structure: a name in :data:`ORACLES`, the fields of an
    :class:`Oracle`, or None."""
    generate: dict[str, Any] = field(default_factory=dict)
    """How the frames are generated, for the reader ``generated``."""
    notes: list[str] = field(default_factory=list)
    """Remarks that a user of the data should know."""
    folder: Path | None = None
    """Folder of a user's card."""

    def __post_init__(self):
        set_field = partial(object.__setattr__, self)
        where = f"of the card of {self.name}"
        set_field("title", self.title or self.name)
        set_field("elements", sorted(self.elements))
        set_field("files", {key: _source_file(value, f"{key} {where}") for key, value in self.files.items()})
        set_field("splits", {key: _split(value, f"{key} {where}") for key, value in self.splits.items()})
        for name, value, allowed in (
            ("system", self.system, ("molecule", "bulk")),
            ("reader", self.reader, ("npz", "extxyz", "deepmd", "rmd17", "generated")),
        ):
            if value not in allowed:
                raise unknown(f"{name} {where}", value, allowed)
        if self.oracle is not None:
            oracle(self.oracle, where=where)
        for name in ("time_ordered", "first_contiguous", "temperatures", "timesteps"):
            for key in getattr(self, name):
                self.split(key)

    @property
    def pbc(self):
        """Whether the structures are periodic."""
        return self.system == "bulk"

    def split(self, name):
        """:class:`Split` of this name.

        Raises
        ------
        ValueError
            If there is none; the message lists the splits.
        """
        if name not in self.splits:
            raise unknown(f"split of {self.name}", name, self.splits)
        return self.splits[name]

    def parts(self, name):
        """Names of the splits, one per composition, that a split consists of; its own name if there are none.

        >>> dataset("lips20").parts("crystals")
        ['beta-Li3PS4', 'gamma-Li3PS4', 'Li2PS3-hex', 'Li2PS3-orth']
        """
        self.split(name)
        return [part for part, split in self.splits.items() if name in split.subset_of] or [name]

    def files_of(self, source):
        """Keys of the files of a source: its own name, or those of the form ``<source>/<role>``."""
        keys = [key for key in self.files if key == source or key.startswith(f"{source}/")]
        if not keys and not self.generate:
            raise unknown(f"source of {self.name}", source, self.files)
        return keys

    def url(self, key):
        """Address of a file, or None if the card gives none."""
        file = self.files[key]
        first, _, rest = file.path.partition("/")
        return file.url or (self.origin[first] + rest if first in self.origin else None)

    def conditions(self, split):
        """Temperature (K) and timestep (fs) of the simulations that belong to a split."""
        self.split(split)
        return self.temperatures.get(split, self.temperature), self.timesteps.get(split, self.timestep)

    def _rows(self):
        yield "dataset", self.title
        yield "system", f"{self.system}, {'periodic' if self.pbc else 'not periodic'}"
        yield "elements", ", ".join(chemical_symbols[number] for number in self.elements)
        yield "temperature", f"{self.temperature:g} K"
        yield "timestep", f"{self.timestep:g} fs"
        yield "units in the files", ", ".join(f"{name} {unit}" for name, unit in self.units.items())
        yield "reference calculator", oracle_title(self.oracle) or "none at run time"
        yield "licence", self.licence or "not stated"
        yield "citation", self.citation or "none"

    def _split_rows(self):
        for name, split in self.splits.items():
            interval = f"{self.time_ordered[name]:g} fs" if name in self.time_ordered else "no"
            temperature, _ = self.conditions(name)
            frames = "?" if split.frames is None else str(split.frames)
            yield name, frames, f"{temperature:g} K", interval, split.note

    def __repr__(self):
        rows = [f"DatasetCard {self.name}"]
        rows += [f"  {name:<22}{value}" for name, value in self._rows()]
        rows += [
            f"  {name:<22}{frames} frames, {temperature}"
            + ("" if interval == "no" else f", every {interval}")
            for name, frames, temperature, interval, _ in self._split_rows()
        ]
        return "\n".join(rows)

    def _repr_html_(self):
        def row(cells, tag="td"):
            return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

        head = row(["split", "frames", "temperature", "time-ordered", "which frames"], "th")
        properties = "".join(row(pair) for pair in self._rows())
        splits = "".join(row(cells) for cells in self._split_rows())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<table><tbody>{properties}</tbody></table>"
            f"<table><thead>{head}</thead><tbody>{splits}</tbody></table>"
            + (f"<ul>{notes}</ul>" if notes else "")
        )


def _source_file(value, where):
    if isinstance(value, SourceFile):
        return value
    mapping = {"path": value} if isinstance(value, str) else value
    return from_mapping(SourceFile, mapping, where=f"file {where}")


def _split(value, where):
    """A split from YAML, given as a full mapping, as a single part, or as the name of a source."""
    if isinstance(value, Split):
        return value
    mapping = {"source": value} if isinstance(value, str) else dict(value)
    if "parts" not in mapping:
        names = ("source", "slice", "drop")
        mapping["parts"] = [{name: mapping.pop(name) for name in names if name in mapping}]
    return from_mapping(Split, mapping, where=f"split {where}")


_registered = {}


def datasets():
    """Names of the datasets that come with the project."""
    return sorted(path.stem for path in (FOLDER / "datasets").glob("*.yml"))


def dataset(name):
    """:class:`DatasetCard` of a dataset, by its name or by the path of a user's YAML file.

    Once read from a path, a card can also be found by the name in it. Relative paths in it start at its
    folder.

    Raises
    ------
    ValueError
        If there is no card of this name; the message names the nearest.
    FileNotFoundError
        If a path is given and there is no file.
    """
    if isinstance(name, DatasetCard):
        return name
    if str(name).endswith((".yml", ".yaml")):
        path = Path(name).expanduser().resolve()
        card = from_mapping(DatasetCard, {**read_yaml(path), "folder": path.parent}, where=f"card {path}")
        if card.name in datasets():
            raise ValueError(f"{path}: the name '{card.name}' is taken by a dataset of the project")
        _registered[card.name] = card
        return card
    if name in _registered:
        return _registered[name]
    return _shipped(name)


@cache
def _shipped(name):
    if name not in datasets():
        raise unknown("dataset", name, [*datasets(), *_registered])
    return from_mapping(DatasetCard, read_yaml(FOLDER / "datasets" / f"{name}.yml"), where=f"card of {name}")
