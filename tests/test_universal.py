"""Does the page on universal potentials say what the records say?"""

import importlib.util

import pytest

from egraff_utils import cards, records
from egraff_utils.records import Metric, Record
from egraff_utils.report import universal


def training(model, dataset="ethanol", campaign="x", seconds=None, force=10.0, steps=5):
    values = {"force_mae": force, "zero_force_mae": 500.0, "energy_mae_per_atom": 1.0, "steps": steps}
    metrics = [Metric(name, value, "1") for name, value in values.items()]
    metrics.append(Metric("force_slope", 0.9, "1", n=7))
    provenance = {"hyperparameters": {"batch_size": 5}}
    return Record(
        "training", campaign, dataset, model, 0, {"max_seconds": seconds}, metrics, provenance=provenance
    )


def found():
    own = [training("so3lr", force=170.0, steps=0)]
    further = universal.tuned(
        [training("so3lr_tuned", seconds=s, force=f) for s, f in ((120, 9.2), (15, 12.2))]
    )
    networks = [training("mace", seconds=300, force=25.0), training("nequip", seconds=300, force=41.0)]
    return own, further, {"cpu": [*networks, *further, *own]}


def test_errors_stand_beside_each_other():
    own, _, others = found()
    (row,) = universal.errors(own, others).to_dict("records")
    assert row["From nothing, cpu (300 s)"] == "25 to 41"
    assert row["SO3LR"] == "170"


def test_a_row_of_another_temperature_has_no_value_of_table_1():
    own = [training("so3lr", name, steps=0) for name in ("3bpa", "ethanol")]
    table = universal.errors(own, {})
    assert table.loc["3BPA, 300 to 600 K", universal.PAPER] == "–"
    assert table.loc["Ethanol", universal.PAPER] == "3 to 10"


def test_energies_that_further_training_made_worse_are_told():
    own, further, _ = found()
    assert universal.risen(own, further) == "none"
    more = {"energy_mae_per_atom": 3.0, "energy_mae": 27.0, "energy_mae_shifted": 9.0}
    kept = [metric for metric in further[0].metrics if metric.name not in more]
    further[0].metrics[:] = [*kept, *(Metric(key, value, "1") for key, value in more.items())]
    words = "SO3LR, fine-tuned on Ethanol 1.0 to 3.0 meV/atom (1.0 without its mean error)"
    assert universal.risen(own, further) == words


def test_the_ends_of_a_range_are_named():
    assert universal.ends([("MACE", 3.0)], ".1f") == "3.0 (MACE)"
    assert universal.ends([], ".1f") == "no value"


def test_errors_after_further_training_stand_in_the_order_of_time():
    own, further, others = found()
    further.append(training("sevennet_0_tuned", "lips", seconds=120, force=56.0))
    table = universal.errors_by_time(universal.tuned(further), own, others)
    assert table.columns.tolist() == [
        "As it came",
        "Fine-tuned 15 s",
        "Fine-tuned 120 s",
        "From nothing, cpu (300 s)",
    ]
    assert table.loc["Ethanol", "SO3LR"].tolist() == ["170", "12.2", "9.2", "25 to 41"]
    assert table.loc["LiPS", "SevenNet-0"].tolist() == ["–", "–", "56.0", "–"]
    assert universal.errors_by_time([], own, others).empty


def test_a_factor_is_over_the_best_network_of_the_dataset():
    own, further, others = found()
    assert universal.factors(further, others["cpu"], "molecule") == "0.37 to 0.49 times (Ethanol)"
    assert universal.factors(own, others["cpu"], "molecule") == "6.80 times (Ethanol)"
    assert universal.factors(further, others["cpu"], "bulk") == "not known times"
    assert universal.factors([training("so3lr", "aspirin")], others["cpu"], "molecule") == "not known times"


def test_a_training_by_steps_has_no_limit_of_time():
    assert universal.limits([training("mace", seconds=300), training("nequip")]) == {300}


