"""The calculators: one system, replicas, a cell smaller than the cutoff, and their errors."""

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from egraff_utils import models, records
from egraff_utils.config import Key
from egraff_utils.md.calculator import (
    CommitteeCalculator,
    ForceFieldCalculator,
    ReplicaCalculator,
    join_replicas,
    split_replicas,
)


class SoftSpheres(torch.nn.Module):
    """Smooth repulsion (1 - d²/c²)² of every pair, eV: a force field whose derivative is known."""

    def __init__(self, elements, cutoff=4.0):
        super().__init__()
        self.elements, self.cutoff = elements, cutoff

    def forward(self, graph):
        unknown = [z for z in graph.species.tolist() if z not in self.elements]
        if unknown:
            raise ValueError(f"the model was not trained on {ase.data.chemical_symbols[unknown[0]]}")
        vectors = graph.edge_vectors()
        centre = graph.edge_index[0]
        closeness = 1 - vectors.square().sum(1) / self.cutoff**2
        energies = torch.zeros(graph.num_structures, dtype=vectors.dtype)
        energies = energies.index_add(0, graph.structure[centre], 0.5 * closeness**2)
        push = -4 * (closeness / self.cutoff**2)[:, None] * vectors
        return energies, torch.zeros_like(graph.positions).index_add(0, centre, push)


class WithVirials(SoftSpheres):
    """Soft spheres that also give the derivative by a strain, times a factor, which is to be one."""

    factor = 1.0

    def with_virials(self, graph):
        vectors, owner = graph.edge_vectors(), graph.structure[graph.edge_index[0]]
        slope = -2 * (1 - vectors.square().sum(1) / self.cutoff**2) / self.cutoff**2
        products = self.factor * slope[:, None, None] * vectors[:, :, None] * vectors[:, None]
        virials = torch.zeros(graph.num_structures, 3, 3, dtype=vectors.dtype).index_add(0, owner, products)
        return *self.forward(graph), virials


def copper(seed=0, **changes):
    atoms = bulk("Cu", cubic=True, **changes)
    atoms.rattle(0.1, seed=seed)
    return atoms


def test_forces_are_the_slope_of_the_energy():
    atoms = copper()
    atoms.calc = ForceFieldCalculator(SoftSpheres([29]))
    assert atoms.get_forces()[1, 2] == pytest.approx(calculate_numerical_forces(atoms)[1, 2], abs=1e-6)


def test_the_stress_is_that_of_the_present_cell_and_comes_with_every_evaluation():
    atoms = copper()
    atoms.calc = ForceFieldCalculator(WithVirials([29]))
    atoms.get_forces()
    assert "stress" not in atoms.calc.results
    for scale in (1.0, 0.97):
        atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
        expected = calculate_numerical_stress(atoms, eps=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), expected, atol=1e-8)
    atoms.positions += 0.01
    atoms.get_forces()
    assert "stress" in atoms.calc.results


@pytest.mark.parametrize(
    ("ff", "replicas", "pbc"), [(SoftSpheres, 1, True), (WithVirials, 2, True), (WithVirials, 1, [1, 1, 0])]
)
def test_a_stress_that_cannot_be_is_refused(ff, replicas, pbc):
    atoms = join_replicas([copper(seed) for seed in range(replicas)])
    atoms.pbc = pbc
    atoms.calc = ForceFieldCalculator(ff([29]), replicas=replicas)
    assert atoms.get_forces().any()
    with pytest.raises(PropertyNotImplementedError, match="no stress of"):
        atoms.get_stress()


