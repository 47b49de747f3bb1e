"""Benchmark of training: programs that take their steps in turns; what makes our own steps fast."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT

from benchmarks import Settings, training
from egraff_utils import models, train


class Folder:
    """As much of a plan as a program needs."""

    def __init__(self, folder):
        self.folder, self.threads = str(folder), 1


def count(plan, report):
    """Counts its optimiser's steps and says how many there were before each."""
    value = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([value], lr=1.0)
    while True:
        report(value.item())
        value.grad = torch.tensor(-1.0)
        optimizer.step()


def fail(plan, report):
    """Ends before its first step."""
    raise ValueError("no such file")


def test_a_program_takes_the_steps_it_is_told_to(tmp_path):
    with training.Program(Folder(tmp_path), count) as program:
        heard = [program.receive() for _ in range(2)]
        program.connection.send(3)
        heard += [program.receive() for _ in range(4)]
        assert heard == [0.0, None, 1.0, 2.0, 3.0, None]
        assert not program.connection.poll(0.2)
        assert program.seconds > 0
    assert not program.process.is_alive()


def test_a_program_that_ends_says_why(tmp_path):
    with (
        training.Program(Folder(tmp_path), fail) as program,
        pytest.raises(RuntimeError, match="fail ended: ValueError: no such file"),
    ):
        program.receive()


@pytest.fixture
def frames():
    rng, made = np.random.default_rng(0), []
    for _ in range(5):
        atoms = Atoms("Cu4", 2.4 * np.eye(4, 3) + rng.normal(0, 0.1, (4, 3)), calculator=EMT())
        atoms.get_forces()
        made.append(atoms)
    return made


@pytest.fixture
def learner(frames):
    torch.manual_seed(0)
    force_field = models.build("mace", "tiny", [29])
    force_field.set_reference(*train.fit_reference(frames))
    return train.Learner(force_field.train(), models.card("mace").training("tiny"))


def gradients(learner, frames, backward):
    batch = next(iter(train.Batches(frames, 5, cutoff=5.0, device="cpu")))
    learner.zero_grad()
    backward(learner.loss(batch, learner.force_field(batch.graph)))
    return [p.grad for p in learner.force_field.parameters() if p.requires_grad]


def test_gradients_of_the_weights_are_those_of_a_whole_backward_pass(learner, frames):
    whole = gradients(learner, frames, lambda loss: loss.backward())
    alone = gradients(learner, frames, learner.backward)
    assert any(g is not None and g.abs().max() > 0 for g in whole)
    for expected, found in zip(whole, alone, strict=True):
        assert expected is None and found is None or torch.equal(expected, found)


def test_the_optimizer_takes_the_steps_of_its_formula(learner, frames):
    """Adam with bias correction and the largest second moment so far, worked out in float64."""
    optimizer = learner.configure_optimizers()
    rate, (first, second) = optimizer.defaults["lr"], optimizer.defaults["betas"]
    parameter = max(learner.force_field.parameters(), key=lambda p: p.numel())
    value, m, v, largest = parameter.detach().double(), 0.0, 0.0, torch.tensor(0.0)
    for step in range(1, 4):
        gradients(learner, frames, learner.backward)
        slope = parameter.grad.double()
        m, v = first * m + (1 - first) * slope, second * v + (1 - second) * slope**2
        largest = torch.maximum(largest, v)
        root = (largest / (1 - second**step)).sqrt() + optimizer.defaults["eps"]
        value = value - rate * m / (1 - first**step) / root
        optimizer.step()
    assert torch.allclose(parameter.double(), value, rtol=1e-4, atol=1e-6)


def test_every_cell_names_a_known_model_dataset_and_command():
    for model, dataset in training.CELLS:
        assert callable(training.UPSTREAM[model])
        assert models.card(model).training(training.PRESET, **training._training(model)).batch_size == 5
        assert training.cards.dataset(dataset).split("train").frames
    assert Settings(quick=True).share("training") == 30
