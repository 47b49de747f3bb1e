"""What is a dataset, and what is a model? Frozen cards are read from the YAML files in ``cards/``."""

from dataclasses import field
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from pydantic import Field

from egraff_utils import offered, paths
from egraff_utils.model_card import ModelCard
from egraff_utils.schema import (
    AtomicNumber,
    Count,
    Name,
    Number,
    Positive,
    Value,
    at,
    checked,
    guess,
    read,
    unknown,
    validated,
)
from egraff_utils.sources import (  # noqa: F401
    ORACLES,
    READERS,
    Cell,
    ClassPath,
    File,
    FrameSet,
    Generated,
    Oracle,
    Part,
    Reader,
    SourceFile,
    Split,
    Unit,
    oracle,
    oracle_title,
    reader_of,
)

FOLDER = Path(__file__).parent / "cards"
EXAMPLE = "example"
"""Name of the dataset that stands for a reader's own in the notebooks of ``notebooks/yours``."""
REFERENCE = "reference"
"""Name of the model that is the reference method of the dataset itself, with noise of its own."""
_registered_models: dict[str, ModelCard] = {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file without a schema, a dictionary."""
    return guess(read(path))


def models() -> list[str]:
    """Names of the architectures that come with the project."""
    return sorted(path.stem for path in (FOLDER / "models").glob("*.yml"))


def presets() -> list[str]:
    """Names of the presets that each of :func:`models` has, in the order of the cards.

    >>> presets()
    ['paper', 'paper_budget', 'day', 'small', 'tiny']
    """
    first, *others = map(model, models())
    return [name for name in first.presets if all(name in card.presets for card in others)]


def calculators() -> list[str]:
    """Names of the calculators that come with the project as models."""
    return sorted(path.stem for path in (FOLDER / "calculators").glob("*.yml"))


def pretrained() -> list[str]:
    """Names of the networks that come with weights from elsewhere.

    >>> pretrained()
    ['sevennet_0_tuned', 'so3lr_tuned']
    """
    return sorted(path.stem for path in (FOLDER / "pretrained").glob("*.yml"))


def model(name: str | Path) -> ModelCard:
    """:class:`~egraff_utils.model_card.ModelCard` of a model, by its name or a user's YAML file.

    A name is that of a model of the project, or of one that an installed package offers.

    Such a file is the card of a calculator, or of a network with its ``builder``.

    Once read from a path, a card can also be found by the name in it.

    Raises
    ------
    ValueError
        If there is no card of this name, or no file of this path; the message names the nearest. If a user's
        card has the name of a model of the project, or has neither calculator nor builder.
    """
    if _is_path(name):
        return _own_model(Path(name).expanduser().resolve())
    name = str(name)
    found = _registered_models.get(name) or _shipped_model(name) or offered_models().get(name)
    if found is None:
        raise unknown("model", name, [*shipped_models(), *offered_models(), *_registered_models])
    return found


def _is_path(name):
    return str(name).endswith((".yml", ".yaml"))


def _own_model(path: Path) -> ModelCard:
    values = read(path)
    for key in ("folder", "file", *(["presets"] if "builder" not in values else [])):
        if key in values:
            raise ValueError(f"{path}: unknown key '{key}' of the card of a calculator")
    values |= {"folder": path.parent, "file": path}
    card = validated(ModelCard, values, where=path)
    check_free(card.name, where=f"{path}: ")
    _registered_models[card.name] = card
    return card


def check_free(name: str, *, where: str = "") -> None:
    """Reject the name of a model of one's own that a model of the project has.

    >>> check_free("mace")
    Traceback (most recent call last):
    ValueError: the name 'mace' is taken by a model of the project; give yours another
    """
    if name in (REFERENCE, *shipped_models()):
        raise ValueError(f"{where}the name '{name}' is taken by a model of the project; give yours another")


@cache
def _shipped_model(name: str) -> ModelCard | None:
    rooms = {"models": models(), "calculators": calculators(), "pretrained": pretrained()}
    folders = {own: room for room, names in rooms.items() for own in names}
    if name not in folders:
        return None
    path = FOLDER / folders[name] / f"{name}.yml"
    return validated(ModelCard, read(path), where=path.name)


def shipped_models() -> tuple[str, ...]:
    """Names of all models that come with the project, a tuple."""
    return (*models(), *calculators(), *pretrained())


def offered_models() -> dict[str, ModelCard]:
    """Cards of the models that installed packages offer by name, see :mod:`egraff_utils.offered`."""
    return offered.models((REFERENCE, *shipped_models()))


def model_name(name: str | Path) -> str:
    """Name of a model in the keys of records, of which a path is another spelling.

    >>> model_name("mace")
    'mace'
    """
    return model(name).name if _is_path(name) else str(name)


def model_file(name: str) -> Path | None:
    """Path of a user's card that has been read, or None for a model of the project."""
    card = _registered_models.get(name)
    return card.file if card else None


def model_spelling(name: str) -> str:
    """Text by which another process finds a model: the path of a user's card, else the name."""
    return str(model_file(name) or name)


def model_builder(name: str | Path) -> str | None:
    """Function that builds a network from elsewhere, from its card; None for other models.

    >>> model_builder("mace"), model_builder("so3lr_tuned")
    (None, 'egraff_utils.models.so3lr.build_network')
    """
    return model(name).builder if _is_own(name) or name in pretrained() else None


def is_calculator(name: str | Path) -> bool:
    """Whether a model is not trained: the card of a calculator, or the reference itself.

    >>> is_calculator("reference"), is_calculator("gfn1"), is_calculator("mace"), is_calculator("unheard-of")
    (True, True, False, False)
    """
    if _is_own(name):
        return model(name).calculator is not None
    return name == REFERENCE or name in calculators()


def is_model(name: str) -> bool:
    """Whether a model has a card: one of the project, of an installed package, or a user's that was read.

    >>> is_model("mace"), is_model("unheard-of")
    (True, False)
    """
    return name in shipped_models() or _is_own(name)


def _is_own(name):
    """Whether a model is not one of the project but has a card."""
    if _is_path(name) or name in _registered_models:
        return True
    return name not in (REFERENCE, *shipped_models()) and name in offered_models()


def shift(split: str, target: str | None = None) -> str:
    """Name of the set on which a model is evaluated; empty for the test set of its own dataset.

    >>> shift("test"), shift("test_600K"), shift("crystals"), shift("test", "benzene")
    ('', '600K', 'crystals', 'benzene')
    """
    words = [dataset(target).name if target else "", "" if split == "test" else split.removeprefix("test_")]
    return "_".join(word for word in words if word)


@checked(eq=False)
class DatasetCard:
    """Card of a dataset: where its frames come from, their units, and how they are split."""

    name: Name
    """Name of the dataset, which is part of the names of its records."""
    system: Literal["molecule", "bulk"]
    """``molecule`` (no periodic images) or ``bulk`` (periodic)."""
    elements: Annotated[list[AtomicNumber], Field(min_length=1)]
    """Atomic numbers."""
    temperature: Positive
    """Temperature of the simulations, K (Table 10)."""
    timestep: Positive
    """Timestep of the simulations, fs (Table 10)."""
    splits: dict[Name, FrameSet]
    """``train``, ``val``, ``test`` and further splits, by name."""
    files: dict[str, File] = field(default_factory=dict)
    """Source files, each a path or its keys; those of a source with several files are named
    ``<source>/<role>``."""
    reader: Reader | None = None
    """How files are read, see the table of readers; by default as their endings say (npz; xyz and extxyz,
    also compressed; traj and db by ASE)."""
    title: str = ""
    """Name for readers."""
    citation: str = ""
    """Key in ``book/references.bib``."""
    licence: str = ""
    """Licence of the data."""
    units: dict[Literal["energy", "length", "forces"], Unit] = field(default_factory=dict)
    """Units in the files: ``energy`` (eV, meV, kcal/mol, kJ/mol, Hartree, Rydberg; by default eV), ``length``
    (Å, Bohr; by default Å) and ``forces``, if they are not in energy over length, such as Hartree/Bohr."""
    energy_factor: Positive | None = None
    """Energy unit in eV, if the authors of the files used another conversion factor than today's."""
    keys: dict[Literal["energy", "forces", "stress"], str] = field(default_factory=dict)
    """Names of ``energy``, ``forces`` and ``stress`` in the files, if they differ from these."""
    origin: dict[str, str] = field(default_factory=dict)
    """First folder of ``path`` -> address to which the rest of the path is appended."""
    time_ordered: dict[str, Positive] = field(default_factory=dict)
    """Split whose frames are consecutive in time -> time between two frames, fs."""
    first_contiguous: dict[str, Count] = field(default_factory=dict)
    """Time-ordered split -> first frame after its last jump; 0 for a split that is not named."""
    temperatures: dict[str, Positive] = field(default_factory=dict)
    """Split -> temperature, K, if it is not that of the card."""
    timesteps: dict[str, Positive] = field(default_factory=dict)
    """Split -> timestep, fs, if it is not that of the card."""
    reference_energies: dict[AtomicNumber, Number] = field(default_factory=dict)
    """Atomic number -> prior energy of an atom, eV (Table 13); may be empty."""
    cell: Cell | None = None
    """Cell vectors, Å, for files that hold none; that of a molecule, by default a cube of 20 Å, sets the
    height of g(r)."""
    oracle: str | dict[str, Value] | None = None
    """Calculator that gives energies and forces of any structure: a name in :data:`ORACLES`, the fields of an
    :class:`Oracle`, or None."""
    generate: Generated = field(default_factory=dict)
    """How the frames are generated, for the reader ``generated``."""
    notes: list[str] = field(default_factory=list)
    """Remarks that a user of the data should know."""
    folder: Path | None = field(default=None, metadata={"internal": True})
    """Folder of a user's card."""

    def __post_init__(self) -> None:
        set_field = partial(object.__setattr__, self)
        where = f"of the card of {self.name}"
        set_field("title", self.title or self.name)
        set_field("elements", sorted(self.elements))
        set_field("units", {"energy": "eV", "length": "Å"} | self.units)
        for key in self.files:
            if self.reader_of(key) is None:
                with at("files", key):
                    raise ValueError(f"its ending does not tell how it is read; name a reader {where}")
        for name in ("time_ordered", "first_contiguous", "temperatures", "timesteps"):
            for key in getattr(self, name):
                with at(name, key):
                    self.split(key)
        for key, split in self.splits.items():
            with at("splits", key):
                self._check_split(split)
        if self.oracle is not None:
            with at("oracle"):
                oracle(self.oracle, where=where)

    def _check_split(self, split):
        for other in split.subset_of:
            self.split(other)
        for part in split.parts:
            self.files_of(part.source)

    def reader_of(self, key: str) -> str | None:
        """Name of the reader of a file."""
        return self.files[key].reader or self.reader or reader_of(self.files[key].path)

    @property
    def pbc(self) -> bool:
        """Whether the structures are periodic."""
        return self.system == "bulk"

    def split(self, name: str) -> Split:
        """:class:`Split` of this name.

        Raises
        ------
        ValueError
            If there is none; the message lists the splits.
        """
        if name not in self.splits:
            raise unknown(f"split of {self.name}", name, self.splits)
        return self.splits[name]

    def parts(self, name: str) -> list[str]:
        """Names of the splits, one per composition, that a split consists of; its own name if there are none.

        >>> dataset("lips20").parts("crystals")
        ['beta-Li3PS4', 'gamma-Li3PS4', 'Li2PS3-hex', 'Li2PS3-orth']
        """
        self.split(name)
        return [part for part, split in self.splits.items() if name in split.subset_of] or [name]

    def files_of(self, source: str) -> list[str]:
        """Keys of the files of a source: its own name, or those of the form ``<source>/<role>``."""
        keys = [key for key in self.files if key == source or key.startswith(f"{source}/")]
        if not keys and not self.generate:
            raise unknown(f"source of {self.name}", source, self.files)
        return keys

    def url(self, key: str) -> str | None:
        """Address of a file, or None if the card gives none."""
        file = self.files[key]
        first, _, rest = file.path.partition("/")
        return file.url or (self.origin[first] + rest if first in self.origin else None)

    def conditions(self, split: str) -> tuple[float, float]:
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

    def __repr__(self) -> str:
        rows = [f"DatasetCard {self.name}"]
        rows += [f"  {name:<22}{value}" for name, value in self._rows()]
        for name, frames, temperature, interval, _ in self._split_rows():
            every = "" if interval == "no" else f", every {interval}"
            rows.append(f"  {name:<22}{frames} frames, {temperature}{every}")
        return "\n".join(rows)

    def _repr_html_(self):
        def row(cells, tag="td"):
            return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

        head = row(["split", "frames", "temperature", "time-ordered", "which frames"], "th")
        properties = "".join(row(pair) for pair in self._rows())
        splits = "".join(row(cells) for cells in self._split_rows())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<table class='dataframe'><tbody>{properties}</tbody></table>"
            f"<table class='dataframe'><thead>{head}</thead><tbody>{splits}</tbody></table>"
            + (f"<ul>{notes}</ul>" if notes else "")
        )


