"""Does the page of time to accuracy say what the records hold? Ended budgets, no program, compilation."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from egraff_utils.records import Metric, Record
from egraff_utils.report import time_to_accuracy


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(
    model="mace",
    dataset="ethanol",
    *,
    ours=(10, 50, None),
    theirs=(40, None, None),
    status="complete",
):
    """Times to 50, 20 and 10 meV/Å behind 90 s of compilation, null where 300 s ended before."""
    sides = {"ours": ours} | ({"theirs": theirs} if theirs else {})
    targets = (50, 20, 10)
    metrics = [
        Metric(f"{side}_{goal}", value, "s")
        for side, values in sides.items()
        for goal, value in zip(targets, values, strict=True)
    ]
    metrics = [*metrics, Metric("compile_seconds", 90, "s")] if status == "complete" else []
    made = Record("bench_accuracy", "bench", dataset, model, 0, {"budget": 300.0}, metrics, status)
    curves = {"seconds": np.array([1.0, 10.0, 100.0]), "error": np.array([200.0, 40.0, 15.0])}
    made.__dict__["curves"] = {f"{s}_{name}": c for s in sides for name, c in curves.items() if metrics}
    return made


def test_the_table_tells_a_budget_that_ended_from_a_missing_program():
    table = time_to_accuracy.time_table([record(), record("equiformer", theirs=None)])
    row = table.loc["ethanol", "mace"]
    assert list(row.filter(like="50 meV")) == ["10", "100", "40"]
    assert list(row.filter(like="20 meV")) == ["50", "140", "over 300"]
    assert list(row.filter(like="10 meV")) == ["over 300"] * 3
    assert row["Compilation (s)"] == "90"
    assert table.loc[("ethanol", "equiformer"), "50 meV/Å, package's command (s)"] == "–"


def test_a_failed_cell_says_so_and_rows_stand_in_the_order_of_the_book():
    found = [record("torchmd_net"), record("mace", "aspirin"), record("nequip", status="failed")]
    table = time_to_accuracy.time_table(found)
    assert list(table.index) == [("aspirin", "mace"), ("ethanol", "nequip"), ("ethanol", "torchmd_net")]
    assert set(table.loc["ethanol", "nequip"]) == {"failed"}


def test_a_gain_is_of_cells_where_both_arrive():
    found = [record(), record("nequip", ours=(20, 30, 40), theirs=(50, 90, None))]
    assert time_to_accuracy.gain(found, 50) == "2.5 to 4"
    assert time_to_accuracy.gain(found, 50, compiled=True) == "0.4 to 0.455"
    assert time_to_accuracy.gain(found, 20) == "3"
    none = "no cell, reached by ours in 1 of 2 and by the command in 0 of 2"
    assert time_to_accuracy.gain([*found, record("equiformer", theirs=None)], 10) == none
    assert time_to_accuracy.gain(found, 10, compiled=True) == "none"
    assert time_to_accuracy.gain([], 10) == "(not measured yet)"


def test_the_figure_has_a_line_for_every_program_and_one_for_every_target():
    figure = time_to_accuracy.curve_grid(
        [record(), record("equiformer", theirs=None), record("mace", "aspirin")]
    )
    lines = {ax.get_title(loc="left"): len(ax.lines) for ax in figure.axes}
    assert lines == {"Ethanol": 3 + 3, "Aspirin": 2 + 3}
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_no_records_give_an_empty_table_and_figure():
    assert time_to_accuracy.time_table([]).empty
    assert time_to_accuracy.times([]).empty
    (ax,) = time_to_accuracy.curve_grid([]).axes
    assert [text.get_text() for text in ax.texts] == ["not measured yet"]


def test_errors_after_equal_epochs_are_shown_over_seeds():
    def trained(model, seed, ours, theirs):
        metrics = [Metric("ours", ours, "meV/Å"), Metric("theirs", theirs, "meV/Å")]
        return Record(
            "bench_equal",
            "bench",
            "ethanol",
            model,
            seed,
            {"epochs": 15, "preset": "small"},
            [*metrics, Metric("ratio", ours / theirs, "1")],
        )

    found = [trained("mace", 0, 40.0, 80.0), trained("mace", 1, 50.0, 25.0), trained("nequip", 0, 30.0, 30.0)]
    table = time_to_accuracy.equal_table(found)
    assert list(table.index) == ["NequIP", "MACE"]
    assert list(table.loc["MACE"]) == ["40.0 to 50.0", "25.0 to 80.0", "0.50 to 2.00", "1.00", "2"]
    assert time_to_accuracy.equal_table([]).empty
    said = time_to_accuracy.equal_values([*found, *(trained("allegro", n, 33.0, 30.0) for n in range(2))])
    assert said == {
        "means": "1.00 to 1.10",
        "pairs": "0.50 to 2.00",
        "greater": "3 of 5",
        "epochs": "15",
        "preset": "small",
        "sided": "Allegro (above one)",
    }
    assert time_to_accuracy.equal_values([])["sided"] == "none"
