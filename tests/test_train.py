"""Training: budgets, the scales fitted before it, resumption, failure, what is made anew and what is not."""

import dataclasses
import importlib
import importlib.metadata
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import voigt_6_to_full_3x3_stress

from egraff_utils import accuracy, cards, models, records, train
from egraff_utils import weights as trained
from egraff_utils.__main__ import main
from egraff_utils.hyperparameters import TrainingHyperparameters
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.train import TrainConfig, callbacks, fit

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
    assert record.provenance["versions"]["torch"] == importlib.metadata.version("torch")


def test_test_errors_equal_those_worked_out_by_hand(dataset):
    record = fit(config(dataset))
    ff = models.load(record.path.with_suffix(".safetensors"))
    frames = train.data.load("copper_clusters", "test")
    energies, forces = accuracy.predict(ff, frames)
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


def test_the_first_of_two_processes_with_one_training_keeps_its_weights(dataset, monkeypatch):
    once = train.learn

    def learn(*arguments):
        monkeypatch.setattr(train, "learn", once)
        others.append(fit(config(dataset)))  # while this one is under way, another begins and ends
        others.append(others[0].path.with_suffix(".safetensors").stat().st_mtime_ns)
        return once(*arguments)

    others = []
    monkeypatch.setattr(train, "learn", learn)
    record = fit(config(dataset))
    assert [record, record.path.with_suffix(".safetensors").stat().st_mtime_ns] == others


def test_a_long_training_is_put_aside_by_a_short_one_and_comes_back(dataset, tmp_path, monkeypatch, capsys):
    long, short = config(dataset), config(dataset, max_steps=3)
    first = weights(record := fit(long))
    written = {path.name: path.read_bytes() for path in record.path.parent.iterdir()}
    assert fit(short)["steps"] == 3
    assert "was moved to" in capsys.readouterr().err
    aside = tmp_path / "runs" / "demo" / "replaced" / "training"
    assert len(list(aside.iterdir())) == len(written) == 4

    monkeypatch.setattr(train, "learn", None)  # no training from here on
    again = fit(long)
    assert again == record
    assert all(torch.equal(value, first[name]) for name, value in weights(again).items())
    assert {path.name: path.read_bytes() for path in record.path.parent.iterdir()} == written
    assert fit(short)["steps"] == 3
    assert len(list(aside.iterdir())) == 4


def test_edited_data_are_trained_on_anew(dataset, tmp_path):
    first = fit(config(dataset))
    frames = read(tmp_path / "train.xyz", ":")
    frames[0].calc.results["energy"] += 1.0
    write(tmp_path / "train.xyz", frames)
    assert fit(config(dataset)).provenance["data"] != first.provenance["data"]


