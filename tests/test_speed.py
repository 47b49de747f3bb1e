"""Does the page of speed say what the records hold? Ratios, goals that are missed, cells that failed."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from egraff_utils import paths, records
from egraff_utils.records import Metric, Record
from egraff_utils.report import speed, speed_goals, trade_offs


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    yield
    plt.close("all")


def md(
    model="mace", dataset="ethanol", ratios=(1.2, 4.0), *, campaign="bench", kind="bench_md", **parameters
):
    metrics = []
    for replicas, ratio in zip((1, 5), ratios, strict=True):
        metrics.append(Metric(f"ratio_{replicas}", ratio, "1", ratio - 0.1, ratio + 0.2, 20))
        metrics.append(Metric(f"ours_{replicas}", 100 * ratio, "replica-steps/s"))
        metrics.append(Metric(f"theirs_{replicas}", 100, "replica-steps/s"))
    given = {"preset": "small", "device": "cpu"} | parameters
    return Record(kind, campaign, dataset, model, 0, given, [*metrics, Metric("force_difference", 1e-7, "1")])


def one(kind, metric, value, unit="1", *, dataset="lips", model="mace", message=""):
    return Record(kind, "bench", dataset, model, 0, {}, [Metric(metric, value, unit)], "complete", message)


def failed(model="nequip", dataset="ethanol", reason="AssertionError: results differ"):
    return Record("bench_md", "bench", dataset, model, 0, {"preset": "small"}, [], "failed", reason)


def test_rates_are_one_row_for_every_number_of_replicas():
    rows = speed.rates([md(), one("bench_metrics", "ratio_rdf", 20)])
    assert list(rows.replicas) == [1, 5]
    assert list(rows.ratio) == [1.2, 4.0]
    assert (rows.ours[1], rows.theirs[1], rows.unit[1]) == (400, 100, "replica-steps/s")
    assert (rows.low[1], rows.high[1], rows.pairs[1]) == (3.9, 4.2, 20)


def test_a_training_has_no_replicas_in_its_names():
    metrics = [Metric(name, value, "1/s") for name, value in (("ratio", 2), ("ours", 8), ("theirs", 4))]
    record = Record("bench_training", "bench", "ethanol", "mace", 0, {}, metrics)
    assert list(speed.rates([record], "bench_training").ratio) == [2]
    html = speed.ratio_table([record], "bench_training").to_html()
    assert "2.00" in html
    assert "replica" not in html


def test_models_and_datasets_stand_in_the_order_of_the_book():
    found = [
        md("torchmd_net"),
        md("nequip"),
        md("mace", "lips"),
        md("mace", kind="bench_md_paper", preset="paper"),
    ]
    rows = speed.rates(found)
    assert list(rows.dataset[::2]) == ["ethanol", "ethanol", "ethanol", "lips"]
    assert list(rows.model[::2]) == ["nequip", "mace", "torchmd_net", "mace"]


def test_the_table_of_ratios_shows_ranges_and_failures():
    html = speed.ratio_table([md(), failed()]).to_html()
    assert "4.00 (3.90 to 4.20)" in html
    assert html.count("failed") == 4  # two ratios and two throughputs
    assert "small" not in html  # one preset needs no name
    assert "small" in speed.ratio_table([md(), md(kind="bench_md_paper", preset="paper")]).to_html()


def test_the_kind_names_the_preset_where_the_parameters_do_not():
    assert list(speed.rates([md(kind="bench_md_paper", preset="")]).preset) == ["paper", "paper"]


def test_values_are_scaled_with_their_unit():
    found = [
        one("bench_limit", "flop_per_step", 3e9, "flop"),
        one("bench_limit", "flop_per_step", 1e6, "flop"),
    ]
    found[1].model = "nequip"
    table = speed.value_table(found, "bench_limit")
    assert list(table["Flop per step (Gflop)"]) == [0.001, 3]


def test_rates_of_the_machine_are_read_from_the_limit():
    metrics = [Metric("compute_fraction", 0.1, "1"), Metric("matmul_rate", 8.1e10, "flop/s")]
    record = Record("bench_limit", "bench", "lips", "mace", 0, {}, metrics)
    assert speed.machine_rates([md(), record]) == {"matmul_rate": "81 Gflop/s"}
    assert list(speed.limit_reached([md(), record])) == [0.1]
    assert list(speed.value_table([record], "bench_limit")) == ["Compute fraction (dimensionless)"]


def test_a_benchmark_without_models_has_no_column_for_them():
    record = one("bench_pipeline", "import_time", 0.2, "s", dataset="-", model="-")
    assert list(speed.value_table([record], "bench_pipeline").index.names) == ["dataset"]
    assert list(speed.goal_table([record]).Cells[["import egraff_utils"]]) == ["1 of 1"]
    broken = Record(
        "bench_pipeline", "bench", "demo", "-", 0, {}, [], "failed", "RuntimeError: no space left"
    )
    goals = speed.goal_table([record, broken]).Verdict
    assert list(goals[["import egraff_utils", "make demo"]]) == ["met", "not met"]


def test_rounding_is_a_power_of_ten():
    found = [one("bench_metrics", "rdf_difference", 2.2e-16), one("bench_metrics", "rdf_difference", 0.5)]
    found[1].model = "nequip"
    assert set(speed.value_table(found, "bench_metrics").iloc[:, 0]) == {"2e-16", 0.5}


def test_what_ended_a_measurement_is_a_note():
    record = one("bench_scaling", "time_exponent", 1.02, message="ended before 4x4x4 copies")
    html = speed.value_table(
        [record, one("bench_scaling", "time_exponent", 1.0, model="nequip")], "bench_scaling"
    )
    assert "ended before 4x4x4 copies" in html.to_html()


def test_goals_name_what_missed_them():
    found = [md(), md("nequip", ratios=(0.9, 2.5)), md("mace", "lips", (1.0, 1.5))]
    table = speed.goal_table(found)
    ethanol = table.loc["MD of ethanol, 5 replicas"]
    assert (ethanol.Asked, ethanol.Found, ethanol.Cells) == ("at least 3 times", "2.5 to 4", "1 of 2")
    assert (ethanol.Verdict, ethanol["Missed by"]) == ("not met", "NequIP 2.5")
    assert table.Verdict["MD of LiPS, 5 replicas"] == "met"
    assert table.loc["MD, 1 replica", "Missed by"] == "NequIP Ethanol 0.9"
    assert table.Verdict["MD on a GPU, 5 replicas"] == "not measured"


def test_a_cell_that_failed_misses_its_goal():
    goal = speed.goal_table([md(), failed()]).loc["MD of ethanol, 5 replicas"]
    assert (goal.Verdict, goal["Missed by"]) == ("not met", "NequIP failed")
    assert speed.failures([md(), failed()]).Reason.tolist() == ["AssertionError: results differ"]


def test_of_many_misses_the_worst_are_named():
    found = [one("bench_metrics", "ratio_rdf", value, model=f"m{value}") for value in (7, 3, 9, 5, 4, 8)]
    missed = speed.goal_table(found).loc["RDF beside ASE's", "Missed by"]
    assert missed == "m3 LiPS 3, m4 LiPS 4, m5 LiPS 5, m7 LiPS 7, 2 more"


def test_presets_are_named_where_there_are_two():
    found = [md(), md(ratios=(2, 2.9), kind="bench_md_paper", preset="paper")]
    assert speed.goal_table(found).loc["MD of ethanol, 5 replicas", "Missed by"] == "MACE (paper) 2.9"


def training(kind, ratio, model="mace", dataset="ethanol", *, status="complete"):
    values = (("ratio", ratio), ("ours", 400.0), ("theirs", 400.0 / ratio))
    metrics = [Metric(name, value, "structures/s", value - 0.1, value + 0.1) for name, value in values]
    found = metrics if status == "complete" else []
    return Record(kind, "bench", dataset, model, 0, {"preset": "small"}, found, status, "no compiler")


def test_trainings_beside_three_others_stand_in_one_table():
    found = [
        training("bench_training", 4.0),
        training("bench_training_plain", 2.5),
        training("bench_training_plain", 2.0, "equiformer"),
        training("bench_training", 3.0, "nequip", status="failed"),
    ]
    table = speed.training_table(found)
    assert list(table.index) == [("ethanol", "nequip"), ("ethanol", "mace"), ("ethanol", "equiformer")]
    assert table["Ours (structures/s)"].tolist()[1:] == [400, 400]
    assert table["Ours by operators, ratio (dimensionless)"].iloc[1] == "2.50 (2.40 to 2.60)"
    assert table["Package's command (structures/s)"].iloc[1] == 100
    assert table["Package's command, ratio (dimensionless)"].iloc[0] == "failed"
    assert table["Package's command, ratio (dimensionless)"].isna().tolist() == [False, False, True]
    assert set(table["Package's command, compiled (structures/s)"]) == {"not measured yet"}


def test_the_kinds_of_training_have_goals_of_their_own():
    found = [training("bench_training_plain", 2.0), training("bench_training", 3.0, "botnet")]
    assert [r.kind for r in speed.of_kind(found, "bench_training")] == ["bench_training"]
    goals = speed.goal_table(found)
    assert goals.Verdict["training on ethanol, beside the packages' commands"] == "met"
    assert goals["Missed by"]["training on ethanol, beside operator by operator"] == "MACE 2"
    assert goals.Verdict["training on LiPS, beside operator by operator"] == "not measured"


def test_a_step_is_shown_part_by_part():
    table = speed.value_table([one("bench_step", "function", 4.0, "ms")], "bench_step")
    assert list(table) == ["Compiled function (ms)"]


@pytest.mark.parametrize(("value", "verdict"), [(0.85, "not met"), (1.05, "met"), (1.2, "not met")])
def test_an_exponent_is_bounded_on_both_sides(value, verdict):
    found = [one("bench_scaling", "time_exponent", value)]
    assert speed.goal_table(found).Verdict["exponent of time against atoms"] == verdict


def test_of_two_campaigns_the_first_counts():
    for record in (
        md(ratios=(1, 2)),
        md(ratios=(5, 6), campaign="bench_quick"),
        md("nequip", campaign="bench_quick"),
    ):
        records.write(record)
    found = speed.read(["bench", "bench_quick"])
    assert sorted((r.campaign, r.model) for r in found) == [("bench", "mace"), ("bench_quick", "nequip")]
    assert speed.read(["no such"]) == []


def test_devices_stand_apart():
    found = [md(), md(campaign="bench_gpu", device="cuda", ratios=(2, 8))]
    table = speed.goal_table(found)
    assert table.Found["MD on a GPU, 5 replicas"] == "8"
    assert table.Found["MD of ethanol, 5 replicas"] == "4"
    assert len(speed.made_on(found)) == 2
    assert "cuda" in speed.ratio_table(found).to_html()


def test_numbers_of_threads_stand_apart():
    one, two = md(dataset="lips", ratios=(1.1, 1.4)), md(dataset="lips", ratios=(1.0, 1.8), threads=2)
    two.campaign = "bench_2"
    for record in (one, two):
        records.write(record)
    found = speed.read(["bench", "bench_2"])
    assert list(speed.rates(found).device) == ["cpu", "cpu", speed_goals.TWO, speed_goals.TWO]
    goals = speed.goal_table(found)
    assert goals.Verdict["MD of LiPS, 5 replicas"] == "not met"
    assert goals.Verdict["MD of LiPS, two threads"] == "met"


def test_figures_show_what_was_measured():
    table = speed.rates([md(), md("nequip"), md("mace", "lips"), failed("botnet")])
    figure = speed.ratio_grid(table)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.axison]
    assert titles == ["Ethanol", "LiPS"]
    assert len(figure.axes[0].containers) == 2
    record = one("bench_scaling", "time_exponent", 1.0)
    record.__dict__["curves"] = {"atoms": np.array([32, 256]), "milliseconds": np.array([1.0, 9.0])}
    time, memory = trade_offs.cost_grid([record], "bench_scaling").axes
    assert len(time.lines) == 1
    assert [text.get_text() for text in memory.texts] == ["not measured"]


def test_no_records_give_empty_tables_and_figures():
    assert speed.rates([]).empty
    assert set(speed.goal_table([]).Verdict) == {"not measured"}
    speed.ratio_table([]).to_html()
    assert speed.training_table([]).empty
    speed.value_table([], "bench_limit").to_html()
    speed.ratio_grid(speed.rates([]))
    trade_offs.cost_grid([], "bench_scaling")
    assert speed.failures([]).empty
    assert speed.machine_rates([]) == {}
    assert speed.limit_reached([]).empty
    assert speed.made_on([]).empty


def test_every_change_that_was_tried_says_what_it_gave():
    table = pd.read_csv(paths.ROOT / "benchmarks" / "tried.csv", dtype=str, keep_default_na=False)
    assert list(table) == ["part", "change", "predicted", "gave", "kept"]
    assert (table.map(len) > 0).all(axis=None)
