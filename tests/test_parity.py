"""Do the adapters say what the packages say? Energies and forces of both, with the same weights."""

import os
import random

import e3nn
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import chemical_symbols

from egraff_utils import cards, models
from egraff_utils.graph import build_graph
from egraff_utils.models import frozen

WRAPPED = ("nequip", "allegro", "mace", "botnet", "torchmd_net")


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def small_cell():
    """Four atoms, most of which see themselves through an image."""
    positions = [[0, 0, 0], [1.9, 1.7, 0], [0, 1.8, 1.6], [1.7, 0, 1.8]]
    return Atoms("CHOH", positions, cell=[[3.6, 0, 0], [0.5, 3.7, 0], [0, 0, 3.8]], pbc=True)


def wide_cell():
    """Edges cross the boundary, and half the cell is as wide as the cutoff, as torchmd-net requires."""
    atoms = ethanol()
    atoms.set_cell([10.4, 10.6, 10.8])
    atoms.pbc = True
    atoms.positions += [9.9, 0.2, 5.0]
    return atoms


CASES = [(name, ethanol) for name in WRAPPED]
CASES += [(name, small_cell) for name in WRAPPED if name != "torchmd_net"]
CASES += [("torchmd_net", wide_cell)]


def nequip_prediction(ff, atoms):
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase

    model = ff.network.model
    data = compute_neighborlist_(from_ase(atoms), r_max=ff.cutoff)
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([ff.elements.index(z) for z in atoms.numbers])
    model.model.do_derivatives = True
    out = model(data)
    model.model.do_derivatives = False
    return out[AtomicDataDict.TOTAL_ENERGY_KEY].item(), out[AtomicDataDict.FORCE_KEY].detach().numpy()


def mace_prediction(ff, atoms):
    from mace.calculators import MACECalculator

    atoms.calc = MACECalculator(models=[ff.network.model], device="cpu", default_dtype="float64")
    return atoms.get_potential_energy(), atoms.get_forces()


def torchmd_prediction(ff, atoms):
    from torchmdnet.models.model import TorchMD_Net

    weights = {key: value.clone() for key, value in ff.network.state_dict().items()}
    parts = ff.network.representation_model, ff.network.output_model
    model = TorchMD_Net(*parts, derivative=True, dtype=torch.float64)  # which draws the weights anew
    ff.network.load_state_dict(weights)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    box = torch.tensor(atoms.cell.array) if atoms.pbc.all() else None
    energy, forces = model(torch.tensor(atoms.numbers), positions, box=box)
    return energy.item(), forces.detach().numpy()


UPSTREAM = {
    "nequip": nequip_prediction,
    "allegro": nequip_prediction,
    "mace": mace_prediction,
    "botnet": mace_prediction,
    "torchmd_net": torchmd_prediction,
}


@pytest.mark.parametrize(("name", "structure"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_same_as_package(name, structure):
    torch.manual_seed(0)
    ff = models.build(name, "tiny", [1, 6, 8], dtype=torch.float64).eval()
    for parameter in ff.network.parameters():  # fresh biases are zero and would hide a mistake
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = ff(build_graph(structure(), ff.cutoff))
    with frozen.plain():  # whose modules take edges in any order
        plain = models.build(name, "tiny", [1, 6, 8], dtype=torch.float64).eval()
    plain.load_state_dict(ff.state_dict())
    energy, forces = UPSTREAM[name](plain, structure())
    assert ours.energy.item() == pytest.approx(energy, rel=1e-5)
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(ours.forces.numpy(), forces, rtol=1e-5, atol=1e-5 * np.abs(forces).max())


@pytest.mark.parametrize("name", WRAPPED)
def test_number_of_parameters(name):
    assert models.build(name, "paper", [1, 6, 8]).num_parameters() == cards.model(name).parameters_paper


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_presets_share_the_cutoff(name, preset):
    card = cards.model(name)
    assert card.network(preset)["cutoff"] == card.network("paper")["cutoff"] == 5.0
    card.training(preset)


@pytest.mark.parametrize("name", WRAPPED)
def test_building_leaves_global_state(name):
    def state():
        defaults = torch.get_default_dtype(), e3nn.get_optimization_defaults().copy()
        return defaults, random.getstate(), os.environ.get("PL_GLOBAL_SEED")

    before = state()
    models.build(name, "tiny", dtype=torch.float64)
    assert state() == before


@pytest.mark.parametrize("name", WRAPPED)
def test_seed_decides_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in models.build(name, "tiny").parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_types_follow_elements():
    ff = models.build("nequip", "tiny", [3, 15, 16])
    assert ff.network.types[[3, 15, 16]].tolist() == [0, 1, 2]
    assert ff.network.model.type_names == [chemical_symbols[z] for z in (3, 15, 16)]


def test_element_beyond_the_table():
    with pytest.raises(ValueError, match="max_z"):
        models.build("torchmd_net", "tiny", [1, 8], max_z=8)