def test_trainings_ahead_of_the_best_network_are_counted():
    _, further, others = found()
    others["day"] = [training("mace", seconds=1200, force=10.0), training("nequip", seconds=1200, force=30.0)]
    others["xtb"] = [training("mace", "ethanol_xtb", force=1.0)]
    assert universal.ahead(further, others) == "2 of 2 beside campaign cpu and 1 of 2 beside campaign day"
    assert universal.ahead([], others) == "not compared"


def test_details_tell_fine_tuned_ones_apart():
    own, further, _ = found()
    table = universal.details([*own, *further])
    assert table["Frames in all steps"].droplevel("Dataset").to_dict() == {
        "SO3LR": "–",
        "SO3LR, fine-tuned 15 s": "25",
        "SO3LR, fine-tuned 120 s": "25",
    }


def rolled(campaign, model, dataset, kind="rollout"):
    return Record(kind, campaign, dataset, model, 0, {}, [Metric("wf", 0.1, "1")])


@pytest.fixture
def held(monkeypatch):
    """Records by campaign, in place of those that are stored."""
    found = {}
    monkeypatch.setattr(records, "read_all", found.__getitem__)
    return found


def test_simulations_are_shown_where_potentials_were_simulated(held):
    held["universal"] = [rolled("universal", "so3lr", "ethanol"), training("so3lr", "aspirin", steps=0)]
    held["cpu"] = [rolled("cpu", "mace", dataset) for dataset in ("ethanol", "aspirin")]
    held["cpu"].append(rolled("cpu", "reference", "ethanol", "floor"))
    shown = universal.simulated("universal", [], "cpu")
    assert set(zip(shown.model, shown.kind, strict=True)) == {
        ("so3lr", "rollout"),
        ("mace", "rollout"),
        ("reference", "floor"),
    }


def test_simulations_after_different_times_are_not_averaged(held):
    times = {"short": 15, "long": 120}
    further = [training("so3lr_tuned", campaign=name, seconds=time) for name, time in times.items()]
    for record in further:
        held[record.campaign] = [record, rolled(record.campaign, "so3lr_tuned", "ethanol")]
    held |= {"universal": [], "cpu": [rolled("cpu", "mace", "ethanol")]}
    shown = universal.simulated("universal", universal.tuned(further), "cpu")
    assert set(shown.model) == {"SO3LR, fine-tuned 15 s", "SO3LR, fine-tuned 120 s", "mace"}


def test_potentials_that_stray_further_than_every_network_are_counted(held):
    further = [training("so3lr_tuned", campaign="tuned", seconds=15)]
    held["universal"] = [rolled("universal", "so3lr", "ethanol"), rolled("universal", "so3lr", "aspirin")]
    held["tuned"] = [*further, rolled("tuned", "so3lr_tuned", "ethanol")]
    held["cpu"] = [rolled("cpu", "mace", "ethanol"), rolled("cpu", "nequip", "ethanol")]
    held["universal"][0].metrics[0] = Metric("wf", 6.35, "%")
    held["cpu"][0].metrics[0] = Metric("wf", 0.54, "%")
    frame = universal.simulated("universal", further, "cpu")
    assert universal.strayed(frame) == "1 of 1 as they came and 0 of 1 trained further"


def test_horizons_and_verdicts_after_different_times_are_told_apart():
    known = universal.names([training("so3lr_tuned", campaign=str(s), seconds=s) for s in (15, 120)])
    horizons = [
        Record("horizon", place, "ethanol", "so3lr_tuned", 0, {}, [Metric("horizon_nve", fs, "fs", fs, fs)])
        for place, fs in (("15", 40.0), ("120", 60.0))
    ]
    rows = universal.horizons(horizons, known)
    assert rows.index.get_level_values(1).tolist() == ["SO3LR, fine-tuned 15 s", "SO3LR, fine-tuned 120 s"]
    gates = [
        Record(
            "gate",
            place,
            "ethanol",
            "so3lr_tuned",
            0,
            {"tolerances": {"gradient": 1e-4}},
            metrics,
            message=why,
        )
        for place, metrics, why in (
            ("15", [Metric("passed", 1.0, "1")], ""),
            ("120", [Metric("passed", 0.0, "1"), Metric("gradient", 0.437, "1")], "gradient"),
        )
    ]
    assert universal.verdicts(gates, known) == [
        "SO3LR, fine-tuned 120 s on Ethanol fails gradient 0.44 (tolerance 0.0001)",
        "SO3LR, fine-tuned 15 s on Ethanol passes",
    ]


