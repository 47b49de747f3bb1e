"""Is every published hyperparameter accounted for, and is agreement computed rightly?"""

import pytest

from egraff_utils import cards, paper
from egraff_utils.report import hyperparameters


@pytest.mark.parametrize("model", paper.HYPERPARAMETERS)
def test_every_term_is_known_and_every_keyword_exists(model):
    frame = hyperparameters.compare(model)
    published = paper.table(paper.HYPERPARAMETERS[model])
    assert list(frame.parameter[: len(published)]) == list(published.parameter)
    assert set(hyperparameters.terms(model)) <= set(published.parameter)
    assert (frame.note[frame.agreement.isin(["differs", "other form", "no keyword"])] != "").all()


@pytest.mark.parametrize("model", paper.HYPERPARAMETERS)
def test_keywords_of_the_card_stand_once(model):
    frame = hyperparameters.compare(model)
    rest = list(frame.keyword[frame.agreement == "not in the table"])
    assert len(rest) == len(set(rest))
    assert not set(rest) & set(frame.keyword[frame.agreement == "same"])


def test_what_differs_from_the_paper():
    frames = [hyperparameters.compare(model).assign(model=model) for model in paper.HYPERPARAMETERS]
    differing = {
        (row.model, row.parameter) for f in frames for row in f[f.agreement == "differs"].itertuples()
    }
    assert differing == {("equiformer", "Force weight")}


def test_a_wrong_card_is_noticed(monkeypatch):
    card = cards.model("mace")
    monkeypatch.setitem(card.presets["paper"]["network"], "num_channels", 32)
    frame = hyperparameters.compare("mace").set_index("parameter")
    assert frame.agreement["Hidden Irreps"] == "differs"
    assert frame.agreement["Correlation order"] == "same"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[(512, 0)]", 512),
        ("[1024, 1024, 1024]", [1024] * 3),
        ("[128]", 128),
        ("16x0e", 16),
        ("5 days", "5 days"),
        ("1.0e-6", 1e-6),
        ("None", "None"),
    ],
)
def test_published_values_are_read(text, value):
    assert hyperparameters.read(text) == value


def test_a_second_stage_that_small_has_not():
    frame = hyperparameters.compare("mace").set_index("parameter")
    assert frame.loc["SWA Energy Weight", ["preset paper", "preset small"]].tolist() == ["1000", "none"]
    assert frame.agreement["SWA"] == "same"


def test_sheet_shows_notes_and_numbers():
    html = hyperparameters.sheet("equiformer").data
    assert html.count("font-weight: bold") == 1
    assert "<code>parity: false</code>" in html
    assert 'download="table15-equiformer.csv"' in html
    assert html == hyperparameters.sheet("equiformer").data


def test_shape_and_packages_hold_every_model():
    assert set(hyperparameters.packages().index) == set(paper.HYPERPARAMETERS)
    assert set(hyperparameters.packages().licence) == {"MIT"}
    shape = hyperparameters.shape()
    assert shape.loc[("mace", "paper"), "reach (Å)"] == 10
    assert shape.loc[("allegro", "paper"), "reach (Å)"] == 5
    assert shape["highest degree"].between(1, 2).all()


def test_what_a_preset_changes():
    frame = hyperparameters.changes("day")
    assert frame.changed["mace"] == "hidden_l_max 2 → 1"
    assert frame.parameters["nequip"] * frame.factor["nequip"] == pytest.approx(1675400)
    assert set(hyperparameters.changes("paper").changed) == {"nothing"}


def test_unknown_model():
    with pytest.raises(ValueError, match="unknown model of the paper 'mase'; did you mean 'mace'"):
        hyperparameters.compare("mase")
