"""Records: whole or not at all, found by their parameters, read as one table."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest

from egraff_utils import accuracy, campaign, paths, records, train
from egraff_utils.checks import gate, horizon
from egraff_utils.config import Key, Kind
from egraff_utils.md import rollout
from egraff_utils.records import Metric, Record
from egraff_utils.running import cost, timing

KEY = {"campaign", "dataset", "model", "seed"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    return tmp_path


def make(**changes):
    metrics = [Metric("force_mae", 12.5, "meV/Å", low=11.0, high=14.0, n=5)]
    return Record(
        **{
            "kind": "training",
            "campaign": "demo",
            "dataset": "ethanol",
            "model": "mace",
            "seed": 0,
            "parameters": {"max_seconds": 20},
            "metrics": metrics,
        }
        | changes
    )


def test_a_record_comes_back_as_written(results):
    path = records.write(make(), {"step": np.arange(3)})
    assert path == results / "demo" / "training" / "ethanol-mace-s0.json"
    again = records.load(path)
    np.testing.assert_array_equal(again.curves["step"], [0, 1, 2])
    assert again.provenance.pop("files") == {".npz": records.digest(path.with_suffix(".npz"))}
    assert again == make()
    assert again["force_mae"] == 12.5


def test_curves_of_replicas_keep_twelve_bits(results, tmp_path):
    draws = np.random.default_rng(0)
    curves = {
        "time": np.linspace(0, 500, 1001),
        "fv": draws.uniform(1e-4, 1, (5, 1000)),
        "energy": -17660 + draws.normal(size=(5, 1000)),
        "last_energy": -17660 + draws.normal(size=(5, 10)),
        "broken": np.array([[1, 2]]),
        "ended": np.array([[0.5, np.nan], [np.inf, 0.0]]),
        "energy_flat": np.full((2, 3), -7.3),
    }
    found = records.load(records.write(make(), curves))
    stored = found.curves
    assert (stored["time"] == curves["time"]).all()
    assert stored["broken"].dtype == curves["broken"].dtype
    assert stored["fv"].dtype == np.float32
    assert np.abs(stored["fv"] / curves["fv"] - 1).max() < 2**-12
    assert np.abs(stored["energy"] - curves["energy"]).max() < 1e-6
    assert np.abs(stored["last_energy"] - curves["last_energy"]).max() < 1e-6
    assert np.abs(stored["energy_flat"] + 7.3).max() < 1e-6
    assert np.array_equal(stored["ended"], curves["ended"].astype(np.float32), equal_nan=True)
    np.savez_compressed(tmp_path / "plain.npz", **curves)
    assert found.path.with_suffix(".npz").stat().st_size < 0.6 * (tmp_path / "plain.npz").stat().st_size


def test_a_record_is_found_only_with_its_parameters():
    records.write(make())
    key = Key("training", "demo", "ethanol", "mace")
    assert records.find(key, {"max_seconds": 20}) is not None
    assert records.find(key, {"max_seconds": 21}) is None
    assert records.find(Key("training", "demo", "ethanol", "nequip"), {"max_seconds": 20}) is None


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (train.TrainConfig, {"campaign", "compile", "device", "threads", "progress"}),
        (rollout.RolloutConfig, KEY | {"target", "skin", "keep", "device", "threads", "progress"}),
        (gate.GateConfig, KEY | {"device", "threads"}),
        (horizon.HorizonConfig, KEY | {"device", "threads", "progress"}),
        (accuracy.TransferConfig, KEY | {"device", "threads"}),
        (cost.CostConfig, KEY | {"device", "threads"}),
        (timing.TimingConfig, KEY),
    ],
)
def test_parameters_are_the_fields_that_determine_the_result(config, left_out):
    fields = set(config.__dataclass_fields__)
    assert fields - set(config(model="mace", dataset="ethanol").parameters()) == left_out


def test_a_record_that_was_put_aside_is_whole_and_found_there(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    key = Key("training", "demo", "ethanol", "mace")
    path = records.write(make(), {"step": np.arange(3)})
    path.with_suffix(".build.json").write_text("{}")
    records.put_aside(path)
    assert f"{path} of other parameters was moved to {tmp_path / 'runs'}" in capsys.readouterr().err
    assert not list(path.parent.iterdir())
    records.put_aside(path)  # there is none
    records.write(make(parameters={"max_seconds": 1}))
    assert records.bring_back(key, {"max_seconds": 2}) is None
    assert records.bring_back(key, {"max_seconds": 20.0}).curves["step"].tolist() == [0, 1, 2]
    assert path.with_suffix(".build.json").is_file()
    assert records.bring_back(key, {"max_seconds": 1}) is not None
    assert not path.with_suffix(".npz").exists()


ROLLOUTS = sorted((paths.ROOT / "results").glob("*/rollout*/*.json"))


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_committed_rollouts_say_what_broke_as_their_curves_do(path):
    record = records.load(path)
    with np.load(path.with_suffix(".npz")) as curves:
        stable, broken = curves["stable_step"], curves.get("broken", [])
    assert (record.status == "unstable") == bool(record.breaks)
    assert all(stable[end.replica] == end.step for end in record.breaks)
    assert {end.replica for end in record.breaks} >= set(broken)


def test_non_finite_values_are_missing_not_nan(results):
    path = records.write(make(metrics=[Metric("force_mae", float("nan"), "meV/Å", low=float("inf"))]))
    assert json.loads(path.read_text())["metrics"][0]["value"] is None
    assert "—" in repr(records.load(path))


def test_an_interrupted_write_leaves_the_old_record(results):
    records.write(make())
    with pytest.raises(TypeError, match="cannot hold a object"):
        records.write(make(parameters={"max_seconds": object()}))
    assert records.find(Key("training", "demo", "ethanol", "mace"), {"max_seconds": 20}) is not None


def test_reading_a_campaign_gives_a_row_per_metric():
    records.write(make())
    records.write(make(model="nequip", status="failed", message="the loss became nan", metrics=[]))
    frame = records.read("demo")
    assert list(frame.columns) == records.COLUMNS
    assert frame.set_index("model").loc["mace", "value"] == 12.5
    assert frame.set_index("model").loc["nequip", "status"] == "failed"
    assert records.read("nothing").empty


def test_partial_results_merge_by_copying(results, tmp_path):
    records.write(make())
    other = results / "demo" / "training" / "ethanol-nequip-s0.json"
    other.write_text(json.dumps(json.loads(make().path.read_text()) | {"model": "nequip"}))
    assert set(records.read("demo").model) == {"mace", "nequip"}


def test_other_schema_cut_files_and_unknown_names_are_refused():
    path = records.write(make())
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99"):
        records.load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="ethanol-mace-s0.json holds no record"):
        records.load(path)
    with pytest.raises(KeyError, match="holds force_mae"):
        make()["energy"]
    with pytest.raises(ValueError, match="complete"):
        make(status="fine")


def test_digests_tell_inputs_apart():
    a = np.arange(4.0)
    assert records.digest(a, {"x": 1}) == records.digest(a.copy(), {"x": 1})
    assert records.digest(a, {"x": 1}) != records.digest(a + 1e-12, {"x": 1})


CAMPAIGN = """
description: two datasets
datasets: [ethanol, lips]
models: [mace]
training: {max_seconds: 60}
overrides: {lips: {training: {max_seconds: 120}, rollout: {replicas: 2}}}
"""


def test_a_campaign_expands_with_overrides(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(CAMPAIGN)
    loaded = campaign.load(file)
    assert loaded.name == "mine"
    assert loaded.cells() == [("ethanol", "mace", 0), ("lips", "mace", 0)]
    assert loaded.training_parameters("ethanol", "mace", 0)["max_seconds"] == 60
    assert loaded.training_parameters("lips", "mace", 0)["max_seconds"] == 120
    assert loaded.rollout_parameters("lips", "mace", 0, "corrected")["replicas"] == 2
    assert loaded.rollout_parameters("lips", "mace", 0, "corrected")["train_max_seconds"] == 120


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("models:", "modles:", "did you mean 'models'"),
        ("{max_seconds: 60}", "{max_second: 60}", "did you mean 'max_seconds'"),
        ("overrides: {lips", "overrides: {lipz", "did you mean 'lips'"),
        ("{replicas: 2}", "{replica: 2}", "did you mean 'replicas'"),
        ("[ethanol, lips]", "[ethanoll, lips]", "did you mean 'ethanol'"),
        ("[mace]", "[mase]", "unknown model 'mase'; did you mean 'mace'"),
        ("[mace]", "[mace, mace]", "models: mace is given twice"),
    ],
)
def test_a_misspelled_campaign_is_refused(tmp_path, old, new, message):
    file = tmp_path / "mine.yml"
    file.write_text(CAMPAIGN.replace(old, new))
    with pytest.raises(ValueError, match=message):
        campaign.load(file)


class Run:
    """A run that counts how often it is made, with an input that has a digest."""

    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        return records.Outcome([records.Metric("steps", self.made, "1")], {"step": np.arange(self.made)})


def test_a_run_is_made_once_for_its_parameters_and_digests(results, tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    key, run = Key("rollout", "demo", "ethanol", "mace"), Run()
    first = records.stored_or_made(key, {"steps": 10}, run, weights="a", data="b")
    assert (first.provenance["weights"], first.provenance["data"]) == ("a", "b")
    for digests in (
        {"weights": "a", "data": "b"},
        {"weights": None},
        {},
    ):  # what is not known is not compared
        assert records.stored_or_made(key, {"steps": 10}, run, **digests) == first
    assert run.made == 1
    assert records.stored_or_made(key, {"steps": 10}, run, weights="c")["steps"] == 2
    assert records.stored_or_made(key, {"steps": 20}, run, weights="c")["steps"] == 3
    again = records.stored_or_made(key, {"steps": 10}, run, weights="c")  # was put aside, not overwritten
    assert (again["steps"], len(again.curves["step"]), run.made) == (2, 2, 3)
    assert records.stored_or_made(key, {"steps": 10}, run, weights="d")["steps"] == 4
    for number, name in enumerate(("frames", "conditions"), start=5):  # of which the record knows nothing
        assert records.stored_or_made(key, {"steps": 10}, run, weights="d", **{name: "e"})["steps"] == number


def test_a_run_that_fails_to_save_leaves_no_record_and_keeps_its_checkpoint(results, tmp_path):
    key, checkpoint = Key("training", "demo", "ethanol", "mace"), tmp_path / "checkpoint"
    checkpoint.write_text("state")

    def save(path):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        records.stored_or_made(key, {}, lambda: records.Outcome([], save=save, checkpoint=checkpoint))
    assert checkpoint.is_file()
    assert not key.path.exists()
    outcome = records.Outcome([], save=lambda path: {"weights": path.stem}, checkpoint=checkpoint)
    record = records.stored_or_made(key, {}, lambda: outcome)
    assert record.provenance["weights"] == "ethanol-mace-s0"
    assert not checkpoint.exists()


def test_kinds_of_all_committed_records_are_read_as_they_are_written():
    folders = {path.parent.name for path in (paths.ROOT / "results").glob("*/*/*.json")}
    assert {"rollout_as_coded", "rollout_600K", "training"} <= folders
    for name in folders:
        kind = Kind.parse(name)
        assert str(kind) == name
        assert kind.protocol in ("", "as_coded")
    assert Kind.parse("rollout_as_coded_beta-Li3PS4") == Kind("rollout", "as_coded", "beta-Li3PS4")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A training with curves and weights, and the same for another model."""
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".safetensors").write_bytes(path.stem.encode())
        return {"weights": records.digest(path.with_suffix(".safetensors"))}

    def store(model, steps=3):
        made = records.Outcome([Metric("steps", steps, "1")], {"step": np.arange(steps)}, save=save)
        return records.stored_or_made(Key("training", "demo", "ethanol", model), {"asked": 1}, lambda: made)

    store("nequip", 4)
    return store


