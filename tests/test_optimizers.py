"""Muon: its matrices, its step, and its state."""

import copy

import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn import o3
from torch import nn

from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.hyperparameters import TrainingHyperparameters
from egraff_utils.train import optimizers

HYPER = TrainingHyperparameters(optimizer="muon", learning_rate=0.01, amsgrad=False)


class Mixed(nn.Module):
    """One weight of each kind."""

    def __init__(self):
        super().__init__()
        self.tall, self.wide = nn.Linear(3, 7), nn.Linear(6, 4)
        self.vectors = o3.Linear("4x0e + 3x1o", "5x0e + 2x1o")
        self.embedding, self.last = nn.Embedding(4, 5), nn.Linear(5, 1)
        self.logit_weights = nn.Parameter(torch.randn(4, 4))


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    return Mixed().double()


def filled(network, seed=1):
    torch.manual_seed(seed)
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    return network


def test_matrices_are_those_of_linear_layers(mixed):
    names = {weight: name for name, weight in mixed.named_parameters()}
    found = {names[w]: [shape for _, shape in blocks] for w, blocks in optimizers.matrices(mixed).items()}
    assert found == {"tall.weight": [(7, 3)], "wide.weight": [(4, 6)], "vectors.weight": [(4, 5), (3, 2)]}


def test_first_step_of_every_block_is_the_nearest_orthogonal_matrix(mixed):
    before = {weight: weight.detach().clone() for weight in filled(mixed).parameters()}
    gradients = {weight: weight.grad.clone() for weight in mixed.parameters()}
    optimizers.make(mixed, HYPER).step()
    for weight, blocks in optimizers.matrices(mixed).items():
        for place, shape in blocks:
            step = (before[weight] - weight.detach()).flatten()[place or slice(None)].view(shape)
            u, _, v = torch.linalg.svd(
                gradients[weight].flatten()[place or slice(None)].view(shape), full_matrices=False
            )
            expected = u @ v * (0.01 * 0.2 * max(shape) ** 0.5)
            aligned = (step * expected).sum() / (step.norm() * expected.norm())
            assert aligned > 0.95
            np.testing.assert_allclose(
                torch.linalg.svdvals(step / expected.norm()), 1 / min(shape) ** 0.5, rtol=0.4
            )
            assert step.square().mean().sqrt() == pytest.approx(0.01 * 0.2, rel=0.3)


def test_everything_else_is_moved_by_adam(mixed):
    twin = Mixed().double()
    twin.load_state_dict(mixed.state_dict())
    muon = optimizers.make(filled(mixed), HYPER)
    others = [w for w in twin.parameters() if w not in optimizers.matrices(twin)]
    adam = torch.optim.Adam(others, lr=0.01)
    for _ in range(3):
        muon.step()
        filled(twin)
        adam.step()
    moved = optimizers.matrices(mixed)
    for weight, other in zip(mixed.parameters(), twin.parameters(), strict=True):
        if weight not in moved:
            torch.testing.assert_close(weight, other)


def test_a_stack_changes_no_matrix_of_it(mixed):
    alone = torch.randn(1, 3, 5, dtype=torch.float64)
    stack = torch.zeros(2, 4, 6, dtype=torch.float64)
    stack[0, :3, :5], stack[1] = alone[0], torch.randn(4, 6)
    torch.testing.assert_close(
        optimizers.orthogonalised(stack)[0, :3, :5], optimizers.orthogonalised(alone)[0]
    )


def test_state_is_saved_and_loaded(mixed):
    twin = Mixed().double()
    first = optimizers.make(filled(mixed), HYPER)
    first.step()
    twin.load_state_dict(mixed.state_dict())
    second = optimizers.make(twin, HYPER)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, network in ((first, mixed), (second, twin)):
        filled(network, seed=2)
        optimizer.step()
    for weight, other in zip(mixed.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_has_matrices_and_learns_by_them(name):
    network = models.build(name, "tiny").network
    found = optimizers.matrices(network)
    share = sum(w.numel() for w in found) / sum(w.numel() for w in network.parameters())
    assert 0.05 < share < 1
    optimizers.make(filled(network), HYPER).step()
    assert all(torch.isfinite(w).all() for w in network.parameters())


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
@pytest.mark.parametrize(
    ("name", "preset"), [*((name, "tiny") for name in models.NAMES), ("torchmd_net", "small")]
)
def test_the_fast_network_follows_every_step(name, preset, kind):
    """A validation after steps of a compiled training, which never calls the network itself."""
    hyper = TrainingHyperparameters(optimizer=kind, learning_rate=0.01, amsgrad=False)
    force_field = models.build(name, preset, [1, 6, 8]).eval()
    optimizer = optimizers.make(force_field.network, hyper)
    assert_follows(force_field, optimizer, between=lambda graph: None)


@pytest.mark.parametrize("name", models.NAMES)
def test_the_fast_network_follows_the_fused_steps_of_others(name):
    """An optimiser of one's own, in a loop that calls the network with weights that can change."""
    force_field = models.build(name, "tiny", [1, 6, 8]).eval()
    optimizer = torch.optim.AdamW(force_field.network.parameters(), lr=0.01, fused=True)
    assert_follows(force_field, optimizer, between=force_field)


def assert_follows(force_field, optimizer, between):
    """Frozen energies after a step, before which `between` is called, are those of a copy without caches."""
    graph = build_graph([molecule("CH3CH2OH")] * 10, force_field.cutoff)
    before = force_field.requires_grad_(False)(graph).energy
    force_field.requires_grad_()
    between(graph)
    filled(force_field.network)
    optimizer.step()
    after = force_field.requires_grad_(False)(graph).energy
    assert (after - before).abs().min() > 1e-4
    torch.testing.assert_close(after, copy.deepcopy(force_field)(graph).energy)
