"""Tables of the search: worked out by hand from records of three candidates."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from egraff_utils import cards, paper, records
from egraff_utils.report import recipe


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))


def search(model, errors, kind="search_recipe", dataset="ethanol"):
    """Record of a search: label -> validation error, NaN if it diverged."""
    record = records.Record(kind, "search", dataset, model, 0, {"seconds": 45.0}, [])
    milliseconds = 10.0 + np.arange(len(errors))
    curves = {"label": np.array(list(errors)), "force_mae": np.array(list(errors.values()))}
    records.write(record, curves | {"milliseconds": milliseconds})
    return record


@pytest.fixture
def found():
    mace = {"muon 0.01": 20.0, "muon 0.03": 10.0, "muon 0.1": np.nan, "adam 0.002": 40.0, "adam 0.008": 15.0}
    nequip = {"muon 0.01": 8.0, "muon 0.03": 9.0, "adam 0.002": np.nan}
    return [
        search("mace", mace | {"batch 2": 12.0, "warm-up": 5.0}),
        search("nequip", nequip | {"batch 2": 6.0, "warm-up": np.nan}),
    ]


def test_every_candidate_is_a_row(found):
    frame = recipe.candidates(found)
    assert list(frame.model.unique()) == ["nequip", "mace"]  # in the order of the paper
    assert frame.label.tolist()[:3] == ["muon 0.01", "muon 0.03", "adam 0.002"]
    assert frame.rate.tolist()[:3] == [0.01, 0.03, 0.002]
    assert frame[frame.optimizer.isna()].label.tolist() == ["batch 2", "warm-up"] * 2
    assert recipe.candidates(found, "search_rate").empty


def test_the_least_error_of_every_optimiser_with_its_rate(found):
    table = recipe.optimizers(found)
    assert table.loc[("ethanol", "mace"), "Muon (meV/Å)"] == "10 at 0.03"
    assert table.loc[("ethanol", "mace"), "Adam (meV/Å)"] == "15 at 0.008*"  # higher ones were not tried
    assert table.loc[("ethanol", "nequip"), "Muon (meV/Å)"] == "8 at 0.01*"
    assert table.loc[("ethanol", "nequip"), "Adam (meV/Å)"] == recipe.DIVERGED
    assert table["SOAP (meV/Å)"].isna().all()


def test_how_unequal_the_work_was(found):
    # of MACE: three of Muon at 10 to 12 ms, two of Adam at 13 and 14, batch 2 at 15, warm-up at 16
    assert recipe.work(found).loc[("ethanol", "mace")].tolist() == [7, 1.2]


def test_shares_of_muon_are_those_of_linear_layers():
    words = dict(reversed(text.split(" % of ")) for text in recipe.muon_shares("tiny").split(", "))
    assert set(words) == {cards.model(name).title for name in paper.HYPERPARAMETERS}
    assert all(0 <= int(share) <= 100 for share in words.values())
    assert int(words["Allegro"]) > int(words["NequIP"])


def test_gains_over_another_optimiser(found):
    assert recipe.gains(found).to_dict() == {("ethanol", "nequip"): np.inf, ("ethanol", "mace"): 1.5}
    assert recipe.gains(found, "soap").empty


def test_changes_are_ratios_to_the_best_recipe(found):
    table = recipe.changes(found)
    assert table.loc[("ethanol", "mace")].to_dict() == {"batch 2": 1.2, "warm-up": 0.5}
    assert table.loc[("ethanol", "nequip")].to_dict() == {"batch 2": 0.75, "warm-up": np.inf}
    assert table.loc[(recipe.ALL, ""), "batch 2"] == pytest.approx(0.9**0.5)
    assert recipe.taken_over(found) == ["batch 2"]
    assert recipe.taken_over(found[:1]) == ["warm-up"]


def test_rates_of_longer_trainings():
    short = search("mace", {"muon 0.1": 20.0, "muon 0.3": np.nan, "muon 0.03": 21.0})
    errors = {"muon 0.1": np.nan, "muon 0.05": 7.0, "muon 0.025": 8.25}
    row = recipe.rates([short, search("mace", errors, "search_rate")]).loc[("ethanol", "mace")]
    rate = cards.model("mace").training("day").learning_rate
    assert row.tolist() == ["0.1", f"{rate:g}", recipe.DIVERGED, "7", "8.25"]


def test_models_whose_quarter_is_best():
    one = search("mace", {"muon 0.1": np.nan, "muon 0.05": 7.0, "muon 0.025": 8.25}, "search_rate")
    other = search("nequip", {"muon 0.1": 8.0, "muon 0.05": 7.0, "muon 0.025": 6.5}, "search_rate")
    assert recipe.quarter_is_best([one, other]) == "1 of 2"


def test_sizes_and_their_costs():
    found = []
    for rule, error in (("paper_narrow", 31.0), ("equal_dynamics", 9.9)):
        metrics = [records.Metric("best_force_mae", error, "meV/Å")]
        found.append(records.Record(f"search_size_{rule}", "search", "ethanol", "mace", 0, {}, metrics))
    assert recipe.sizes(found).loc[("ethanol", "mace")].tolist() == [31.0, 9.9]
    metrics = [records.Metric("paper_narrow", 20.0, "ms"), records.Metric("equal_dynamics", 5.0, "ms")]
    found = [records.Record("search_cost", "search", "ethanol", "mace", 0, {}, metrics)]
    assert recipe.costs(found).loc[("ethanol", "mace")].tolist() == [20.0, 5.0]


def test_the_figure_has_a_panel_for_each_model(found):
    shown = [ax for ax in recipe.rate_grid(found, "ethanol").axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == ["NequIP", "MACE"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in shown[1].lines}
    assert lines["Adam"] == [[0.002, 40.0], [0.008, 15.0]]
    plt.close("all")


def test_nothing_searched_gives_empty_tables():
    for table in (
        recipe.work,
        recipe.optimizers,
        recipe.gains,
        recipe.changes,
        recipe.rates,
        recipe.sizes,
        recipe.costs,
    ):
        assert table([]).empty
    assert recipe.taken_over([]) == []
    assert not any(ax.get_visible() for ax in recipe.rate_grid([], "ethanol").axes)
    plt.close("all")


def test_the_cards_follow_the_rule(monkeypatch):
    monkeypatch.delenv("EGRAFF_RESULTS")
    found = records.read_all("search")
    best = recipe.best_rates(found)["ethanol"]
    assert set(best.index) == {name for name in cards.models() if "day" in cards.model(name).presets}
    assert recipe.taken_over(found) == []
    for model, rate in best.items():
        training = cards.model(model).training("day")
        assert (training.optimizer, training.batch_size, training.ema_decay) == ("muon", 5, 0.99)
        assert training.learning_rate == pytest.approx(rate / recipe.SHARE)
