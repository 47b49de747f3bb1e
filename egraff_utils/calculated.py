"""How does an ASE calculator take the place of a network? Any calculator that a card names is a model.

It is not trained. :func:`egraff_utils.train.fit` takes its errors instead, which leaves a record of kind
``training`` like that of a network after no step: with the errors, with one shift of the energy per element,
and without weights. Everything that follows (rollouts, gate, horizon, tasks, reports) asks
:func:`egraff_utils.weights.load` for the model, as it does for a network, and receives a :class:`Calculated`.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, CalculatorError, all_changes

from egraff_utils import cards, provenance, reference
from egraff_utils.cards import Oracle


class Shifted(Calculator):
    """ASE calculator that adds one energy per element to that of another calculator.

    Values of a structure that the other calculator fails on are NaN, so that a simulation that
    has left what the method can treat ends like that of a network: the replica has broken.

    Parameters
    ----------
    inner
        ASE calculator with energy (eV), forces (eV/Å) and perhaps stress (eV/Å^3).
    shifts
        Atomic number -> energy that is added for every such atom, eV.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, inner: BaseCalculator, shifts: Mapping[int, float]) -> None:
        super().__init__()
        self.inner, self.shifts = inner, dict(shifts)
        if "stress" not in inner.implemented_properties:
            self.implemented_properties = self.implemented_properties[:-1]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None  # ASE gives them
        shift = sum(self.shifts.get(int(z), 0.0) for z in atoms.numbers)
        more = ["stress"] if "stress" in properties else []
        try:
            forces = np.array(self.inner.get_property("forces", atoms), dtype=float)
            energy = float(self.inner.get_property("energy", atoms)) + shift
            stress = {name: np.array(self.inner.get_property(name, atoms), dtype=float) for name in more}
        except (CalculatorError, RuntimeError):
            energy, forces = np.nan, np.full((len(atoms), 3), np.nan)
            stress = dict.fromkeys(more, np.full(6, np.nan))
            if isinstance(self.inner, Calculator):  # others keep nothing of it
                self.inner.reset()  # so that the next structure does not start from the state of the failure
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, **stress}


