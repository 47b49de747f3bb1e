"""Is a network that was trained elsewhere trained on? A spring takes its place, and SO3LR where installed."""

import importlib
import os
import signal
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import campaign, cards, config, data, models, paths, records, train, weights
from egraff_utils.__main__ import main
from egraff_utils.checks import gate
from egraff_utils.graph import build_graph
from egraff_utils.md.rollout import RolloutConfig, roll_out
from egraff_utils.models import so3lr
from egraff_utils.running import cells
from egraff_utils.train import TrainConfig, fit

MODULE = """
import torch


class Spring(torch.nn.Module):
    def __init__(self, length):
        super().__init__()
        self.length = torch.nn.Parameter(torch.tensor(length))

    def forward(self, graph, vectors):
        each = (vectors.norm(dim=1) - self.length) ** 2
        return each.new_zeros(len(graph.species)).index_add(0, graph.edge_index[0], each)


def build_network(elements, *, cutoff, average_neighbors, length):
    return Spring(length)
"""
CARD = {"name": "spring", "package": "none", "builder": "own_spring.build_network", "pretrained": True}
CARD |= {"elements": [1], "systems": ["molecule"]}
CARD["presets"] = {
    "finetune": {"network": {"cutoff": 3.0, "length": 1.1}, "training": {"learning_rate": 0.01}}
}
CARD["presets"]["finetune"]["training"] |= {"scheduler": "none", "max_epochs": 1000, "ema_decay": None}


@pytest.fixture
def spring(tmp_path, monkeypatch):
    """Path of the card of a spring between two atoms that has learnt another length, and its module."""
    for variable in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    monkeypatch.setattr(cards, "_registered", {})
    monkeypatch.setattr(cards, "_registered_models", {})
    (tmp_path / "own_spring.py").write_text(MODULE)
    (tmp_path / "spring.yml").write_text(yaml.safe_dump(CARD))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_spring", raising=False)
    return str(tmp_path / "spring.yml")


@pytest.fixture
def hydrogen(tmp_path):
    """Path of the card of molecules with E = 2 (r - 1)^2 - 5, eV; the pair counts in both directions."""
    frames = []
    for r in np.random.default_rng(0).uniform(0.8, 1.2, 24):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, r]], cell=[20, 20, 20])
        pull = 4 * (r - 1)
        made = {"energy": 2 * (r - 1) ** 2 - 5, "forces": [[0, 0, pull], [0, 0, -pull]]}
        atoms.calc = SinglePointCalculator(atoms, **made)
        frames.append(atoms)
    ase.io.write(tmp_path / "h2.xyz", frames, format="extxyz")
    card = {"name": "own_h2", "system": "molecule", "elements": [1], "temperature": 300, "timestep": 0.5}
    card |= {"files": {"all": "h2.xyz"}}
    slices = {"train": ":10", "val": "10:14", "test": "14:"}
    card["splits"] = {name: {"source": "all", "slice": part} for name, part in slices.items()}
    (tmp_path / "own_h2.yml").write_text(yaml.safe_dump(card))
    return str(tmp_path / "own_h2.yml")


def asked(spring, hydrogen, steps=60, **changes):
    given = {"campaign": "mine", "preset": "finetune", "max_steps": steps, "progress": False} | changes
    return TrainConfig(spring, hydrogen, **given)


def test_it_starts_from_its_weights_and_one_shift_of_the_energy(spring, hydrogen):
    frames, run = data.checked(cards.dataset(hydrogen), ("train",))["train"], asked(spring, hydrogen)
    ff = train.new_learner(run, cards.model(spring).training("finetune"), frames).force_field
    assert ff.network.length.item() == pytest.approx(1.1)
    assert float(ff.scale) == 1
    lengths = np.array([atoms.get_distance(0, 1) for atoms in frames])
    apart = np.mean(2 * (lengths - 1) ** 2 - 5 - 2 * (lengths - 1.1) ** 2)
    assert 2 * float(ff.reference_energies[1]) == pytest.approx(apart, abs=1e-5)
    assert ff.training