def test_dynamics_at_constant_pressure_conserve_their_energy():
    """The volume changes, and a stress that is a tenth too large would show in the conserved quantity."""
    drift = {}
    for factor in (1.0, 1.1):
        atoms = copper() * (2, 2, 2)
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        ff = WithVirials([29])
        ff.factor = factor
        atoms.calc, volume = ForceFieldCalculator(ff), atoms.get_volume()
        pressure = -1.3 * atoms.get_stress()[:3].mean()
        dynamics = IsotropicMTKNPT(
            atoms,
            1 * units.fs,
            temperature_K=300,
            pressure_au=pressure,
            tdamp=100 * units.fs,
            pdamp=200 * units.fs,
        )
        before = dynamics.get_conserved_energy()
        dynamics.run(100)
        drift[factor] = abs(dynamics.get_conserved_energy() - before)
        assert abs(atoms.get_volume() / volume - 1) > 0.01
    assert drift[1.0] < 0.02
    assert drift[1.1] > 20 * drift[1.0]


def test_replicas_equal_single_systems():
    singles = [copper(seed) for seed in range(3)]
    batch = join_replicas(singles)
    batch.calc = ForceFieldCalculator(SoftSpheres([29]), replicas=3)
    for atoms in singles:
        atoms.calc = ForceFieldCalculator(SoftSpheres([29]))
    assert np.allclose(batch.get_forces(), np.concatenate([a.get_forces() for a in singles]), atol=1e-12)
    energies = batch.calc.results["energies_of_replicas"]
    assert np.allclose(energies, [a.get_potential_energy() for a in singles], atol=1e-12)
    assert batch.get_potential_energy() == pytest.approx(energies.sum())


def test_the_cell_may_be_smaller_than_the_cutoff():
    cell = copper()
    large = cell.repeat(2)
    for atoms in (cell, large):
        atoms.calc = ForceFieldCalculator(SoftSpheres([29], cutoff=5.0))
    assert large.get_potential_energy() == pytest.approx(8 * cell.get_potential_energy())


def test_moving_and_another_cell():
    """Of atoms that moved positions alone are copied."""
    atoms = copper()
    atoms.calc = ForceFieldCalculator(SoftSpheres([29]))
    before, copied = atoms.get_potential_energy(), atoms.calc.atoms
    atoms.positions[0] += 0.1
    moved = atoms.get_potential_energy()
    assert moved != before
    assert atoms.calc.atoms is copied
    atoms.positions[0] -= 0.1
    assert atoms.get_potential_energy() == before
    atoms.set_cell(1.1 * atoms.cell, scale_atoms=True)
    fresh = atoms.copy()
    fresh.calc = ForceFieldCalculator(SoftSpheres([29]))
    assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
    assert atoms.get_potential_energy() < before
    assert atoms.calc.atoms is not copied


def test_parameters_are_frozen():
    ff = SoftSpheres([29])
    ff.weight = torch.nn.Parameter(torch.ones(1))
    assert not ForceFieldCalculator(ff).ff.weight.requires_grad
    assert not ff.training


def test_replicas_of_a_calculator_without_batches():
    singles = [copper(seed) for seed in range(2)]
    batch = join_replicas(singles)
    batch.calc = ReplicaCalculator([EMT(), EMT()])
    for atoms in singles:
        atoms.calc = EMT()
    for _ in range(2):
        assert np.allclose(batch.get_forces(), np.concatenate([a.get_forces() for a in singles]))
        singles[1].positions[0] += 0.05
        batch.positions[4] += 0.05
    assert batch.calc.results["energies_of_replicas"].shape == (2,)


def test_errors_name_the_cause():
    water = molecule("H2O")
    water.calc = ForceFieldCalculator(SoftSpheres([1]))
    with pytest.raises(ValueError, match="not trained on O"):
        water.get_forces()
    water.calc = ForceFieldCalculator(SoftSpheres([1, 8]), replicas=2)
    with pytest.raises(ValueError, match="3 atoms cannot be split into 2 replicas"):
        water.get_forces()
    with pytest.raises(ValueError, match="not 3 copies"):
        split_replicas(water, 3)
    with pytest.raises(ValueError, match="replica 1 is"):
        join_replicas([water, molecule("NH3")])
    pair = join_replicas([molecule("H2O"), molecule("H2O")])
    pair.positions[4] = np.nan
    pair.calc = ForceFieldCalculator(SoftSpheres([1, 8]), replicas=2)
    with pytest.raises(ValueError, match="atom 1 .H. of replica 1 is not finite"):
        pair.get_forces()


