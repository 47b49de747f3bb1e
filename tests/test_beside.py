"""Which published value stands beside which of ours, and which level? Kinds, temperatures, seeds."""

import numpy as np
import pandas as pd
import pytest

from egraff_utils.records import COLUMNS
from egraff_utils.report import beside, tables

WF, FORCE = "WF (%)", "Force MAE (meV/Å)"


def _row(kind, model, metric, value, unit, *, dataset="ethanol", seed=0, status="complete"):
    row = dict.fromkeys(COLUMNS)
    row |= {"kind": kind, "dataset": dataset, "model": model, "seed": seed, "status": status}
    return row | {"metric": metric, "value": value, "unit": unit}


def test_the_perfect_level_stands_below_where_it_is_known():
    """Zero where the reference shares the noise, the oracle's own rollout beside stored frames."""
    rows = [_row(kind, "mace", "fv", 0.6, "1") for kind in ("rollout", "rollout_as_coded")]
    rows += [_row("rollout_as_coded", "reference", "fv", 0.5, "1")]
    rows += [_row("floor", "reference", "fv", 0.7, "1") | {"low": 0.6, "high": 0.8}]
    xtb = pd.DataFrame(rows).assign(dataset="ethanol_xtb")
    found = {}
    for kind in ("rollout", "rollout_as_coded"):
        table = tables.beside(xtb, ("fv",), kind=kind)
        found[kind] = table.data.loc["ethanol_xtb"].filter(like="saturation").iloc[0, 0]
        assert "perfect: the true force field" in table.caption
    assert found == {
        "rollout": "0.700\n0.600 to 0.800\nperfect 0.000",
        "rollout_as_coded": "0.700\n0.600 to 0.800\nperfect 0.500",
    }
    unknown = tables.beside(xtb.assign(dataset="ethanol"), ("fv",))
    assert "perfect" not in unknown.caption


def test_the_interval_of_several_seeds_is_that_of_their_mean():
    """Seeds 4, 5 and 6, each sure to 0.1: Student's 4.303 over the root of three."""
    one = {"low": 4.9, "high": 5.1}
    rows = [_row("rollout", "mace", "temperature", 4.0 + s, "K") | one | {"seed": s} for s in range(3)]
    values = tables.beside_values(pd.DataFrame(rows), ("temperature",), spread=True)
    found = values.loc[("ethanol", "mace"), "Temperature (K)"][["ours", "ours low", "ours high"]]
    assert found.tolist() == pytest.approx([5, 5 - 2.484, 5 + 2.484], abs=1e-3)
    values = tables.beside_values(pd.DataFrame(rows[:2]), ("temperature",), spread=True)
    found = values.loc[("ethanol", "mace"), "Temperature (K)"][["ours", "ours low", "ours high"]]
    assert found["ours"] == 4.5
    assert found[["ours low", "ours high"]].isna().all()  # two seeds bound nothing


def test_temperatures_take_the_kind_that_has_them():
    rows = [
        _row("rollout", "mace", "wf", 1.0, "%", dataset="acac"),
        _row("rollout_600K", "mace", "wf", 2.0, "%", dataset="acac"),
        _row("rollout_300K", "mace", "wf", 3.0, "%", dataset="3bpa"),
        _row("rollout", "mace", "wf", 4.0, "%", dataset="3bpa"),
    ]
    values = tables.paper_values(pd.DataFrame(rows, columns=COLUMNS), 6)[WF].xs("mace", level="model")
    assert values.loc[("acac", 300)].to_list() == [22.904, 1.0]
    assert values.loc[("acac", 600)].to_list() == [28.708, 2.0]
    assert values.loc[("3bpa", 300)].to_list() == [8.358, 3.0]
    assert values.loc[("3bpa", 600)].to_list() == [5.120, 4.0]


def test_published_3bpa_is_at_300_kelvin():
    rows = [
        _row("training", "mace", "force_mae", 30.0, "meV/Å", dataset="3bpa"),
        _row("errors_300K", "mace", "force_mae", 15.0, "meV/Å", dataset="3bpa"),
        _row("errors_300K", "mace", "zero_force_mae", 900.0, "meV/Å", dataset="3bpa"),
        _row("rollout", "mace", "wf", 4.0, "%", dataset="3bpa"),
        _row("rollout_300K", "mace", "wf", 3.0, "%", dataset="3bpa"),
    ]
    frame, key = pd.DataFrame(rows, columns=COLUMNS), ("3bpa", "mace")
    errors = tables.paper_values(frame, 1, bounds=True).loc[key, FORCE]
    assert errors.to_list() == [12.0, 15.0, 900.0]
    assert tables.paper_values(frame, 2).loc[key, WF].to_list() == [8.36, 3.0]
    main = tables.beside_values(frame, ("force_mae", "wf")).loc[key]
    assert main[WF].to_list() == [5.120, 4.0]  # both at 600 K
    assert np.isnan(main[FORCE, "paper"])
    assert main[FORCE, "ours"] == 30.0


def test_lips20_and_benzene_stand_at_what_was_trained():
    rows = [
        _row("rollout_crystals", "mace", "ev_root", 5e-4, "1", dataset="lips20"),
        _row("rollout_benzene", "mace", "ev_root", 2e-1, "1", dataset="ethanol"),
    ]
    frame, ev = pd.DataFrame(rows, columns=COLUMNS), "Root EV (1e-5)"
    crystal = tables.paper_values(frame, "7a").loc[("crystal", "mace"), ev]
    assert crystal.to_list() == pytest.approx([50.380, 50.0])
    ethanol = tables.paper_values(frame, 18).loc[("ethanol", "mace"), ev]
    assert ethanol.to_list() == pytest.approx([5863.2, 20000.0])
    unpublished = tables.paper_table(frame, "7b").data
    assert set(unpublished.columns.get_level_values(1)) == {"ours"}


def test_values_in_units_of_their_bound():
    rows = [
        _row("rollout", "mace", "fv", 0.35, "1"),
        _row("rollout", "nequip", "fv", 0.77, "1"),
        _row("dataset", "reference", "floor_fv", 0.7, "1"),
    ]
    values = tables.beside_values(pd.DataFrame(rows, columns=COLUMNS), ("fv",), bounds=True)
    fv = values.columns[0][0]
    ratios = beside.bound_ratios(values, fv)
    assert ratios.loc["ethanol", ("ours", "mace")] == pytest.approx(0.5)
    assert ratios.loc["ethanol", ("paper", "nequip")] == pytest.approx(0.684 / 0.7)
    assert ratios.loc["acac"].isna().all()  # no bound
    assert beside.winners(values, fv) == "MACE on Ethanol"
    text = tables.plain(ratios, "ratios").to_html()
    assert "MACE" in text
    assert "not run" in text
    nothing = tables.beside_values(pd.DataFrame(rows, columns=COLUMNS), ("fv",))
    assert beside.bound_ratios(nothing, fv).empty
    assert beside.count_alike(nothing, fv) == (0, 0)
