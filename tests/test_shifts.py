"""Is what a shift costs read from the right records? Values in and out, ratios, gaps, profiles."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards, records
from egraff_utils.report import shifted_sets, shifts, table_cells, tables

FORCE, WF = "Force MAE (meV/Å)", "WF (%)"
TABLES = [shifts.ERRORS, shifts.STRUCTURE, shifts.DYNAMICS]


def row(kind, dataset, metric, value, *, model="mace", status="complete"):
    known = {"kind": kind, "dataset": dataset, "model": model, "metric": metric, "value": value}
    return dict.fromkeys(records.COLUMNS) | known | {"seed": 0, "status": status}


def frame_of(*rows):
    frame = pd.DataFrame(rows, columns=records.COLUMNS)
    return frame.astype({"value": float, "low": float, "high": float})


@pytest.fixture
def frame():
    return frame_of(
        row("training", "acac", "force_mae", 20.0),
        row("errors_600K", "acac", "force_mae", 50.0),
        row("errors_600K", "acac", "zero_force_mae", 1000.0),
        row("rollout", "acac", "wf", 10.0),
        row("rollout_600K", "acac", "wf", 15.0, status="unstable"),
        row("rollout_as_coded", "acac", "wf", 99.0),
        row("training", "3bpa", "force_mae", 80.0),
        row("errors_300K", "3bpa", "force_mae", 40.0),
        row("rollout_300K", "3bpa", "wf", 2.0),
        row("rollout", "3bpa", "wf", 6.0),
    )


@pytest.mark.parametrize("task", shifts.TASKS)
def test_every_set_of_every_task_has_a_card(task):
    for shift in shifts.TASKS[task]:
        assert shift.home in cards.dataset(shift.dataset).splits
        assert shift.away in cards.dataset(shift.target or shift.dataset).splits


def test_the_hot_set_is_the_shifted_one():
    for shift in shifts.TASKS["temperature"]:
        card = cards.dataset(shift.dataset)
        assert (card.conditions(shift.home)[0], card.conditions(shift.away)[0]) == (300, 600)


def test_values_in_and_out_and_their_ratio(frame):
    errors = shifts.compare(frame, "temperature", shifts.ERRORS)
    assert list(errors.loc[("acac", "mace"), FORCE]) == [20.0, 50.0, 2.5]
    assert list(errors.loc[("3bpa", "mace"), FORCE]) == [40.0, 80.0, 2.0]  # its test set is the hot one
    relative = errors.loc[("acac", "mace"), "Force MAE over that of zero (×)"]
    assert relative[shifts.OUT] == 0.05
    assert np.isnan(relative[shifts.IN])
    structure = shifts.compare(frame, "temperature", shifts.STRUCTURE)
    assert structure.loc[("acac", "mace"), (WF, shifts.RATIO)] == 1.5
    assert structure.loc[("3bpa", "mace"), (WF, shifts.RATIO)] == 3.0


def test_the_floor_of_the_shifted_rollouts_and_values_in_its_range(frame):
    floor = row("floor_600K", "acac", "wf", 12.0, model="reference") | {"low": 9.0, "high": 16.0}
    frame = pd.concat([frame, frame_of(floor)])
    frame = pd.concat([frame, frame_of(row("floor_600K", "acac", "wf", 50.0, model="frozen"))])
    structure = shifts.compare(frame, "temperature", shifts.STRUCTURE)
    assert "frozen" not in structure.index.unique("model"), "a model without physics is no model"
    assert structure.loc[("acac", "mace"), (WF, shifts.FLOOR)] == 12.0
    assert np.isnan(structure.loc[("3bpa", "mace"), (WF, shifts.FLOOR)])
    texts = shifts.table(frame, "temperature", shifts.STRUCTURE).data
    assert table_cells.ALIKE in texts.loc[("acac", "mace"), (WF, shifts.OUT)]
    assert table_cells.ALIKE not in texts.loc[("acac", "mace"), (WF, shifts.IN)]


def test_a_set_that_is_not_the_papers_is_shown_where_it_was_run(frame):
    assert "acac_xtb" not in shifts.compare(frame, "temperature", shifts.STRUCTURE).index.unique(0)
    own = [row("rollout", "acac_xtb", "wf", 2.0), row("rollout_600K", "acac_xtb", "wf", 3.0)]
    structure = shifts.compare(pd.concat([frame, frame_of(*own)]), "temperature", shifts.STRUCTURE)
    assert list(structure.loc[("acac_xtb", "mace"), WF].dropna()) == [2.0, 3.0, 1.5]


def test_the_papers_ratio_stands_beside_ours(frame):
    structure = shifts.compare(frame, "temperature", shifts.STRUCTURE)
    ratio = structure.loc[("acac", "mace"), (WF, shifts.PAPER_RATIO)]
    assert ratio == pytest.approx(28.708 / 22.904)
    assert (WF, shifts.PAPER_RATIO) not in shifts.compare(frame, "lips20_crystals", shifts.STRUCTURE)


@pytest.mark.parametrize(
    ("task", "key", "values"),
    [
        ("temperature", ("3bpa", "botnet"), (0.677e-5, 1.607e-5)),
        ("lips20_crystals", ("lips20", "nequip"), (45.1e-5, 108.842e-5)),
        ("lips20_compositions", ("lips20", "nequip"), (45.1e-5, 15439.338e-5)),
        ("benzene", ("salicylic_acid", "mace"), (2.14e-5, 2205e-5)),  # as published, probably a misprint
    ],
)
def test_published_values(task, key, values):
    found = shifts.published_values(task).loc[key, "ev_root"]
    assert (found[shifts.IN], found[shifts.OUT]) == pytest.approx(values)


@pytest.mark.parametrize("task", shifts.TASKS)
@pytest.mark.parametrize("quantities", TABLES)
def test_tables_of_nothing_say_so(task, quantities):
    empty = frame_of()
    assert tables.NOT_RUN in shifts.table(empty, task, quantities).to_html()
    assert len(shifts.compare(empty, task, quantities)) == 6 * len(shifts.shown(task, empty))


def test_a_broken_simulation_bears_a_dagger_and_a_missing_one_is_named(frame):
    html = shifts.table(frame, "temperature", shifts.STRUCTURE).to_html()
    assert html.count(f"15.00\u00a0{table_cells.UNSTABLE}") == 1
    cells, legend = html.split("</caption>")[::-1]
    assert cells.count(table_cells.UNSTABLE) == 1
    assert legend.count(table_cells.UNSTABLE) == 1
    assert tables.NOT_RUN in cells
    assert shifts.table(frame, "temperature", shifts.STRUCTURE).to_html() == html


def test_models_of_ones_own_have_rows(frame):
    more = pd.concat([frame, frame_of(row("errors_600K", "acac", "force_mae", 5.0, model="mine"))])
    assert ("acac", "mine") in shifts.compare(more, "temperature", shifts.ERRORS).index


def test_an_unknown_task_or_dataset_is_named(frame):
    with pytest.raises(ValueError, match="temprature"):
        shifts.compare(frame, "temprature", shifts.ERRORS)
    with pytest.raises(ValueError, match="lips"):
        shifts.find("temperature", "lips")


def test_compositions_one_by_one():
    frame = frame_of(
        row("rollout_Li2S", "lips20", "wf", 1.0),
        row("rollout_beta-Li3PS4", "lips20", "wf", 4.0),
        row("rollout_gamma-Li3PS4", "lips20", "wf", 3.0, status="unstable"),
    )
    values = shifted_sets.composition_values(frame, "lips20_crystals", "wf")
    assert values.loc[("in", "Li2S"), "mace"] == 1.0
    assert values.loc["out"].shape == (4, 6)
    assert shifted_sets.worst(values) == "beta-Li3PS4 (4.00)"
    html = shifted_sets.composition_table(frame, "lips20_crystals", shifts.STRUCTURE[0]).to_html()
    assert f"3.00\u00a0{table_cells.UNSTABLE}" in html
    assert (
        shifted_sets.worst(shifted_sets.composition_values(frame_of(), "lips20_crystals", "wf"))
        == tables.NOT_RUN
    )


def test_spread_in_words(frame):
    errors = shifts.compare(frame, "temperature", shifts.ERRORS)
    assert shifts.spread(errors, FORCE) == "2.25 (2.00 to 2.50)"
    assert shifts.spread(errors, FORCE, only="acac") == "2.50"
    assert shifts.spread(errors, "no such head") == tables.NOT_RUN


def test_a_constant_offset_does_not_change_a_profile():
    reference = np.array([-9.0, -8.0, -8.5])
    names = {"wrong": 2.0 * reference, "shifted": reference + 57.0}
    made = [
        SimpleNamespace(model=name, curves={"energy": energy, "energy_reference": reference})
        for name, energy in names.items()
    ]
    values = shifted_sets.profiles(made, np.array([1.0, 90.0, 177.0]))
    assert np.allclose(values["shifted"], values["reference"])
    found = shifted_sets.barriers(values, "°")
    assert list(found["Barrier (meV)"]) == [1000.0, 2000.0, 1000.0]
    assert list(found["less the reference's (meV)"]) == [0.0, 1000.0, 0.0]
    assert set(found["Place (°)"]) == {90.0}
    assert found.loc["wrong", "End of the path (meV)"] == 1000.0
    html = shifted_sets.barrier_table(found, "made").to_html()
    assert ">Reference<" in html, "the reference of a path has no noise"


def test_no_profiles_are_no_error():
    values = shifted_sets.profiles([], np.array([1.0, 2.0]))
    assert shifted_sets.barriers(values, "°").empty
    assert shifted_sets.plot_profiles(values, label="x (Å)").texts[0].get_text() == tables.NOT_RUN
    plt.close("all")


def test_energies_spread_within_a_composition():
    frames = [Atoms(symbol, [[0, 0, 0]]) for symbol in ("H", "H", "C", "C")]
    for atoms, energy in zip(frames, (-1.0, 1.0, -1001.0, -999.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    (values,) = shifted_sets.set_values({"both": frames}).to_dict("records")
    assert values["Energy spread (meV)"] == 1000.0
    assert np.isnan(values["Mean absolute force component (meV/Å)"])


def test_points_and_diagonal(frame):
    ax = shifts.plot_shift(shifts.compare(frame, "temperature", shifts.ERRORS), FORCE)
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in drawn) == [(20, 50), (40, 80)]
    assert ax.get_xlim() == ax.get_ylim()
    empty = shifts.plot_shift(shifts.compare(frame_of(), "benzene", shifts.ERRORS), FORCE)
    assert empty.texts[0].get_text() == tables.NOT_RUN
    plt.close("all")


def test_structure_is_read_beside_the_level_of_its_own_set():
    """Wright's factor falls and yet moves away from its level, which falls more."""
    rows = [
        row("floor", "acac", "wf", 1.0, model="reference"),
        row("floor_600K", "acac", "wf", 0.1, model="reference"),
        row("rollout", "acac", "wf", 2.0),
        row("rollout_600K", "acac", "wf", 1.0),
    ]
    structure = shifts.compare(frame_of(*rows), "temperature", shifts.STRUCTURE)
    found = shifted_sets.against_levels(frame_of(*rows), "temperature", structure)
    assert found == {"levels-in": "2.00", "levels-out": "10.00"}


