"""Rank correlations of test error and simulation on numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import COLUMNS, Metric, Record
from egraff_utils.report import agreement, horizon, question
from egraff_utils.report.ranks import detectable

MODELS = list("uvwxyz")


def cells_of(*datasets, width=None):
    """Cells from (errors, values) of each dataset, with intervals of a relative width."""
    index = [(f"d{i}", MODELS[j]) for i, (errors, _) in enumerate(datasets) for j in range(len(errors))]
    found = pd.DataFrame(index=pd.MultiIndex.from_tuples(index, names=["dataset", "model"]))
    found["error"], found["value"] = (np.concatenate([pair[k] for pair in datasets]) for k in (0, 1))
    if width:
        found["low"], found["high"] = found.value / width, found.value * width
    return found.reindex(columns=question.COLUMNS)


def test_answer_by_hand():
    """Within: orders 123 and 321 of the same errors, so 1 and -1. Pairs: three right, three wrong."""
    found = question.answer(cells_of(([1.0, 2, 3], [1.0, 2, 3]), ([10.0, 20, 30], [30.0, 20, 10])))
    assert found.within == pytest.approx(0)
    assert (found.cells, found.datasets, found.right) == (6, 2, 0.5)
    assert np.isnan(found.within_low)
    assert found.chance == pytest.approx(1)


def test_chance_of_one_dataset_is_that_of_all_orders():
    """Of the 24 orders of four models one has the correlation 1 and one -1: p = 1/12."""
    found = question.answer(cells_of(([1.0, 2, 3, 4], [1.0, 2, 3, 4])))
    assert found.within == pytest.approx(1)
    assert found.chance == pytest.approx(1 / 12, abs=0.01)


def test_larger_is_better():
    found = cells_of(([1.0, 2, 3], [30.0, 20, 10]))
    assert question.answer(found).within == pytest.approx(-1)
    assert question.answer(found, higher_is_better=True).within == pytest.approx(1)
    assert question.answer(found, higher_is_better=True).right == 1


def test_datasets_apart_say_nothing_of_models():
    """Errors and values of datasets rise together, those of models are opposed."""
    pairs = [(10.0**i * np.array([1.0, 2, 3, 4]), 10.0**i * np.array([4.0, 3, 2, 1])) for i in range(5)]
    found = question.answer(cells_of(*pairs))
    assert found.within == pytest.approx(-1)
    assert (found.within_low, found.within_high) == pytest.approx((-1, -1))
    assert found.chance < 0.01


def test_intervals_of_the_values_widen_that_of_the_correlation():
    rng = np.random.default_rng(0)
    pairs = [(np.arange(1.0, 7), np.arange(1.0, 7) + rng.normal(size=6) / 2 + 1) for _ in range(6)]
    sure, unsure = question.answer(cells_of(*pairs)), question.answer(cells_of(*pairs, width=3.0))
    assert unsure.within == sure.within
    assert unsure.within_low < sure.within_low - 0.1


def test_chance_is_uniform_for_shuffled_models():
    rng = np.random.default_rng(0)
    chances = []
    for _ in range(40):
        pairs = [(rng.random(6), rng.random(6)) for _ in range(8)]
        within = np.mean([question.rank_correlation(*pair) for pair in pairs])
        chances.append(agreement.chance_of(pairs, within))
    assert 0.35 < np.mean(chances) < 0.65
    assert np.mean(np.array(chances) < 0.05) < 0.15


def rows_of(kind, dataset, model, metric, value, low=np.nan, high=np.nan, *, seed=0):
    return dict(
        zip(
            COLUMNS,
            (kind, dataset, model, seed, metric, value, "1", low, high, 5, "complete", None),
            strict=True,
        )
    )


@pytest.fixture
def records_frame():
    rows = [rows_of("floor", "lips", "reference", "wf", 0.2, 0.1, 0.3)]
    for place, model in enumerate(("mace", "nequip", "botnet", "allegro")):
        rows += [
            rows_of("training", "lips", model, "force_mae", 10.0 + place),
            rows_of("rollout", "lips", model, "wf", 0.25 + place, 0.2 + place, 0.4 + place),
            rows_of("horizon", "lips", model, "horizon_nve", 100.0 - place, 90.0, 110.0),
        ]
    return pd.DataFrame(rows)


def test_cells_of_records(records_frame):
    found = question.cells(records_frame, "wf")
    assert found.index.tolist()[0] == ("lips", "allegro")
    mace = found.loc["lips", "mace"]
    assert (mace.error, mace.value, mace.floor_low, mace.floor_high, mace.alike) == (10, 0.25, 0.1, 0.3, True)
    assert found.alike.sum() == 1
    assert question.cells(records_frame, "fv").empty


def test_error_and_metric_are_of_the_same_seeds(records_frame):
    """A second training of MACE has the largest error; it was simulated, but not followed."""
    more = [
        rows_of("training", "lips", "mace", "force_mae", 90.0, seed=1),
        rows_of("rollout", "lips", "mace", "wf", 0.75, seed=1),
    ]
    frame = pd.concat([records_frame, pd.DataFrame(more)], ignore_index=True)
    assert question.cells(frame, "wf").loc[("lips", "mace"), ["error", "value"]].tolist() == [50, 0.5]
    assert question.cells(frame, "horizon_nve").loc[("lips", "mace"), ["error", "value"]].tolist() == [
        10,
        100,
    ]
    followed = [
        Record("horizon", "demo", "lips", row.model, 0, metrics=[Metric("horizon_nve", row.value, "fs")])
        for row in frame[frame.kind == "horizon"].itertuples()
    ]
    mean, _ = horizon.within(horizon.cells(followed, frame, "nve"))
    assert question.answers(frame).loc["horizon_nve", "within"] == pytest.approx(-mean) == 1


def test_answers_of_records(records_frame):
    table = question.answers(records_frame)
    assert table.loc["wf", ["cells", "alike", "outside_cells", "within"]].tolist() == [4, 1, 3, 1]
    assert table.loc["horizon_nve", "within"] == pytest.approx(1)
    assert table.loc["fv", "verdict"] == question.UNKNOWN
    text = question.readable(table)
    assert not text.map(lambda cell: "nan" in cell).any(axis=None)
    assert text.loc["FV (dimensionless)", "Within datasets"] == "no value"


def test_the_papers_own_numbers_answer_too(records_frame):
    table = question.answers(records_frame, published=True)
    assert table.loc["wf", "datasets"] == 9
    assert table.cells.between(40, 54).all()
    assert question.answers(pd.DataFrame(columns=COLUMNS)).cells.sum() == 0


@pytest.mark.parametrize(
    ("adjusted", "low", "verdict"),
    [(0.01, 0.1, question.YES), (0.01, -0.1, question.HERE), (0.2, 0.1, question.NO)],
)
def test_a_verdict_needs_the_test_and_the_interval(adjusted, low, verdict):
    row = pd.Series({"within": 0.4, "within_low": low, "within_high": 0.7, "adjusted": adjusted})
    assert question._verdict(row) == verdict


@pytest.mark.parametrize(("reached", "ranked"), [(0.0, 0), (1.0, 4)])
def test_horizons_that_no_model_reached_are_not_ranked(records_frame, reached, ranked):
    models = records_frame.model[records_frame.metric == "horizon_nve"].unique()
    marks = [
        rows_of("horizon", "lips", m, "horizon_nve_reached", reached if m == "nequip" else 0.0)
        for m in models
    ]
    frame = pd.concat([records_frame, pd.DataFrame(marks)])
    assert len(question.cells(frame, "horizon_nve")) == ranked


def test_ties_are_no_pairs_in_order():
    found = question.answer(cells_of(([1.0, 2, 3], [100.0, 100.0, 90.0])), higher_is_better=True)
    assert found.right == 1


def test_a_correlation_of_the_stated_size_is_found_in_four_of_five_cases():
    rng, hits = np.random.default_rng(1), []
    size = detectable([6] * 9, len(question.METRICS))
    strength = np.sqrt(size**2 / (1 - size**2)) * 1.03  # Pearson's, a little above Spearman's
    for _ in range(60):
        pairs = [(x, strength * x + rng.normal(size=6)) for x in rng.normal(size=(9, 6))]
        within = np.mean([question.rank_correlation(*pair) for pair in pairs])
        hits.append(agreement.chance_of(pairs, within) < 0.05 / len(question.METRICS))
    assert 0.6 < np.mean(hits) < 0.97


def test_the_papers_test_error_orders_its_force_violations(records_frame):
    """Six models on nine datasets, by permutation within datasets: not a matter of chance."""
    row = question.answers(records_frame, published=True).loc["fv"]
    assert row.within == pytest.approx(0.47, abs=0.01)
    assert row.chance == pytest.approx(0.0014, abs=2e-4)  # 0.001402 of two million random orders
    assert "rank correlation with FV 0.47" in question.finding(row.to_frame().T.rename({0: "fv"}), "fv")


def test_verdicts_in_words():
    table = pd.DataFrame(
        {"verdict": [question.YES, question.NO, question.YES]}, index=["wf", "fv", "deviation"]
    )
    assert question.told(table, question.YES) == "WF and Deviation"
    assert question.told(table, question.REVERSED) == "none"


def test_figure_has_a_panel_for_every_metric_with_cells(records_frame):
    found = {metric: question.cells(records_frame, metric) for metric in question.METRICS}
    figure = question.plot_question(found)
    assert [ax.get_ylabel() for ax in figure.axes if ax.axison] == ["WF (%)", "Horizon, NVE (fs)"]
    assert len(figure.axes[0].patches) == 1
    question.plot_question({})
