"""Does the table of metrics agree with the records, with the paper's tables, and with itself?"""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from egraff_utils import paper, paths, quantities
from egraff_utils.md import averages
from egraff_utils.quantities import COLUMNS, QUANTITIES, Published, Quantity
from egraff_utils.records import Metric
from egraff_utils.report import beside, table_cells, tables

KINDS = ("dataset", "training", "errors", "rollout", "floor")
"""Kinds of records whose metrics the table is to know, all of them."""

PUBLISHED = [quantity for quantity in QUANTITIES if quantity.published]


@pytest.fixture(scope="module")
def stored():
    """(kind up to its suffix, metric, unit) of the committed records."""
    files = (file for kind in KINDS for file in (paths.ROOT / "results").glob(f"*/{kind}*/*.json"))
    contents = (json.loads(file.read_text()) for file in files if not file.name.endswith(".build.json"))
    return {(r["kind"].partition("_")[0], m["name"], m["unit"]) for r in contents for m in r["metrics"]}


def test_every_metric_of_the_records_is_known(stored):
    assert len(stored) > 50
    assert not {name for _, name, _ in stored if not quantities.is_known(name)}


def test_units_are_those_of_the_records(stored):
    units = {(name, unit) for _, name, unit in stored}
    assert {(name, quantities.of(name).unit) for name, _ in units} == units


def test_a_metric_that_was_stored_is_in_records_of_its_kind(stored):
    held = {(kind, name) for kind, name, _ in stored}
    for name in {name for _, name in held}:
        assert quantities.of(name).kind == "horizon" or (quantities.of(name).kind, name) in held


def test_simulations_hold_their_metrics_in_the_order_of_the_table():
    file = paths.ROOT / "results" / "xtb" / "rollout" / "ethanol_xtb-mace-s0.json"
    names = [metric["name"] for metric in json.loads(file.read_text())["metrics"]]
    stored = [name for name in quantities.averaged() if name in names]
    assert names[: len(stored)] == stored
    assert len(stored) > 10


@pytest.mark.parametrize("quantity", PUBLISHED, ids=lambda quantity: quantity.metric)
def test_published_columns_are_in_the_papers_tables(quantity):
    place = quantity.published
    assert {place.column, place.std or place.column} <= set(paper.table(place.table))
    values = paper.values(quantity.metric)
    assert values.index.is_unique
    assert set(values.index.unique("dataset")) == set(beside.DATASETS)


def test_published_values_are_in_the_unit_of_the_records():
    """Of MACE on LiPS: 15 meV/Å, root EV 0.96e-5 or so, 6.52 minutes per 1000 steps."""
    found = {
        metric: paper.values(metric)["lips", "mace"] for metric in ("force_mae", "ev_root", "ms_per_step")
    }
    assert found["force_mae"] == 15
    assert 7e-4 < found["ev_root"] < 2e-3
    assert found["ms_per_step"] == pytest.approx(1000 * 6.52 * 60 / 1000)


def test_names_and_heads_are_unique():
    for texts in ([q.metric for q in QUANTITIES], [q.head for q in QUANTITIES]):
        assert len(set(texts)) == len(texts)


def test_every_text_has_a_unit_and_shows_no_bare_one():
    for quantity in QUANTITIES:
        for text in (quantity.axis, quantity.label, quantity.written_out, quantity.head):
            assert re.search(r"\([^()]+\)$", text)
            assert not text.endswith("(1)")


def test_the_columns_of_the_leaderboard_can_be_coloured_and_named():
    assert {column.group for column in COLUMNS} == set(table_cells.SHADES) == set(quantities.GROUPS)
    assert all(column.title and column.lower_is_better is not None for column in COLUMNS)
    assert all(quantities.is_known(column.ceiling) for column in COLUMNS if column.ceiling)


def test_the_table_says_how_values_and_intervals_come_about():
    known = {*averages.AVERAGES, *averages.STRUCTURE, "run", ""}
    assert {quantity.average for quantity in QUANTITIES} == known
    assert {quantity.interval for quantity in QUANTITIES} == {"linear", "log", "fraction", ""}
    for distribution, scores in averages.STRUCTURE.items():
        assert {name for name, how in quantities.averaged().items() if how == distribution} == set(scores)
    assert all(quantity.saturation for quantity in QUANTITIES if quantity.best_at_zero)


def test_a_floor_bears_the_unit_of_its_metric():
    assert quantities.of("floor_wf").axis == "Wright's factor, half against half (%)"
    assert Metric.of("floor_rmsd", 1.0).unit == "Å"


def test_a_metric_of_ones_own_keeps_its_name_and_unit():
    frame = pd.DataFrame([{"metric": "mine", "unit": "eV"}])
    assert quantities.of("mine", "eV") == Quantity("mine", "eV")
    layout = beside.Layout(("mine",), {})
    assert beside.columns_of(layout, {"ours": frame})[0].head == "mine (eV)"


def test_a_row_is_all_that_a_table_needs(monkeypatch):
    row = Quantity("mine", "Å", "Mine", digits=1, group="structure", published=Published("2", "jsd", 10.0))
    monkeypatch.setitem(quantities._BY_NAME, "mine", row)
    columns = {"kind": "rollout", "dataset": "acac", "model": "nequip", "metric": "mine", "unit": "Å"}
    frame = pd.DataFrame(
        [columns | {"value": 2.0, "low": 1.0, "high": 3.0, "path": None, "status": "complete"}]
    )
    values = tables.beside_values(frame, ("mine",), spread=True).loc["acac", "nequip"]["Mine (Å)"]
    assert values.to_dict() == {"paper": pytest.approx(282.4), "ours": 2.0, "ours low": 1.0, "ours high": 3.0}


def test_it_is_light():
    heavy = {"torch", "pandas", "matplotlib"}
    code = f"import egraff_utils.quantities, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
