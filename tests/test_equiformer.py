"""Is the Equiformer the published one, jump at the cutoff included?"""

import json
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn import o3

from benchmarks.plain_equiformer import PlainEquiformer
from egraff_utils import cards, models
from egraff_utils.graph import build_graph
from egraff_utils.models.equiformer import blocks, layers, rotations

CUTOFF = 5.0
AUTHORS = json.loads(Path(__file__).with_name("equiformer_authors.json").read_text())
"""What the authors' code gives for the weights of `seeded`: the gains of its activations, which are sampled
where ours are exact integrals, and energies (eV) and forces (eV/Å) of molecules.

Made in double precision with ``graph_attention_transformer_nonlinear_exp_l2_md17`` and 32 radial basis
functions, from https://github.com/atomicarchitects/equiformer (commit 64cb786) under e3nn 0.6."""


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def force_field(preset="tiny", **overrides):
    return models.build("equiformer", preset, dtype=torch.float64, **overrides).eval()


def cluster(distance):
    """Four atoms close together and an oxygen at a distance from the first of them along x, Å."""
    near = [[0, 0, 0], [-1.1, 0.1, 0], [-0.4, 1.0, 0.2], [-0.5, -0.9, 0.8]]
    return ase.Atoms("CHHHO", [*near, [distance, 0, 0]])


def chiral():
    return ase.Atoms("CHOHC", [[0, 0, 0], [1.1, 0, 0], [-0.3, 1.3, 0], [-0.4, -0.5, 0.9], [0.2, -0.9, -1.2]])


def jump(ff, step, atoms=cluster):
    """Change of the energy over a step across the cutoff, in units of the scale."""
    inside, outside = (float(ff(build_graph(atoms(CUTOFF + s * step))).energy) for s in (-0.5, 0.5))
    return abs(outside - inside)


def test_parameters_are_those_of_the_released_model():
    count = force_field("paper").num_parameters()
    assert count == cards.model("equiformer").parameters_paper == 3_496_001


def seeded(ff):
    """The force field with weights drawn by NumPy, whose generator is the same in every version."""
    generator = np.random.default_rng(0)
    for name, parameter in sorted(ff.network.named_parameters()):
        drawn = torch.as_tensor(generator.standard_normal(tuple(parameter.shape)))
        if parameter.ndim == 1:
            drawn = 0.1 * drawn if "bias" in name else 1 + 0.1 * drawn
        elif name != "atom_embedding" and "scales" not in name:
            drawn = drawn / parameter.shape[".radial." in name] ** 0.5
        parameter.data.copy_(drawn)
    return ff


@pytest.mark.parametrize("name", AUTHORS["molecules"])
def test_network_is_the_authors(name, monkeypatch):
    atoms, theirs = molecule(name), AUTHORS["molecules"][name]
    atoms.rattle(0.05, seed=1)
    exact = seeded(force_field("paper", average_neighbors=15.57930850982666))(build_graph(atoms))
    monkeypatch.setattr(layers, "_gain", lambda function: AUTHORS["gains"][function.__name__])
    ours = seeded(force_field("paper", average_neighbors=15.57930850982666))(build_graph(atoms))
    assert float(ours.energy) == pytest.approx(theirs["energy"], abs=1e-13)
    np.testing.assert_allclose(ours.forces.detach().numpy(), theirs["forces"], atol=5e-12)
    assert float(exact.energy) == pytest.approx(theirs["energy"], rel=1e-3)  # what exact gains change


@pytest.mark.parametrize("preset", ["tiny", pytest.param("paper", marks=pytest.mark.slow)])
def test_published_energy_jumps_at_the_cutoff(preset):
    ff = force_field(preset)
    coarse, fine = jump(ff, 3e-3), jump(ff, 2e-5)
    assert fine > 1e-3
    assert fine == pytest.approx(coarse, rel=0.05)


@pytest.mark.parametrize("preset", ["tiny", pytest.param("paper", marks=pytest.mark.slow)])
@pytest.mark.parametrize("atoms", [cluster, lambda d: ase.Atoms("CO", [[0, 0, 0], [d, 0, 0]])])
def test_smooth_cutoff_removes_the_jump(preset, atoms):
    ff = force_field(preset, smooth_cutoff=True)
    assert jump(ff, 2e-5, atoms) < 1e-8


def test_smooth_cutoff_keeps_forces_continuous():
    ff = force_field(smooth_cutoff=True)
    inside, outside = (ff(build_graph(cluster(CUTOFF + s))).forces for s in (-1e-6, 1e-6))
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=0)


def test_energy_changes_under_reflection_only_as_released():
    atoms, mirrored = chiral(), chiral()
    mirrored.positions[:, 0] *= -1
    change = {
        parity: abs(float(ff(build_graph(atoms)).energy - ff(build_graph(mirrored)).energy))
        for parity in (False, True)
        for ff in [force_field("tiny", parity=parity)]
    }
    assert change[True] < 1e-12 < 1e-6 < change[False]


def test_attention_weights_sum_to_one():
    centre = torch.tensor([0, 0, 0, 2, 2, 3])
    logits = 40 * torch.randn(6, 4)
    total = blocks.sum_by_centre(blocks.softmax_by_centre(logits, centre, 4), centre, 4)
    torch.testing.assert_close(total, torch.tensor([1.0, 0, 1, 1])[:, None].expand(4, 4))


