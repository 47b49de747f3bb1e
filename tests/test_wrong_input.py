"""Do mistakes end in one line that names the thing and the remedy, before anything is lost?"""

import re

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import campaign, cards
from egraff_utils.__main__ import main

CARD = """name: w
system: molecule
elements: [1, 8]
temperature: 300
timestep: 0.5
files: {all: w.xyz}
splits:
  train: {source: all, slice: ":10"}
  val: {source: all, slice: "10:15"}
  test: {source: all, slice: "15:"}
"""
CAMPAIGN = "description: d\ndatasets: [w.yml]\nmodels: [mace]\n"


def _water(seed):
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(30):
        atoms = molecule("H2O")
        atoms.positions += 0.03 * rng.normal(size=(3, 3))
        forces = rng.normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal() - 10, forces=forces)
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a card, its frames and a model that is trained on them."""
    folder = tmp_path_factory.mktemp("wrong")
    ase.io.write(folder / "w.xyz", _water(0), format="extxyz")
    (folder / "w.yml").write_text(CARD)
    with pytest.MonkeyPatch.context() as patch:
        _at(folder, patch)
        assert main(["train", "mace", "w.yml", "--preset", "tiny", "--max-steps", "1"]) == 0
    return folder


def _at(folder, patch):
    patch.chdir(folder)
    patch.setattr(cards, "_registered", {})
    for variable in ("RESULTS", "RUNS"):
        patch.setenv(f"EGRAFF_{variable}", str(folder / variable.lower()))


@pytest.fixture
def place(trained, monkeypatch):
    """The folder, which must be the same after a mistake."""
    _at(trained, monkeypatch)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    yield trained
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in {path for path in trained.rglob("*") if path.is_file()} - before.keys():
        path.unlink()


def _told(words, capsys):
    """The one line that a command ends with, whose status is not 0."""
    capsys.readouterr()
    assert main(words) in (1, 2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(("error: ", "Error: "))
    return line


VERBS = {
    "rollout": ["rollout", "mace", "w.yml", "--steps", "4", "--replicas", "2"],
    "evaluate": ["evaluate", "mace", "w.yml"],
    "gate": ["gate", "mace", "w.yml"],
}
OPTIONS = {
    "--campaign=": "'' is no name of a campaign",
    "--campaign=../x": "'../x' is no name of a campaign",
    "--campaign=my runs": "'my runs' is no name of a campaign",
    "--campaign=none": "Train it first: egraff train mace",
    "--device=gpu": "'gpu' is no device; write cpu, cuda or",
    "--device=cuda:99": "there is no device cuda:99",
    "--seed=-1": "seed must not be negative",
    "--seed=7": "--campaign mine --seed 7",
    f"--seed={10**30}": "seed must be 4294967295 at most",
    "--seed=x": "not a valid integer",
    "--threads=0": "threads must be positive",
    "--split=tst": "did you mean 'test'?",
    "--sede=1": "--seed",
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_makes_no_sense_is_refused(place, verb, option, capsys):
    assert OPTIONS[option] in _told([*VERBS[verb], option], capsys)


ROLLOUTS = {
    "--temperature=1e300": "temperature must be 100000 at most",
    "--temperature=nan": "temperature must be positive and finite",
    "--steps=0": "steps must be positive",
    "--steps=1000000000000": "steps must be 1e+08 at most",
    "--steps=many": "not a valid integer",
    "--max-seconds=nan": "max_seconds must be positive",
    "--replicas=99": "w/test: 99 replicas need as many frames; test has 15; ask for fewer",
    "--target=benzen": "did you mean 'benzene'?",
    "--target=absent.yml": "absent.yml; correct its path",
}


@pytest.mark.parametrize("option", ROLLOUTS)
def test_a_rollout_that_makes_no_sense_is_refused(place, option, capsys):
    assert ROLLOUTS[option] in _told([*VERBS["rollout"], option], capsys)


@pytest.mark.data
@pytest.mark.parametrize("verb", ["rollout", "evaluate"])
def test_frames_of_other_elements_are_refused(place, verb, capsys):
    told = "not trained on C; it knows H, O. Take frames of these elements"
    assert told in _told([*VERBS[verb], "--target=ethanol"], capsys)


NAMES = {
    ("mase", "w.yml"): "did you mean 'mace'?",
    ("my mace", "w.yml"): "'my mace' is no name of a model",
    ("absent.yml", "w.yml"): "absent.yml; correct its path",
    ("nequip", "w.yml"): "Train it first: egraff train nequip",
    ("reference", "w.yml"): "its card has no oracle",
    ("mace", "absent.yml"): "absent.yml; correct its path",
    ("mace", "w.xyz"): "`egraff data check FILE --write-card` writes the card",
    ("mace", "watr"): "unknown dataset 'watr'",
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_name_of_nothing_is_refused(place, verb, names, capsys):
    assert NAMES[names] in _told([verb, *names], capsys)


def _weights(folder):
    return folder / "results" / "mine" / "training" / "w-mace-s0.safetensors"


def _other_schema(folder):
    path = _weights(folder).with_suffix(".json")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))


SPOILED = {
    "edited frames": (
        lambda folder: ase.io.write(folder / "w.xyz", _water(1), format="extxyz"),
        "the frames of its dataset, or their card, have changed since. Train it first: egraff train mace",
    ),
    "edited card": (
        lambda folder: (folder / "w.yml").write_text(CARD.replace(":10", ":9", 1)),
        "have changed since. Train it first",
    ),
    "no frames": (lambda folder: (folder / "w.xyz").write_bytes(b""), "it holds no frames; put them back"),
    "no file": (lambda folder: (folder / "w.xyz").unlink(), "w.xyz is not available"),
    "no split": (
        lambda folder: (folder / "w.yml").write_text(CARD.replace("test:", "hot:")),
        "unknown split of w 'test'",
    ),
    "empty weights": (
        lambda folder: _weights(folder).write_bytes(b""),
        "is not the file that its record was written with. Train it first",
    ),
    "no weights": (lambda folder: _weights(folder).unlink(), "is missing, which its record was written with"),
    "no record": (
        lambda folder: _weights(folder).with_suffix(".json").unlink(),
        "has no record; its training was killed. Train it first",
    ),
    "torn record": (
        lambda folder: _weights(folder).with_suffix(".json").write_bytes(b"\xff{"),
        "holds no record",
    ),
    "record of another version": (_other_schema, "use the version of egraff-utils that wrote it, or delete"),
}


@pytest.mark.parametrize("fault", SPOILED)
@pytest.mark.parametrize("verb", VERBS)
def test_what_was_spoiled_after_a_training_is_told(place, verb, fault, capsys):
    spoil, told = SPOILED[fault]
    spoil(place)
    assert told in _told(VERBS[verb], capsys)


CAMPAIGNS = {
    "budget: long": "mine.yml:4: budget: 'long' is no time; write 90s, 25m, 1h30m or 2d",
    "budget: 0m": "mine.yml:4: budget: '0m' is no time",
    "models: [nequip]": "mine.yml:4: the key models is given twice, first in line 3",
    "name: my runs": "mine.yml:4: name: 'my runs' is no name",
    "training: {max_seconds: .nan}": "mine.yml:4: training.max_seconds: must be a number",
    "training: {max_seconds: 1:30}": "mine.yml:4: max_seconds: YAML reads 1:30 in base 60",
    "seeds: [0.5]": "mine.yml:4: seeds.0: must be a whole number",
    "seeds: [1e30]": "mine.yml:4: seeds.0: input should be less than or equal to 4294967295",
    "rollout: {temperature: 300}": "mine.yml:4: unknown key 'temperature'",
    "rollout: {replicas: 99}": "w/test: 99 replicas need as many frames",
    "ood: {hot: [w]}": "unknown task in notebooks/ood 'hot'",
    "ood: {mine: {datasets: [w], target: t.yml}}": "t.yml; correct its path",
    "overrides: {w.yml: {seeds: [1]}}": "unknown dataset in the overrides of campaign mine 'w.yml'",
}
DATASETS = {
    "w.xyz": "`egraff data check FILE --write-card` writes the card",
    "absent.yml": "absent.yml; correct its path",
    "mine.yml": "unknown key 'description'",
    "w.yml, ./w.yml": "campaign mine has two datasets of the name w",
    "gone.yml": "gone.xyz is not available",
    "null": "datasets.0: must be text, not empty",
}


@pytest.mark.parametrize("more", [*CAMPAIGNS, *DATASETS])
def test_a_campaign_that_cannot_run_is_refused_before_anything_runs(place, more, capsys):
    text = CAMPAIGN.replace("w.yml", more) if more in DATASETS else f"{CAMPAIGN}{more}\n"
    (place / "mine.yml").write_text(text)
    (place / "gone.yml").write_text(CARD.replace("w.xyz", "gone.xyz").replace("name: w", "name: gone"))
    assert (CAMPAIGNS | DATASETS)[more] in _told(["campaign", "run", "mine.yml"], capsys)
    assert not list(place.rglob("*.ipynb"))


@pytest.mark.parametrize("text", ["", "[1", "a: 1", "jobs: many\nbudgets: {w: {training: {max_steps: x}}}"])
def test_a_file_that_is_no_plan_is_named(place, text):
    (place / "mine.yml").write_text(CAMPAIGN)
    path = campaign.plan_path("mine")
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is no plan of the campaign; delete it"):
        campaign.load("mine.yml")
