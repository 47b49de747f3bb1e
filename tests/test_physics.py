"""What every force field must obey, once for all of them, in float64."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_stress
from scipy.spatial.transform import Rotation

from egraff_utils import models
from egraff_utils.graph import build_graph, collate
from egraff_utils.md.calculator import ForceFieldCalculator

CUTOFF = 5.0
JUMPING = ("equiformer", "torchmd_net")  # as published; smooth_cutoff=True mends them


@pytest.fixture(scope="module", params=models.NAMES)
def ff(request):
    return build(request.param)


def build(name, **overrides):
    torch.manual_seed(0)
    force_field = models.build(name, "tiny", [1, 6, 8, 29], dtype=torch.float64, **overrides).eval()
    force_field.set_reference({1: -13.6, 6: -1029.0, 8: -2042.0, 29: -0.3}, scale=1.3)
    return force_field


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    return atoms


def crystal():
    rng = np.random.default_rng(1)
    cell = [[4.1, 0.2, 0], [0, 4.6, 0.1], [0.3, 0, 5.2]]  # smaller than the cutoff: atoms see their images
    return Atoms("CuOCH", rng.uniform(0, 1, (4, 3)) @ np.array(cell) * 0.9, cell=cell, pbc=True)


def energy(ff, atoms):
    return ff(build_graph(atoms, CUTOFF)).energy.numpy()


def forces(ff, atoms):
    return ff(build_graph(atoms, CUTOFF)).forces.numpy()


@pytest.mark.parametrize("make", [ethanol, crystal])
@pytest.mark.parametrize("reflect", [False, True])
def test_rotations_and_reflections(ff, make, reflect):
    atoms, rotated = make(), make()
    matrix = Rotation.random(random_state=3).as_matrix() * (-1 if reflect else 1)
    rotated.positions = atoms.positions @ matrix.T
    rotated.set_cell(np.asarray(atoms.cell) @ matrix.T)
    np.testing.assert_allclose(energy(ff, rotated), energy(ff, atoms), atol=1e-8)
    np.testing.assert_allclose(forces(ff, rotated), forces(ff, atoms) @ matrix.T, atol=1e-7)


@pytest.mark.parametrize("make", [ethanol, crystal])
def test_translation(ff, make):
    atoms, moved = make(), make()
    moved.positions += [3.0, -11.0, 0.7]
    np.testing.assert_allclose(energy(ff, moved), energy(ff, atoms), atol=1e-8)
    np.testing.assert_allclose(forces(ff, moved), forces(ff, atoms), atol=1e-7)


def test_permutation(ff):
    atoms = ethanol()
    order = np.random.default_rng(5).permutation(len(atoms))
    np.testing.assert_allclose(energy(ff, atoms[order]), energy(ff, atoms), atol=1e-8)
    np.testing.assert_allclose(forces(ff, atoms[order]), forces(ff, atoms)[order], atol=1e-7)


@pytest.mark.parametrize("make", [ethanol, crystal])
def test_forces_are_minus_the_gradient(ff, make):
    atoms, direction = make(), np.random.default_rng(2).normal(size=(len(make()), 3))
    offset = ff.reference_energies[build_graph(atoms).species].sum().item()  # large and constant

    def slope(h):
        ends = []
        for sign in (1, -1):
            moved = make()
            moved.positions += sign * h * direction
            ends.append(energy(ff, moved)[0] - offset)
        return (ends[0] - ends[1]) / (2 * h)

    # a sharp radial function leaves an error of h² above the tolerance, which the two widths cancel
    limit = (4 * slope(1e-4) - slope(2e-4)) / 3
    assert limit == pytest.approx(-np.sum(forces(ff, atoms) * direction), rel=1e-6, abs=1e-7)


def test_stress_is_the_derivative_by_a_strain(ff):
    """Against ASE's finite differences of the energy, in a cell smaller than the cutoff."""
    atoms = crystal()
    atoms.calc = ForceFieldCalculator(copy.deepcopy(ff))  # which freezes its parameters
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(atoms.get_stress(), expected, atol=1e-7)
    other, graph = build_graph(crystal() * (2, 1, 1), CUTOFF), build_graph(crystal(), CUTOFF)
    alone = [ff.with_virials(g)[2] for g in (graph, other)]
    np.testing.assert_allclose(ff.with_virials(collate([graph, other]))[2], np.concatenate(alone), atol=1e-8)
    np.testing.assert_allclose(alone[1], 2 * alone[0], atol=1e-8)


