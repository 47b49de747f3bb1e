"""Are the published tables whole?"""

import pytest

from egraff_utils import cards, paper

DATASETS = {"acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "lips", "gete"}
MODELS = {"nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net"}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_main_tables_hold_every_dataset_and_model(number):
    table = paper.table(number)
    assert set(table.dataset) >= DATASETS
    assert set(table.model) == MODELS
    assert not table.duplicated(["dataset", "model"]).any()


RESULTS = [number for number in paper.tables() if number not in paper.HYPERPARAMETERS.values()]


@pytest.mark.parametrize("number", RESULTS)
def test_every_table_has_rows_and_numbers(number):
    table = paper.table(number)
    assert len(table) > 5
    assert len(table.select_dtypes("number").columns) > 0


@pytest.mark.parametrize(("model", "number"), paper.HYPERPARAMETERS.items())
def test_hyperparameters_are_text_and_complete(model, number):
    table = paper.table(number)
    assert cards.model(model).table == int(number)
    assert not table.parameter.duplicated().any()
    assert (table.value.str.len() > 0).all()


def test_how_many_hyperparameters_are_published():
    lengths = {model: len(paper.table(number)) for model, number in paper.HYPERPARAMETERS.items()}
    known = {"nequip": 27, "allegro": 26, "botnet": 32, "mace": 31, "equiformer": 21, "torchmd_net": 34}
    assert lengths == known
    allegro = paper.table(12).set_index("parameter").value
    assert allegro["Edge Eng MLP Nonlinearity"] == "None"


def test_earlier_literature_covered_ten_pairs():
    table = paper.table(8).set_index("dataset")
    assert table[list(paper.HYPERPARAMETERS)].to_numpy().sum() == 10
    assert table.loc["md17", "torchmd_net"] == 1


def test_values_as_published():
    benzene = paper.table(18).set_index(["trained_on", "model"])
    assert benzene.loc[("salicylic_acid", "mace"), "ev_gmean_1e-5"] == 2205
    assert len(paper.table(9)) == 20
    assert paper.table("7a").equals(paper.table(7))


def test_unknown_table():
    with pytest.raises(ValueError, match="unknown table '20'.*17, 18, 19"):
        paper.table(20)


def test_a_metric_without_a_table_is_named():
    with pytest.raises(ValueError, match="unknown published metric 'jsd'; did you mean"):
        paper.values("jsd")
