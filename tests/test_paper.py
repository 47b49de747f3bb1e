"""Are the published tables whole?"""

import pytest

from egraff_utils import paper

DATASETS = {"acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "lips", "gete"}
MODELS = {"nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net"}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_main_tables_hold_every_dataset_and_model(number):
    table = paper.table(number)
    assert set(table.dataset) >= DATASETS
    assert set(table.model) == MODELS
    assert not table.duplicated(["dataset", "model"]).any()


@pytest.mark.parametrize("number", paper.tables())
def test_every_table_has_rows_and_numbers(number):
    table = paper.table(number)
    assert len(table) > 5
    assert len(table.select_dtypes("number").columns) > 0


def test_values_as_published():
    benzene = paper.table(18).set_index(["trained_on", "model"])
    assert benzene.loc[("salicylic_acid", "mace"), "ev_gmean_1e-5"] == 2205
    assert len(paper.table(9)) == 20
    assert paper.table("7a").equals(paper.table(7))


def test_unknown_table():
    with pytest.raises(ValueError, match="unknown table '8'.*17, 18, 19"):
        paper.table(8)