def test_a_stray_copy_of_a_record_is_named_and_left_out(stored):
    path = stored("mace").path
    stray = path.with_name(f"{path.stem} (conflict copy).json")
    stray.write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="conflict copy.* holds the record of demo/training/ethanol-mace-s0"):
        assert len(records.read_all("demo")) == 2
    assert list(records.damaged("demo")) == [stray]


def other_run(path):
    path.with_suffix(".npz").write_bytes(path.with_name("ethanol-nequip-s0.npz").read_bytes())


def flipped(path):
    path.with_suffix(".safetensors").write_bytes(b"ethanol-mace-s1")


DAMAGE = {
    "no record": lambda path: path.write_text(""),
    "holds no record": lambda path: path.write_text('{"schema": 1, "kind": "training"}'),
    "nequip": lambda path: path.write_bytes(path.with_name("ethanol-nequip-s0.json").read_bytes()),
    "npz is not the file": other_run,
    "npz is missing": lambda path: path.with_suffix(".npz").unlink(),
    "safetensors is not the file": flipped,
    "safetensors is missing": lambda path: path.with_suffix(".safetensors").unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_record_is_left_out_set_aside_and_made_again(stored, message, capsys):
    path = stored("mace").path
    DAMAGE[message](path)
    with pytest.warns(UserWarning, match=f"ethanol-mace-s0.*{message}"):
        assert [record.model for record in records.read_all("demo")] == ["nequip"]
    assert stored("mace", 5)["steps"] == 5
    assert f"{path} cannot be used" in capsys.readouterr().err
    assert list(records.damaged("demo")) == [path.with_name("ethanol-mace-s0.json.unreadable")]
    assert len(records.read_all("demo")) == 2


def test_curves_that_a_record_does_not_know_are_refused(results):
    record = records.Record("training", "demo", "ethanol", "mace", 0)
    records.write(record)
    assert records.load(record.path).curves == {}
    np.savez(record.path.with_suffix(".npz"), of=np.arange(3))
    for read in (records.sound, lambda path: records.load(path).curves):
        with pytest.raises(records.DamagedError, match="s0.npz belongs to no record"):
            read(record.path)


@pytest.mark.parametrize("campaign", sorted(p.name for p in (paths.ROOT / "results").iterdir() if p.is_dir()))
def test_every_committed_record_knows_its_curves(campaign):
    """So that those of another run, or none at all, are told."""
    files = (paths.ROOT / "results" / campaign).glob("*/*.json")
    for path in filter(records._is_record, files):
        digests = json.loads(path.read_text())["provenance"].get("files", {})
        arrays = path.with_suffix(".npz")
        assert digests.get(".npz") == (records.digest(arrays) if arrays.is_file() else None), path


INPUTS = {
    "training": ("weights",),
    "horizon": ("frames", "conditions"),
    **dict.fromkeys(("dataset", "errors", "floor", "gate", "rollout", "committee"), ("frames",)),
}
"""Act of a run -> digests without which its record would be made again."""


@pytest.mark.parametrize("campaign", sorted(p.name for p in (paths.ROOT / "results").iterdir() if p.is_dir()))
def test_every_committed_record_knows_its_inputs(campaign):
    for record in map(records.load, (paths.ROOT / "results" / campaign).glob("*/*-s?.json")):
        wanted = () if "calculator" in record.provenance else INPUTS.get(record.kind.split("_")[0], ())
        assert set(wanted) <= record.provenance.keys(), record.path


def test_files_of_a_run_that_was_killed_belong_to_no_later_one(stored):
    path = Key("training", "demo", "ethanol", "mace").path
    path.with_suffix(".build.json").write_text("of a killed run")
    assert stored("mace").files.keys() == {".npz", ".safetensors"}
    assert not path.with_suffix(".build.json").exists()


def test_a_write_is_synced_before_and_after_the_renaming(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(paths.os, "fsync", lambda handle: done.append(paths.os.fstat(handle).st_ino))
    with paths.written(tmp_path / "new" / "a.npz") as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".npz"
    file = tmp_path / "new" / "a.npz"
    assert done == [file.stat().st_ino, file.parent.stat().st_ino]
    with suppress(KeyError), paths.written(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.read_text() for path in file.parent.iterdir()] == ["whole"]


def test_what_is_written_can_be_read_by_those_who_may_read_new_files(tmp_path):
    """Writers such as safetensors make files that only their owner can read."""
    (tmp_path / "new").touch()
    with paths.written(tmp_path / "weights") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_only_leftovers_of_dead_processes_are_swept(tmp_path):
    with paths.written(tmp_path / "b.json") as mine:
        other = tmp_path / mine.name.replace(f"-{paths.os.getpid()}-", "-999999999-")
        other.touch()
        assert paths.leftovers(tmp_path) == [other]
