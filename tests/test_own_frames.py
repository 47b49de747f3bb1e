"""Are errors on own frames put beside the right test errors, and is nothing invented where there are none?"""

import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import Metric, Record
from egraff_utils.report import own_frames, plots, tables
from egraff_utils.report.own_frames import APART, EV, FLOOR, FORCE, FV, OWN, RATIO, TEST


def frame_of(*rows):
    frame = pd.DataFrame(rows, columns=["kind", "dataset", "model", "metric", "value"])
    return frame.assign(low=np.nan, high=np.nan)


@pytest.fixture
def frame():
    return frame_of(
        ("training", "acac_xtb", "mace", "force_mae", 20.0),
        ("training", "acac_xtb", "nequip", "force_mae", 10.0),
        ("errors_600K", "acac_xtb", "mace", "force_mae", 50.0),
        ("rollout", "acac_xtb", "mace", "oracle_fv", 0.1),
        ("rollout", "acac_xtb", "mace", "oracle_force_mae", 30.0),
        ("rollout", "acac_xtb", "mace", "fv", 0.6),
        ("rollout", "acac_xtb", "mace", "oracle_ev_root", 4e-5),
        ("floor", "acac_xtb", "reference", "fv", 0.7),
        ("rollout_600K", "acac_xtb", "mace", "oracle_fv", 0.2),
        ("rollout_600K", "acac_xtb", "mace", "oracle_force_mae", 100.0),
        ("rollout_as_coded", "acac_xtb", "mace", "oracle_fv", 0.2),
        ("rollout", "lips", "mace", "fv", 0.7),
    )


def test_own_errors_stand_beside_those_of_their_own_set(frame):
    home = own_frames.errors(frame)
    assert list(home.index) == [("acac_xtb", "nequip"), ("acac_xtb", "mace")]
    assert home.loc[("acac_xtb", "mace"), FORCE].to_dict() == {TEST: 20.0, OWN: 30.0, RATIO: 1.5}
    assert np.isnan(home.loc[("acac_xtb", "nequip"), (FORCE, OWN)])
    assert own_frames.shifted_kinds(frame) == ["rollout_600K"]
    hot = own_frames.errors(frame, "rollout_600K")
    assert hot.loc[("acac_xtb", "mace"), (FORCE, RATIO)] == 2.0


def test_own_violations_stand_beside_those_of_trajectories(frame):
    row = own_frames.violations(frame).loc[("acac_xtb", "mace")]
    assert row[FV].to_dict() == {OWN: 0.1, APART: 0.6, FLOOR: 0.7}
    assert row[EV, OWN] == pytest.approx(4.0)
    assert np.isnan(row[EV, APART])


def test_the_reference_has_a_row_and_counts_nowhere(frame):
    more = frame_of(
        ("training", "acac_xtb", "reference", "force_mae", 1e-12),
        ("rollout", "acac_xtb", "reference", "oracle_fv", 0.0),
        ("rollout", "acac_xtb", "reference", "oracle_force_mae", 1e-3),
        ("rollout", "acac_xtb", "reference", "fv", 0.3),
    )
    every = pd.concat([frame, more])
    errors, apart = own_frames.errors(every), own_frames.violations(every)
    assert list(errors.index.unique("model")) == ["nequip", "mace", "reference"]
    assert np.isnan(errors.loc[("acac_xtb", "reference"), (FORCE, RATIO)])
    shown = own_frames.errors_table(errors, "errors").to_html()
    assert shown.count("–") == 1, "a ratio that the reference cannot have is not one that was not run"
    assert apart.loc[("acac_xtb", "reference"), (FV, APART)] == 0.3
    values = own_frames.page_values([], errors, apart)
    assert values == own_frames.page_values([], own_frames.errors(frame), own_frames.violations(frame))


def test_models_below_the_run_with_other_noise_are_counted(frame):
    more = frame_of(
        ("rollout", "acac_xtb", "nequip", "oracle_fv", 0.1),
        ("rollout", "acac_xtb", "nequip", "fv", 0.2),
        ("rollout", "acac_xtb", "reference", "oracle_fv", 0.0),
        ("rollout", "acac_xtb", "reference", "fv", 0.3),
    )
    told = own_frames.below_reference(own_frames.violations(pd.concat([frame, more])))
    assert told == "Of the models' FV between trajectories, 1 of 2 on Acetylacetone by GFN2-xTB lie below it"
    assert own_frames.below_reference(own_frames.violations(frame)) == "no value"


def test_no_records_are_an_empty_table():
    assert len(own_frames.errors(frame_of())) == len(own_frames.violations(frame_of())) == 0
    assert own_frames.shifted_kinds(frame_of()) == []


def test_the_reference_with_other_noise_is_a_dashed_line_in_every_figure():
    time, fv = np.arange(3.0), np.array([[1e-9, 0.1, 0.2], [1e-9, 0.4, 0.2]])
    curves = {"time": time, "fv": fv, "oracle_steps": time[1:], "oracle_fv": fv[:, 1:], "rdf_r": time}
    curves |= {"rdf": fv, "rdf_reference": fv[0], "temperature": fv, "oracle_force_mae": fv[:, 1:]}
    parameters = {"timestep": 1.0, "steps": 2}
    run, other = (Record("rollout", "c", "acac_xtb", m, 0, parameters) for m in ("mace", "reference"))
    for record in (run, other):
        record.__dict__["curves"] = curves
    arithmetic = [1e-9, 0.25, 0.2]
    drawn = {
        own_frames.plot_apart(run, own_noise=other): [0.2, 0.2],  # without the start, which all share
        plots.plot_violations(run, own_noise=other): [0.2, 0.2],
        plots.plot_rdf(run, own_noise=other): arithmetic,
        plots.plot_temperature(run, 0.1, own_noise=other): arithmetic,
        own_frames.along_grid([run, other]).axes[0]: arithmetic[1:],
    }
    for ax, mean in drawn.items():
        (line,) = [line for line in ax.lines if line.get_label() == "Reference, own noise"]
        assert line.get_linestyle() == "--"
        assert line.get_ydata() == pytest.approx(mean)
    assert "Reference, own noise" in {text for ax in drawn for text in ax.get_legend_handles_labels()[1]}


def test_the_reference_with_other_noise_has_a_column_in_the_table_of_a_record():
    records = (
        Record("rollout", "c", "acac_xtb", "mace", 0, {}, [Metric.of("fv", 0.2), Metric.of("wf", 1.0)]),
        Record("rollout", "c", "acac_xtb", "reference", 0, {}, [Metric.of("fv", 0.1)]),
    )
    assert tables.record_table(records[0], own_noise=records[1]).data["Reference, own noise"].tolist() == [
        "0.1",
        "–",
    ]