def test_a_shift_of_your_own_is_compared_like_those_of_the_book():
    own = shifts.Shift("ethanol_xtb", "test", "example")
    frame = frame_of(
        row("errors_test", "ethanol_xtb", "force_mae", 20.0),
        row("errors_example", "ethanol_xtb", "force_mae", 50.0),
    )
    found = shifts.compare(frame, own, shifts.ERRORS).loc["ethanol_xtb", "mace"]
    assert list(found[FORCE]) == [20.0, 50.0, 2.5]
    assert "2.5" in shifts.table(frame, own, shifts.ERRORS).to_html()


def test_rollouts_are_compared_over_the_same_time(frame, monkeypatch):
    """The values are those of the common window, here pretended to be a tenth of those of the whole run."""
    common = frame.assign(value=np.where(frame.kind.str.startswith("rollout"), frame.value / 10, frame.value))
    monkeypatch.setattr(shifts.windows, "common", lambda given: common if given is frame else given)
    structure, errors = (
        shifts.compare(frame, "temperature", group) for group in (shifts.STRUCTURE, shifts.ERRORS)
    )
    assert structure.loc[("acac", "mace"), WF].iloc[:2].tolist() == [1.0, 1.5]
    assert errors.loc[("acac", "mace"), FORCE].iloc[0] == 20.0