def test_stable_replicas_are_summed_over_simulations_of_a_length(monkeypatch):
    stable = {("so3lr", 50): (2, 2), ("so3lr", 100): (2, 2), ("so3lr_tuned", 100): (1, 2)}
    runs = [Record("rollout", "x", "ethanol", model, 0, {"steps": steps}) for model, steps in stable]
    replicas = lambda run: stable[run.model, run.parameters["steps"]]  # noqa: E731
    monkeypatch.setattr(universal.leaderboards, "stable_replicas", replicas)
    known = {("x", "ethanol", "so3lr_tuned"): "SO3LR, fine-tuned 15 s"}
    broken = "3 of 4 over 100 steps (only 1 of 2 of SO3LR, fine-tuned 15 s on Ethanol)"
    assert universal.endurance(runs, known) == f"{broken}, 2 of 2 over 50 steps"
    assert universal.endurance([], known) == "none was simulated"


def test_a_step_has_its_cost_however_short_the_rollout_was():
    own = training("so3lr", "lips")
    run = Record("rollout", own.campaign, "lips", "so3lr", 0, {"replicas": 2, "steps": 50})
    run.metrics = [Metric("ms_per_step", 1773.4, "ms")]
    table = universal.details([own], [run])
    assert table["MD step of a replica (ms)"].tolist() == ["887"]
    assert universal.details([own])["MD step of a replica (ms)"].tolist() == ["–"]


def wrong(campaign, model, kind, force, seed=0):
    return Record(kind, campaign, "3bpa", model, seed, {}, [Metric("force_mae", force, "meV/Å")])


def test_shifted_errors_stand_beside_those_at_home():
    found = [
        wrong("universal", "so3lr", "errors_300K", 100.0),
        wrong("universal", "so3lr", "errors_test", 150.0),
    ]
    networks = [
        wrong("cpu", model, kind, force)
        for model, home, away in (("mace", 20.0, 60.0), ("nequip", 40.0, 80.0))
        for kind, force in (("errors_300K", home), ("errors_test", away))
    ]
    alone = wrong("cpu", "botnet", "errors_test", 500.0)  # nothing at home to compare with
    table = universal.shifted(found, {"cpu": [*networks, alone]}, {})
    assert table.loc["3BPA", "300 to 600 K"].T.to_dict("list") == {
        "SO3LR": ["100", "150", "1.5"],
        "From nothing, cpu": ["20 to 40", "60 to 80", "2.0 to 3.0"],
    }
    assert universal.shifted(networks, {"cpu": networks}, {}).empty


@pytest.mark.parametrize("name", [n for n in cards.calculators() if cards.model(n).facts])
def test_cards_name_the_weights_in_the_wheel(name):
    """The hash in the card is that of the file, where the package is installed."""
    facts = cards.model(name).facts
    assert {"Weights", "SHA-256", "Licence", "Trained on", "Functional", "Overlap"} <= set(facts)
    package = facts["Weights"].partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; see requirements-universal.txt")
    cards.model(name).check_weights()


def test_a_table_of_horizons_has_a_row_for_each_potential():
    assert universal.horizons([], {}).empty
    values = [
        Metric("horizon_langevin", 80.0, "fs", 70.0, 90.0),
        Metric("horizon_langevin_reached", 1.0, "1"),
    ]
    record = Record("horizon", "x", "ethanol", "so3lr", 0, {}, values)
    table = universal.horizons([record], {})
    assert table.index.tolist() == [("Ethanol", "SO3LR")]
    assert table.iloc[0].iloc[0].startswith("80")