def test_stress_by_autograd_is_that_of_the_frozen_network(ff):
    graph, plain = build_graph(crystal(), CUTOFF), copy.deepcopy(ff)
    plain._freezer = None
    for own, other in zip(ff.with_virials(graph), plain.with_virials(graph), strict=True):
        np.testing.assert_allclose(own.detach(), other.detach(), atol=1e-8)


def test_a_batch_equals_one_by_one(ff):
    structures = [ethanol(), crystal(), Atoms("H"), molecule("H2O")]
    together = ff(build_graph(structures, CUTOFF))
    np.testing.assert_allclose(
        together.energy, np.concatenate([energy(ff, a) for a in structures]), atol=1e-8
    )
    np.testing.assert_allclose(together.forces, np.vstack([forces(ff, a) for a in structures]), atol=1e-8)


def test_two_far_copies_have_twice_the_energy(ff):
    one, other = ethanol(), ethanol()
    other.positions += [100.0, 0, 0]
    np.testing.assert_allclose(energy(ff, one + other), 2 * energy(ff, one), atol=1e-8)


def test_a_supercell_is_extensive(ff):
    unit = crystal()
    np.testing.assert_allclose(energy(ff, unit.repeat(2)), 8 * energy(ff, unit), rtol=1e-10)


def test_an_isolated_atom(ff):
    prediction = ff(build_graph(Atoms("O"), CUTOFF))
    assert torch.isfinite(prediction.energy).all()
    np.testing.assert_allclose(prediction.forces, 0)


@pytest.mark.parametrize("name", models.NAMES)
def test_energy_is_continuous_at_the_cutoff(name):
    ff = perturbed(name, **({"smooth_cutoff": True} if name in JUMPING else {}))
    assert abs(jump_at_cutoff(ff, 1e-5)) < 1e-4
    assert abs(jump_at_cutoff(ff, 1e-7)) < 1e-6


@pytest.mark.parametrize("name", JUMPING)
def test_published_attention_jumps_at_the_cutoff(name):
    ff = perturbed(name)
    assert abs(jump_at_cutoff(ff, 1e-7)) > 1e-4
    assert jump_at_cutoff(ff, 1e-7) == pytest.approx(jump_at_cutoff(ff, 1e-5), rel=1e-2)


def perturbed(name, **overrides):
    """A force field whose biases are not zero, as they are before training."""
    ff = build(name, **overrides)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in ff.network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return ff


def jump_at_cutoff(ff, step):
    """Change of the energy, eV, when an atom moves across the cutoff by twice the step, Å."""
    inside, outside = (molecule("H2O") for _ in range(2))
    for atoms, distance in ((inside, CUTOFF - step), (outside, CUTOFF + step)):
        atoms += Atoms("C", [atoms.positions[0] + [0, 0, distance]])
    return (energy(ff, inside) - energy(ff, outside)).item()


def test_an_unknown_element_is_named(ff):
    with pytest.raises(ValueError, match="not trained on Fe; it knows H, C, O, Cu"):
        ff(build_graph(Atoms("Fe"), CUTOFF))


def test_edges_in_another_order_are_refused(ff):
    graph = build_graph(ethanol(), ff.cutoff)
    order = torch.arange(graph.edge_index.shape[1])
    order[:2] = order[:2].flip(0)
    with pytest.raises(ValueError, match="not the reverse"):
        ff(graph._replace(edge_index=graph.edge_index[:, order], shifts=graph.shifts[order]))


def test_training_differentiates_the_forces(ff):
    ff.train()
    try:
        ff(build_graph(ethanol(), CUTOFF)).forces.square().sum().backward()
    finally:
        ff.eval()
    gradients = [p.grad for p in ff.network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)
    ff.zero_grad()


