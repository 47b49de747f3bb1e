"""Do single commands do what they say, and are names completed?"""

from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from click.shell_completion import BashComplete

from egraff_utils import cards, records
from egraff_utils.__main__ import egraff, main
from egraff_utils.running import batch

CARD = {"name": "own_cu", "system": "bulk", "elements": [29], "temperature": 300, "timestep": 2}
CARD |= {"files": {"all": "cu.xyz"}, "splits": {"train": ":8", "val": "8:10", "test": "10:"}}


@pytest.fixture
def copper(tmp_path, monkeypatch):
    """Path of the card of some frames of copper, labelled by EMT."""
    for variable in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    monkeypatch.setattr(cards, "_registered", {})
    frames = []
    for seed in range(14):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **found)
        frames.append(atoms)
    write(tmp_path / "cu.xyz", frames)
    splits = {name: {"source": "all", "slice": part} for name, part in CARD["splits"].items()}
    (tmp_path / "cu.yml").write_text(yaml.safe_dump(CARD | {"splits": splits}))
    return str(tmp_path / "cu.yml")


def test_errors_of_a_model_are_taken_on_a_split(copper, capsys):
    assert main(["train", "emt", copper]) == 0
    assert main(["evaluate", "emt", copper, "--split", "val"]) == 0
    assert "errors_val mine/own_cu-emt-s0, complete" in capsys.readouterr().out
    (record,) = [record for record in records.read_all("mine") if record.kind == "errors_val"]
    assert record["force_mae"] == pytest.approx(0, abs=1e-3)
    assert main(["evaluate", "emt", copper, "--split", "vall"]) == 2
    assert "did you mean 'val'?" in capsys.readouterr().err


def test_datasets_are_fetched_ahead(copper, tmp_path, capsys):
    assert main(["data", "fetch", copper]) == 0
    assert capsys.readouterr().out == f"own_cu: {tmp_path / 'cu.xyz'}\n"
    assert main(["data", "fetch", copper, "etanol"]) == 2
    assert not capsys.readouterr().out, "a wrong name is told before any download"


COMPLETED = [
    (["run"], "yours/d", ["yours/dataset"]),
    (["pages"], "report/lead", ["report/leaderboard"]),
    (["rollout", "mace", "acac", "--split"], "test_6", ["test_600K"]),
    (["evaluate", "mace", "ethanol", "--target", "lips20", "--split"], "cry", ["crystals"]),
    (["data", "fetch", "lips"], "lips2", ["lips20", "lips20_stress"]),
    (["gate", "mace", "unheard-of", "--split"], "t", []),
]


@pytest.mark.parametrize(("words", "start", "names"), COMPLETED)
def test_names_are_completed(words, start, names):
    complete = BashComplete(egraff, {}, "egraff", "_EGRAFF_COMPLETE")
    assert [item.value for item in complete.get_completions(words, start)] == names


def _frames(kind):
    """Frames of copper that no rollout of five replicas can start from, and what is said of them."""
    frames = []
    for seed in range(14):
        atoms = bulk("Cu") if kind == "small cell" else bulk("Cu", cubic=True)
        atoms = atoms.repeat(2) if kind == "mixed" and seed == 13 else atoms
        atoms.rattle(0.05, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=0.1 * seed, forces=atoms.positions)
        frames.append(atoms)
    return frames


REFUSED = {
    "few": "own_cu/test: 5 replicas need as many frames; test has 4; ask for fewer replicas",
    "mixed": "own_cu/test: frame 5 is Cu32, not Cu4",
    "small cell": "own_cu/test: no two atoms are within 0.8 Å, up to which g(r) is compared",
}


def _unfit(kind, card):
    """Write frames of a kind into the file of a card; all but the few are enough for five replicas."""
    write(card.with_name("cu.xyz"), _frames(kind))
    if kind != "few":
        card.write_text(card.read_text().replace("'10:'", "'8:'").replace("8:10", "7:8"))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_rollout_can_start_from_is_told_before_a_training(copper, kind, tmp_path, capsys):
    _unfit(kind, Path(copper))
    campaign = tmp_path / "mine.yml"
    campaign.write_text("description: d\ndatasets: [cu.yml]\nmodels: [mace]\ntraining: {max_steps: 1}\n")
    alone = [] if kind == "small cell" else [["rollout", "mace", copper]]  # which needs no levels
    for words in [*alone, ["campaign", "run", str(campaign)]]:
        assert main(words) == 2
        assert REFUSED[kind] in capsys.readouterr().err
    assert main(["data", "check", copper]) == 0
    assert REFUSED[kind] in capsys.readouterr().out
    assert not list((tmp_path / "results").rglob("training"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["rollout", "shift"])
def test_notebooks_tell_it_before_a_training_too(copper, notebook, tmp_path):
    _unfit("mixed", Path(copper))
    asked = {"dataset": copper} | ({"target": "copper_emt"} if notebook == "shift" else {})
    with pytest.raises(RuntimeError, match="own_cu/test: frame 5 is Cu32"):
        batch.execute(batch.located(f"yours/{notebook}"), tmp_path / "r.ipynb", parameters=asked, quiet=True)
    assert not list((tmp_path / "results").rglob("training"))
