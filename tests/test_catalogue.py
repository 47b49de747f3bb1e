"""Is every dataset listed, and are disagreements with the paper computed rightly?"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from ase.build import molecule

from egraff_utils import cards, paper, records
from egraff_utils.records import COLUMNS
from egraff_utils.report import catalogue


@pytest.fixture
def nothing_at_hand(monkeypatch):
    monkeypatch.setattr(catalogue, "at_hand", lambda *_: False)


def _frame(*runs):
    rows = [
        dict.fromkeys(COLUMNS) | {"kind": k, "dataset": d, "model": m, "status": s} for k, d, m, s in runs
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_every_dataset_is_listed_once():
    names = catalogue.datasets()
    assert sorted(names) == cards.datasets()
    assert len(catalogue.overview(["ethanol", "lips20"])) == 2


@pytest.mark.usefixtures("nothing_at_hand")
def test_overview_without_files():
    table = catalogue.overview()
    assert set(table.atoms) == {"?"}
    assert (table["live reference"] != "none").sum() == 4
    assert table.loc["Ethanol (MD17)", "every (fs)"] == "0.5"
    assert table.loc["Benzene (MD17)", "train"] == "–"
    assert table.licence["Acetylacetone (acac)"] == "none stated; BOTNet-datasets MIT"
    assert table.index.is_unique


def test_coverage_counts_runs(monkeypatch):
    runs = {
        "mine": _frame(
            ("training", "ethanol", "mace", "complete"),
            ("rollout", "ethanol", "mace", "unstable"),
            ("training", "lips", "mace", "complete"),
            ("training", "lips", "nequip", "failed"),
            ("rollout", "copper_emt", "mace", "complete"),
        ),
        "other": _frame(("rollout", "gete", "mace", "complete")),
    }
    monkeypatch.setattr(records, "read", lambda name: runs[name])
    table = catalogue.coverage("mine", beside=["other"])
    assert table.loc[("MD17", "mine"), "MACE"] == "1 of 4 rolled out"
    assert table.loc[("MD17", "earlier"), "NequIP"] == "✓"
    assert table.loc[("LiPS", "mine"), "MACE"] == "trained"
    assert table.loc[("LiPS", "mine"), "NequIP"] == "not run"
    assert list(table.xs("other", level="source").index) == ["GeTe"]
    assert catalogue.rolled_out("mine") == 1
    assert ("Liquid copper by effective medium theory", "mine") in table.index


def test_coverage_of_no_records(monkeypatch):
    monkeypatch.setattr(records, "read", lambda name: _frame())
    table = catalogue.coverage("none")
    assert set(table.xs("none", level="source").to_numpy().ravel()) == {"not run"}


def test_compositions_are_those_of_the_table():
    table, published = catalogue.compositions(), paper.table(9)
    assert len(table) == len(published) == 20
    stripped = table.index.str.replace("-hex|-orth|^(beta|gamma)-", "", regex=True)
    for name, material in zip(stripped, table.material, strict=True):
        assert name.startswith("g") or "Li3PS4" in name or catalogue.count(name) == catalogue.count(material)
    assert "is Li3PS4, not Li3P4S4" in table.disagreement["beta-Li3PS4"]
    assert "Li : P is 4.00 by name, 2.71 in the cell" in table.disagreement["g80"]
    assert set(table.use) == {"trained on", "crystal", "unseen", "glass"}


@pytest.mark.data
def test_compositions_agree_with_the_files():
    table = catalogue.compositions()
    here = table[table["atoms (files)"] != "?"]
    assert len(here) == 16
    assert (here["atoms (files)"] == here["atoms (paper)"]).all()
    assert not here.disagreement.str.contains("files").any()


def test_conditions_note_what_differs():
    table = catalogue.conditions()
    notes = table.disagreement
    assert len(table) == len(paper.table(10))
    assert (table["T (K), paper"] == table["T (K), card"]).all()
    assert "1.2 fs apart, 10 steps" in notes["GeTe"]
    assert "0.5 fs steps" in notes["LiPS20"]
    assert "8 compositions are at 1740 to 2530 K" in notes["LiPS20"]
    assert notes["MD17"] == ""


def test_cards_of_one_row_agree():
    for members in catalogue.GROUPS.values():
        assert len({cards.dataset(name).conditions("test") for name in members}) == 1


@pytest.mark.usefixtures("nothing_at_hand")
def test_a_figure_of_nothing():
    figure = catalogue.plot_datasets()
    assert not any(ax.axison for ax in figure.axes)
    plt.close(figure)


def test_views_are_small_and_in_order_of_time(monkeypatch):
    frames = [molecule("CH3CH2OH") for _ in range(100)]
    monkeypatch.setattr(catalogue.data, "load", lambda *_: frames)
    monkeypatch.setattr(catalogue, "pictured", lambda: [("ethanol", "test"), ("acac", "test")])
    views = catalogue.views(atoms=90)
    assert list(views) == ["Ethanol, every 2.5 fs", "Acetylacetone"]
    assert views["Ethanol, every 2.5 fs"][1] is frames[5]
    assert len(views["Ethanol, every 2.5 fs"]) == 10
    assert views["Acetylacetone"] is frames[0]
