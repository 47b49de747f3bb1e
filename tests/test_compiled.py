"""The compiled training step: ghosts change nothing, and weights are those of training by operators."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT

from egraff_utils import models, train
from egraff_utils.graph import build_graph, collate
from egraff_utils.hyperparameters import TrainingHyperparameters
from egraff_utils.train import compiled

LOSSES = {
    "mse": {"loss": "mse"},
    "l2mae": {"loss": "l2mae", "energy_per_atom": False},
    "smoothed": {"loss": "mae", "energy_loss_ema": 0.05},
    "virials": {"virial_weight": 0.7},
    "virials by norm": {"loss": "l2mae", "virial_weight": 0.7},
}
DIFFERENCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def frames(count, names=("CH3CH2OH", "H2O", "CH4"), seed=0):
    """Molecules of different sizes with the labels of a toy."""
    random, found = np.random.default_rng(seed), []
    for n in range(count):
        atoms = molecule(names[n % len(names)])
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        found.append(atoms)
    return found


def learner(name, dtype=torch.float64, **hyperparameters):
    torch.manual_seed(0)
    force_field = models.build(name, "tiny", [1, 6, 8], dtype=dtype)
    force_field.set_reference({1: 0.1, 6: -0.2, 8: 0.3}, scale=1.3)
    hyper = TrainingHyperparameters(batch_size=3, ema_decay=None, **hyperparameters)
    return train.Learner(force_field.train(), hyper, max_steps=50)


def batches(learner, atoms, **options):
    size, cutoff = learner.hyper.batch_size, learner.force_field.cutoff
    found = train.Batches(atoms, size, cutoff=cutoff, device="cpu", seed=0, **options)
    dtype, random = learner.force_field.dtype, torch.Generator().manual_seed(0)
    found.samples = [
        compiled.Batch(
            s.graph.to(dtype=dtype),
            s.energy,
            s.forces.to(dtype),
            torch.randn(1, 3, 3, generator=random).double() if learner.hyper.virial_weight else None,
        )
        for s in found.samples
    ]
    return found


def stepped(learner, loader, *, written_down=False):
    """Step for batches of a loader; only written down, it takes a second instead of a minute."""
    virials = learner.hyper.virial_weight > 0
    step = compiled.Step(learner.force_field, learner.mean_errors, loader.shape(), virials=virials)
    if written_down:
        step.function = step._written_down
    else:
        step.compile(next(iter(loader)))
    return step


def gradients(learner, batch):
    """Those of training operator by operator."""
    learner.force_field.zero_grad()
    learner.backward(learner.training_step(batch, 0))
    return [p.grad for p in learner.force_field.parameters()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", models.NAMES)
def test_ghosts_change_nothing(name, loss):
    plain = learner(name, **LOSSES[loss])
    loader = batches(plain, frames(7))
    step = stepped(plain, loader, written_down=True)
    sizes = set()
    for batch in loader:
        assert step.shape.holds(batch.graph)
        sizes.add(compiled.sizes(batch.graph))
        *errors, found = step(batch, plain._factors())
        expected = gradients(plain, batch)
        np.testing.assert_allclose(
            [e.item() for e in errors],
            [e.item() for e in plain.mean_errors(batch, plain._predict(batch.graph))],
        )
        largest = max(g.abs().max() for g in expected if g is not None)
        for one, other in zip(found, expected, strict=True):
            other = torch.zeros_like(one) if other is None else other
            assert (one - other).abs().max() < 1e-10 * largest
    assert len(sizes) > 1, "all batches are of one size, so no ghost was there"


def test_a_filled_graph_keeps_its_order_by_direction():
    graph = collate([build_graph(atoms) for atoms in frames(2)])
    structures, atoms, pairs = compiled.sizes(graph)
    filled = compiled.Shape(structures + 2, atoms + 3, pairs + 4).fill(graph, 5.0)
    assert compiled.sizes(filled) == (structures + 2, atoms + 3, pairs + 4)
    there, back = filled.edge_index.tensor_split(2, 1)
    assert torch.equal(there, back.flip(0))
    lengths = filled.edge_vectors().norm(dim=1)
    assert torch.equal(filled.edge_vectors()[: pairs + 4], -filled.edge_vectors()[pairs + 4 :])
    np.testing.assert_allclose(lengths[pairs : pairs + 4], 0.99 * 5.0)
    assert set(filled.structure[filled.edge_index[0, pairs : pairs + 4]].tolist()) == {structures}


def test_equal_batches_have_no_ghost():
    loader = batches(learner("mace"), frames(6, ["H2O"]))
    assert loader.shape() == compiled.Shape(3, 9, 9)
    graph = next(iter(loader)).graph
    assert loader.shape().fill(graph, 5.0) is graph


def test_a_shape_holds_every_batch_of_many_epochs():
    done = 0
    loader = batches(learner("mace"), frames(20, seed=3), steps_done=lambda: done)
    for epoch in range(30):
        done = epoch * len(loader)
        assert all(loader.shape().holds(batch.graph) for batch in loader)


def test_batches_of_molecules_of_different_size_are_alike():
    loader = batches(learner("mace"), frames(30))
    pairs = [batch.graph.edge_index.shape[1] for batch in loader]
    assert np.ptp(pairs) <= 0.1 * np.mean(pairs)
    everything = np.concatenate([batch.energy for batch in loader])
    assert len(set(everything)) == 30, "an epoch has every frame once"


@pytest.mark.parametrize("dtype", DIFFERENCE)
@pytest.mark.parametrize("name", models.NAMES)
def test_fifty_steps_of_the_step_written_down(name, dtype):
    _compare_fifty_steps(name, dtype, written_down=True)


@pytest.mark.parametrize(("factor", "status"), [(1.0, True), (1.01, False)])
def test_a_wrong_compiler_is_found_out(factor, status, monkeypatch, capsys):
    """Training then goes on operator by operator, and says so."""
    monkeypatch.setattr(
        torch, "compile", lambda graph, **_: lambda *given: [factor * value for value in graph(*given)]
    )
    made = train._compiled(Wanted, learner("mace"), batches(learner("mace"), frames(3)))
    assert (made is not None) == status
    assert ("compiled errors differ by" in capsys.readouterr().err) != status


class Wanted:
    """Settings of a training that is to be compiled."""

    model, compile, max_seconds, max_steps = "mace", True, None, None


@pytest.mark.slow
@pytest.mark.rare(3)
def test_many_messages_are_compiled_correctly():
    """Compiling checks the gradients itself; those of TorchMD-NET were once wrong from two blocks on."""
    torch.manual_seed(0)
    size = {"embedding_dimension": 64, "num_layers": 3, "num_heads": 8, "num_rbf": 32}
    force_field = models.build("torchmd_net", "tiny", [6], **size)
    force_field.set_reference({6: 0.1}, scale=1.0)
    hyper = TrainingHyperparameters(batch_size=1, ema_decay=None)
    large = train.Learner(force_field.train(), hyper, max_steps=50)
    loader = batches(large, frames(2, ["C60"]))
    assert loader.shape().pairs > 800
    stepped(large, loader)


@pytest.mark.slow
@pytest.mark.rare(12)
@pytest.mark.parametrize("dtype", DIFFERENCE)
@pytest.mark.parametrize("name", models.NAMES)
def test_fifty_compiled_steps(name, dtype):
    _compare_fifty_steps(name, dtype)


def _compare_fifty_steps(name, dtype, **options):
    """Weights after fifty steps of Adam; its epsilon hides no gradient that is rounding alone."""
    ends = []
    for is_compiled in (False, True):
        one = learner(name, dtype)
        loader = batches(one, frames(7), steps_done=lambda: 0)
        one.compiled = stepped(one, loader, **options) if is_compiled else None
        optimizer = torch.optim.Adam(one.force_field.parameters(), lr=3e-4, eps=1e-3)
        for _ in range(17):
            for batch in loader:
                optimizer.zero_grad()
                one.backward(one.training_step(batch, 1))
                optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in one.force_field.parameters()]))
    assert (ends[1] - ends[0]).norm() < DIFFERENCE[dtype] * ends[0].norm()


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch, capsys):
    def fail(self, batch):
        raise RuntimeError("no C++ compiler was found\nand more")

    monkeypatch.setattr(compiled.Step, "compile", fail)
    one = learner("mace")
    config = train.TrainConfig("mace", "ethanol", compile=True)
    assert train._compiled(config, one, batches(one, frames(7))) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mace: training is not compiled (RuntimeError: no C++ compiler was found)")
