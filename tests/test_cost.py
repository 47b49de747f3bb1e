"""Is the cost of a step measured as promised? Sizes, limits, the stored record, and real steps."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from egraff_utils import data, models, paths, records, weights
from egraff_utils.running import cost

CELLS = ((1, 1, 1), (1, 1, 2), (2, 2, 2))
ROW = {"milliseconds_neighbours": 1.0, "machine_memory": 2000.0}


def row(copies):
    atoms = 83 * int(np.prod(copies))
    return {"atoms": atoms, "edges": 25 * atoms, "milliseconds": 0.1 * atoms, "memory": 0.5 * atoms} | ROW


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    config = cost.CostConfig("mace", cells=CELLS)
    path = weights.path(config)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return config


@pytest.fixture
def calls(monkeypatch):
    made = []

    def run(config):
        made.append(config)
        return [row(copies) for copies in config.cells], ""

    monkeypatch.setattr(cost, "_in_a_process", run)
    return made


def test_time_and_memory_of_every_size(config, calls):
    record = cost.measure(config)
    assert list(record.curves["atoms"]) == [83, 166, 664]
    assert record["time_exponent"] == pytest.approx(1)
    assert record["constant"] == pytest.approx(0, abs=1e-9)
    assert record["memory_per_atom"] == pytest.approx(0.5)
    assert record["atoms_in_memory"] == pytest.approx(4000)
    assert record["largest_size"] == 664
    assert cost.summary([record]).iloc[0, 2] == pytest.approx(0.1)


def test_the_quickest_of_several_runs_counts_for_each_size(config, monkeypatch):
    slow = [row(copies) | {"milliseconds": ms} for copies, ms in zip(CELLS, (9.0, 15.0, 90.0), strict=True)]
    runs = [(slow, ""), ([row(copies) for copies in CELLS[:2]], "ended")]
    monkeypatch.setattr(cost, "_in_a_process", lambda _: runs.pop())
    _, curves, message = cost.grow(config, runs=2)
    quick = [row(copies)["milliseconds"] for copies in CELLS[:2]]
    assert list(curves["milliseconds"]) == [min(9.0, quick[0]), min(15.0, quick[1])]
    assert message == "ended"
    assert not runs


def test_a_constant_cost_lowers_the_exponent_of_small_systems_only():
    atoms = np.array([32, 256, 512, 2048])
    curves = {"atoms": atoms, "milliseconds": 20 + 0.5 * atoms, "memory": atoms}
    found = {metric.name: metric.value for metric in cost._metrics(curves, 1e4)}
    assert found["constant"] == pytest.approx(20)
    assert found["time_exponent"] < found["time_exponent_large"] < 1


def test_the_stored_record_is_returned_until_the_weights_change(config, calls):
    cost.measure(config)
    cost.measure(config)
    assert len(calls) == 1
    weights.path(config).write_bytes(b"other weights")
    cost.measure(config)
    assert len(calls) == 2


@pytest.mark.parametrize(("limit", "unit"), [({"max_memory": 100}, "MB"), ({"max_seconds": 0.2}, "s")])
def test_a_limit_ends_the_measurement(limit, unit):
    config = cost.CostConfig("mace", cells=CELLS, **limit)
    assert cost._too_much(config, {}, 83) == ""
    assert cost._too_much(config, row((1, 1, 1)), 166) == ""
    message = cost._too_much(config, row((1, 1, 2)), 664)
    assert message.startswith("ended before 664 atoms")
    assert message.endswith(f"of {next(iter(limit.values())):g} {unit}")


@pytest.mark.parametrize(
    ("last", "status", "said"),
    [
        ("", 1, "ended at 2x2x2 copies: MemoryError: too much"),
        (json.dumps({"message": "ended before 664 atoms"}), 0, "ended before 664 atoms"),
    ],
)
def test_a_size_that_fails_leaves_the_smaller_ones(config, monkeypatch, last, status, said):
    lines = [*(json.dumps(row(copies)) for copies in CELLS[:2]), last]
    done = subprocess.CompletedProcess([], status, "\n".join(lines), "Traceback\nMemoryError: too much\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    record = cost.measure(config)
    assert record["largest_size"] == 166
    assert record.message == said


def test_a_model_without_weights_names_the_training(config):
    with pytest.raises(FileNotFoundError, match="Train it first"):
        cost.measure(cost.CostConfig("nequip"))


def test_a_molecule_has_no_supercells(config):
    with pytest.raises(ValueError, match="ethanol is a molecule"):
        cost.measure(cost.CostConfig("mace", dataset="ethanol"))


def test_nothing_measured_is_an_empty_table():
    assert cost.summary([]).empty
    assert np.isnan(cost.exponent([83], [1.0]))


def test_steps_are_timed_and_atoms_and_edges_counted(config, monkeypatch):
    frame = bulk("Cu", cubic=True).repeat(3)
    monkeypatch.setattr(data, "load", lambda *_: [frame])
    monkeypatch.setattr(weights, "load", lambda *_: models.build("torchmd_net", "tiny", [29]))
    first, second = cost.evaluate(cost.CostConfig("torchmd_net", cells=CELLS[:2], steps=1))
    assert (first["atoms"], second["atoms"]) == (len(frame), 2 * len(frame))
    assert second["edges"] >= second["atoms"] * 42  # neighbours of an fcc atom of 3.61 Å within 5 Å
    assert 0 < first["milliseconds_neighbours"] < first["milliseconds"]
    assert 0 <= first["memory"] < first["machine_memory"]


def test_replicas_of_a_step_move_apart():
    step = cost.stepper(models.build("torchmd_net", "tiny", [29]), bulk("Cu", cubic=True), replicas=2)
    before = step.dynamics.atoms.get_positions()
    step()
    one, other = np.split(step.dynamics.atoms.get_positions() - before, 2)
    assert np.abs(one).max() > 0
    assert not np.allclose(one, other)


def test_the_record_lies_with_its_campaign(config, calls):
    path = cost.measure(config).path
    assert path == Path(paths.results(), "demo", "cost", "lips-mace-s0.json")
    assert set(records.read("demo").kind) == {"cost"}
