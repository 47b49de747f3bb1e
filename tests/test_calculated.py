"""Is a calculator a model like others? Cards of calculators, from their errors to the gate."""

import hashlib

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator, CalculatorError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import calculated, campaign, cards, records, weights
from egraff_utils.accuracy import TransferConfig, errors
from egraff_utils.calculated import Shifted
from egraff_utils.checks import gate, horizon
from egraff_utils.md.rollout import RolloutConfig, roll_out
from egraff_utils.train import TrainConfig, fit

EMT_CARD = {"name": "own_emt", "calculator": "ase.calculators.emt.EMT", "elements": [29]}
LJ_CARD = {
    "name": "own_lj",
    "title": "Lennard-Jones",
    "calculator": "ase.calculators.lj.LennardJones",
    "arguments": {"sigma": 2.3, "epsilon": 0.4, "rc": 3.5, "smooth": True},
    "elements": [29],
    "cutoff": 3.5,
}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for variable in ("GENERATED", "RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    monkeypatch.setattr(cards, "_registered", {})
    monkeypatch.setattr(cards, "_registered_models", {})


def write_card(folder, card, **changes):
    path = folder / "model.yml"
    path.write_text(yaml.safe_dump(card | changes))
    return str(path)


@pytest.fixture
def copper(tmp_path):
    """Rattled copper labelled by EMT, whose energies have been moved by 1.5 eV per atom."""
    frames = []
    for k in range(30):
        atoms = bulk("Cu", cubic=True, a=3.7)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        found = {"energy": atoms.get_potential_energy() + 6.0, "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **found)
        frames.append(atoms)
    ase.io.write(tmp_path / "cu.xyz", frames, format="extxyz")
    splits = {"train": ":10", "val": "10:14", "test": "14:"}
    card = {"name": "own_cu", "system": "bulk", "elements": [29], "temperature": 300, "timestep": 2.0}
    card |= {"files": {"all": "cu.xyz"}, "oracle": "emt"}
    card["splits"] = {name: {"source": "all", "slice": part} for name, part in splits.items()}
    (tmp_path / "own_cu.yml").write_text(yaml.safe_dump(card))
    return cards.dataset(tmp_path / "own_cu.yml").name


def test_a_method_that_labelled_the_frames_has_no_error(copper, tmp_path):
    record = fit(TrainConfig(write_card(tmp_path, EMT_CARD), copper))
    assert (record.kind, record.model, record.status) == ("training", "own_emt", "complete")
    assert record.provenance["shifts"] == {"29": pytest.approx(1.5)}
    assert record["force_mae"] == pytest.approx(0, abs=1e-4)
    assert record["energy_mae"] == pytest.approx(0, abs=1e-3)
    assert record["steps"] == 0
    assert "weights" not in record.provenance


def test_errors_are_those_of_the_calculator(copper, tmp_path):
    path = write_card(tmp_path, LJ_CARD)
    record = fit(TrainConfig(path, copper))
    frames = ase.io.read(tmp_path / "cu.xyz", "14:")
    apart = []
    for atoms in frames:
        bare = atoms.copy()
        bare.calc = LennardJones(**LJ_CARD["arguments"])
        apart.append(bare.get_forces() - atoms.get_forces())
    assert record["force_mae"] == pytest.approx(1000 * np.abs(apart).mean(), rel=1e-6)
    shifted = errors(TransferConfig(path, copper))
    assert shifted["force_mae"] == pytest.approx(record["force_mae"])
    assert shifted["energy_mae"] == pytest.approx(record["energy_mae"])


@pytest.mark.parametrize("card", [EMT_CARD, LJ_CARD], ids=["emt", "lj"])
def test_a_calculator_is_rolled_out_and_gated(card, copper, tmp_path):
    path = write_card(tmp_path, card)
    fit(TrainConfig(path, copper))
    run = RolloutConfig(path, copper, replicas=2, steps=20, progress=False)
    record = roll_out(run)
    assert record.model == card["name"]
    assert (record["fv"] < 1e-12) == (card is EMT_CARD)
    assert roll_out(run).provenance["started"] == record.provenance["started"]
    verdict = gate.check(gate.GateConfig(path, copper, runs=2, run_steps=200))
    assert verdict["passed"] == 1, verdict.message
    assert ("jump" in verdict.provenance["skipped"]) == (card is EMT_CARD)


def test_a_calculator_has_a_horizon(copper, tmp_path, monkeypatch):
    path = write_card(tmp_path, EMT_CARD)
    fit(TrainConfig(path, copper))
    card = cards.dataset(copper)
    object.__setattr__(card, "time_ordered", {"test": 2.0})
    asked = horizon.HorizonConfig(path, copper, starts=2, duration=20.0, progress=False)
    record = horizon.horizon(asked)
    assert record["horizon_nve_reached"] == 0, "it stays on the reference, which it is"


class Recorded:
    """Not a calculator; notes that it was called."""

    called = False

    def __init__(self, **_):
        Recorded.called = True


REFUSED = {
    "no class of a calculator": ({"calculator": f"{__name__}.Recorded"}, "is not the class of an ASE calc"),
    "a function": ({"calculator": "os.system"}, "os.system is not the class of an ASE calculator"),
    "an element": ({"elements": [28]}, "the card of the model own_emt lists no Cu, which own_cu holds"),
    "periodicity": ({"systems": ["molecule"]}, "own_emt is for molecule alone, and own_cu is a bulk"),
    "a module": ({"calculator": "no_such.Module"}, "cannot import no_such"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_used_is_refused_before_any_work(reason, copper, tmp_path, monkeypatch):
    changes, message = REFUSED[reason]
    path = write_card(tmp_path, EMT_CARD, **changes)
    monkeypatch.setattr(Recorded, "called", False)
    with pytest.raises(ValueError, match=message):
        fit(TrainConfig(path, copper))
    assert not Recorded.called
    assert records.read_all("demo") == []


MISTAKES = {
    "no elements": ({"elements": []}, "elements is missing"),
    "both": ({"presets": {"small": {}}}, "unknown key 'presets'"),
    "neither": ({"calculator": None}, "give either presets, of a network, or a calculator"),
    "taken": ({"name": "mace"}, "the name 'mace' is taken by a model of the project"),
    "hyphen": ({"name": "my-emt"}, "name: 'my-emt' is no name of a model, as .*; use _ for it"),
    "no path": ({"calculator": "EMT"}, r"write the calculator as package\.module\.Class"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_card_are_named(mistake, tmp_path):
    changes, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=rf"model\.yml.*{message}"):
        cards.model(write_card(tmp_path, EMT_CARD, **changes))


def test_a_changed_argument_makes_new_records(copper, tmp_path):
    run = RolloutConfig(write_card(tmp_path, LJ_CARD), copper, replicas=1, steps=4, progress=False)
    with pytest.raises(FileNotFoundError, match=r"errors .* Train it first: egraff train \S*model\.yml"):
        roll_out(run)
    first, old = fit(TrainConfig(run.model, copper)), roll_out(run)
    write_card(tmp_path, LJ_CARD, arguments=LJ_CARD["arguments"] | {"epsilon": 0.2})
    with pytest.raises(ValueError, match="its card or its package has changed since"):
        roll_out(run)
    second = fit(TrainConfig(run.model, copper))
    assert second["force_mae"] != first["force_mae"]
    assert roll_out(run).provenance["weights"] != old.provenance["weights"]


def test_a_file_beside_the_card_counts_by_its_content(tmp_path, copper):
    (tmp_path / "table.txt").write_text("1")
    path = write_card(tmp_path, EMT_CARD, arguments={"label": "table.txt"})
    first = calculated.of(path, copper)
    assert first.oracle.arguments == {"label": str(tmp_path / "table.txt")}
    before = first.digest()
    (tmp_path / "table.txt").write_text("2")
    assert calculated.of(path, copper).digest() != before


def test_the_spelling_of_a_model_does_not_change_its_key(copper, tmp_path):
    path = write_card(tmp_path, EMT_CARD)
    spelled = [path, f"{tmp_path}/../{tmp_path.name}/model.yml", "own_emt"]
    keys = {TrainConfig(model, copper).key for model in spelled}
    assert {key.path.name for key in keys} == {"own_cu-own_emt-s0.json"}
    fit(TrainConfig(path, copper))
    assert len({weights.digest(RolloutConfig(model, copper)) for model in spelled}) == 1


def test_a_campaign_takes_cards_and_the_reference(tmp_path):
    write_card(tmp_path, EMT_CARD)
    file = tmp_path / "mine.yml"
    models = "models: [mace, model.yml, emt]\nreference: true\n"
    file.write_text(f"description: x\ndatasets: [copper_emt]\n{models}")
    found = campaign.load(file)
    models = [model for _, model, _ in found.cells()]
    assert models == ["mace", "own_emt", "emt", "reference"]
    asked = found.training_parameters("copper_emt", "own_emt", 0)
    assert asked["model"] == found.rollout_parameters("copper_emt", "own_emt", 0, "corrected")["model"]
    assert asked["model"] == str(tmp_path / "model.yml")
    campaign.keep(file)
    file.unlink()
    assert campaign.load("mine").models == ("mace", "own_emt", "emt")
    (tmp_path / "model.yml").unlink()
    cards._registered_models.clear()
    assert campaign.load("mine").models == ("mace", "own_emt", "emt"), "cards are kept beside the campaign"


def test_a_campaign_with_a_dataset_that_a_card_does_not_cover_is_refused(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("description: x\ndatasets: [copper_emt, lips]\nmodels: [gfn1]\n")
    with pytest.raises(ValueError, match="the card of the model gfn1 lists no Cu, which copper_emt holds"):
        campaign.load(file)


def test_a_failure_in_a_simulation_is_not_a_number():
    class Fails(EMT):
        def calculate(self, *arguments, **keywords):
            raise RuntimeError("did not converge")

    made = Shifted(Fails(), {29: 1.0})
    atoms = bulk("Cu")
    assert np.isnan(made.get_potential_energy(atoms))
    assert np.isnan(made.get_forces(atoms)).all()


class Failing(BaseCalculator):
    """Calculator with nothing but what ASE asks of every one, which fails on all structures."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms, properties, system_changes):
        raise CalculatorError("no convergence")


def test_a_failure_of_a_calculator_without_reset_is_not_a_number():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = Shifted(Failing(), {})
    assert np.isnan(atoms.get_forces()).all()
    assert np.isnan(atoms.get_potential_energy())


def test_a_network_is_no_calculator():
    with pytest.raises(ValueError, match="mace is a network"):
        calculated.of("mace", "copper_emt")


def test_shifts_are_those_of_the_elements():
    frames = [bulk("Cu"), bulk("NiAl", "cesiumchloride", a=2.9), bulk("Al")]
    for atoms, energy in zip(frames, (1.0, 5.0, 3.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    found = calculated.fit_shifts(frames, np.zeros(3))
    assert found == {13: pytest.approx(3), 28: pytest.approx(2), 29: pytest.approx(1)}


def test_weights_of_a_package_are_compared_before_they_are_loaded(copper, tmp_path, monkeypatch):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "__init__.py").write_text("from ase.calculators.emt import EMT\n")
    (folder / "net.pth").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    facts = {"Weights": "published/net.pth", "SHA-256": hashlib.sha256(b"weights").hexdigest()}
    path = write_card(tmp_path, EMT_CARD, calculator="published.EMT", facts=facts)
    assert calculated.of(path, copper).make().implemented_properties
    (folder / "net.pth").write_bytes(b"others")
    monkeypatch.setattr(calculated.Calculated, "make", None)
    with pytest.raises(ValueError, match=r"net\.pth is not the file of weights that the card of own_emt"):
        fit(TrainConfig(path, copper))
    (folder / "net.pth").unlink()
    with pytest.raises(ValueError, match="install published anew"):
        calculated.of(path, copper)
