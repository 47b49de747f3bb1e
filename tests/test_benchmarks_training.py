"""Benchmark of training: programs that take their steps in turns; what makes our own steps fast."""

from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from benchmarks import Settings, accuracy, equal, training
from benchmarks import step as one_step
from benchmarks.commands import UPSTREAM
from benchmarks.compare import same
from benchmarks.programs import PRESET, Plan, Program
from egraff_utils import cards, models, train


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
    with Program(Folder(tmp_path), count) as program:
        heard = [program.receive() for _ in range(2)]
        program.connection.send(3)
        heard += [program.receive() for _ in range(4)]
        assert heard == [0.0, None, 1.0, 2.0, 3.0, None]
        assert not program.connection.poll(0.2)
        assert program.seconds > 0
    assert not program.process.is_alive()


def test_a_program_that_ends_says_why(tmp_path):
    with (
        Program(Folder(tmp_path), fail) as program,
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
    numbers = {kind: len(training.cells(kind)) for kind in training.OPPONENTS}
    assert numbers == {"bench_training": 9, "bench_training_compiled": 4, "bench_training_plain": 12}
    for kind, mains in training.OPPONENTS.items():
        for model, dataset in training.cells(kind):
            assert callable(mains[model])
            assert models.card(model).training(PRESET, **training.TRAINING).batch_size == 5
            assert cards.dataset(dataset).split("train").frames
    assert ("torchmd_net", "lips") not in training.cells("bench_training")


# -- a whole plan, of a toy --------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path, frames):
    """Tiny MACE on eleven frames of copper, with eleven more to validate and eleven to test."""
    made = [atoms.copy() for atoms in frames * 7][:33]
    for seed, (atoms, labelled) in enumerate(zip(made, frames * 7, strict=False)):
        atoms.rattle(0.01, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, **labelled.calc.results)
    ase.io.write(tmp_path / "all.xyz", made)
    slices = {"train": ":11", "val": "11:22", "test": "22:"}
    splits = {name: {"source": "all", "slice": part, "frames": 11} for name, part in slices.items()}
    card = {"name": "toy_copper", "system": "molecule", "elements": [29], "temperature": 300, "timestep": 1.0}
    card |= {"reader": "extxyz", "files": {"all": "all.xyz"}, "splits": splits}
    (tmp_path / "toy.yml").write_text(yaml.safe_dump(card))
    (tmp_path / "plan").mkdir()
    toy = str(tmp_path / "toy.yml")
    found = Plan(tmp_path / "plan", "mace", toy, Settings(), training.TRAINING, preset="tiny")
    found.budget = 2.0
    return found


def test_our_side_reports_the_gradients_of_its_first_batch(plan, monkeypatch):
    for name in ("EGRAFF_RESULTS", "EGRAFF_RUNS"):
        monkeypatch.setenv(name, "")  # and put back at the end
    reports = []
    training._ours(plan, reports.append, compile=False, max_steps=1)
    (found,) = reports
    weights = models.load(f"{plan.folder}/first.safetensors").network.parameters()
    assert len(found) == sum(weight.numel() for weight in weights)
    assert np.abs(found).max() > 0


@pytest.mark.slow
@pytest.mark.rare(3)
def test_our_compiled_side_has_the_gradients_of_the_plain_one(plan):
    with Program(plan, training._ours) as ours, Program(plan, training._plain) as plain:
        same(ours.receive(), plain.receive(), relative=training.GRADIENT_ROUNDING)


# -- parts of a step ---------------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds, *calls):
        self.now += seconds
        for call in calls:
            call()


def test_a_part_is_not_charged_with_what_it_calls():
    clock = Clock()
    parts = one_step.Parts(clock=clock)
    inner = parts.timed("inner", lambda: clock.work(2))
    outer = parts.timed("outer", lambda: clock.work(1, inner, inner))
    outer()
    inner()
    assert parts.seconds == {"outer": 1, "inner": 6}


def test_a_whole_part_is_charged_with_all_it_calls():
    clock = Clock()
    parts = one_step.Parts(whole=("validation",), clock=clock)
    inner = parts.timed("collation", lambda: clock.work(2))
    parts.timed("validation", lambda: clock.work(1, inner))()
    assert parts.seconds == {"validation": 3}


def test_an_optimizer_is_not_charged_with_its_closure():
    clock = Clock()
    parts = one_step.Parts(clock=clock)
    stepping = one_step._stepping(parts, lambda optimizer, closure: clock.work(1, closure))
    stepping(None, lambda: clock.work(5))
    assert parts.seconds == {"optimizer": 1, "rest": 5}


@pytest.mark.slow
@pytest.mark.rare(3)
def test_the_parts_of_a_step_add_up(plan):
    cell = "mace", plan.dataset, Settings(), training.TRAINING
    value = {m.name: m.value for m in one_step._measure(*cell, preset="tiny")[0]}
    parts = [*one_step.PARTS, "adam", "rest"]
    assert sum(value[name] for name in parts) == pytest.approx(value["step"])
    assert min(value.values()) > 0
    assert value["compile_again_seconds"] < value["compile_seconds"]


# -- time to accuracy --------------------------------------------------------------------------------------


class Told:
    """A program that reports what it was given, with its times."""

    def __init__(self, *reports):
        self.reports, self.seconds, self.sent = list(reports), 0.0, []
        self.connection = SimpleNamespace(send=self.sent.append)

    def receive(self):
        self.seconds, report = self.reports.pop(0)
        return report


def test_a_learning_curve_begins_with_the_first_epoch_and_ends_behind_the_budget():
    points = [(n, ("error", 100.0 - n)) for n in (30, 40, 50, 60)]
    told = Told((8, ("error", 500.0)), (20, ("begin", 7.0)), (21, None), *points)
    seconds, errors, compilation = accuracy.follow(told, None, accuracy.until(25))
    assert (list(seconds), list(errors), compilation) == ([10, 20, 30], [70, 60, 50], 7)
    assert told.sent == [one_step.NO_END]


def test_a_learning_curve_ends_with_its_program():
    told = Told((1, ("begin", 0.0)), (2, ("error", 9.0)), (3, "end"))
    seconds, _, _ = accuracy.follow(told, None, accuracy.until(25))
    assert list(seconds) == [1]


def test_both_trainers_are_judged_by_their_least_error_within_equal_epochs(monkeypatch):
    errors = {accuracy.learn: (30.0, 20.0, 25.0, 5.0), accuracy.learn_upstream: (40.0, 10.0, 15.0, 1.0)}

    def program(plan, main):
        told = Told((1, ("begin", 0.0)), *((n, ("error", e)) for n, e in enumerate(errors[main], 2)))
        return nullcontext(told)

    monkeypatch.setattr(equal, "EPOCHS", 3)
    monkeypatch.setattr(accuracy, "Plan", lambda *_, **options: SimpleNamespace(**options))
    monkeypatch.setattr(accuracy, "Program", program)
    metrics, curves = equal._measure("mace", {}, 1, Settings())
    assert {metric.name: metric.value for metric in metrics} == {"ours": 20.0, "theirs": 10.0, "ratio": 2.0}
    assert list(curves["theirs_error"]) == [40.0, 10.0, 15.0]


def test_forces_of_the_first_batch_are_compared():
    plan = SimpleNamespace(forces=lambda _, forces: (forces + 1, forces))
    with pytest.raises(AssertionError, match="results differ"):
        accuracy.follow(Told((1, [np.ones(3), np.ones(3)])), plan, accuracy.until(25))


def test_commands_get_an_adam_that_the_card_knows(monkeypatch):
    for model, preset in product(UPSTREAM, (accuracy.PRESET, PRESET)):
        changed = accuracy.training(model, preset)
        hyper = models.card(model).training(preset, **changed)
        assert (hyper.optimizer, hyper.scheduler) in {("adam", "plateau"), ("adamw", "plateau")}
    card = models.card("mace")
    muon = SimpleNamespace(optimizer="muon", loss="mse", learning_rate=0.5)
    given = {accuracy.PRESET: muon, "adam": card.training("small")}
    monkeypatch.setattr(accuracy, "ADAM", "adam")
    monkeypatch.setattr(models, "card", lambda _: SimpleNamespace(training=given.get))
    assert accuracy.training("mace")["learning_rate"] == 0.01
    muon.loss = "l2mae"
    with pytest.raises(ValueError, match="l2mae"):
        accuracy.training("mace")


@pytest.mark.rare(3)
@pytest.mark.slow
@pytest.mark.parametrize("main", [accuracy.learn, accuracy.learn_upstream])
def test_both_sides_report_their_learning_curves(plan, main):
    with Program(plan, main) as program:
        seconds, errors, compilation = accuracy.follow(program, plan, accuracy.until(plan.budget))
    assert seconds[0] > 0
    assert (np.diff(seconds) > 0).all()
    assert (errors > 0).all()
    assert (compilation > 0) == (main is accuracy.learn)