def test_attention_weights_with_envelope_stay_below_one():
    logits, envelope = 40 * torch.randn(5, 2), torch.rand(5, 1)
    weights = blocks.softmax_by_centre(logits, torch.zeros(5, dtype=torch.int64), 1, envelope)
    assert torch.isfinite(weights).all()
    assert (weights.sum(dim=0) <= 1).all()


def test_layer_norm_gives_unit_mean_square():
    x = [3 + 5 * torch.randn(7, 2 * degree + 1, 16) for degree in range(3)]
    y = [t.detach() for t in layers.EquivariantLayerNorm((16, 16, 16))(x)]
    assert float(y[0].mean(dim=-1).abs().max()) < 1e-12
    for t in y:
        torch.testing.assert_close(t.square().mean(dim=(1, 2)), torch.ones(7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("function", [torch.nn.functional.silu, torch.sigmoid, layers.smooth_leaky_relu])
def test_activations_keep_the_mean_square(function):
    z = torch.randn(400_000)
    assert float(layers.UnitVariance(function)(z).square().mean()) == pytest.approx(1, abs=0.02)


def test_basis_vanishes_at_the_cutoff_and_peaks_at_its_centres():
    basis = layers.ExponentialNormalBasis(32, CUTOFF)
    assert float(basis(torch.tensor([CUTOFF])).abs().max()) == 0
    closeness = basis.centres[5:-1]
    peak = (basis(-torch.log(closeness)) / basis.envelope(-torch.log(closeness))[:, None]).argmax(dim=1)
    assert peak.tolist() == list(range(5, 31))


def disturb(ff):
    """Fresh biases are zero and would hide a mistake."""
    for parameter in ff.network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return ff


def in_plain_form(ff):
    """The same force field, its network written with e3nn's own operators."""
    other = models.build(**ff.build_arguments | {"dtype": torch.float64})
    other.load_state_dict(ff.state_dict())
    other.network = PlainEquiformer(other.network)
    return other.train(ff.training)


def structures():
    """Edges along the axes, which are special to the frames; a lone atom; a cell full of images."""
    along = ase.Atoms("CHHO", [[0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [0, 0, -1.3]])
    cell = ase.Atoms("CO", [[0, 0, 0], [1.9, 1.7, 0.3]], cell=[3.6, 3.7, 3.8], pbc=True)
    return build_graph([chiral(), along, ase.Atoms("O"), cell])


DEGREE_3 = {"channels": [6, 4, 3, 2], "head_channels": [4, 2, 2, 1], "feed_forward_channels": [6, 4, 3, 2]}


@pytest.mark.parametrize(
    "overrides", [{}, {"parity": False}, {"smooth_cutoff": True}, {"parity": False, **DEGREE_3}], ids=str
)
def test_same_as_written_with_e3nn(overrides):
    ff = disturb(force_field(**overrides))
    for mine, plain in zip(ff(structures()), in_plain_form(ff)(structures()), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-10 * float(plain.abs().max()))


def test_gradients_of_forces_are_those_of_the_plain_form():
    ff = disturb(force_field(parity=False)).train()
    gradients = [
        torch.autograd.grad(field(structures()).forces.square().sum(), field.network.atom_embedding)[0]
        for field in (ff, in_plain_form(ff))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9 * float(gradients[0].abs().max()))


def test_single_precision_agrees_with_double():
    ff = disturb(force_field(parity=False))
    double, single = ff(structures()).forces, ff.float()(structures()).forces
    assert float((single - double).abs().max()) < 1e-5 * float(double.abs().max())


def test_frozen_weights_may_change():
    ff, other = force_field().requires_grad_(False), disturb(force_field()).requires_grad_(False)
    before, expected = ff(structures()).energy, other(structures()).energy
    ff.load_state_dict(other.state_dict())
    assert not torch.equal(ff(structures()).energy, before)
    assert torch.equal(ff(structures()).energy, expected)


@pytest.mark.parametrize("parity", [False, True])
def test_frames_are_rotations_that_turn_the_edge_to_the_axis(parity):
    directions = torch.nn.functional.normalize(
        torch.cat([torch.eye(3), -torch.eye(3), torch.randn(5, 3)]), dim=1
    )
    frames = rotations.Frames(3, parity=parity)(directions)
    for degree, d in enumerate(frames, 1):
        identity = torch.eye(2 * degree + 1).expand_as(d)
        torch.testing.assert_close(d @ d.mT, identity, atol=1e-12, rtol=0)
        harmonics = o3.spherical_harmonics(degree, directions, True, "norm")
        torch.testing.assert_close((d @ harmonics[:, :, None])[:, :, 0], identity[:, 0], atol=1e-12, rtol=0)


def test_forces_can_be_trained():
    ff = force_field().train()
    loss = ff(build_graph([chiral(), ase.Atoms("O")])).forces.square().sum()
    loss.backward()
    gradients = [p.grad for p in ff.network.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_element_beyond_the_embedding_is_named():
    with pytest.raises(ValueError, match="Au has no row in the embedding; pass atom_types=80"):
        models.build("equiformer", "tiny", elements=[79])
    atoms = ase.Atoms("Au2", [[0, 0, 0], [0, 0, 2.5]])
    ff = models.build("equiformer", "tiny", elements=[79], atom_types=80)
    assert np.isfinite(float(ff.eval()(build_graph(atoms)).energy))


def test_lists_of_channels_must_agree():
    with pytest.raises(ValueError, match="differ in largest degree"):
        models.build("equiformer", "tiny", channels=[8])
