"""What a training depends on: data, hyperparameters, network; and whether committed ones are up to date."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from ase.build import molecule

from egraff_utils import accuracy, calculated, campaign, cards, data, models, paths, records, train
from egraff_utils.graph import build_graph

ENERGIES = Path(__file__).parent / "network_energies.json"


def energy(name):
    """Energy of a distorted ethanol by a network of preset tiny with weights of seed 0, without unit."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    torch.manual_seed(0)
    ff = models.build(name, "tiny", dtype=torch.float64).eval()
    return ff(build_graph(atoms, ff.cutoff)).energy.item()


@pytest.mark.parametrize("name", models.NAMES)
def test_networks_give_the_energies_that_records_were_made_with(name):
    stored, found = json.loads(ENERGIES.read_text()), energy(name)
    assert name in stored, f"{name} is new: write its energy to {ENERGIES.name}, {json.dumps({name: found})}"
    assert found == pytest.approx(stored[name], rel=1e-6), (
        f"{name} gives another energy for the same seed. If that is meant, raise `version` in its card, by "
        f"which trainings are made anew, and write the new energy to {ENERGIES.name}"
    )


def committed(calculators):
    found = sorted((paths.ROOT / "results").glob("*/training/*-s?.json"))
    asked = [path for path in found if cards.is_calculator(records.load(path).model) == calculators]
    return [pytest.param(path, id=f"{path.parts[-3]}/{path.stem}") for path in asked]


@pytest.mark.parametrize("path", committed(calculators=True))
def test_committed_errors_of_calculators_are_those_of_the_cards_of_today(path):
    """Versions are those of the record: packages of calculators are not all installed with the book."""
    record = records.load(path)
    made = record.provenance["calculator"]
    subject = calculated.of(record.model, record.dataset)
    today = subject.specification()
    assert {**made, "versions": None} == {**today, "versions": None}
    inputs = {"data": data.digest(cards.dataset(record.dataset)), "calculator": records.digest(made)}
    assert record.parameters["inputs"] == inputs | ({"frames": subject.frames} if subject.frames else {})


@pytest.mark.parametrize("path", committed(calculators=False))
def test_committed_trainings_are_those_of_today(path):
    record = records.load(path)
    cell = record.dataset, record.model, record.seed
    asked = {name: value for name, value in record.parameters.items() if name not in ("model", "inputs")}
    if record.campaign in campaign.names() and cell in campaign.load(record.campaign).cells():
        asked = campaign.load(record.campaign).training_parameters(*cell)
        asked.pop("model", None)
    config = train.TrainConfig(record.model, **{"campaign": record.campaign, **asked})
    assert record.parameters == config.parameters()


@pytest.fixture
def card(tmp_path):
    (tmp_path / "mine.xyz").write_text("frames")
    splits = {name: cards.Split([cards.Part("all", text)]) for name, text in SLICES.items()}
    files = {"all": cards.SourceFile("mine.xyz"), "more": cards.SourceFile("more.xyz")}
    fixed = {"system": "molecule", "elements": [1, 8], "temperature": 300, "timestep": 1, "reader": "extxyz"}
    return cards.DatasetCard("mine", splits=splits, files=files, folder=tmp_path, **fixed)


SLICES = {"train": ":4", "val": "4:6", "test": "6:"}


def test_the_digest_of_a_dataset_is_that_of_what_determines_its_frames(card, tmp_path):
    digest = data.digest(card)
    more = {"scan": cards.Split([cards.Part("more")])}
    shown = {"title": "Mine", "notes": ["new"], "temperature": 500, "splits": card.splits | more}
    for name, value in shown.items():
        assert data.digest(dataclasses.replace(card, **{name: value})) == digest, name
    units = {"energy": "Hartree", "length": "Å"}
    longer = card.splits | {"train": cards.Split([cards.Part("all", ":3")])}
    used = {"units": units, "splits": longer, "reader": "npz", "reference_energies": {1: -13.6}}
    for name, value in used.items():
        assert data.digest(dataclasses.replace(card, **{name: value})) != digest, name
    known = cards.SourceFile("mine.xyz", hash=data.file_hash(tmp_path / "mine.xyz"))
    assert data.digest(dataclasses.replace(card, files={"all": known})) == digest
    (tmp_path / "mine.xyz").write_text("other frames")
    assert data.digest(card) != digest


def test_the_spelling_of_a_path_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "mine.xyz").write_text("frames")
    (tmp_path / "mine.yml").write_text(
        "name: mine\nsystem: molecule\nelements: [1]\ntemperature: 300\ntimestep: 1\nfiles: {all: mine.xyz}\n"
        "splits: {train: all, val: all, test: all}\n"
    )
    monkeypatch.chdir(tmp_path)
    spellings = [tmp_path / "mine.yml", "mine.yml", "./mine.yml", f"../{tmp_path.name}/mine.yml", "mine"]
    configs = [train.TrainConfig("mace", str(spelling)) for spelling in spellings]
    assert len({(config.key, json.dumps(config.parameters())) for config in configs}) == 1
    assert {str(accuracy.TransferConfig("mace", "ethanol", target=str(s)).kind) for s in spellings} == {
        "errors_mine"
    }


def test_the_digest_of_a_made_dataset_is_that_of_its_recipe(monkeypatch):
    monkeypatch.setattr(data, "fetch", None)
    card = cards.dataset("copper_emt")
    digest = data.digest(card)
    assert data.digest(dataclasses.replace(card, temperature=card.temperature + 1)) != digest
    assert data.digest(dataclasses.replace(card, generate={**card.generate, "seed": 99})) != digest


def test_hyperparameters_enter_by_their_values():
    def digest(**changes):
        return train.TrainConfig("mace", "ethanol", **changes).parameters()["inputs"]["hyperparameters"]

    assert digest(training={"batch_size": 3}) != digest(network={"num_channels": 3}) != digest()
    rate = models.card("mace").training("small").learning_rate
    assert digest(training={"learning_rate": rate}) == digest()


CODE = """
import torch
WIDTH = 3
class Net(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
    def forward(self, graph, vectors):
        return [vectors.norm() for _ in range(2)]
    @property
    def range(self):
        return 5.0
def build_network(elements, *, cutoff, act=torch.relu):
    return Net(WIDTH)
"""
EDITS = [("WIDTH = 3", "WIDTH = 4"), ("range(2)", "range(3)"), ("return 5.0", "return 6.0"), ("relu", "tanh")]


@pytest.mark.parametrize("edit", EDITS)
def test_a_network_typed_in_a_notebook_is_known_by_all_it_uses(edit, monkeypatch):
    monkeypatch.setattr(models, "_registered", {})

    def version(code):
        names = {"__name__": "notebook"}
        exec(code, names)
        models.register("mine", names["build_network"], cards.model("mace"))
        return models.version("mine")

    assert version(CODE) == version("# a comment\n\n" + CODE)
    assert version(CODE) != version(CODE.replace(*edit))


@pytest.mark.parametrize("name", ["mace", "emt", "so3lr_tuned", "reference"])
def test_a_model_of_the_project_is_not_shadowed(name, monkeypatch):
    monkeypatch.setattr(models, "_registered", {})
    with pytest.raises(ValueError, match=f"the name '{name}' is taken by a model of the project; give yours"):
        models.register(name, lambda elements: None, cards.model("mace"))
    assert not models._registered
