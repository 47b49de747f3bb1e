"""The benchmarks of metrics and pipeline measure what they say, on cells small enough for seconds."""

import numpy as np
import pytest
from ase.build import bulk

from benchmarks import Settings, metrics, pipeline
from egraff_utils import cards, rollout, structure


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
    rule = rollout._rule(card, scene.frames)
    assert [rule(positions) for positions in trajectory.positions] == [None, None]
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


def test_overhead_is_the_run_less_the_call(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "_workplace", lambda folder: {})
    monkeypatch.setattr(pipeline, "_campaign_time", lambda kind, environment: 30.0)
    monkeypatch.setattr(pipeline, "_call_time", lambda kind, environment: 4.0)
    found, times = pipeline._runs(pipeline.KINDS, 2)
    values = {metric.name: metric.value for metric in found}
    assert values == {"overhead_per_run": 6.0, "run_time": 10.0, "call_time": 4.0}
    assert len(times["run_time"]) == 2
