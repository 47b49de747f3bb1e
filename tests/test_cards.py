"""Are cards and campaigns read by the types of their fields, and is a mistake one clear error?"""

import re
import typing

import pytest
import yaml

from egraff_utils import campaign, cards, paths, readers, records, schema
from egraff_utils.config import Key
from egraff_utils.report import titles

CARD = """name: w
system: molecule
elements: [1, 8]
temperature: 300
timestep: 0.5
files: {all: w.xyz}
splits:
  train: {source: all, slice: ":4"}
  test: {source: all, slice: "4:"}
"""
CAMPAIGN = "description: x\ndatasets: [ethanol]\nmodels: [mace]\n"


def card(folder, old="", new=""):
    assert old in CARD
    path = folder / "w.yml"
    path.write_text(CARD.replace(old, new) if old else new)
    return cards.dataset(path)


def own_campaign(folder, more):
    path = folder / "mine.yml"
    path.write_text(CAMPAIGN + more)
    return campaign.load(path)


@pytest.mark.parametrize("name", ["007", "1e3", "2025", "2024-05-01", "on", "no", "1_0", "0x10", "true"])
def test_a_name_is_text_whatever_it_looks_like(tmp_path, name):
    assert card(tmp_path, "name: w", f"name: {name}").name == name
    assert own_campaign(tmp_path, f"name: {name}").name == name
    assert own_campaign(tmp_path, f"name: '{name}'").name == name


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("1.5e+2", 150), (".5", 0.5), ("'300'", 300)])
def test_a_number_is_a_number_however_it_is_written(tmp_path, text, value):
    assert card(tmp_path, "300", text).temperature == value
    assert own_campaign(tmp_path, f"training: {{max_seconds: {text}}}").training.max_seconds == value
    overrides = f"overrides: {{ethanol: {{training: {{max_seconds: {text}}}}}}}"
    given = own_campaign(tmp_path, overrides).training_parameters("ethanol", "mace", 0)["max_seconds"]
    assert given == value


def test_whole_numbers_of_steps_may_have_an_exponent(tmp_path):
    steps = own_campaign(tmp_path, "rollout: {steps: 1e3}").rollout.steps
    assert steps == 1000
    assert isinstance(steps, int)
    with pytest.raises(ValueError, match=r"mine.yml:4: rollout.steps: must be a whole number, not 1.5"):
        own_campaign(tmp_path, "rollout: {steps: 1.5}")