def test_it_is_trained_run_and_gated_like_any_model(spring, hydrogen):
    record = fit(asked(spring, hydrogen))
    key = config.Key("training", "mine", "own_h2", "spring")
    assert (record.path, record.status) == (key.path, "complete")
    assert record.curves["val_force_mae"][0] > 100 * record["force_mae"]
    assert weights.load(key).network.length.item() == pytest.approx(1, abs=1e-3)
    assert fit(asked(spring, hydrogen)).provenance["started"] == record.provenance["started"]
    run = RolloutConfig(spring, hydrogen, campaign="mine", replicas=2, steps=20, progress=False)
    assert roll_out(run)["fv"] > 0
    verdict = gate.check(gate.GateConfig(spring, hydrogen, campaign="mine", runs=1, run_steps=100))
    assert verdict.model == "spring"
    assert verdict["rotation"] < 1e-3


def test_another_code_or_length_is_trained_anew(spring, hydrogen, tmp_path):
    first = asked(spring, hydrogen).parameters()
    assert first["model"] == "spring"
    (tmp_path / "own_spring.py").write_text(MODULE + "\nPLACE = 1\n")
    importlib.invalidate_caches()
    sys.modules.pop("own_spring")
    second = asked(spring, hydrogen).parameters()
    assert second["inputs"]["network"] != first["inputs"]["network"]
    third = asked(spring, hydrogen, network={"length": 0.9}).parameters()
    assert third["inputs"]["hyperparameters"] != first["inputs"]["hyperparameters"]


def test_the_command_resumes_a_training_that_was_killed(spring, hydrogen, tmp_path, monkeypatch, capsys):
    words = ["train", spring, hydrogen, "--preset", "finetune", "--campaign", "mine", "--max-steps", "60"]
    killer = (
        "import os, signal, sys; from egraff_utils.train import Learner, callbacks\n"
        "callbacks.CHECKPOINT_INTERVAL, step = 0.0, Learner.training_step\n"
        "def killed(self, *given):\n"
        "    self.global_step == 41 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *given)\n"
        "Learner.training_step = killed\n"
        "from egraff_utils.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    path = os.pathsep.join([str(tmp_path), str(paths.ROOT)])
    done = subprocess.run([sys.executable, "-c", killer, *words], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    whole = fit(asked(spring, hydrogen, campaign="other"))
    taken, step = [], train.Learner.training_step
    noted = lambda self, *given: taken.append(self.global_step) or step(self, *given)  # noqa: E731
    monkeypatch.setattr(train.Learner, "training_step", noted)
    assert main(words) == 0
    assert taken[0] > 30
    assert "own_h2" in capsys.readouterr().out
    (resumed,) = records.read_all("mine")
    np.testing.assert_array_equal(resumed.curves["val_loss"], whole.curves["val_loss"])


def test_a_campaign_trains_it_with_the_notebook_for_any_model(spring, hydrogen, tmp_path):
    file = tmp_path / "own.yml"
    given = {"description": "x", "datasets": ["own_h2.yml"], "models": ["spring.yml"], "preset": "finetune"}
    file.write_text(yaml.safe_dump(given))
    found = campaign.load(str(file))
    training, *_ = cells.cells(found)
    assert training.notebook == paths.ROOT / "notebooks" / "yours" / "training.ipynb"
    assert training.parameters(found).items() >= {"model": spring, "preset": "finetune"}.items()
    file.write_text(yaml.safe_dump(given | {"datasets": ["ethanol"]}))
    with pytest.raises(ValueError, match="spring lists no C, O, which ethanol holds"):
        campaign.load(str(file))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"builder": None}, "unknown key 'presets'"),
        ({"elements": []}, "elements is missing"),
        ({"calculator": "ase.calculators.emt.EMT"}, "either presets, of a network, or a calculator"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused(changes, message, spring, tmp_path):
    card = {name: value for name, value in (CARD | changes).items() if value is not None}
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(card))
    with pytest.raises(ValueError, match=message):
        cards.model(str(tmp_path / "wrong.yml"))


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "so3krates_torch", None)
    with pytest.raises(RuntimeError, match="pip install --no-deps so3krates-torch==0.2.1"):
        models.build("so3lr_tuned", "finetune")