_WRITE_CARD = "`egraff data check FILE --write-card` writes the card of a file of frames"
_registered: dict[str, DatasetCard] = {}
_dataset_files: dict[str, Path] = {}


def datasets() -> list[str]:
    """Names of the datasets that come with the project."""
    return sorted(path.stem for path in (FOLDER / "datasets").glob("*.yml"))


def is_dataset(name: str) -> bool:
    """Whether a dataset has a card: one of the project, the example, or a user's that has been read.

    >>> is_dataset("ethanol"), is_dataset("example"), is_dataset("unheard-of")
    (True, True, False)
    """
    return name in (*datasets(), EXAMPLE, *_registered)


def dataset(name: str | Path | DatasetCard) -> DatasetCard:
    """:class:`DatasetCard` of a dataset, by its name or by the path of a user's YAML file.

    Once read from a path, a card can also be found by the name in it, and so can one that is kept with the
    records of its dataset (:func:`keep`). Relative paths in it start at its folder.

    Raises
    ------
    ValueError
        If there is no card of this name, or no file of this path; the message names the nearest.
    """
    if isinstance(name, DatasetCard):
        return name
    if str(name).endswith((".yml", ".yaml")):
        path = Path(name).expanduser().resolve()
        values = read(path)
        if "folder" in values:
            raise ValueError(f"{path}: unknown key 'folder'; files are found beside the card as it is")
        values["folder"] = path.parent
        card = validated(DatasetCard, values, where=path)
        if card.name in (*datasets(), EXAMPLE):
            raise ValueError(f"{path}: the name '{card.name}' is taken by a dataset of the project")
        _registered[card.name], _dataset_files[card.name] = card, path
        return card
    return _registered[name] if name in _registered else _shipped(name)


