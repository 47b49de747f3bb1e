"""Do the figures say what they show? Every plot returns labelled axes with units, in the model's colour."""

import io
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards
from egraff_utils.records import Metric, Record
from egraff_utils.report import look, plots, structures, trade_offs

REPLICAS, FRAMES, BINS = 3, 40, 30
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _close_figures():
    with look.style():
        yield
    plt.close("all")


@pytest.fixture
def rollout():
    r = np.linspace(0.025, 5, BINS)
    noise = RNG.normal(size=(REPLICAS, FRAMES))
    fv = np.minimum(0.1 * np.arange(FRAMES) * np.exp(noise), 0.7)
    fv[0, 25:] = np.nan  # this replica ended early
    curves = {
        "time": np.arange(FRAMES) * 0.5,
        "temperature": 500 + 30 * noise,
        "ev": 1e-10 * np.exp(noise),
        "ev_root": 1e-5 * np.exp(noise),
        "fv": fv,
        "rmsd": np.abs(noise),
        "rdf_r": r,
        "rdf": np.exp(-((r - 2) ** 2)) + 0.01 * RNG.random((REPLICAS, BINS)),
        "rdf_reference": np.exp(-((r - 2) ** 2)),
        "rdf_partial": RNG.random((REPLICAS, 2, BINS)),
        "rdf_partial_reference": RNG.random((2, BINS)),
        "pairs": np.array(["C-C", "C-H"]),
    }
    return _record("rollout", curves)


@pytest.fixture
def training():
    steps = np.arange(1, 9) * 100
    curves = {"step": steps, "seconds": steps / 50, "val_force_mae": 800 / steps, "train_loss": 1 / steps}
    return _record("training", curves)


@pytest.fixture
def frames():
    atoms = bulk("Cu", cubic=True).repeat(2)
    return [_labelled(atoms, seed) for seed in range(3)]


def _record(kind, curves):
    record = Record(kind=kind, campaign="demo", dataset="ethanol", model="mace", seed=0)
    record.__dict__["curves"] = curves
    return record


def _labelled(atoms, seed):
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return atoms


def _assert_labelled(ax):
    assert isinstance(ax, plt.Axes)
    assert not ax.get_title()
    for text in (ax.get_xlabel(), ax.get_ylabel()):
        assert re.search(r"\(.+\)$", text), f"no unit in the label {text!r}"
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    "draw",
    [
        plots.plot_rdf,
        plots.plot_partial_rdfs,
        plots.plot_rmsd,
        lambda record, ax: plots.plot_temperature(record, 500.0, ax=ax),
        lambda record, ax: plots.plot_violations(record, floor=0.69, ax=ax),
        lambda record, ax: plots.plot_violations(record, "ev_root", floor=(1e-6, 2e-6), ax=ax),
    ],
)
def test_rollout_plots_are_labelled_and_draw_into_ax(rollout, draw):
    ax = plt.subplots()[1]
    assert draw(rollout, ax=ax) is ax
    _assert_labelled(ax)
    assert look.MODEL_COLORS["mace"] in [line.get_color() for line in ax.get_lines()]


@pytest.mark.parametrize("x", ["seconds", "step"])
def test_learning_curve(training, x):
    ax = plots.plot_learning_curve(training, x)
    _assert_labelled(ax)
    assert ax.get_yscale() == "log"


def test_mean_over_replicas_skips_the_ended_ones(rollout):
    line = plots.plot_violations(rollout).get_lines()[-1]
    fv = rollout.curves["fv"][1:, -1]
    assert line.get_ydata()[-1] == pytest.approx(np.sqrt(fv.prod()))


def test_reference_is_black(rollout):
    lines = {line.get_label(): line.get_color() for line in plots.plot_rdf(rollout).get_lines()}
    assert lines["reference"] == "black"


def test_floor_is_a_grey_band_behind_the_curves(rollout):
    bare = plots.plot_violations(rollout)
    ax = plots.plot_violations(rollout, floor=(0.6, 0.7))
    assert len(ax.patches) == len(bare.patches) + 1
    assert len(set(ax.patches[0].get_facecolor()[:3])) == 1  # grey
    assert ax.patches[0].get_zorder() < ax.get_lines()[-1].get_zorder()


def test_the_band_of_a_radial_distribution_lies_around_the_reference(rollout):
    reference = rollout.curves["rdf_reference"]
    floor = Record("floor", "demo", "ethanol", "reference", 0)
    floor.__dict__["curves"] = {
        "rdf_spread": np.stack([np.full(len(reference), 0.5), np.zeros(len(reference))])
    }
    bare, ax = plots.plot_rdf(rollout), plots.plot_rdf(rollout, floor=floor)
    assert len(bare.collections) == 0
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.max() == pytest.approx(reference.max() + 0.5)
    assert corners.min() == 0.0


def test_the_record_of_a_floor_gives_its_range(rollout):
    metrics = [Metric("fv", 0.7, "1", 0.6, 0.8), Metric("ev_root", 3e-5, "1")]
    floor = Record("floor", "demo", "ethanol", "reference", 0, metrics=metrics)
    ax = plots.plot_violations(rollout, floor=floor)
    band = ax.patches[-1].get_extents().transformed(ax.transData.inverted())
    assert band.intervaly == pytest.approx((0.6, 0.8))
    (line,) = [
        ln for ln in plots.plot_violations(rollout, "ev", floor=floor).lines if ln.get_linewidth() == 7
    ]
    assert line.get_ydata()[0] == pytest.approx(9e-10)  # squared, and no range