def test_a_converted_model_equals_one_built_in_its_type(ff, tmp_path):
    torch.manual_seed(1)
    single = models.build(**ff.build_arguments | {"dtype": torch.float32})
    single.set_reference({6: -1029.1}, scale=1.3)
    weight, atoms, before = next(single.parameters()), ethanol(), single(build_graph(ethanol(), CUTOFF))
    double = single.to(torch.float64)
    assert double.dtype == torch.float64
    assert next(double.parameters()) is weight
    after = double(build_graph(atoms, CUTOFF))
    after.forces.square().sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.any()
    torch.testing.assert_close(before.energy, after.energy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(before.forces.double(), after.forces, rtol=1e-5, atol=1e-5)

    double.load_state_dict(ff.state_dict())
    double.eval().requires_grad_(False)
    np.testing.assert_allclose(energy(double, atoms), energy(ff, atoms), rtol=1e-10)
    np.testing.assert_allclose(forces(double, atoms), forces(ff, atoms), rtol=1e-10, atol=1e-10)
    models.save(double, tmp_path / "weights.safetensors")
    loaded = models.load(tmp_path / "weights.safetensors")
    np.testing.assert_allclose(forces(loaded, atoms), forces(double, atoms), rtol=1e-10, atol=1e-10)


def test_float_keeps_the_zero_of_energy_in_double_precision(ff):
    single = copy.deepcopy(ff).float()
    assert single.dtype == torch.float32
    assert torch.equal(single.reference_energies, ff.reference_energies)
    graph = build_graph(ethanol(), CUTOFF)
    for converted in (single(graph), single.double()(graph)):
        torch.testing.assert_close(converted.energy, ff(graph).energy, rtol=0, atol=1e-4)
        torch.testing.assert_close(converted.forces.double(), ff(graph).forces, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_is_the_same(ff, tmp_path):
    path = tmp_path / "weights.safetensors"
    models.save(ff, path)
    loaded, atoms = models.load(path), ethanol()
    np.testing.assert_array_equal(energy(loaded, atoms), energy(ff, atoms))
    np.testing.assert_array_equal(forces(loaded, atoms), forces(ff, atoms))
    assert path.stat().st_size < 20_000 + 10 * sum(p.numel() for p in ff.parameters())  # few buffers
    with pytest.raises(FileNotFoundError, match="no weights"):
        models.load(tmp_path / "other.safetensors")


def test_large_parameters_are_rounded_and_stored_in_half_the_space(ff, tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    models.save(ff, path)
    size, before = path.stat().st_size, {name: p.clone() for name, p in ff.named_parameters()}
    large = [name for name, p in before.items() if p.numel() > 50]
    monkeypatch.setattr(models, "LARGE", 50)
    models.round_large(ff)
    after = dict(ff.named_parameters())
    assert all(torch.equal(after[name], before[name].half().to(before[name].dtype)) for name in large)
    assert all(torch.equal(after[name], before[name]) for name in before if name not in large)
    models.save(ff, path)
    saved = 2 * sum(before[name].numel() for name in large)
    assert path.stat().st_size < size - saved + 2000
    loaded = models.load(path)
    assert all(torch.equal(p, after[name]) for name, p in loaded.named_parameters())
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in ff.parameters()}
    ff.load_state_dict(ff.state_dict() | before)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    models.save(build("mace"), path)
    arguments = path.with_suffix(".build.json")
    arguments.write_text(arguments.read_text().replace('"mace"', '"nequip"'))
    with pytest.raises(ValueError, match="does not fit its build arguments"):
        models.load(path)


def test_building_leaves_the_default_dtype_alone():
    before = torch.get_default_dtype()
    for name in models.NAMES:
        assert models.build(name, "tiny").dtype == torch.float32
        assert torch.get_default_dtype() == before


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'mace'"):
        models.build("mase")
    with pytest.raises(ValueError, match="unknown preset of mace 'big'"):
        models.build("mace", "big")
    with pytest.raises(ValueError, match="unknown hyperparameter of mace 'cut_off'; did you mean 'cutoff'"):
        models.build("mace", "tiny", cut_off=4.0)


def test_float32_keeps_large_reference_energies():
    torch.manual_seed(0)
    single = models.build("mace", "tiny", [1, 6, 8]).eval()
    single.set_reference({8: -17660.0})
    bare = models.build("mace", "tiny", [1, 6, 8]).eval()
    bare.network.load_state_dict(single.network.state_dict())
    graph = build_graph(molecule("H2O"), CUTOFF)
    difference = single(graph).energy - bare(graph).energy
    assert difference.item() == pytest.approx(-17660.0, abs=1e-9)