def _kept(name: str) -> DatasetCard:
    """Card of a dataset that a campaign of a user's has kept with its records."""
    broken = []
    for path in sorted(paths.results().glob("*/*.yml"), key=lambda path: -path.stat().st_mtime):
        try:
            values = read_yaml(path)
        except (ValueError, OSError) as error:
            broken.append(str(error))
            continue
        if values.get("name") == name and "splits" in values:
            return dataset(path)
    if "." in str(name):  # as in the name of a file
        raise ValueError(f"'{name}' is no dataset, nor a card (.yml) of one; {_WRITE_CARD}")
    missing = unknown("dataset", name, [*datasets(), *_registered])
    if broken:
        raise ValueError(f"{missing}; a file that could hold it is broken: {'; '.join(broken)}")
    raise missing


def keep(campaign: str, name: str) -> None:
    """Copy the user's card of a dataset to the records of a campaign, where :func:`dataset` finds it by name.

    Nothing is done for a dataset of the project, or if the folder has the same card already.
    """
    own, folder = dataset_file(name), paths.results() / campaign
    if own is None or not own.is_file() or own.parent == folder:
        return
    content = own.read_bytes()
    if any(path.read_bytes() == content for path in folder.glob("*.yml")):
        return
    with paths.written(folder / f"{name}.card.yml") as temporary:
        temporary.write_bytes(content)


def dataset_file(name: str) -> Path | None:
    """Path of a user's card of a dataset that has been read, or None for a dataset of the project."""
    return _dataset_files.get(name)


def dataset_spelling(name: str) -> str:
    """Text by which another process finds a dataset: the path of a user's card, else the name."""
    return str(dataset_file(name) or name)


@cache
def _shipped(name: str) -> DatasetCard:
    if not is_dataset(name):
        return _kept(name)
    folder = FOLDER / ("examples" if name == EXAMPLE else "datasets")
    path = folder / f"{name}.yml"
    own = {"folder": folder} if name == EXAMPLE else {}  # its file stands beside it
    return validated(DatasetCard, read(path) | own, where=path.name)