def test_a_missing_curve_is_named(training):
    with pytest.raises(ValueError, match="mace on ethanol has no curve 'rdf_r'"):
        plots.plot_rdf(training)


def test_an_unknown_violation_is_named(rollout):
    with pytest.raises(ValueError, match="metric='wf' is not a violation"):
        plots.plot_violations(rollout, "wf")


def test_distributions(frames):
    _assert_labelled(structures.plot_energy_histogram(frames, label="train"))
    _assert_labelled(structures.plot_force_distribution(frames))
    with pytest.raises(ValueError, match="no frames"):
        structures.plot_force_distribution([])


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), bulk("Cu", cubic=True).repeat(2)])
def test_structure_draws_every_atom_and_the_cell_where_periodic(atoms):
    ax = structures.plot_structure(atoms)
    _assert_labelled(ax)
    assert len(ax.patches) == len(atoms)
    assert len(ax.collections) == int(atoms.pbc.any())


def _frame():
    columns = ["kind", "dataset", "model", "seed", "metric", "value", "unit", "low", "high"]
    rows = [
        ("training", "ethanol", "mace", 0, "force_mae", 10.0, "meV/Å", None, None),
        ("rollout", "ethanol", "mace", 0, "wf", 5.0, "%", 4.0, 6.0),
        ("training", "ethanol", "nequip", 0, "force_mae", 40.0, "meV/Å", None, None),
        ("rollout", "ethanol", "nequip", 0, "wf", 50.0, "%", 40.0, 60.0),
        ("rollout_as_coded", "ethanol", "nequip", 0, "wf", 99.0, "%", 40.0, 60.0),
    ]
    return pd.DataFrame(rows, columns=columns).astype({"low": float, "high": float})


def test_the_legend_of_the_scatter_leaves_the_width_of_a_phone_to_the_points():
    figure = trade_offs.plot_leaderboard(_frame()).figure
    figure.savefig(io.BytesIO(), format="png")
    (ax,), (legend,) = figure.axes, figure.legends
    points, words = ax.get_window_extent(), legend.get_window_extent()
    assert words.y1 < points.y0
    assert points.width > 0.8 * figure.bbox.width


def test_leaderboard_scatter():
    ax = trade_offs.plot_leaderboard(_frame())
    _assert_labelled(ax)
    assert ax.get_xlabel() == "Force MAE (meV/Å)"
    assert ax.get_ylabel() == "Wright's factor (%)"
    assert {"log"} == {ax.get_xscale(), ax.get_yscale()}
    row = {"kind": "floor", "dataset": "ethanol", "model": "reference", "metric": "wf"}
    floor = pd.DataFrame([row | {"value": 0.5, "low": 0.4, "high": 0.6}])
    (band,) = [
        c for c in trade_offs.plot_leaderboard(pd.concat([_frame(), floor])).collections if c.get_alpha()
    ]
    assert {0.4, 0.6} == set(band.get_paths()[0].vertices[:, 1])
    with pytest.raises(ValueError, match="no model has both 'force_mae' and 'nothing'"):
        trade_offs.plot_leaderboard(_frame(), y="nothing")


def test_the_interval_of_a_point_is_that_over_seeds():
    frame = pd.concat([_frame().assign(seed=seed) for seed in (0, 1)])
    assert trade_offs._pair_metrics(frame, "force_mae", "wf")[["y_low", "y_high"]].isna().all(axis=None)
    frame = pd.concat(
        [_frame().assign(seed=s, value=lambda rows, s=s: rows.value * (1 + s)) for s in range(3)]
    )
    point = trade_offs._pair_metrics(frame, "force_mae", "wf").set_index("model").loc["mace"]
    assert (point.x, point.y) == (20.0, 10.0)
    assert point.y_low < 5 < 15 < point.y_high, "trainings scatter from 5 to 15"


def test_a_set_stands_for_frames_like_its_training_set():
    rows = [
        (kind, "3bpa", model, 0, metric, value)
        for kind, model, metric, value in [
            ("training", "mace", "force_mae", 90.0),
            ("errors_300K", "mace", "force_mae", 50.0),
            ("rollout", "mace", "wf", 0.9),
            ("rollout_300K", "mace", "wf", 0.7),
            ("floor", "reference", "wf", 0.1),
            ("floor_300K", "reference", "wf", 0.2),
            ("rollout_as_coded", "mace", "wf", 5.0),
        ]
    ]
    frame = pd.DataFrame(rows, columns=["kind", "dataset", "model", "seed", "metric", "value"])
    found = trade_offs.in_distribution(pd.concat([_frame(), frame]))
    here = found[found.dataset == "3bpa"].set_index("kind").value
    assert here.to_dict() == {"training": 50.0, "rollout": 0.7, "floor": 0.2, "rollout_as_coded": 5.0}
    assert len(found[found.dataset == "ethanol"]) == len(_frame())
    alone = trade_offs.in_distribution(frame[frame.kind == "rollout"])
    assert alone.empty, "errors at 600 K stand for none at 300 K"


def test_every_model_has_a_colour_of_its_own_grey():
    assert set(cards.models()) <= set(look.MODEL_COLORS)
    greys = sorted(_luminance(color) for color in look.MODEL_COLORS.values())
    assert min(np.diff(greys)) > 0.02
    assert max(greys) < 0.6  # still visible on white


def test_the_style_cycles_through_the_models_colours():
    cycle = [color.lower() for color in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
    assert {f"#{color.lstrip('#')}" for color in cycle} == set(look.MODEL_COLORS.values())


def _luminance(color):
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
