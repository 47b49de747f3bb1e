"""The calculators: one system, replicas, a cell smaller than the cutoff, and their errors."""

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces

from egraff_utils.md.calculator import ForceFieldCalculator, ReplicaCalculator, join_replicas, split_replicas


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


def copper(seed=0, **changes):
    atoms = bulk("Cu", cubic=True, **changes)
    atoms.rattle(0.1, seed=seed)
    return atoms


def test_forces_are_the_slope_of_the_energy():
    atoms = copper()
    atoms.calc = ForceFieldCalculator(SoftSpheres([29]))
    assert atoms.get_forces()[1, 2] == pytest.approx(calculate_numerical_forces(atoms)[1, 2], abs=1e-6)


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