class Calculated:
    """A model that is an ASE calculator, with the methods by which a force field is used.

    Parameters
    ----------
    oracle
        :class:`~egraff_utils.cards.Oracle`, the class of the calculator and its arguments.
    name
        Words that start the messages of errors, such as ``the model emt``.
    folder
        Folder in which arguments that name a file are looked for.
    cutoff
        Cutoff, Å, if it is known.
    shifts
        Atomic number -> energy added for every such atom, eV.
    frames
        Largest number of frames on which its errors are taken; None for all.
    """

    def __init__(
        self,
        oracle: Oracle,
        *,
        name: str,
        folder: Path | None = None,
        cutoff: float | None = None,
        shifts: Mapping[int, float] | None = None,
        frames: int | None = None,
    ) -> None:
        arguments = {key: _located(value, folder) for key, value in oracle.arguments.items()}
        self.oracle = Oracle(oracle.calculator, arguments, oracle.title)
        self.name, self.cutoff, self.shifts, self.frames = name, cutoff, dict(shifts or {}), frames

    def make(self) -> Shifted:
        """A new calculator, which shares no state with others.

        Raises
        ------
        ValueError
            If there is no such class, it is not the class of an ASE calculator with energy and forces, or it
            does not take the arguments.
        """
        return Shifted(reference.make(self.oracle, self.name), self.shifts)

    def check(self, atoms: Atoms) -> None:
        """Try the calculator on a structure; raises ``ValueError`` if it fails on it."""
        made = reference.make(self.oracle, self.name)
        reference.attempt(made, atoms, f"{self.name}, {self.oracle.calculator},")

    def specification(self) -> dict[str, Any]:
        """What determines its numbers apart from the shifts: class, arguments and the version of its code.

        An argument that names a file stands for its content. Code of no installed package has the digest of
        its file as its version.
        """
        given = {key: _content(value) for key, value in self.oracle.arguments.items()}
        versions = {name: importlib.metadata.version(name) for name in reference.packages(self.oracle)}
        return {
            "calculator": self.oracle.calculator,
            "arguments": given,
            "versions": versions or self._code(),
        }

    def _code(self):
        module = self.oracle.calculator.rpartition(".")[0]
        try:
            return {module: provenance.digest(inspect.getsource(importlib.import_module(module)))}
        except (ImportError, OSError, TypeError):
            return {module: "unknown"}

    def digest(self) -> str:
        """Digest of everything that determines its numbers, which takes the place of that of weights."""
        return provenance.digest(self.specification(), sorted(self.shifts.items()))

    def to(self, device: object) -> "Calculated":
        """Itself, since a calculator chooses its device by its arguments."""
        return self

    def predict(self, frames: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Energies, shape ``(S,)``, eV, and forces, list of ``(N, 3)``, eV/Å, of a list of frames."""
        made, energies, forces = self.make(), [], []
        for atoms in frames:
            bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            energies.append(made.get_potential_energy(bare))
            forces.append(made.get_forces(bare))
        return np.array(energies), forces

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.oracle.arguments.items())
        return f"Calculated({self.oracle.calculator}({given}), shifts={self.shifts})"


def of(model: str, dataset: str, shifts: Mapping[int, float] | None = None) -> Calculated:
    """:class:`Calculated` of a model's card, or of the oracle of a dataset for the model ``reference``.

    Raises
    ------
    ValueError
        If the model is a network, or its card does not cover the elements or the periodicity of the dataset,
        which has to have an oracle for ``reference``, or its package holds other weights than its card says.
        The message names what is missing, and the card.
    """
    data = cards.dataset(dataset)
    if model == cards.REFERENCE:
        if data.oracle is None:
            raise ValueError(f"the reference method of {data.name} cannot be run: its card has no oracle")
        oracle = cards.oracle(data.oracle, where=f"of the card of {data.name}")
        return Calculated(oracle, name=f"the oracle of {data.name}")
    card = cards.model(model)
    if card.calculator is None:
        raise ValueError(f"the model {card.name} is a network, no calculator; load it by weights.load")
    card.check_covers(data)
    card.check_weights()
    oracle = Oracle(card.calculator, card.arguments, card.title)
    name = f"the model {card.name}"
    return Calculated(
        oracle, name=name, folder=card.folder, cutoff=card.cutoff, shifts=shifts, frames=card.frames
    )


def compositions(frames: Sequence[Atoms]) -> tuple[list[int], np.ndarray]:
    """Atomic numbers of the elements of frames, Z of them, and the counts of each, shape ``(S, Z)``."""
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})
    counts = [[np.sum(atoms.numbers == z) for z in elements] for atoms in frames]
    return elements, np.array(counts, dtype=float)


def fit_shifts(frames: Sequence[Atoms], energies: np.ndarray) -> dict[int, float]:
    r"""Energy per element that brings energies closest to those of frames, in the least-squares sense.

    .. math:: \min_s \sum_k \left( E_k - \hat E_k - \sum_z n_{kz} s_z \right)^2

    Every method has a zero of energy of its own. With a single composition the fit with the smallest norm
    spreads the mean difference over the elements. Forces do not depend on it.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` with energy, eV.
    energies
        Energies of the calculator, shape ``(S,)``, eV.

    Returns
    -------
    dict
        Atomic number -> energy, eV.
    """
    elements, counts = compositions(frames)
    apart = np.array([atoms.get_potential_energy() for atoms in frames]) - energies
    shifts = np.linalg.lstsq(counts, apart, rcond=None)[0]
    return dict(zip(elements, map(float, shifts), strict=True))


def _located(value, folder):
    """An argument; one that names a file in the folder becomes its path."""
    if isinstance(value, str) and value and folder is not None and (folder / value).is_file():
        return str(folder / value)
    return value


def _content(value):
    """An argument, or the digest of the file that it names."""
    if isinstance(value, str) and value and Path(value).is_file():
        return provenance.digest(Path(value))
    return value
