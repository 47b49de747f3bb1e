"""Is the Equiformer the published one, jump at the cutoff included?"""

import ase
import numpy as np
import pytest
import torch
from e3nn import o3

from egraff_utils import cards, models
from egraff_utils.graph import build_graph
from egraff_utils.models import equiformer

CUTOFF = 5.0


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
    total = equiformer.sum_by_centre(equiformer.softmax_by_centre(logits, centre, 4), centre, 4)
    torch.testing.assert_close(total, torch.tensor([1.0, 0, 1, 1])[:, None].expand(4, 4))


def test_attention_weights_with_envelope_stay_below_one():
    logits, envelope = 40 * torch.randn(5, 2), torch.rand(5, 1)
    weights = equiformer.softmax_by_centre(logits, torch.zeros(5, dtype=torch.int64), 1, envelope)
    assert torch.isfinite(weights).all()
    assert (weights.sum(dim=0) <= 1).all()


def test_layer_norm_gives_unit_mean_square():
    x = [3 + 5 * torch.randn(7, 2 * degree + 1, 16) for degree in range(3)]
    y = [t.detach() for t in equiformer.EquivariantLayerNorm((16, 16, 16))(x)]
    assert float(y[0].mean(dim=-1).abs().max()) < 1e-12
    for t in y:
        torch.testing.assert_close(t.square().mean(dim=(1, 2)), torch.ones(7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("function", [torch.nn.functional.silu, torch.sigmoid, equiformer.smooth_leaky_relu])
def test_activations_keep_the_mean_square(function):
    z = torch.randn(400_000)
    assert float(equiformer.UnitVariance(function)(z).square().mean()) == pytest.approx(1, abs=0.02)


def test_basis_vanishes_at_the_cutoff_and_peaks_at_its_centres():
    basis = equiformer.ExponentialNormalBasis(32, CUTOFF)
    assert float(basis(torch.tensor([CUTOFF])).abs().max()) == 0
    closeness = basis.centres[5:-1]
    peak = (basis(-torch.log(closeness)) / basis.envelope(-torch.log(closeness))[:, None]).argmax(dim=1)
    assert peak.tolist() == list(range(5, 31))


@pytest.mark.parametrize("parity", [False, True])
def test_depthwise_product_is_that_of_e3nn(parity):
    channels, sign = [4, 3, 2], -1 if parity else 1
    coupling = equiformer.Coupling(2, parity=parity)
    mine = equiformer.DepthwiseProduct(channels, coupling.paths)
    order = sorted(coupling.paths, key=lambda path: path[2])
    reference = o3.TensorProduct(
        [(n, (degree, sign**degree)) for degree, n in enumerate(channels)],
        [(1, (degree, sign**degree)) for degree in range(3)],
        [(channels[l1], (l3, sign**l3)) for l1, _, l3 in order],
        [(l1, l2, order.index((l1, l2, l3)), "uvu", True) for l1, l2, l3 in coupling.paths],
        path_normalization="none", shared_weights=False, internal_weights=False,
    )  # fmt: skip
    x = [torch.randn(5, 2 * degree + 1, n) for degree, n in enumerate(channels)]
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    weights = torch.randn(5, sum(mine.path_channels))
    y = o3.spherical_harmonics([0, 1, 2], directions, True, "component")
    torch.testing.assert_close(
        flat(mine(x, coupling(directions), weights)), reference(flat(x), y, weights), atol=1e-12, rtol=0
    )


def flat(x):
    """Features in e3nn's layout, channels before m."""
    return torch.cat([t.transpose(1, 2).flatten(1) for t in x], dim=1)


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
