"""Training: budgets, the scales fitted before it, resumption, failure."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from egraff_utils import cards, errors, models, records, train
from egraff_utils.train import TrainConfig, fit

CARD = """
name: copper_clusters
system: molecule
elements: [29]
temperature: 300
timestep: 1.0
reader: extxyz
files: {train: train.xyz, val: val.xyz, test: test.xyz}
splits: {train: train, val: val, test: test}
"""


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in {"train": 23, "val": 6, "test": 9}.items():
        write(tmp_path / f"{split}.xyz", [cluster(rng) for _ in range(count)])
    path = tmp_path / "card.yml"
    path.write_text(CARD)
    return str(path)


def cluster(rng):
    corners = np.array([[0, 0, 0], [2.4, 0, 0], [0, 2.4, 0], [0, 0, 2.4]])
    atoms = Atoms("Cu4", corners + rng.normal(0, 0.1, (4, 3)), calculator=EMT())
    atoms.get_forces()
    return atoms


def config(dataset, **changes):
    defaults = {"model": "mace", "dataset": dataset, "preset": "tiny", "max_steps": 12, "progress": False}
    return TrainConfig(**defaults | changes)


def weights(record):
    return models.load(record.path.with_suffix(".safetensors")).state_dict()


def test_training_learns_and_is_recorded(dataset):
    record = fit(config(dataset, max_steps=250, training={"batch_size": 5, "learning_rate": 0.02}))
    assert record.status == "complete"
    assert record["steps"] == 250
    assert record["epochs"] == 50
    assert record["force_mae"] < record["zero_force_mae"] / 3
    curves = record.curves
    assert len(curves["step"]) == 50
    assert curves["val_loss"].min() < curves["val_loss"][0] / 3
    assert np.all(np.diff(curves["seconds"]) > 0)
    assert record.metric("force_mae").unit == "meV/Å"
    assert record.provenance["versions"]["torch"] == torch.__version__


def test_test_errors_equal_those_worked_out_by_hand(dataset):
    record = fit(config(dataset))
    ff = models.load(record.path.with_suffix(".safetensors"))
    frames = train.data.load("copper_clusters", "test")
    energies, forces = errors.predict(ff, frames)
    by_hand = 1000 * np.mean(np.abs(np.array(forces) - [a.get_forces() for a in frames]))
    assert record["force_mae"] == pytest.approx(by_hand, rel=1e-5)
    by_hand = 1000 * np.mean(np.abs(energies - [a.get_potential_energy() for a in frames]))
    assert record["energy_mae"] == pytest.approx(by_hand, rel=1e-5)
    assert record["energy_mae_per_atom"] == pytest.approx(by_hand / 4, rel=1e-5)
    assert record["force_mae"] == pytest.approx(record.curves["force_error"].mean(), rel=1e-5)
    assert record.metric("force_mae").low < record["force_mae"] < record.metric("force_mae").high


def test_the_same_parameters_return_the_stored_record(dataset):
    first = fit(config(dataset))
    started = time.time()
    assert fit(config(dataset, threads=2, progress=False)) == first
    assert time.time() - started < 2
    assert fit(config(dataset, max_steps=3))["steps"] == 3


@pytest.mark.parametrize("scheduler", ["plateau", "cosine"])
def test_an_interrupted_run_ends_with_the_same_weights(dataset, scheduler, monkeypatch):
    stage = {"start": 0.8, "learning_rate": 1e-3, "energy_weight": 10.0, "force_weight": 1.0}
    changes = {"batch_size": 5, "scheduler": scheduler, "second_stage": stage, "plateau_patience": 0}
    through = weights(fit(config(dataset, training=changes, campaign="through")))

    monkeypatch.setattr(train, "CHECKPOINT_INTERVAL", 0.0)  # a checkpoint after every step
    steps, loss = [], train.Learner.loss

    def killed(self, batch, prediction):
        if self.training:
            steps.append(self.global_step)
            if len(steps) == 8:  # in the middle of the second epoch
                raise ProcessLookupError
        return loss(self, batch, prediction)

    monkeypatch.setattr(train.Learner, "loss", killed)
    with pytest.raises(ProcessLookupError):
        fit(config(dataset, training=changes))
    record = fit(config(dataset, training=changes))
    assert steps == [*range(8), *range(7, 12)]
    resumed = weights(record)
    for name, value in through.items():
        assert torch.equal(value, resumed[name]), name


def test_a_checkpoint_of_other_parameters_is_not_used(dataset, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr(train.records, "write", lambda *a: (_ for _ in ()).throw(ProcessLookupError))
    with pytest.raises(ProcessLookupError):
        fit(config(dataset))
    assert train._usable_checkpoint(config(dataset), config(dataset).parameters()) is not None
    other = config(dataset, max_steps=13)
    assert train._usable_checkpoint(other, other.parameters()) is None


def test_the_average_of_weights_follows_its_formula(dataset, monkeypatch):
    seen = []
    step = train.WeightAverage.on_train_batch_end

    def watched(self, trainer, learner, *arguments):
        before = [value.clone() for value in self.average]
        step(self, trainer, learner, *arguments)
        seen.append((before, [p.detach().clone() for p in learner.parameters()], self.average[0].clone()))

    monkeypatch.setattr(train.WeightAverage, "on_train_batch_end", watched)
    fit(config(dataset, max_steps=3, training={"ema_decay": 0.15}))
    for (before, current, after), kept in zip(seen, [0, 0.15, 0.15], strict=True):
        assert torch.allclose(after, kept * before[0] + (1 - kept) * current[0])


def test_the_published_mace_can_be_averaged(dataset):
    """A copy of its generated code has other buffers than the original."""
    assert fit(config(dataset, preset="paper", max_steps=1)).status == "complete"


def test_a_time_budget_is_kept(dataset):
    record = fit(config(dataset, max_steps=None, max_seconds=2.0))
    assert 2.0 <= record["seconds"] < 4.0


def test_a_loss_that_is_not_finite_is_a_recorded_failure(dataset, monkeypatch):
    loss = train.Learner.loss
    monkeypatch.setattr(train.Learner, "loss", lambda self, b, p: loss(self, b, p) * float("inf"))
    record = fit(config(dataset))
    assert record.status == "failed"
    assert "step 0" in record.message
    assert records.read("demo").status.eq("failed").all()
    assert not record.path.with_suffix(".safetensors").exists()


def test_reference_energies_and_scale_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    true = {1: -13.0, 8: -2042.0}
    frames = []
    for formula in ("H2O", "H2O2", "O3", "H2"):
        atoms = Atoms(formula, rng.normal(size=(len(Atoms(formula)), 3)))
        energy = sum(true[z] for z in atoms.numbers)
        frames.append(labelled(atoms, energy, rng.normal(size=(len(atoms), 3))))
    energies, scale = train.fit_reference(frames, {1: -12.0})
    assert energies == pytest.approx(true, abs=1e-9)
    forces = np.concatenate([a.get_forces() for a in frames])
    assert scale == pytest.approx(np.sqrt((forces**2).mean()))


def test_one_composition_gets_the_mean_energy_on_top_of_the_prior():
    frames = [labelled(Atoms("H2O"), e, np.ones((3, 3))) for e in (-2070.0, -2071.0)]
    energies, _ = train.fit_reference(frames, {1: -13.0, 8: -2042.0})
    assert 2 * energies[1] + energies[8] == pytest.approx(-2070.5)
    assert abs(energies[8] + 2042) < 2


def labelled(atoms, energy, forces):
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def test_batches_go_through_every_frame_once_per_epoch(dataset):
    frames = train.data.load(cards.dataset(dataset).name, "train")
    steps = [0]
    batches = train.Batches(frames, 5, cutoff=5.0, device="cpu", seed=3, steps_done=lambda: steps[0])
    energies = torch.cat([b.energy for b in batches])
    assert len(batches) == 5
    expected = sorted(a.get_potential_energy() for a in frames)
    assert sorted(energies.tolist()) == pytest.approx(expected)
    steps[0] = 2
    assert torch.equal(torch.cat([b.energy for b in batches]), energies[10:])
    steps[0] = 5
    assert not torch.equal(torch.cat([b.energy for b in batches]), energies)


def test_unknown_names_are_refused_before_any_work(dataset):
    with pytest.raises(ValueError, match="unknown preset"):
        fit(config(dataset, preset="tinny"))
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        fit(config(dataset, training={"batchsize": 3}))
    with pytest.raises(ValueError, match="unknown dataset 'etanol'; did you mean 'ethanol'"):
        fit(config("etanol"))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, egraff_utils, egraff_utils.campaign; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
