"""Measures of agreement against scipy, permutations, and numbers worked out by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from egraff_utils import paper, records
from egraff_utils.records import Metric, Record
from egraff_utils.report import agreement, beside


def _cells(published, ours, groups=("a",)):
    """Cells of groups with equally many models each."""
    models = [f"m{k}" for k in range(len(published) // len(groups))]
    index = pd.MultiIndex.from_product([groups, models], names=["dataset", "model"])
    return pd.DataFrame({"paper": published, "ours": ours}, index=index, dtype=float)


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys(seed):
    first, second = np.random.default_rng(seed).integers(5, size=(2, 12))  # with ties
    assert agreement.rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second)[0])


def test_rank_correlation_without_an_order_is_nan():
    assert np.isnan(agreement.rank_correlation([1, 2], [1, 2]))
    assert np.isnan(agreement.rank_correlation([1, 1, 1], [1, 2, 3]))


def test_ratio_and_its_spread():
    """Ratios 2 and 8: mean of the logarithms is ln 4, their standard deviation ln 4 / sqrt(2)."""
    found = agreement.agreement(_cells([1, 1, 0], [2, 8, 5]))
    assert found.ratio == pytest.approx(4)
    assert found.spread == pytest.approx(4 ** np.sqrt(0.5))
    assert found.cells == 3


def test_chance_is_that_of_all_permutations():
    values = [1.0, 2.0, 2.0, 5.0]
    found = [agreement.rank_correlation(values, p) for p in itertools.permutations([1, 2, 3, 4])]
    assert np.std(found) == pytest.approx(agreement.chance_deviation(_cells(values, [1, 2, 3, 4])))
    two = _cells(values * 2, [1, 2, 3, 4] * 2, groups=("a", "b"))
    assert agreement.chance_deviation(two) == pytest.approx(np.std(found) / np.sqrt(2))


def test_verdicts():
    published = list(range(6)) * 4
    same, opposite = (
        _cells(published, published, list("abcd")),
        _cells(published, published[::-1], list("abcd")),
    )
    assert agreement.verdict(agreement.agreement(same)) == agreement.AS_PUBLISHED
    assert agreement.verdict(agreement.agreement(opposite)) == agreement.REVERSED
    undecided = _cells(published[:6], published[:6], list("a"))  # p = 2/720, times 18 columns
    assert agreement.verdict(agreement.agreement(undecided)) == agreement.UNDECIDED
    sure = agreement.agreement(same)
    assert agreement.verdict(sure._replace(within_low=-0.1)) == agreement.UNDECIDED
    assert agreement.verdict(sure._replace(p=0.01)) == agreement.UNDECIDED


def test_what_could_have_been_found():
    """At 5 % over 18 columns, for four groups of six models: (2.99 + 0.84) / (2 sqrt 5)."""
    found = agreement.agreement(_cells(list(range(6)) * 4, [0, 2, 1, 3, 5, 4] * 4, list("abcd")))
    assert found.detectable == pytest.approx((2.991 + 0.842) / (2 * 5**0.5), abs=2e-3)
    text = agreement.readable(
        agreement.agreement_table({"t": _cells([1, 2, 3] * 4, [1, 2, 3] * 4, list("abcd"))})
    )
    assert text.iloc[0].tolist()[1:3] == ["1.00<br><small>1.00 to 1.00</small>", "none"]


def test_nothing_to_compare():
    empty = _cells([1.0], [2.0]).iloc[:0]
    found = agreement.agreement(empty)
    assert found.cells == 0
    assert np.isnan(found[2:]).all()
    table = agreement.agreement_table({("1", "Force MAE"): empty})
    assert agreement.sentence(table.iloc[0]) == agreement.verdict(found) == "not compared"
    assert list(agreement.agreement_table({}).columns)[-1] == "order"


def test_matched_keeps_cells_with_both():
    values = _cells([1, np.nan, 3], [2, 4, np.nan])
    values.columns = pd.MultiIndex.from_tuples([("WF (%)", "paper"), ("WF (%)", "cpu")])
    assert agreement.matched(values, "WF (%)", source="cpu").to_numpy().tolist() == [[1, 2]]
    assert agreement.matched(values, "WF (%)").empty
    assert agreement.matched(values, "FV").empty


def test_published_values_against_themselves():
    """Tables 2 and 6 hold the same runs at 300 K, except for one value of Equiformer."""
    table = paper.table(6).query("temperature_k == 300").set_index(["dataset", "model"])
    other = paper.table(2).set_index(["dataset", "model"]).reindex(table.index)
    cells = pd.DataFrame({"paper": other.wf_percent, "ours": table.wf_percent})
    found = agreement.agreement(cells)
    assert found.cells == 12
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert agreement.verdict(found) == agreement.AS_PUBLISHED


def test_published_epochs():
    assert agreement.published_epochs("mace") == 1500
    assert agreement.published_epochs("nequip") == 10000


@pytest.fixture
def frame(tmp_path, monkeypatch):
    """3BPA trained for 15 of MACE's 1500 epochs, its errors at 300 K and at 600 K; ethanol's rollout."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    runs = {
        ("training", "3bpa", "mace"): {"epochs": 15, "force_mae": 99.0},
        ("errors_300K", "3bpa", "mace"): {"force_mae": 24.0},
        ("dataset", "3bpa", "reference"): {"frames_train": 450},
        ("dataset", "ethanol", "reference"): {"floor_fv": 0.345},
        ("rollout", "ethanol", "mace"): {"fv": 0.345},
    }
    for (kind, dataset, model), metrics in runs.items():
        found = [Metric(name, value, "1") for name, value in metrics.items()]
        records.write(Record(kind, "made", dataset, model, 0, {}, found))
    return records.read("made")


