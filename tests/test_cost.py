"""Is the cost of a step measured as promised? Sizes, limits, the stored record, and a real evaluation."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from egraff_utils import cost, data, models, paths, records, train

CELLS = ((1, 1, 1), (1, 1, 2), (2, 2, 2))


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    config = cost.CostConfig("mace", cells=CELLS)
    path = train.weights_path(config)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return config


@pytest.fixture
def calls(monkeypatch):
    made = []

    def run(config, copies):
        made.append(copies)
        atoms = 83 * int(np.prod(copies))
        row = {"atoms": atoms, "edges": 25 * atoms, "milliseconds": 0.1 * atoms, "memory": 0.5 * atoms}
        return row | {"milliseconds_neighbours": 1.0, "hardware": "a machine"}

    monkeypatch.setattr(cost, "_in_a_process", run)
    return made


def test_time_and_memory_of_every_size(config, calls):
    record = cost.measure(config)
    assert calls == list(CELLS)
    assert list(record.curves["atoms"]) == [83, 166, 664]
    assert record["time_exponent"] == pytest.approx(1)
    assert record["memory_per_atom"] == pytest.approx(0.5)
    assert record["largest_size"] == 664
    assert record.provenance["hardware"] == "a machine"
    assert cost.summary([record]).iloc[0, 2] == pytest.approx(0.1)


def test_the_stored_record_is_returned_until_the_weights_change(config, calls):
    cost.measure(config)
    cost.measure(config)
    assert len(calls) == 3
    train.weights_path(config).write_bytes(b"other weights")
    cost.measure(config)
    assert len(calls) == 6


@pytest.mark.parametrize(("limit", "unit"), [({"max_memory": 100}, "MB"), ({"max_seconds": 0.2}, "s")])
def test_a_limit_ends_the_measurement_and_is_recorded(config, calls, limit, unit):
    record = cost.measure(cost.CostConfig("mace", cells=CELLS, **limit))
    assert list(record.curves["atoms"]) == [83, 166]
    assert record.message.startswith("ended before 2x2x2 copies")
    assert record.message.endswith(f"of {next(iter(limit.values())):g} {unit}")


def test_a_size_that_fails_leaves_the_smaller_ones(config, calls, monkeypatch):
    smaller = cost._in_a_process

    def run(config, copies):
        if copies == (2, 2, 2):
            raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nMemoryError: too much\n")
        return smaller(config, copies)

    monkeypatch.setattr(cost, "_in_a_process", run)
    record = cost.measure(config)
    assert record["largest_size"] == 166
    assert record.message == "ended at 2x2x2 copies: MemoryError: too much"


def test_a_model_without_weights_names_the_training(config):
    with pytest.raises(FileNotFoundError, match="Train it first"):
        cost.measure(cost.CostConfig("nequip"))


def test_a_molecule_has_no_supercells(config):
    with pytest.raises(ValueError, match="ethanol is a molecule"):
        cost.measure(cost.CostConfig("mace", dataset="ethanol"))


def test_nothing_measured_is_an_empty_table():
    assert cost.summary([]).empty
    assert np.isnan(cost.exponent([83], [1.0]))


def test_an_evaluation_counts_time_memory_and_edges(config, monkeypatch):
    frame = bulk("Cu", cubic=True).repeat(3)
    monkeypatch.setattr(data, "load", lambda *_: [frame])
    monkeypatch.setattr(train, "trained", lambda *_: models.build("torchmd_net", "tiny", [29]))
    row = cost.evaluate(config, (1, 1, 2))
    assert row["atoms"] == 2 * len(frame)
    assert row["edges"] == row["atoms"] * 42  # neighbours of an fcc atom of 3.61 Å within 5 Å
    assert 0 < row["milliseconds_neighbours"] < row["milliseconds"]
    assert row["memory"] >= 0


def test_the_record_lies_with_its_campaign(config, calls):
    path = cost.measure(config).path
    assert path == Path(paths.results(), "demo", "cost", "lips-mace-s0.json")
    assert set(records.read("demo").kind) == {"cost"}