def test_an_edited_network_is_trained_anew(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_registered", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    card = dataclasses.replace(models.card("mace"), name="mine")
    parameters = []
    for width in (4, 4, 8):
        text = "from egraff_utils.models import mace\ndef build_network(elements, **k):\n"
        text += f"    return mace.build_network(elements, **k | {{'num_channels': {width}}})\n"
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        models.register("mine", importlib.import_module("mine").build_network, card)
        parameters.append(fit(config(dataset, model="mine", max_steps=1))["parameters"])
    assert parameters[0] == parameters[1] < parameters[2]


@pytest.mark.parametrize("scheduler", ["plateau", "cosine"])
def test_an_interrupted_run_ends_with_the_same_weights(dataset, scheduler, monkeypatch):
    stage = {"start": 0.8, "learning_rate": 1e-3, "energy_weight": 10.0, "force_weight": 1.0}
    changes = {"batch_size": 5, "scheduler": scheduler, "second_stage": stage, "plateau_patience": 0}
    whole = fit(config(dataset, training=changes, campaign="through"))
    through = weights(whole)

    monkeypatch.setattr(callbacks, "CHECKPOINT_INTERVAL", 0.0)  # a checkpoint after every step
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
    np.testing.assert_array_equal(record.curves["train_loss"], whole.curves["train_loss"])
    resumed = weights(record)
    for name, value in through.items():
        assert torch.equal(value, resumed[name]), name


def test_a_run_killed_after_its_last_step_makes_no_step_more(dataset, monkeypatch):
    def killed(*args):
        raise ProcessLookupError

    monkeypatch.setattr(callbacks, "CHECKPOINT_INTERVAL", 0.0)
    whole = fit(config(dataset, campaign="through"))
    with monkeypatch.context() as patch:
        patch.setattr(train.accuracy, "compare", killed)
        with pytest.raises(ProcessLookupError):
            fit(config(dataset))
    record = fit(config(dataset))
    assert record["steps"] == whole["steps"] == 12
    np.testing.assert_array_equal(record.curves["train_loss"], whole.curves["train_loss"])


def test_a_checkpoint_of_other_parameters_is_not_used(dataset, monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr(train.records, "write", lambda *a: (_ for _ in ()).throw(ProcessLookupError))
    with pytest.raises(ProcessLookupError):
        fit(config(dataset))
    assert train._usable_checkpoint(config(dataset), config(dataset).parameters()) is not None
    other = config(dataset, max_steps=13)
    assert train._usable_checkpoint(other, other.parameters()) is None
    with pytest.raises(ProcessLookupError):
        fit(other)
    assert train._usable_checkpoint(config(dataset), config(dataset).parameters()) is not None


def flipped(content):
    """A file with one bit changed in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


COMMAND = b"cos\nsystem\n(S'touch ran'\ntR."
"""A pickle that runs a command."""
HARMS = {"no": lambda c: b"", "cut": lambda c: c[:1000], "flip": flipped, "command": lambda c: COMMAND}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_broken_checkpoint_is_named_set_aside_and_not_used(dataset, monkeypatch, capsys, harm):
    path = train._checkpoint_path(config(dataset))
    path.parent.mkdir(parents=True)
    torch.save({"parameters": config(dataset).parameters(), "weights": torch.ones(1000)}, path)
    path.write_bytes(harm(path.read_bytes()))
    assert fit(config(dataset))["steps"] == 12
    assert f"{path} cannot be used" in capsys.readouterr().err
    assert path.with_name(f"{path.name}.unreadable").is_file()
    assert not Path("ran").exists()


def test_a_training_without_its_weights_is_made_again(dataset, capsys):
    run = config(dataset)
    path = fit(run).path.with_suffix(".safetensors")
    kept = path.read_bytes()
    for harm in (path.unlink, lambda: path.write_bytes(flipped(kept))):
        harm()
        with pytest.raises(FileNotFoundError, match=f"{path.name}.*egraff train mace \\S*card.yml"):
            trained.load(run)
        assert fit(run).files[".safetensors"] == records.digest(path)
        assert path.read_bytes() == kept
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="has no record"):
        trained.load(run)


def mixed(seed=0):
    """Structures of one to seven atoms, with labels that mean nothing."""
    rng = np.random.default_rng(seed)
    return [
        labelled(Atoms(f"Cu{n}", 3 * rng.normal(size=(n, 3))), n * rng.normal(), rng.normal(size=(n, 3)))
        for n in (1, 7, 2, 5, 3, 3, 4)
    ]


def validation_loss(learner, frames, size):
    totals = Counter()
    for batch in train.Batches(frames, size, cutoff=5.0, device="cpu"):
        totals.update(learner.validation_step(batch, 0))
    return float(learner.validation_loss(totals))


@pytest.mark.parametrize("loss", ["mse", "mae", "l2mae"])
@pytest.mark.parametrize("per_atom", [True, False])
def test_the_validation_loss_is_that_of_the_set_whatever_its_batches(loss, per_atom):
    frames = mixed()
    options = {"loss": loss, "energy_per_atom": per_atom, "energy_weight": 2.0, "force_weight": 3.0}
    learner = train.Learner(models.build("mace", "tiny", [29]), TrainingHyperparameters(**options))
    energies, forces = accuracy.predict(learner.eval().force_field, frames)
    sizes = [len(atoms) if per_atom else 1 for atoms in frames]
    e = (energies - [atoms.get_potential_energy() for atoms in frames]) / sizes
    f = np.concatenate(forces) - np.concatenate([atoms.get_forces() for atoms in frames])
    energy = np.mean(e**2) if loss == "mse" else np.mean(np.abs(e))
    force = {"mse": f**2, "mae": np.abs(f), "l2mae": np.linalg.norm(f, axis=1)}[loss].mean()
    for order in (frames, frames[::-1], sorted(frames, key=len)):
        for size in (1, 2, 3, 7):
            found = validation_loss(learner, order, size)
            assert found == pytest.approx(2 * energy + 3 * force, rel=1e-6)
    (batch,) = train.Batches(frames, 7, cutoff=5.0, device="cpu")
    whole = learner.loss(batch, learner.force_field(batch.graph))
    assert float(whole) == pytest.approx(found, rel=1e-6)


def test_the_validation_loss_of_a_training_is_that_of_its_weights(dataset, tmp_path):
    write(tmp_path / "val.xyz", mixed(1) + mixed(2))
    record = fit(config(dataset, training={"loss": "mae", "energy_weight": 0.0}))
    frames = train.data.load("copper_clusters", "val")
    _, forces = accuracy.predict(models.load(record.path.with_suffix(".safetensors")), frames)
    by_hand = np.abs(np.concatenate(forces) - np.concatenate([a.get_forces() for a in frames])).mean()
    weight = models.card("mace").training("tiny").force_weight
    assert record.curves["val_loss"].min() == pytest.approx(weight * by_hand, rel=1e-5)


def strained(rng):
    """Copper in a small cell whose lengths vary by some percent, labelled with a stress too."""
    cell = 3.7 * (np.eye(3) + rng.normal(0, 0.02, (3, 3)))
    corners = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    atoms = Atoms("Cu4", scaled_positions=corners, cell=cell, pbc=True, calculator=EMT())
    atoms.positions += rng.normal(0, 0.05, (4, 3))
    return labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), stress=atoms.get_stress())


@pytest.fixture
def crystal(dataset, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in {"train": 20, "val": 5, "test": 5}.items():
        write(tmp_path / f"{split}.xyz", [strained(rng) for _ in range(count)])
    Path(dataset).write_text(Path(dataset).read_text().replace("system: molecule", "system: bulk"))
    return dataset


def test_the_stress_is_learnt_if_it_has_a_weight(crystal):
    """Its error is that of the calculator, and falls well below that of a training without it."""
    records_of, errors = [], []
    for weight in (0.0, 100.0):
        changes = {"training": {"virial_weight": weight, "learning_rate": 0.02}, "max_steps": 150}
        record = fit(config(crystal, campaign=f"weight{weight:.0f}", **changes))
        calculator = ForceFieldCalculator(models.load(record.path.with_suffix(".safetensors")))
        frames = train.data.load("copper_clusters", "test")
        off = [
            voigt_6_to_full_3x3_stress(calculator.get_property("stress", atoms) - atoms.get_stress())
            for atoms in frames
        ]
        records_of.append(record)
        errors.append(1000 * np.abs(off).mean())
    blind, record = records_of
    assert "stress_mae" not in [metric.name for metric in blind.metrics]
    assert record["stress_mae"] == pytest.approx(errors[1], rel=1e-4)
    assert record["stress_mae"] < min(0.7 * errors[0], 0.5 * record["zero_stress_mae"])


def test_hyperparameters_are_set_on_the_command_line(crystal, capsys):
    words = ["train", "mace", crystal, "--preset", "tiny", "--max-steps", "2", "--campaign", "mine"]
    assert main([*words, "--set", "virial_weight=1e1", "--set", "batch_size=2"]) == 0
    (record,) = records.read_all("mine")
    assert record.parameters["training"] == {"virial_weight": 10.0, "batch_size": 2}
    assert "stress_mae" in capsys.readouterr().out
    for wrong, said in (("batch_size", "KEY=VALUE"), ("bath_size=2", "bath_size")):
        assert main([*words, "--set", wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_virial_is_minus_the_derivative_by_a_strain(crystal):
    atoms = train.data.load("copper_clusters", "test")[0]
    expected = train.data.strain_derivative(atoms)
    larger, smaller = (strained_energy(atoms, sign * 1e-5) for sign in (1, -1))
    assert expected[0, 1] == pytest.approx((larger - smaller) / 2e-5, abs=1e-4)
    atoms.info["virial"] = -expected
    del atoms.calc.results["stress"]
    np.testing.assert_allclose(train.data.strain_derivative(atoms), expected)


def strained_energy(atoms, strain):
    """Energy by EMT after a symmetric shear, which sums two components of the derivative and halves both."""
    deformation = np.eye(3)
    deformation[0, 1] = deformation[1, 0] = strain / 2
    copy = Atoms(atoms.numbers, cell=atoms.cell, positions=atoms.positions, pbc=True, calculator=EMT())
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return copy.get_potential_energy()


def test_a_frame_without_the_stress_that_is_to_be_learnt_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(train, "new_learner", None)
    with pytest.raises(ValueError, match="copper_clusters/train: frame 0 .* has no stress.*virial_weight"):
        fit(config(dataset, training={"virial_weight": 1.0}))


def test_an_element_that_no_frame_holds_is_refused_before_training(dataset):
    text = Path(dataset).read_text()
    Path(dataset).write_text(text.replace("elements: [29]", "elements: [1, 29]"))
    with pytest.raises(ValueError, match="copper_clusters: the card lists H, which no frame of train holds"):
        fit(config(dataset, max_steps=1))


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


def labelled(atoms, energy, forces, **more):
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, **more)
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


@pytest.mark.parametrize(
    "wrong", [{"max_steps": 0}, {"max_steps": 1.5}, {"max_epochs": -1}, {"max_seconds": math.inf},
              {"max_seconds": math.nan}, {"threads": 0}, {"seed": -1}], ids=str,
)  # fmt: skip
def test_a_training_without_a_sensible_limit_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        config("ethanol", **wrong)


def test_frames_that_cannot_be_learnt_from_are_refused_before_any_work(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "new_learner", None)
    frames = read(tmp_path / "test.xyz", ":")
    del frames[-1].calc.results["forces"]
    write(tmp_path / "test.xyz", frames)
    with pytest.raises(ValueError, match=r"copper_clusters/test: frame 8 \(.*source test\) holds no forces"):
        fit(config(dataset))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, egraff_utils, egraff_utils.campaign; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
