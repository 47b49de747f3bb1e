"""Do the figures over all models hold with any set of records? Panels, counts, one legend, fixed scales."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import COLUMNS, Metric, Record
from egraff_utils.report import comparison, figures, look, panels, trade_offs

REPLICAS, FRAMES, BINS = 3, 50, 20
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _close_figures():
    with look.style():
        yield
    plt.close("all")


def _record(kind, dataset, model, curves=None, metrics=(), status="complete"):
    record = Record(kind, "demo", dataset, model, 0, metrics=list(metrics), status=status)
    record.__dict__["curves"] = curves or {}
    return record


def _rollout(dataset, model, *, kind="rollout", broken=False, rdf=True):
    noise = RNG.normal(size=(REPLICAS, FRAMES))
    curves = {
        "time": 0.5 * np.arange(FRAMES),
        "fv": np.minimum(0.02 * np.arange(FRAMES) * np.exp(noise), 0.7),
        "ev_root": 1e-5 * np.exp(noise),
        "rmsd": np.abs(noise),
        "rmsd_reference": np.abs(noise),
        "stable_step": np.full(REPLICAS, FRAMES - 1),
    }
    if rdf:
        curves |= {"rdf_r": np.linspace(0.1, 5, BINS), "rdf": RNG.random((REPLICAS, BINS))}
        curves["rdf_reference"] = np.ones(BINS)
    if broken:
        curves["stable_step"][0] = 20
        for name in ("fv", "ev_root", "rmsd"):
            curves[name][0, 20:] = np.nan
    metrics = [Metric("steps", FRAMES - 1, "1")]
    return _record(kind, dataset, model, curves, metrics, "unstable" if broken else "complete")


@pytest.fixture
def records():
    steps = np.arange(1, 9) * 100
    training = {"step": steps, "seconds": steps / 50, "val_force_mae": 800 / steps}
    floors = [Metric("floor_fv", 0.7, "1"), Metric("zero_force_mae", 900.0, "meV/Å")]
    sizes = {
        "atoms": np.array([83, 166]),
        "milliseconds": np.array([5.0, 9.0]),
        "memory": np.array([3.0, 6.0]),
    }
    return [
        _rollout("ethanol", "mace"),
        _rollout("ethanol", "nequip", broken=True),
        _rollout("lips", "mace"),
        _record("training", "ethanol", "mace", training),
        _record("dataset", "ethanol", "reference", metrics=floors),
        _record("cost", "lips", "mace", sizes),
    ]


GRIDS = {
    "rdf": figures.rdf_grid,
    "fv": figures.violation_grid,
    "ev_root": lambda records: figures.violation_grid(records, "ev_root"),
    "rmsd": figures.rmsd_grid,
    "rmsd by model": lambda records: figures.rmsd_grid(records, by="model"),
    "learning": lambda records: figures.learning_curves(records, "seconds"),
    "cost": trade_offs.cost_grid,
}


@pytest.mark.parametrize("draw", GRIDS.values(), ids=GRIDS)
def test_a_grid_has_labels_with_units_and_one_legend(records, draw):
    figure = draw(records)
    labels = [figure.get_supxlabel(), figure.get_supylabel()]
    if not any(labels):
        labels = [label for ax in figure.axes for label in (ax.get_xlabel(), ax.get_ylabel())]
    assert all(re.search(r"\(.+\)$", label) for label in labels)
    assert len(figure.legends) == 1
    assert not any(ax.get_legend() for ax in figure.axes)


@pytest.mark.parametrize("draw", GRIDS.values(), ids=GRIDS)
def test_a_grid_without_records_says_so(draw):
    assert {"not run", "not measured"} & set(_texts(draw([])))


def test_a_missing_model_is_counted_and_a_missing_dataset_said(records):
    bare = _rollout("gete", "mace")
    del bare.curves["fv"]
    figure = figures.violation_grid([*records, bare])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["Ethanol", "LiPS, 1 of 2 models", "GeTe"]
    assert _texts(figure) == ["not run"]


def _texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_break_is_marked_and_the_mean_goes_on(records):
    ax = figures.rmsd_grid(records).axes[0]
    (mark,) = [line for line in ax.lines if line.get_marker() == figures.BREAK["marker"]]
    assert mark.get_xdata()[0] == pytest.approx(20 * 0.5)
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)


def test_floor_and_reference_keep_their_colours(records):
    colors = [line.get_color() for line in figures.violation_grid(records).axes[0].lines]
    assert look.FLOOR_COLOR in colors
    assert look.REFERENCE_COLOR in [line.get_color() for line in figures.rdf_grid(records).axes[0].lines]


def test_a_floor_with_a_range_is_a_band(records):
    metrics = [Metric("fv", 0.7, "1", 0.6, 0.8), Metric("ev_root", 3e-5, "1", 1e-5, 5e-5)]
    floor = _record("floor", "ethanol", "reference", metrics=[*metrics, Metric("rmsd", 0.5, "Å", 0.4, 0.6)])
    for name, ends in (("fv", (0.6, 0.8)), ("ev_root", (1e-5, 5e-5)), ("ev", (1e-10, 25e-10))):
        assert panels.floor_range([*records, floor], "rollout", "ethanol", name) == pytest.approx(ends)
    ax = figures.violation_grid([*records, floor]).axes[0]
    (band,) = [patch for patch in ax.patches if patch.get_label() == "saturation"]
    assert band.get_extents().transformed(ax.transData.inverted()).intervaly == pytest.approx((0.6, 0.8))
    (band,) = figures.rmsd_grid([*records, floor]).axes[0].collections
    (corners,) = [path.vertices for path in band.get_paths()]
    last = 0.5 * (FRAMES - 1)
    assert [*corners.min(0), *corners.max(0)] == pytest.approx([0.9 * last, 0.4, last, 0.6])


def test_a_line_joins_the_frames_that_have_a_value():
    sparse = _rollout("gete", "mace")
    sparse.curves["fv"][:, np.arange(FRAMES) % 10 > 0] = np.nan
    (line,) = [
        ln for ln in figures.violation_grid([sparse], window=1).axes[0].lines if len(ln.get_xdata()) > 1
    ]
    assert list(line.get_xdata()) == [5.0, 10.0, 15.0, 20.0]  # every tenth; the first is zero


def test_a_pooled_rollout_has_a_panel_for_every_composition():
    pooled = _rollout("lips20", "mace", rdf=False)
    pooled.curves["composition"] = np.array(["Li", "Li", "P4S3"])
    parts = [_rollout("lips20", "mace", kind=f"rollout_{name}") for name in ("Li", "P4S3")]
    titles = [ax.get_title(loc="left") for ax in figures.rdf_grid([pooled, *parts]).axes]
    assert [title for title in titles if title] == ["LiPS20, Li", "LiPS20, P4S3"]


def test_replicas_of_several_seeds_are_joined():
    short = _rollout("ethanol", "mace")
    short.curves["fv"] = short.curves["fv"][:, :30]
    joined = panels.stack_curves([_rollout("ethanol", "mace"), short], "fv")
    assert joined.shape == (2 * REPLICAS, FRAMES)
    assert np.isnan(joined[REPLICAS:, 30:]).all()


def test_mean_with_floor(frame):
    ax = figures.mean_grid(frame, ["fv"]).axes[0]
    assert ax.get_ylabel() == "FV (dimensionless)"
    assert len(ax.containers) == 3
    bands = [c for c in ax.collections if c.get_alpha() == 0.45]
    assert [path.vertices[0, 1] for path in bands[0].get_paths()] == [0.7]  # an older record, without a range
    row = {"kind": "floor", "dataset": "ethanol", "model": "reference", "metric": "fv"}
    row = pd.DataFrame([row | {"value": 0.69, "low": 0.6, "high": 0.78}])
    ax = figures.mean_grid(pd.concat([frame, row]), ["fv"]).axes[0]
    (band,) = [c for c in ax.collections if c.get_alpha() == 0.35]
    assert {0.6, 0.78} == set(band.get_paths()[0].vertices[:, 1])
    assert figures.mean_grid(frame, ["nothing"]).axes[0].get_ylabel() == "nothing (dimensionless)"
    assert len(figures.mean_grid(frame, ("fv", "force_mae")).legends) == 1


@pytest.mark.parametrize(("scale", "ends"), [("fixed", [0.5 / 0.7, 1]), ("paper", [0.5 / 0.7, 1])])
def test_floors_are_bars_on_the_spokes_of_the_radar(frame, scale, ends):
    row = {"kind": "floor", "dataset": "ethanol", "model": "reference", "metric": "fv"}
    row = pd.DataFrame([row | {"value": 0.7, "low": 0.5, "high": 0.8}])
    values = comparison.metric_values(pd.concat([frame, row]))
    assert comparison.floor_places(values, scale) == {("ethanol", "fv"): pytest.approx(ends)}
    bars = [ln for ln in trade_offs.radar_grid(values, scale=scale).axes[0].lines if len(ln.get_xdata()) == 2]
    assert [list(bar.get_ydata()) for bar in bars] == [pytest.approx(ends)]


@pytest.mark.parametrize("scale", ["fixed", "paper"])
def test_radar(frame, scale):
    ax = trade_offs.radar_grid(comparison.metric_values(frame), scale=scale).axes[0]
    assert len(ax.lines) == 3
    assert "force" in [label.get_text() for label in ax.get_xticklabels()]


def test_metrics_of_different_datasets_share_their_places(frame):
    training_only = frame[frame.kind == "training"].assign(dataset="acac")
    axes = figures.mean_grid(pd.concat([frame, training_only]), ("fv", "force_mae")).axes
    assert [text.get_text() for text in axes[1].get_xticklabels()] == ["Acetylacetone", "Ethanol"]
    places = [container[0].get_xdata()[0] for container in axes[0].containers]
    assert min(places) > 0.5  # all at ethanol
    assert [text.get_text() for text in axes[0].texts] == ["not run"]


def test_another_campaign_is_broken_lines_in_the_radar(frame):
    values = comparison.metric_values(frame)
    figure = trade_offs.radar_grid(values, beside={"gpu": values})
    assert [line.get_linestyle() for line in figure.axes[0].lines] == 3 * ["-"] + 3 * ["--"]
    assert "gpu" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_radar_and_pairs_without_values():
    empty = comparison.metric_values(pd.DataFrame(columns=COLUMNS))
    assert _texts(trade_offs.radar_grid(empty)) == ["not run"]
    assert "not run" in _texts(trade_offs.pairs_grid(empty))


def test_pairs_show_ours_full_and_the_paper_hollow(frame):
    axes = trade_offs.pairs_grid(comparison.metric_values(frame), pairs=[("energy_mae", "force_mae")]).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["ours", "paper"]
    assert len(axes[0].lines) == 3
    assert len(axes[1].lines) == 54
    assert {line.get_markerfacecolor() for line in axes[1].lines} == {"none"}


def test_unknown_choices_are_named(records):
    with pytest.raises(ValueError, match="name='wf' is not a violation"):
        figures.violation_grid(records, "wf")
    with pytest.raises(ValueError, match="by='seed'"):
        figures.rmsd_grid(records, by="seed")
