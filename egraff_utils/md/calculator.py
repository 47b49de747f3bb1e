"""How does a force field drive ASE? Calculators handle one system, or several copies that do not interact.

A copy is called a replica. One ``ase.Atoms`` holds the R replicas of a system of N atoms one after another,
as R*N atoms. Each calculator here also returns the energy of every replica, in
``results["energies_of_replicas"]``, shape ``(R,)``, eV.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import (
    BaseCalculator,
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from egraff_utils import cards, weights
from egraff_utils.calculated import Calculated
from egraff_utils.config import Key
from egraff_utils.data import COINCIDENT
from egraff_utils.graph import AtomicGraph, SkinList
from egraff_utils.models import ForceField


def difference(atoms: ase.Atoms, first: ase.Atoms) -> str:
    """What of a structure is not that of another, in words; empty if both are copies of one system.

    Positions and momenta may differ, but not elements and their order, cell, periodicity and masses.

    Examples
    --------
    >>> water, heavy = ase.Atoms("OH2"), ase.Atoms("OH2", masses=[16, 2, 2])
    >>> difference(heavy, water)
    'has the masses [16.  2.  2.], not [15.999  1.008  1.008]'
    """
    if not np.array_equal(atoms.numbers, first.numbers):
        one, other = atoms.get_chemical_formula(), first.get_chemical_formula()
        return f"is {one}, not {other}" if one != other else f"has the atoms of {one} in another order, not"
    features = {
        "cell": [a.cell.array for a in (atoms, first)],
        "periodicity": [a.pbc for a in (atoms, first)],
    }
    features["masses"] = [a.get_masses() for a in (atoms, first)]
    for name, (own, other) in features.items():
        if not np.allclose(own, other, rtol=0, atol=1e-5):
            return f"has the {name} {own.round(5)}, not {other.round(5)}".replace("\n", "")
    return ""


def join_replicas(replicas: Sequence[ase.Atoms]) -> ase.Atoms:
    """One ``ase.Atoms`` of R*N atoms that joins R structures of N atoms.

    Raises
    ------
    ValueError
        If the replicas are not copies of one system (:func:`difference`).
    """
    first = replicas[0]
    for index, atoms in enumerate(replicas):
        if unlike := difference(atoms, first):
            raise ValueError(f"replica {index} {unlike}, as replica 0 does")
    joined = ase.Atoms(
        numbers=np.concatenate([a.numbers for a in replicas]),
        positions=np.concatenate([a.positions for a in replicas]),
        cell=first.cell,
        pbc=first.pbc,
    )
    joined.set_masses(np.concatenate([a.get_masses() for a in replicas]))
    joined.set_momenta(np.concatenate([a.get_momenta() for a in replicas]))
    return joined


def split_replicas(atoms: ase.Atoms, replicas: int) -> list[ase.Atoms]:
    """The R replicas that ``atoms`` consists of, a list of ``ase.Atoms``.

    Raises
    ------
    ValueError
        If the number of atoms is not a multiple of R, or the replicas are not copies of one system.

    Examples
    --------
    >>> split_replicas(ase.Atoms("OHHOHH"), 2)
    [Atoms(symbols='OH2', pbc=False), Atoms(symbols='OH2', pbc=False)]
    """
    if replicas < 1 or len(atoms) % replicas:
        raise ValueError(f"{len(atoms)} atoms cannot be split into {replicas} replicas")
    numbers = atoms.numbers.reshape(replicas, -1)
    if (numbers != numbers[0]).any():
        raise ValueError(f"{atoms.get_chemical_formula()} is not {replicas} copies of one system")
    positions = atoms.positions.reshape(replicas, -1, 3)
    return [ase.Atoms(numbers[0], x, cell=atoms.cell, pbc=atoms.pbc) for x in positions]


class ForceFieldCalculator(Calculator):
    """ASE calculator that evaluates a force field, for one system or a batch of replicas.

    It gives the energy in eV (the sum over replicas) and forces in eV/Å, and for one periodic system the
    stress in eV/Å^3, in Voigt order and with the sign of ASE. Once the stress has been asked for, it comes
    with every evaluation, as simulations at constant pressure need both. The neighbour list is kept between
    calls and rebuilt only when an atom has moved by half the skin or the cell has changed. The parameters of
    the force field are frozen.

    Parameters
    ----------
    ff
        :class:`~egraff_utils.models.ForceField`, or any module with ``elements``, ``cutoff`` (Å) and
        ``forward(graph) -> (energy (S,), forces (N, 3))``; for the stress also ``with_virials(graph)``.
    device
        Device on which the force field runs; by default the one it is on.
    skin
        Skin of the neighbour list, Å; the result does not depend on it.
    replicas
        Number R of copies of one system in the ``ase.Atoms``.

    Raises
    ------
    ValueError
        On calculation, if an element is unknown to the force field, the atoms are not R copies of one system,
        or a position is not finite. Forces that are not finite, as of atoms in one place, are results, and
        a warning names the replica and the atoms.
    PropertyNotImplementedError
        If the stress is asked for of several replicas, of a system that is not periodic in all directions, or
        of a force field without ``with_virials``.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self,
        ff: ForceField,
        device: torch.device | str | None = None,
        *,
        skin: float = 1.0,
        replicas: int = 1,
    ) -> None:
        super().__init__()
        self.ff = ff.to(device) if device is not None else ff
        self.ff.requires_grad_(False).eval()
        self.skin, self.replicas = skin, replicas
        self._list: SkinList | None = None
        self._system: tuple[bytes, bytes, bytes] | None = None
        self._last: ase.Atoms | None = None
        self._stress = False

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """Names of what has changed since the last calculation, without any tolerance.

        Only what affects the result is compared. ASE calls this method three times per step, and its own
        comparison takes longer than the neighbour list.
        """
        if self.atoms is None:
            return list(all_changes)
        now, before = atoms.arrays, self.atoms.arrays
        changed = [name for name in ("positions", "numbers") if not np.array_equal(now[name], before[name])]
        changed += ["cell"] if (atoms.cell.array != self.atoms.cell.array).any() else []
        return changed + (["pbc"] if (atoms.pbc != self.atoms.pbc).any() else [])

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; called by ASE."""
        assert atoms is not None  # ASE gives them
        # By now ASE has dropped its copy of the atoms; updating the last one is quicker than a new copy.
        if self._last is not None and set(system_changes) <= {"positions"}:
            self.atoms = self._last
            self.atoms.positions[:] = atoms.positions
        else:
            super().calculate(atoms, properties, system_changes)
            self._last = self.atoms
        if not np.isfinite(atoms.positions).all():
            bad = int(np.argmin(np.isfinite(atoms.positions).all(axis=1)))
            replica, atom = divmod(bad, max(len(atoms) // self.replicas, 1))
            name = f"atom {atom} ({atoms.symbols[bad]}) of replica {replica}"
            raise ValueError(f"the position of {name} is not finite")
        if "stress" in properties:
            self._check_stress(atoms)
        self.results = self._results(self._graph(atoms))
        if not np.isfinite(self.results["forces"]).all():
            self._warn(atoms)

    def _warn(self, atoms: ase.Atoms) -> None:
        """Say which replica has forces that are not finite; atoms in one place are the usual reason."""
        wrong = ~np.isfinite(self.results["forces"]).all(1).reshape(self.replicas, -1).all(1)
        replica = int(np.argmax(wrong))
        first, second, apart = neighbor_list("ijd", split_replicas(atoms, self.replicas)[replica], COINCIDENT)
        near = f": its atoms {first[0]} and {second[0]} are {apart[0]:.2g} Å apart" if len(apart) else ""
        warnings.warn(f"the forces of replica {replica} are not finite{near}", stacklevel=3)

    def _results(self, graph: AtomicGraph) -> dict[str, float | np.ndarray]:
        return _as_results(*self._evaluated(self.ff, graph))

    def _check_stress(self, atoms: ase.Atoms) -> None:
        """Ask for the stress from now on, if there can be one."""
        if not hasattr(self.ff, "with_virials") or self.replicas > 1 or not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"no stress of {atoms.get_chemical_formula()}: it takes one system that is periodic in all "
                f"directions and a force field with virials; here: {self.replicas} systems, pbc {atoms.pbc}"
            )
        self._stress = True

    def _evaluated(self, ff: ForceField, graph: AtomicGraph) -> tuple[np.ndarray, ...]:
        """Energies of replicas, ``(R,)``, eV, forces, ``(R N, 3)``, eV/Å, and, if asked for, the stress."""
        found = ff.with_virials(graph) if self._stress else ff(graph)
        energies, forces, *virials = [values.detach().double().cpu().numpy() for values in found]
        volume = self.atoms.get_volume() if virials else None
        return energies, forces, *(full_3x3_to_voigt_6_stress(virial[0] / volume) for virial in virials)

    def _graph(self, atoms: ase.Atoms) -> AtomicGraph:
        system = (atoms.numbers.tobytes(), np.asarray(atoms.cell).tobytes(), atoms.pbc.tobytes())
        if system != self._system:
            structures = split_replicas(atoms, self.replicas)
            self._list = SkinList(structures, self.ff.cutoff, skin=self.skin, device=_device(self.ff))
            self._system = system
        return self._list.update(atoms.positions)  # type: ignore[union-attr]  # made with the system


class CommitteeCalculator(ForceFieldCalculator):
    r"""ASE calculator of the mean of M force fields, with their spread.

    .. math:: E = \frac{1}{M} \sum_m E_m, \qquad
              \sigma_E^2 = \frac{1}{M - 1} \sum_m (E_m - E)^2

    and likewise for every component of every force. ``results`` also has ``energy_std``, eV, and
    ``forces_std``, shape ``(N, 3)``, eV/Å: standard deviations over members, with one degree of freedom taken
    by the mean (``ddof=1``). The forces are the negative gradient of the energy, as derivatives are linear.
    All members share one neighbour list.

    Parameters
    ----------
    members
        At least two force fields with the same elements and cutoff, such as the seeds of a cell
        (:meth:`of`).
    device, skin, replicas
        As of :class:`ForceFieldCalculator`; ``energy_std`` is that of the sum over replicas.

    Raises
    ------
    ValueError
        If there are fewer than two members, or their elements or cutoffs differ.
    """

    implemented_properties = [*ForceFieldCalculator.implemented_properties, "energy_std", "forces_std"]

    def __init__(
        self, members: Sequence[ForceField], device: torch.device | str | None = None, **options: Any
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"a committee needs two members or more, not {len(members)}")
        for name in ("elements", "cutoff"):
            values = [getattr(member, name) for member in members]
            if any(value != values[0] for value in values):
                raise ValueError(f"members of a committee have the {name} {values}, which must be the same")
        super().__init__(members[0], device, **options)
        self.members = [ForceFieldCalculator(member, device).ff for member in members]

    @classmethod
    def of(
        cls, campaign: str, dataset: str, model: str, seeds: Sequence[int] | None = None, **options: Any
    ) -> "CommitteeCalculator":
        """The committee of the seeds of a model and dataset in a campaign, by default all that are trained.

        Raises
        ------
        FileNotFoundError
            If there are no weights of a seed that is asked for, or of fewer than two; the message names the
            command that trains.
        ValueError
            If the model is a calculator, which has no seeds.
        """
        if cards.is_calculator(model):
            raise ValueError(
                f"{model} is a calculator, whose seeds do not differ; a committee takes networks"
            )
        key = Key("training", campaign, cards.dataset(dataset).name, model)
        seeds = weights.seeds(key) if seeds is None else seeds
        wanted = [*seeds, *set(range(2)).difference(seeds)][: max(len(seeds), 2)]  # two at least
        members = [weights.load(key._replace(seed=seed)) for seed in wanted]
        return cls(members, **options)  # type: ignore[arg-type]  # calculators are turned away above

    def _results(self, graph: AtomicGraph) -> dict[str, float | np.ndarray]:
        evaluated = [self._evaluated(member, graph) for member in self.members]
        energies, forces, *stress = map(np.stack, zip(*evaluated, strict=True))
        spread = {"energy_std": float(energies.sum(1).std(ddof=1)), "forces_std": forces.std(0, ddof=1)}
        return _as_results(*(values.mean(0) for values in (energies, forces, *stress))) | spread


def _as_results(
    energies: np.ndarray, forces: np.ndarray, stress: np.ndarray | None = None
) -> dict[str, float | np.ndarray]:
    total = float(energies.sum())
    results: dict[str, float | np.ndarray] = {
        "energy": total,
        "free_energy": total,
        "forces": forces,
        "energies_of_replicas": energies,
    }
    return results if stress is None else results | {"stress": stress}


class ReplicaCalculator(Calculator):
    """ASE calculator that evaluates one calculator per replica, for methods without batches (xTB, EMT).

    Parameters
    ----------
    calculators
        R independent ASE calculators with energy (eV) and forces (eV/Å). The stress of a single one can be
        asked for too.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, calculators: Sequence[BaseCalculator]) -> None:
        super().__init__()
        self.calculators = list(calculators)
        self._systems: list[ase.Atoms] | None = None

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; called by ASE."""
        assert atoms is not None  # ASE gives them
        super().calculate(atoms, properties, system_changes)
        if self._systems is None or set(system_changes) - {"positions"}:
            self._systems = split_replicas(atoms, len(self.calculators))
            for system, calculator in zip(self._systems, self.calculators, strict=True):
                system.calc = calculator
        for system, x in zip(self._systems, np.split(atoms.positions, len(self._systems)), strict=True):
            system.positions = x
        forces = np.concatenate([system.get_forces() for system in self._systems])
        self.results = _as_results(np.array([s.get_potential_energy() for s in self._systems]), forces)
        if "stress" in properties:
            if len(self._systems) > 1:
                raise PropertyNotImplementedError(f"no stress of {len(self._systems)} replicas at once")
            self.results["stress"] = self._systems[0].get_stress()


def calculator_of(
    model: ForceField | Calculated,
    device: torch.device | str | None = None,
    *,
    skin: float = 1.0,
    replicas: int = 1,
) -> ForceFieldCalculator | ReplicaCalculator:
    """ASE calculator of a model for a batch of replicas; a calculator has no use for device and skin."""
    if isinstance(model, Calculated):
        return ReplicaCalculator([model.make() for _ in range(replicas)])
    return ForceFieldCalculator(model, device, skin=skin, replicas=replicas)


def _device(ff: ForceField) -> torch.device | None:
    tensors = [*ff.parameters(), *ff.buffers()]
    return tensors[0].device if tensors else None