@pytest.mark.parametrize("pbc", [False, True])
@pytest.mark.filterwarnings("error")
def test_atoms_in_one_place_are_named(pbc):
    ff = tiny(0)
    pair = join_replicas([molecule("H2O", cell=9 * np.eye(3), pbc=pbc) for _ in range(2)])
    pair.calc = ForceFieldCalculator(ff, replicas=2)
    pair.get_forces()
    pair.positions[4:] = [[4, 4, 0], [4, 4, 9 * pbc]]
    with pytest.raises(UserWarning, match="forces of replica 1 are not finite: its atoms 1 and 2 are 0 Å"):
        pair.get_forces()


def tiny(seed):
    torch.manual_seed(seed)
    return models.build("botnet", "tiny", [1, 6, 8], dtype=torch.float64)


def test_a_committee_gives_the_mean_and_the_spread_of_its_members():
    atoms = molecule("CH3CH2OH")
    members, energies, forces = [tiny(0), tiny(1)], [], []
    for member in members:
        atoms.calc = ForceFieldCalculator(member)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    atoms.calc = CommitteeCalculator(members)
    assert atoms.get_potential_energy() == pytest.approx(sum(energies) / 2, abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), (forces[0] + forces[1]) / 2, atol=1e-10)
    # of two numbers a and b, the standard deviation with ddof=1 is |a - b| / sqrt(2)
    assert atoms.calc.results["energy_std"] == pytest.approx(abs(energies[0] - energies[1]) / 2**0.5)
    np.testing.assert_allclose(
        atoms.calc.results["forces_std"], np.abs(forces[0] - forces[1]) / 2**0.5, atol=1e-10
    )
    slope = calculate_numerical_forces(atoms, iatoms=[2], icarts=[1])
    assert atoms.get_forces()[2, 1] == pytest.approx(slope.item(), abs=1e-5)


def test_a_committee_of_the_seeds_of_a_campaign(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    assert str(error_of("ethanol")).endswith("egraff train botnet ethanol --campaign mine --seed 0")
    for seed in (0, 2, 10):
        key = Key("training", "mine", "ethanol", "botnet", seed)
        models.save(tiny(seed), key.path.with_suffix(".safetensors"))
        records.write(records.Record(*key))
    atoms = molecule("CH3CH2OH")
    atoms.calc = CommitteeCalculator.of("mine", "ethanol", "botnet")
    by_hand = np.stack([forces_of(tiny(seed), atoms) for seed in (0, 2, 10)])
    np.testing.assert_allclose(atoms.get_forces(), by_hand.mean(0), atol=1e-10)
    deviations = by_hand - by_hand.mean(0)
    np.testing.assert_allclose(
        atoms.calc.results["forces_std"], np.sqrt((deviations**2).sum(0) / 2), atol=1e-10
    )
    assert len(CommitteeCalculator.of("mine", "ethanol", "botnet", seeds=[0, 10]).members) == 2
    assert "seed 3, " in str(error_of("ethanol", seeds=[0, 3]))


def error_of(dataset, **options):
    with pytest.raises(FileNotFoundError) as caught:
        CommitteeCalculator.of("mine", dataset, "botnet", **options)
    return caught.value


def forces_of(ff, atoms):
    copy = atoms.copy()
    copy.calc = ForceFieldCalculator(ff)
    return copy.get_forces()


def test_committees_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="two members or more, not 1"):
        CommitteeCalculator([SoftSpheres([29])])
    with pytest.raises(ValueError, match=r"have the cutoff \[4.0, 3.0\]"):
        CommitteeCalculator([SoftSpheres([29]), SoftSpheres([29], cutoff=3.0)])
    with pytest.raises(ValueError, match="gfn1 is a calculator"):
        CommitteeCalculator.of("mine", "ethanol", "gfn1")
