"""The benchmarks of metrics and pipeline measure what they say, on cells small enough for seconds."""

import numpy as np
import pytest
from ase.build import bulk

from benchmarks import Settings, metrics, pipeline
from egraff_utils import cards, structure
from egraff_utils.md import rollout


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{name}", str(tmp_path / name.lower()))
    return tmp_path


def test_the_range_is_whole_bins_that_ase_accepts():
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    atoms.set_cell([[11.5, 0, 0], [5, 11, 0], [0, 5, 10.5]], scale_atoms=True)
    height = (1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)).min()
    r_max = metrics._range(atoms)
    assert r_max == pytest.approx(4.95)
    assert r_max <= height / 2 < structure.as_coded_r_max(atoms)
    assert metrics.ase_distribution([atoms], r_max).shape == (99,)


@pytest.mark.data
def test_the_walk_is_a_sound_trajectory():
    """So that the stability rule looks at all of it, and every metric has a value."""
    card = cards.dataset("lips")
    config = rollout._settled(rollout.RolloutConfig("mace", "lips", replicas=2, steps=120), card)
    scene = rollout._scene(config, card)
    trajectory = metrics.walk(scene, 121)
    assert trajectory.positions.shape == (2, 121, 83, 3)
    rule = rollout._rule(config, card, scene.frames)
    parts = zip(trajectory.positions, trajectory.temperature, strict=True)
    assert [rule(positions, temperatures) for positions, temperatures in parts] == [None, None]
    np.testing.assert_allclose(trajectory.positions[:, 0], [a.positions for a in scene.starts], atol=1e-5)


@pytest.mark.data
def test_record_of_the_metrics(workplace, monkeypatch):
    monkeypatch.setattr(metrics, "FRAMES", 400)
    monkeypatch.setattr(metrics, "STEPS", 100)
    monkeypatch.setattr(metrics, "_step_time", lambda *arguments: 0.1)
    (record,) = metrics.run(Settings(quick=True))
    assert record.status == "complete", record.message
    assert record["rdf_difference"] < 1e-10
    assert record["ratio_rdf"] > 1
    assert record["rollout_time"] == pytest.approx(10)
    assert record["share_of_rollout"] == pytest.approx(record["metrics_time"] / 10)
    assert record.curves["times_ours_rdf"].shape == record.curves["times_theirs_rdf"].shape


def test_light_modules_do_without_torch():
    assert not pipeline.imports_torch()


def test_pipeline_runs_stored_records_only(workplace):
    with pytest.raises(FileNotFoundError, match="make campaign CAMPAIGN=demo"):
        pipeline._workplace(workplace)


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        pipeline._timed([pipeline.sys.executable, "-c", "1 / 0"])
    code = "import sys; sys.exit('a job\\nerror: mace.ipynb failed (KeyError)\\n' + 'a warning\\n' * 99)"
    with pytest.raises(RuntimeError, match=r"exit status 1: error: mace.ipynb failed \(KeyError\)$"):
        pipeline._timed([pipeline.sys.executable, "-c", code])


def test_overhead_is_the_run_less_the_call(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "_workplace", lambda folder: {})
    monkeypatch.setattr(pipeline, "_campaign_time", lambda kind, environment: 30.0)
    monkeypatch.setattr(pipeline, "_call_time", lambda kind, environment: 4.0)
    found, times = pipeline._runs(pipeline.KINDS, 2)
    values = {metric.name: metric.value for metric in found}
    assert values == {"overhead_per_run": 6.0, "run_time": 10.0, "call_time": 4.0}
    assert len(times["run_time"]) == 2


DEMO = """
import time
from egraff_utils import paths

places = (paths.results(), paths.runs(), paths.generated(), paths.data()[0])
assert not any(place.exists() for place in places)
for name in ("training/mace", "checks/gate/mace", "site/book/report/cost"):
    path = paths.runs() / "demo" / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    path.touch()
time.sleep(0.2)
"""


def test_the_demo_starts_from_nothing_and_is_kept(workplace, monkeypatch):
    kept = [pipeline.Metric("book_time", 1, "s")], {}
    monkeypatch.setattr(pipeline, "_fixed", lambda settings: kept)
    monkeypatch.setattr(pipeline, "_runs", lambda kinds, rounds: kept)
    monkeypatch.setattr(pipeline, "DEMO", ("-c", DEMO))
    workplace.joinpath("runs").mkdir()
    record = list(pipeline.run(Settings()))[-1]
    assert record.status == "complete", record.message
    assert (record.kind, record.dataset, record.model) == ("bench_pipeline", "demo", "-")
    assert (record["notebooks"], record.metric("demo_time").unit) == (2, "s")
    assert 0.2 < record["demo_time"] < 60
    monkeypatch.setattr(pipeline, "DEMO", ("-c", "1 / 0"))
    assert list(pipeline.run(Settings()))[-1]["demo_time"] == record["demo_time"]
    record = list(pipeline.run(Settings(anew=True)))[-1]
    assert record.status == "failed"
    assert "ZeroDivisionError" in record.message
    assert [r.dataset for r in pipeline.run(Settings(quick=True))] == ["-", "ethanol_xtb"]
