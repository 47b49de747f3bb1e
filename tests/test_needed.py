"""How long a training would have to be for the published errors, by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from egraff_utils import records
from egraff_utils.report import beside, needed
from egraff_utils.report.accuracy import FORCE
from egraff_utils.report.beside import OURS, PAPER


class Training(SimpleNamespace):
    """A record that knows its kind, model, metrics, parameters and curves."""

    def __getitem__(self, name):
        return self.metrics[name]


def searched(seconds, error, model="mace", kind="search_recipe", dataset="ethanol"):
    parameters, metrics = {"seconds": seconds}, {"best_force_mae": error}
    return Training(
        kind=kind, dataset=dataset, model=model, metrics=metrics, parameters=parameters, curves={}
    )


def trained(seconds, errors, model="mace"):
    curves, metrics = {"val_force_mae": np.array(errors)}, {"seconds": seconds}
    return Training(
        kind="training", dataset="ethanol", model=model, metrics=metrics, parameters={}, curves=curves
    )


def test_errors_fall_by_half_as_the_length_is_quadrupled():
    search = [
        searched(10.0, 16.0),
        searched(40.0, 8.0, kind="search_rate"),
        searched(10.0, 1.0, dataset="lips"),
        searched(10.0, 1.0, kind="search_cost"),
        searched(10.0, 30.0, model="botnet"),
    ]
    found = needed.points(search, [trained(160.0, [9.0, 4.0, np.nan, 5.0])])
    assert found[found.model == "mace"].error.tolist() == [16, 8, 4]
    assert needed.exponents(found).to_dict() == pytest.approx({"mace": 0.5}), "botnet has one length"


def test_seeds_are_one_length():
    """Their lengths differ by parts of a second, over which no exponent can be taken."""
    runs = [trained(159.0, [3.0]), trained(161.0, [5.0])]
    found = needed.points([searched(10.0, 16.0), searched(40.0, 8.0)], runs)
    assert found.seconds.tolist() == [10, 40, 160]
    assert found.error.tolist() == [16, 8, 4]
    assert needed.steps_of(found).loc["mace"].tolist() == pytest.approx([0.5, 0.5])


def test_hours_follow_from_the_power_law():
    """Three times the published error: with the exponent 1/2, four times the length for 1.5, nine for it."""
    index = pd.MultiIndex.from_product(
        [["ethanol"], ["mace", "nequip", "botnet"]], names=["dataset", "model"]
    )
    columns = pd.MultiIndex.from_tuples([(FORCE, PAPER), (FORCE, OURS)])
    errors = pd.DataFrame([[10.0, 30.0], [10.0, 9.0], [10.0, 30.0]], index=index, columns=columns)
    seconds = pd.Series(1800.0, index=index)
    found = needed.distances(errors, seconds, pd.Series({"mace": 0.5, "nequip": 0.5}))
    assert found.loc[("ethanol", "mace"), ["ratio", "near", "equal"]].tolist() == pytest.approx([3, 2, 4.5])
    shown = needed.readable(found)
    assert shown.loc[("ethanol", "mace")].tolist() == ["30.0", "10.0", "3.00", "2.0", "4.5"]
    assert shown.loc[("ethanol", "nequip")].tolist() == ["9.0", "10.0", "0.90", "–", "–"]
    assert "no value" in shown.loc[("ethanol", "botnet")].tolist(), "there is no law of it"
    along = needed.points([searched(10.0, 16.0), searched(40.0, 8.0)], [trained(160.0, [8.0])])
    said = needed.values(found, along)
    assert (said["cells"], said["near"], said["reached"]) == ("3", "1 of 3", "1 of 3")
    assert (said["had"], said["hours"], said["early"], said["late"]) == ("0.50", "2.0", "0.50", "0.00")


def test_a_campaign_without_records_says_so():
    frame = records.read("demo")[:0]
    found = needed.distances(
        beside.paper_values(frame, 1), needed.lengths(frame), needed.exponents(needed.points([], []))
    )
    assert needed.values(found, needed.points([], []))["ratio"] == "no value"
    needed.plot_falls(needed.points([], []))
