"""What is a model? A frozen card with its hyperparameters, its builder or its calculator."""

import hashlib
import importlib.util
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, Protocol

from ase.data import chemical_symbols

from egraff_utils.hyperparameters import TrainingHyperparameters
from egraff_utils.schema import (
    AtomicNumber,
    Count,
    ModelName,
    Positive,
    Value,
    Whole,
    checked,
    unknown,
    validated,
)
from egraff_utils.sources import ClassPath


class Covered(Protocol):
    """What a model has to know of a dataset, attributes of :class:`~egraff_utils.cards.DatasetCard`."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def elements(self) -> list[int]:
        """Atomic numbers."""

    @property
    def system(self) -> str:
        """Kind of the system, ``molecule`` or ``bulk``."""


@checked()
class ModelCard:
    """Card of a model: an architecture with hyperparameters at every preset, or an ASE calculator.

    A card with ``calculator`` is a model that is not trained here (:mod:`egraff_utils.calculated`). One with
    ``builder`` is a network from elsewhere, which is.
    """

    name: ModelName
    """Name of the model without ``-``, which is part of the names of its records."""
    title: str = ""
    """Name for readers."""
    citation: str = ""
    """Key in ``book/references.bib``."""
    table: Whole = 0
    """Table of the paper that lists its hyperparameters."""
    package: str = ""
    parameters_paper: Whole = 0
    """Trainable parameters at preset ``paper`` for the elements H, C, O."""
    presets: dict[str, dict[str, dict[str, Value]]] = field(default_factory=dict)
    """Size -> hyperparameters of a network and of its training."""
    notes: list[str] = field(default_factory=list)
    """Remarks on where today's names of hyperparameters differ from those in the table."""
    version: Whole = 1
    """Number to raise when the same weights give other energies; models are then trained anew."""
    builder: ClassPath | None = None
    """Function that builds the network, ``package.module.function``, if that is no architecture of the
    project; see :func:`egraff_utils.models.register` for its arguments."""
    pretrained: bool = False
    """Whether the network comes with weights, whose energies are in eV: a training starts from them, after
    one shift of the energy per element."""
    calculator: ClassPath | None = None
    """Class of an ASE calculator, ``package.module.Class``, that is the model."""
    arguments: dict[str, Value] = field(default_factory=dict)
    """Keyword arguments of the class; a file beside the card may be given by its name."""
    elements: list[AtomicNumber] = field(default_factory=list)
    """Atomic numbers of the elements that the calculator, or the network with weights, knows."""
    systems: list[Literal["molecule", "bulk"]] = field(default_factory=lambda: ["molecule", "bulk"])
    """Kinds of systems that it can treat."""
    cutoff: Positive | None = None
    """Cutoff of the calculator, Å, across which the gate moves atoms; may be missing."""
    frames: Count | None = None
    """Largest number of frames of a split on which errors of the calculator are taken, evenly spaced.

    By default all are taken."""
    facts: dict[str, str] = field(default_factory=dict)
    """What is to be known about weights that come with a package: hash, licence, training set.

    If ``Weights`` (the file) and ``SHA-256`` are among them, the file is compared before it is loaded."""
    folder: Path | None = field(default=None, metadata={"internal": True})
    """Folder of a user's card."""
    file: Path | None = field(default=None, metadata={"internal": True})
    """File of a user's card."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        if bool(self.presets) == bool(self.calculator):
            raise ValueError("give either presets, of a network, or a calculator")
        if self.builder and self.calculator:
            raise ValueError("a calculator is not built; leave out builder")
        if (self.calculator or self.pretrained) and not self.elements:
            raise ValueError("elements is missing: list the atomic numbers that the calculator knows")

    def check_covers(self, dataset: Covered) -> None:
        """Reject a dataset with elements or periodicity that the calculator, or network, does not know.

        Raises
        ------
        ValueError
            The message names card, dataset and elements.
        """
        if unknown_elements := sorted(set(dataset.elements) - set(self.elements)):
            names = ", ".join(chemical_symbols[number] for number in unknown_elements)
            raise ValueError(
                f"the card of the model {self.name} lists no {names}, which {dataset.name} holds; add it to "
                f"elements if {self.calculator or self.builder} knows it, or leave out the dataset"
            )
        if dataset.system not in self.systems:
            raise ValueError(
                f"the card of the model {self.name} is for {' and '.join(self.systems)} alone, and "
                f"{dataset.name} is a {dataset.system}; leave out the dataset"
            )

    def check_weights(self) -> None:
        """Reject weights in an installed package that are not those of the card, before anything loads them.

        Packages may unpickle their weights, which runs whatever a changed file says.

        Raises
        ------
        ValueError
            If the file is missing from the package, or has another hash.
        """
        if not {"Weights", "SHA-256"} <= set(self.facts):
            return
        package, _, rest = self.facts["Weights"].partition("/")
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            return  # whoever imports it says so
        file = Path(found.origin).parent / rest
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != self.facts["SHA-256"]:
            raise ValueError(
                f"{file} is not the file of weights that the card of {self.name} names by its hash, and is "
                f"not loaded; install {self.package or package} anew"
            )

    def network(self, preset: str, **overrides: Any) -> dict[str, Any]:
        """Keyword arguments of ``build_network`` at a preset, with overrides."""
        return {**self._preset(preset)["network"], **overrides}

    def training(self, preset: str, **overrides: Any) -> TrainingHyperparameters:
        """:class:`~egraff_utils.hyperparameters.TrainingHyperparameters` at a preset, with overrides."""
        mapping = {**self._preset(preset)["training"], **overrides}
        where = f"training parameters of {self.name}"
        return validated(TrainingHyperparameters, mapping, where=where)

    def _preset(self, preset: str) -> dict[str, dict[str, Any]]:
        if preset not in self.presets:
            raise unknown(f"preset of {self.name}", preset, self.presets)
        return self.presets[preset]