def forces_are_slopes(ff, atoms):
    """Energy of a structure in double precision, after a force was compared with finite differences."""

    def exact(x):
        moved = atoms.copy()
        moved.positions[1, 0] += x
        return ff(build_graph(moved, ff.cutoff))

    slope = (exact(1e-4).energy - exact(-1e-4).energy) / 2e-4
    assert exact(0).forces[1, 0].item() == pytest.approx(-slope.item(), rel=1e-5)
    return exact(0).energy


def test_so3lr_is_that_of_its_authors_and_can_be_double():
    pytest.importorskip("so3krates_torch", reason="requirements-universal.txt is not installed")
    from egraff_utils import calculated

    atoms = Atoms(
        "OCH4", [[0, 0, 0], [1.4, 0, 0], [1.8, 1, 0], [1.8, -0.5, 0.9], [1.8, -0.5, -0.9], [-0.3, 0.9, 0]]
    )
    far = atoms.copy()
    far.rattle(0.1, seed=1)
    energies, forces = calculated.of("so3lr", "ethanol").predict([atoms, far])
    ff = models.build("so3lr_tuned", "finetune", [1, 6, 8]).eval()
    found = ff(build_graph([atoms, far], ff.cutoff, dtype=torch.float32))
    assert found.energy.numpy() == pytest.approx(energies, abs=1e-3)
    assert found.forces.numpy() == pytest.approx(np.concatenate(forces), abs=1e-4)
    assert forces_are_slopes(ff.double(), atoms).item() == pytest.approx(energies[0], abs=1e-3)


def test_nothing_but_networks_is_unpickled(tmp_path):
    layers = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.SiLU())
    torch.save(layers, tmp_path / "a.model")
    assert torch.equal(so3lr.load_network(tmp_path / "a.model")[0].weight, layers[0].weight)
    layers.then = os.system
    torch.save(layers, tmp_path / "a.model")
    with pytest.raises(ValueError, match=r"a\.model names \w+\.system, which is no network, and"):
        so3lr.load_network(tmp_path / "a.model")


def test_sevennet_is_that_of_its_authors_and_can_be_double():
    pytest.importorskip("sevenn", reason="requirements-universal.txt is not installed")
    from egraff_utils import calculated

    far = Atoms("Li2S2P", np.random.default_rng(0).uniform(0, 4, (5, 3)), cell=[4, 5, 6], pbc=True)
    near = far.copy()
    near.rattle(0.1, seed=1)
    energies, forces = calculated.of("sevennet_0", "lips").predict([far, near])
    ff = models.build("sevennet_0_tuned", "finetune", [3, 15, 16]).eval()
    found = ff(build_graph([far, near], ff.cutoff, dtype=torch.float32))
    assert found.energy.numpy() == pytest.approx(energies, abs=1e-4)
    largest = np.abs(np.concatenate(forces)).max()
    assert found.forces.numpy() == pytest.approx(np.concatenate(forces), abs=1e-5 * largest)
    forces_are_slopes(ff.double(), far)


def test_sevennet_has_the_cutoff_of_its_weights():
    pytest.importorskip("sevenn", reason="requirements-universal.txt is not installed")
    with pytest.raises(ValueError, match="trained with a cutoff of 5.0 Å, not 6.0 Å"):
        models.build("sevennet_0_tuned", "finetune", [3, 15, 16], cutoff=6.0)