RECIPE = "seed: 1, lattice_constant: 3.6, stages: [{frames: 1, stride: 1, friction: 0.01}]"
MISTAKES = [
    ("name: w", "name: ../../evil", "w.yml:1: name: '../../evil' is no name; use letters, digits, - and _"),
    ("name: w", "name: water/ice", "w.yml:1: name: 'water/ice' is no name"),
    ("name: w", "name:", "w.yml:1: name: must be text, not empty"),
    ("name: w", "nam: w", "w.yml:1: unknown key 'nam'; did you mean 'name'?"),
    ("name: w\n", "", "w.yml: name is missing"),
    ("name: w", "name: w\nname: v", "w.yml:2: the key name is given twice, first in line 1"),
    ("name: w", "name: w\nfolder: /", "unknown key 'folder'"),
    ("name: w", "name: !!python/name:os.system x", "w.yml:1: could not determine a constructor"),
    ("[1, 8]", "[H, O]", "w.yml:3: elements.0: 'H' is a symbol; write its atomic number, 1"),
    ("[1, 8]", "1", "w.yml:3: elements: must be a list, such as [a, b], not '1'"),
    ("[1, 8]", "[]", "w.yml:3: elements: must be longer, not []"),
    ("[1, 8]", "[1, 0]", "w.yml:3: elements.1: input should be greater than or equal to 1, not '0'"),
    ("300", "-1", "w.yml:4: temperature: input should be greater than 0, not '-1'"),
    ("300", ".nan", "w.yml:4: temperature: must be a number, not '.nan'"),
    ("0.5", "-0.5", "w.yml:5: timestep: input should be greater than 0"),
    ("molecule", "molecul", "w.yml:2: system: unknown value 'molecul'; did you mean 'molecule'?"),
    ("w.xyz", "/etc/passwd", "w.yml:6: files.all: '/etc/passwd' must lie in the folder of the card"),
    ("w.xyz", "../w.xyz", "w.yml:6: files.all: '../w.xyz' must lie in the folder of the card"),
    ("w.xyz", "https://x.org/w.xyz", "w.yml:6: files.all: 'https://x.org/w.xyz' is an address; write"),
    ("w.xyz", "{path: w.xyz, hash: abc}", "w.yml:6: files.all.hash: 'abc' is no hash"),
    ("w.xyz", "{path: w.xyz, url: 'file:///w'}", "w.yml:6: files.all.url: 'file:///w' is no address"),
    ("w.xyz", "w.dat", "w.yml:6: files.all: its ending does not tell how it is read; name a reader"),
    ('":4"', "10:20", 'w.yml:8: slice: YAML reads 10:20 in base 60; write "10:20"'),
    ('":4"', '"::0"', "w.yml:8: splits.train.slice: '::0' is no slice"),
    ("w.xyz", "~/w.xyz", "w.yml:6: files.all: '~/w.xyz' must lie in the folder of the card"),
    ('":4"', "5", "w.yml:8: splits.train.slice: '5' is no slice; write \"start:stop\""),
    ('source: all, slice: ":4"', "source: al", "w.yml:8: splits.train: unknown source of w 'al'; did"),
    ("splits:", "splits: [a]\nmore:", "w.yml:8: unknown key 'more'"),
    ("timestep", "time_ordered: {tset: 1}\ntimestep", "w.yml:5: time_ordered.tset: unknown split of w"),
    ("timestep", "cell: [1, 2, 3]\ntimestep", "w.yml:5: cell.0: must be a list"),
    ("timestep", "units: {energy: kcal}\ntimestep", "unknown unit 'kcal'; did you mean 'kcal/mol'?"),
    ("timestep", "generate: {bulk: Cu}\ntimestep", "w.yml:5: generate: the recipe: seed is missing"),
    ("timestep", f"generate: {{{RECIPE}, bulk: Cu}}\ntimestep", "repeat is missing, which bulk needs"),
    ("timestep", f"generate: {{{RECIPE}}}\ntimestep", "give one of structure, molecule and bulk"),
    ("timestep", f"generate: {{{RECIPE}, molecul: H2O}}\ntimestep", "'molecul'; did you mean 'molecule'?"),
    ("timestep", "oracle: {calculator: os}\ntimestep", "w.yml:5: oracle: "),
    ("", "", "w.yml is empty"),
    ("", "a: [1", "w.yml:1: expected ',' or ']'"),
    ("", "- a", "w.yml:1: must hold lines of the form `key: value`"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES, ids=lambda text: text[:30])
def test_a_mistake_in_a_card_is_one_line_with_file_line_and_remedy(tmp_path, old, new, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        card(tmp_path, old, new)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


CAMPAIGN_MISTAKES = {
    "name: x$(id)": "mine.yml:4: name: 'x$(id)' is no name",
    "training: {max_second: 1}": "unknown key 'max_second'; did you mean 'max_seconds'?",
    "training: {max_steps: 0}": "mine.yml:4: training.max_steps: input should be greater than or equal to 1",
    "rollout: {protocols: [coded]}": "rollout.protocols.0: unknown value 'coded'; did you mean 'as_coded'?",
    "overrides: {ethanol: {trainin: {}}}": "unknown key 'trainin'; did you mean 'training'?",
    "overrides: {ethanol: {rollout: {steps: many}}}": "overrides of ethanol: steps: must be a whole number",
    "overrides: {lips: {seeds: [1]}}": "unknown dataset in the overrides of campaign mine 'lips'",
    "preset: smal": "unknown preset of mace 'smal'; did you mean 'small'?",
    "seeds: 3": "mine.yml:4: seeds: must be a list",
    "seeds: [-1]": "mine.yml:4: seeds.0: input should be greater than or equal to 0",
    "device: tpu": "mine.yml:4: device: 'tpu' is no device; write cpu, cuda or",
    "seeds: [0, 1, 0]": "mine.yml:4: seeds: 0 is given twice",
    "checks: {gate: [ethanol, ethanol]}": "mine.yml:4: checks.gate: ethanol is given twice",
    "rollout: {protocols: [corrected, corrected]}": "rollout.protocols: corrected is given twice",
    "overrides: {ethanol: {seeds: [1, 1]}}": "overrides.ethanol.seeds: 1 is given twice",
}


@pytest.mark.parametrize("more", CAMPAIGN_MISTAKES)
def test_a_mistake_in_a_campaign_is_one_line(tmp_path, more):
    with pytest.raises(ValueError, match=re.escape(CAMPAIGN_MISTAKES[more])) as error:
        own_campaign(tmp_path, more)
    assert "\n" not in str(error.value)


def test_a_plan_changes_budgets_and_nothing_else(tmp_path):
    own = own_campaign(tmp_path, "overrides: {ethanol: {seeds: [3, 4], rollout: {steps: 9}}}")
    plan = {"jobs": 3, "budgets": {"ethanol": {"training": {"max_seconds": 5.0}}}}
    planned = campaign._planned(own, plan)
    assert (planned.cells(), planned.jobs) == (own.cells(), 3)
    assert planned.training_parameters("ethanol", "mace", 3)["max_seconds"] == 5
    assert planned.rollout_parameters("ethanol", "mace", 3, "corrected")["steps"] == 9


def test_a_record_stays_in_the_folder_of_results():
    with pytest.raises(ValueError, match="'../x' is no name of a campaign; use letters"):
        _ = Key("training", "../x", "ethanol", "mace").path


def test_no_two_runs_have_one_record():
    """Dataset a-b with model c, and dataset a with model b-c: the second is refused."""
    assert Key("training", "mine", "a-b", "c").path.name == "a-b-c-s0.json"
    with pytest.raises(ValueError, match="'b-c' is no name of a model, as names of records are divided at -"):
        _ = Key("training", "mine", "a", "b-c").path


def test_a_split_may_be_a_list_of_sources(tmp_path):
    found = card(tmp_path, 'files: {all: w.xyz}\nsplits:\n  train: {source: all, slice: ":4"}',
                 "files: {all: w.xyz, more: v.traj}\nsplits:\n  train: [all, more]")  # fmt: skip
    assert [part.source for part in found.split("train").parts] == ["all", "more"]
    assert [found.reader_of(key) for key in found.files] == ["extxyz", "ase"]


def test_files_of_the_project_read_as_before():
    folder = paths.ROOT
    for path in [*folder.glob("egraff_utils/cards/*/*.yml"), *folder.glob("params/*.yml")]:
        assert repr(schema.guess(schema.read(path))) == repr(yaml.safe_load(path.read_text())), path.name


@pytest.mark.parametrize(("cls", "page"), [(cards.DatasetCard, "add_dataset"), (campaign.Campaign, "run")])
def test_the_book_lists_all_keys_with_a_description(cls, page):
    table = schema.reference(cls)
    assert not re.search(r"\|\s*\|$", table, re.MULTILINE), "a key without a description"
    keys = {field.name for field in schema.shown_fields(cls)}
    assert keys <= set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    text = (paths.ROOT / "book" / f"{page}.md").read_text()
    assert table in text, "run python -m egraff_utils.campaign, which writes the tables of keys"


def test_the_book_says_what_each_reader_wants():
    text = (paths.ROOT / "book" / "add_dataset.md").read_text()
    assert set(cards.READERS) == set(typing.get_args(cards.Reader)) == {*readers.READERS}
    for name, wants in cards.READERS.items():
        assert f"| `{name}` | {wants} |" in text, "run python -m egraff_utils.campaign"
    known = {name for names in readers.NAMES.values() for name in names} | {"cell", "pbc", "masses"}
    assert set(re.findall(r"`(\w+)`", cards.READERS["npz"])) <= known
    roles = set(re.findall(r"`(\w+)(?:\.\w+)?`", cards.READERS["deepmd"]))
    assert roles == {"type", "type_map", "box", "coord", "energy", "force", "virial", "nopbc"}


def test_hyperparameters_given_as_text_have_the_types_of_their_fields():
    texts = {"learning_rate": "1e-3", "amsgrad": "off", "max_epochs": "2e3"}
    found = cards.model("mace").training("small", **{k: schema.Plain(v) for k, v in texts.items()})
    assert (found.learning_rate, found.amsgrad, found.max_epochs) == (0.001, False, 2000)


def forget(monkeypatch):
    """No card has been read, as in a new process."""
    for name in ("_registered", "_dataset_files"):
        monkeypatch.setattr(cards, name, {})
    cards._shipped.cache_clear()


def test_a_card_is_kept_with_the_first_record_of_its_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    forget(monkeypatch)
    card(tmp_path, new=f"{CARD}title: Water\n")
    for model in ("mace", "nequip"):
        records.write(records.Record("training", "mine", "w", model, 0))
    assert [path.name for path in (tmp_path / "results" / "mine").glob("*.yml")] == ["w.card.yml"]
    forget(monkeypatch)
    (tmp_path / "w.yml").unlink()
    assert titles.dataset_title("w") == "Water"
    assert cards.dataset("w").elements == [1, 8]


def test_a_broken_file_hides_no_other_card(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    forget(monkeypatch)
    card(tmp_path, new=CARD)
    cards.keep("mine", "w")
    (tmp_path / "results" / "other").mkdir()
    (tmp_path / "results" / "other" / "torn.yml").touch()
    forget(monkeypatch)
    assert cards.dataset("w").elements == [1, 8]
    with pytest.raises(ValueError, match=r"unknown dataset 'v'.* is broken: .*torn.yml is empty"):
        cards.dataset("v")
