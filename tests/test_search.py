"""Searches: equal candidates, chosen on validation errors, resumed where they stopped."""

import numpy as np
import pytest

from benchmarks import search
from egraff_utils import cards, models, paper

COMMON = {"preset": "tiny", "network": {}, "seconds": 1.0}


class Trial:
    """Trains nothing: its error is the distance of the rate from 0.01; a rate of one is not finite."""

    trained = []  # noqa: RUF012

    def __init__(self, *arguments):
        pass

    def train(self, training):
        rate = training["learning_rate"]
        self.trained.append(rate)
        error = np.nan if rate == 1 else abs(rate - 0.01)
        return {"force_mae": error, "energy_mae": 1.0, "loss": 1.0, "steps": 2, "milliseconds": 3.0}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    monkeypatch.setattr(search, "_Trial", Trial)
    monkeypatch.setattr(Trial, "trained", [])


def candidates(*rates):
    return {f"muon {rate:g}": {"optimizer": "muon", "learning_rate": rate} for rate in rates}


def run(*rates):
    return search.run("search_recipe", "ethanol", "mace", **COMMON, candidates=candidates(*rates))


def test_the_best_has_the_least_error_of_those_that_stayed_finite():
    record = run(0.003, 1.0, 0.02)
    assert search.best(record) == "muon 0.003"
    assert search.best(record, ["muon 1", "muon 0.02"]) == "muon 0.02"
    assert record["best_force_mae"] == pytest.approx(0.007)
    assert record.curves["steps"].tolist() == [2, 2, 2]


def test_a_search_goes_on_where_it_stopped():
    run(0.003, 0.02)
    record = run(0.003, 0.01, 0.02)
    assert Trial.trained == [0.003, 0.02, 0.01]
    assert record.curves["label"].tolist() == ["muon 0.003", "muon 0.02", "muon 0.01"]


def test_every_candidate_is_a_training():
    trainings = search.rates(*search.RATES)
    trainings |= search.around(trainings["muon 0.01"])
    for label, training in trainings.items():
        known = training | {"optimizer": training["optimizer"].replace("soap", "adam")}
        for name in models.NAMES:
            assert cards.model(name).training("small", **known), label


def test_rates_go_on_where_the_highest_is_best(monkeypatch):
    monkeypatch.setattr(Trial, "train", lambda self, training: self.errors(training["learning_rate"]))
    Trial.errors = lambda self, rate: {"force_mae": abs(rate - 0.5), "steps": 2}
    (record,) = search.search_recipe(["ethanol"], ["mace"])
    labels = record.curves["label"].tolist()
    assert [label for label in labels if label.startswith("muon")][-2:] == ["muon 0.3", "muon 0.9"]
    assert [label for label in labels if label.startswith("adam")][-3:] == [
        "adam 0.09",
        "adam 0.3",
        "adam 0.9",
    ]
    assert labels[-7:] == list(search.around({"learning_rate": 0.3}))

    (longer,) = search.search_rate(["ethanol"], ["mace"])
    assert longer.curves["label"].tolist() == ["muon 0.3", "muon 0.15", "muon 0.075"]
    assert longer.parameters["seconds"] == search.RATE_SECONDS


@pytest.mark.parametrize("rule", search.SIZES)
@pytest.mark.parametrize("name", paper.HYPERPARAMETERS)
def test_every_size_can_be_built(name, rule):
    assert models.build(name, "paper", **search.SIZES[rule][name]).num_parameters() > 10000


@pytest.mark.parametrize("name", paper.HYPERPARAMETERS)
def test_the_preset_of_the_campaign_is_that_of_the_rule(name):
    paper, changes = cards.model(name).network("paper"), search.SIZES["equal_dynamics"][name]
    assert cards.model(name).network("day") == paper | changes
