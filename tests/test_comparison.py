"""Are metrics compared on scales that no model can move? Bounds, rosters, ranks, units."""

import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import COLUMNS
from egraff_utils.report import comparison


def test_values_hold_the_bounds(frame):
    values = comparison.metric_values(frame)
    assert list(values.index.get_level_values("model")) == ["nequip", "mace", "equiformer"]
    assert (values.zero_force_mae == 1000).all()
    assert (values.unstable_fraction == 0).all()


def test_fixed_scales_are_known_at_their_bounds(frame):
    scaled = comparison.scaled_values(comparison.metric_values(frame))
    np.testing.assert_allclose(scaled.force_mae, [1 / 3, 2 / 3, 1.0])
    np.testing.assert_allclose(scaled.fv, [0.5 / 0.7, 0.6 / 0.7, 1.0])


def test_only_the_papers_scaling_depends_on_the_roster(frame):
    values = comparison.metric_values(frame)
    fewer = values.drop(index=("ethanol", "equiformer"))
    fixed = comparison.scaled_values(values).drop(index=("ethanol", "equiformer"))
    pd.testing.assert_frame_equal(fixed, comparison.scaled_values(fewer))
    assert comparison.scaled_values(fewer, "paper").force_mae.max() == 1
    assert comparison.scaled_values(values, "paper").force_mae.iloc[1] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="scale='mine'"):
        comparison.scaled_values(values, "mine")


def test_rank_correlation_within_datasets(frame):
    other = frame.assign(dataset="lips", value=frame.value * 1000)
    values = comparison.metric_values(pd.concat([frame, other]))
    found = comparison.rank_correlations(values, pairs=[("energy_mae", "force_mae")]).iloc[0]
    assert found["within"] == pytest.approx(-1)
    assert (found["points"], found["datasets"]) == (6, 2)


def test_published_values_are_in_the_records_units():
    published = comparison.published_values().loc[("lips", "mace")]
    assert published.ms_per_step == pytest.approx(6.52 * 60)
    assert 7e-4 < published.ev_root < 2e-3


def test_no_records_give_no_values():
    empty = comparison.metric_values(pd.DataFrame(columns=COLUMNS))
    assert empty.empty
    assert comparison.scaled_values(empty).empty
    assert comparison.rank_correlations(empty)["points"].sum() == 0
    for measure in (comparison.spreads, comparison.best_counts, comparison.roster_effects):
        assert measure(empty).empty


def test_every_spoke_says_what_its_bounds_are():
    assert not comparison.scale_table().isna().any(axis=None)


def test_the_best_model_of_every_spoke_is_counted(frame):
    table = comparison.best_counts(comparison.metric_values(frame))
    assert table.loc["ethanol", "spokes"] == 2  # all are equally stable; energies have no bound here
    assert dict(table.loc["ethanol", ["nequip", "mace", "equiformer"]]) == {
        "nequip": 2,
        "mace": 0,
        "equiformer": 0,
    }


def test_spreads_run_from_best_to_worst(frame):
    found = comparison.spreads(comparison.metric_values(frame))
    assert found["force"] == pytest.approx(2 / 3)
    assert found["broken"] == 0


def test_leaving_one_out_moves_the_others_on_the_papers_scaling_only(frame):
    values = comparison.metric_values(frame)
    paper = comparison.roster_effects(values)
    assert len(paper) == 3
    assert paper.change.max() > 0.1
    assert comparison.roster_effects(values, "fixed").change.max() == 0
    assert comparison.roster_effects(comparison.published_values()).reordered.any()
