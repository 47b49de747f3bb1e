"""What longer training changes, by hand."""

import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import COLUMNS
from egraff_utils.report import longer

MODELS = ("nequip", "mace", "allegro")


def campaign(datasets, error, wf, stable=1.0):
    """Frame of three models on some datasets; ``wf`` takes the place of the dataset and of the model."""
    rows = []
    for place, dataset in enumerate(datasets):
        rows.append(("floor", dataset, "reference", "wf", 0.5, 0.4, 0.6))
        for number, model in enumerate(MODELS):
            rows += [
                ("training", dataset, model, "force_mae", error * (1 + number), None, None),
                ("rollout", dataset, model, "wf", wf(place, number), None, None),
                ("rollout", dataset, model, "stable_fraction", stable, None, None),
            ]
    names = ["kind", "dataset", "model", "metric", "value", "low", "high"]
    frame = pd.DataFrame(rows, columns=names).reindex(columns=COLUMNS)
    return frame.astype({"value": float, "low": float, "high": float})


def test_halves_of_all_values_on_two_datasets():
    """Errors a third, Wright's factors a half; two datasets agree by chance in half the cases."""
    short = campaign("ab", 30.0, lambda dataset, model: 2.0 + model, stable=0.5)
    long = campaign("abc", 10.0, lambda dataset, model: 1.0 + model / 2, stable=0.75)
    found = longer.answers(short, long)
    wf, stable = found.loc["wf"], found.loc["stable_fraction"]
    assert (wf.cells, wf.datasets, wf.better, wf.worse, wf.alike_long) == (6, 2, 6, 0, 0)
    assert (wf.low, wf.high) == pytest.approx((0.5, 0.5)), "the range of two datasets"
    assert np.isnan(stable.alike), "it has no saturation level"
    assert (wf.change, wf.order, wf.order_long) == pytest.approx((0.5, 1, 1))
    assert (wf.chance, wf.adjusted) == (0.5, 1.0)
    assert (stable.change, stable.better) == (0.25, 6)
    said = longer.values(short, long, found)
    assert said["wf_change"].startswith("×0.50")
    assert said["stable_fraction_change"].startswith("+0.25")
    assert said["told"] == "None of 2 metrics tells the simulations apart"
    assert (said["cells"], said["error"], said["better"], said["least_p"]) == ("6", "3.0", "none", "1")
    assert said["caution"] == ", which so few datasets could not show"


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, longer.BETTER), (2.0, longer.WORSE), (1.0, longer.OPEN)]
)
def test_the_verdict_takes_enough_datasets_that_agree(factor, verdict):
    """Of nine datasets all agree with probability 2 / 512, of two metrics 1 / 128."""
    datasets = "abcdefghi"
    short = campaign(datasets, 30.0, lambda dataset, model: 2.0 + dataset + model)
    wf = lambda dataset, model: (2.0 + dataset + model) * factor  # noqa: E731
    found = longer.answers(short, campaign(datasets, 10.0, wf))
    assert found.verdict["wf"] == verdict
    assert found.verdict["stable_fraction"] == longer.OPEN
    told = {longer.BETTER: "better by WF, worse by none", longer.WORSE: "better by none, worse by WF"}
    said = longer.values(short, campaign(datasets, 10.0, wf), found)["told"]
    assert told.get(verdict, "None of 2 metrics") in said
    if factor != 1:
        assert found.adjusted["wf"] == pytest.approx(2 * 2 / 512)


@pytest.mark.parametrize(
    ("reached", "text"),
    [((1, 1), "×1.50"), ((1, 0), "> ×1.50"), ((0, 1), "< ×1.50"), ((0, 0), "? ×1.50")],
)
def test_a_horizon_that_was_not_reached_bounds_the_change(reached, text):
    """One dataset, so there is no range."""
    frames = []
    for each, horizon in zip(reached, (100.0, 150.0), strict=True):
        frame = campaign("a", 30.0, lambda dataset, model: 2.0)
        more = frame[frame.metric == "wf"].assign(kind="horizon", metric="horizon_driven", value=horizon)
        ends = more.assign(metric="horizon_driven_reached", value=1.0)
        ends.loc[ends.model == "mace", "value"] = float(each)
        frames.append(pd.concat([frame, more, ends], ignore_index=True))
    found = longer.answers(*frames)
    assert longer.values(*frames, found)["horizon_driven_change"] == text
    assert longer.values(*frames, found)["wf_change"] == "×1.00"


def test_saturated_cells_are_counted_and_open_in_the_figure():
    short = campaign("ab", 30.0, lambda dataset, model: 2.0)
    long = campaign("ab", 10.0, lambda dataset, model: 0.5)
    assert tuple(longer.answers(short, long).loc["wf", ["alike", "alike_long"]]) == (0, 6)
    ax, *_ = longer.change_grid(short, long, ("wf",)).axes
    assert [line.get_markerfacecolor() for line in ax.lines[1::2]] == ["none"] * 6
    assert ax.lines[0].get_xdata().tolist() == [90.0, 30.0]  # models are sorted by name


def test_without_the_longer_training_there_is_nothing_to_say():
    short = campaign("ab", 30.0, lambda dataset, model: 2.0)
    found = longer.answers(short, short[:0])
    assert found.empty
    assert longer.readable(found).empty
    assert longer.values(short, short[:0], found)["wf_change"] == "no value"
    assert len(longer.change_grid(short, short[:0], ("wf",)).axes) == 3


def test_the_test_of_signs_is_that_of_all_signs():
    rng = np.random.default_rng(0)
    changes = rng.normal(0.4, 1, size=10)
    drawn = np.abs(rng.choice([-1, 1], size=(200_000, 10)) @ changes)
    assert longer.chance_of(changes) == pytest.approx(np.mean(drawn >= abs(changes.sum())), abs=0.005)