def test_cells_of_the_tables(frame):
    cells = agreement.table_cells(frame)
    assert {number for number, _ in cells} == set(agreement.TABLES)
    assert cells["1", "Force MAE (meV/Å)"].loc[("3bpa", "mace")].tolist() == [12, 24]  # not the 99 at 600 K
    assert cells["3", "FV (dimensionless)"].loc[("ethanol", "mace")].tolist() == [0.69, 0.345]
    assert cells["18", "FV (dimensionless)"].empty


def test_budget_as_a_share_of_the_papers(frame):
    shares = agreement.budget_shares(frame)
    assert shares.loc[("3bpa", "mace")].tolist() == pytest.approx([0.01, 0.01 * 450 / 500])
    assert agreement.budget_shares(frame[:0]).empty


def test_floor_ratios(frame):
    found = agreement.floor_ratios(beside.paper_values(frame, 3, bounds=True))
    assert found.loc["FV (dimensionless)"].tolist() == pytest.approx([2, 1])
    assert agreement.floor_ratios(beside.paper_values(frame[:0], 3, bounds=True)).empty


def test_figure_has_a_panel_for_every_column_with_cells(frame):
    figure = agreement.plot_agreement(agreement.table_cells(frame))
    named = [(ax.get_xlabel()[7:14], ax.get_ylabel()) for ax in figure.axes if ax.axison]
    assert named == [("Table 1", "Ours, Force MAE (meV/Å)"), ("Table 3", "Ours, FV (dimensionless)")]
    agreement.plt.close(figure)
    agreement.plt.close(agreement.plot_agreement({}))


def test_readable_table(frame):
    shown = agreement.readable(agreement.agreement_table(agreement.table_cells(frame)))
    assert shown.loc[("1", "Force MAE")].tolist() == ["1", "–", "–", "2", "not compared"]


def test_claims_on_values_by_hand(monkeypatch):
    """Force errors rank models 1 2 3 in the paper, 3 2 1 in ours; WF the other way round in both."""
    models = pd.MultiIndex.from_product([["a"], ["x", "y", "z"]], names=["dataset", "model"])
    values = {"1": ("Force MAE (meV/Å)", [1, 2, 3], [3, 2, 1]), "2": ("WF (%)", [3, 2, 1], [9, 9.5, 9.7])}

    def made(frame, number):
        head, published, ours = values[number]
        return pd.DataFrame({(head, "paper"): published, (head, "ours"): ours}, index=models)

    monkeypatch.setattr(beside, "paper_values", made)
    found = agreement.claims(None)
    assert found.loc["correlation"].tolist() == [-1, -1]
    assert found.loc["datasets"].tolist() == found.loc["force_winners"].tolist() == [1, 1]


def test_winners_and_ranks():
    index = pd.MultiIndex.from_product([["a", "b", "c"], ["x", "y"]], names=["dataset", "model"])
    column = pd.Series([1.0, 2.0, 4.0, 3.0, np.nan, 5.0], index)
    assert agreement.winners(column).to_dict() == {"y": 1, "x": 1}
    assert agreement.mean_ranks(column).to_dict() == {"x": 1.5, "y": 1.5}
    assert agreement.winners(column[:0]).empty


def test_tables_of_the_evidence(frame):
    assert agreement.budget(frame).loc["3bpa", "Force MAE (× paper)"] == pytest.approx(2)
    assert agreement.data_at_hand(frame).loc["3bpa", "in the paper (count)"] == 500
    for nothing in (agreement.budget, agreement.data_at_hand, agreement.protocols):
        nothing = nothing(frame[:0])
        assert nothing.empty
    assert agreement.claims(frame[:0]).loc["datasets"].tolist() == [0, 0]


def test_what_the_protocol_explains_is_told_from_what_it_leaves(frame):
    for kind, value in (("rollout", 1.5), ("rollout_as_coded", 6.0)):
        found = [Metric("wf", value, "%")]
        records.write(Record(kind, "made", "aspirin", "mace", 0, {}, found))
    table = agreement.protocols(records.read("made"))
    (row,) = table.to_dict("records")
    assert table.index.tolist() == [("WF (%)", "aspirin")]
    assert (row["paper"], row["as coded / corrected"]) == pytest.approx((18.92, 4))
    assert row["paper / as coded"] == pytest.approx(18.92 / 6)


def test_a_broken_simulation_wins_nothing(frame):
    index = pd.MultiIndex.from_product(
        [["ethanol"], ["mace", "nequip", "botnet"]], names=["dataset", "model"]
    )
    column = pd.Series([1.0, 2.0, 3.0], index)
    assert agreement.winners(agreement.whole(frame, column)).to_dict() == {"mace": 1}
    broken = frame.assign(status=frame.status.where(frame.kind != "rollout", "unstable"))
    assert agreement.winners(agreement.whole(broken, column)).to_dict() == {"nequip": 1}
    records.write(Record("rollout", "made", "ethanol", "mace", 0, {}, [Metric("wf", 2.0, "%")]))
    assert agreement.standings(records.read("made")).loc["mace", "WF, mean place"] == 1
    records.write(Record("rollout", "made", "ethanol", "mace", 0, {}, [Metric("wf", 2.0, "%")], "unstable"))
    assert np.isnan(agreement.standings(records.read("made")).loc["mace", "WF, mean place"])


def test_standings(frame):
    table = agreement.standings(frame)
    assert table.index.tolist() == ["mace"]
    assert table.loc["mace", "Force error, mean place"] == 1
    assert agreement.standings(frame[:0]).empty
