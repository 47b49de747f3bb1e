"""Is the temperature judged rightly? Relaxation against simulated oscillators, cuts, intervals, verdicts."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from egraff_utils.breaks import Break
from egraff_utils.md import temperature
from egraff_utils.md.calculator import join_replicas
from egraff_utils.md.dynamics import Thermostat
from egraff_utils.md.integrators import Noise
from egraff_utils.md.temperature import kinetic_temperature
from egraff_utils.records import COLUMNS, Metric, Record
from egraff_utils.report import relaxation, thermostat, thermostat_figures

FRICTION = 5e-3 * units.fs
RNG = np.random.default_rng(0)


def rollout(temperature, *, target=500.0, kind="rollout", model="mace", breaks=(), dataset="mine", **more):
    temperature = np.asarray(temperature, float)
    given = {"steps": temperature.shape[1] - 1, "timestep": 0.5, "temperature": target, "friction": 5e-3}
    status = "unstable" if breaks else "complete"
    metrics = [Metric("steps", given["steps"], "1")]
    record = Record(kind, "demo", dataset, model, 0, given, metrics, status, breaks=list(breaks))
    time = 0.5 * np.arange(temperature.shape[1])
    stable = np.full(len(temperature), given["steps"])
    curves = {"temperature": temperature, "start_temperature": temperature[:, 0], "time": time}
    record.__dict__["curves"] = curves | {"stable_step": stable, **more}
    return record


# -- theory


@pytest.mark.parametrize(("kinetic", "potential"), [(0, 500), (0, 0), (900, 500)])
def test_relaxation_is_that_of_simulated_oscillators(kinetic, potential):
    """2000 oscillators of some 20 fs under Langevin dynamics, integrated by splitting (exact friction)."""
    frequency, friction, step, rng = 2 * np.pi / 20.0, 2e-3, 0.5, np.random.default_rng(1)
    x = rng.normal(size=2000) * np.sqrt(potential) / frequency
    v = rng.normal(size=2000) * np.sqrt(kinetic)
    found = []
    for _ in range(1600):
        v -= step / 2 * frequency**2 * x
        x += step / 2 * v
        v = np.exp(-friction * step) * v
        v += np.sqrt(500 * (1 - np.exp(-2 * friction * step))) * rng.normal(size=2000)
        x += step / 2 * v
        v -= step / 2 * frequency**2 * x
        found.append(np.mean(v**2))
    time = step * np.arange(1, 1601)
    given = {"target": 500.0, "kinetic": kinetic, "potential": potential, "friction": friction}
    expected = relaxation.expected_temperature(time, **given)
    periods = np.mean(np.reshape(found, (20, 80)), axis=1), np.mean(expected.reshape(20, 80), axis=1)
    assert periods[0] == pytest.approx(periods[1], abs=25)
    twice = 500 + ((kinetic + potential) / 2 - 500) * np.exp(-2 * friction * time)
    assert abs(twice.reshape(20, 80).mean(1) - periods[0]).max() > 40 or kinetic + potential == 1400


def test_the_cold_start_of_the_paper():
    # of a harmonic crystal at 520 K: 317 K from a thermal snapshot, 107 K from a minimum, both simulated
    time = np.linspace(0, 1000, 2001)
    for potential, published in ((520, 317), (0, 107)):
        given = {"target": 520.0, "kinetic": 0.0, "potential": potential, "friction": FRICTION}
        assert relaxation.expected_temperature(time, **given).mean() == pytest.approx(published, abs=4)


def test_friction_of_the_paper():
    assert relaxation.friction_rate(rollout(np.ones((2, 5)))) * 1000 == pytest.approx(0.491, abs=5e-4)


class Free(Calculator):
    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=(), changes=()):
        super().calculate(atoms, properties, changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize("protocol", ["ase", "exact"])
def test_centred_noise_heats_light_atoms(protocol):
    molecule, replicas = Atoms("C2OH6", RNG.random((9, 3))), 300
    atoms = join_replicas([molecule] * replicas)
    atoms.calc = Free()
    dynamics = Thermostat(500.0, 1.0, friction=0.2, center_of_mass=protocol)
    integrator, found = dynamics.integrator(atoms, Noise(0, range(replicas))), []
    for _ in range(260):
        integrator.step()
        momenta = atoms.get_momenta().reshape(replicas, 9, 3)
        found.append(kinetic_temperature(momenta, molecule.get_masses()).mean())
    factor = temperature.centred_noise_factor(molecule.get_masses())
    expected = factor.sum() / 8 if protocol == "ase" else 1.0
    assert np.mean(found[120:]) / 500 == pytest.approx(expected, abs=0.03)
    assert factor[-1] > 1.5 > 1 > factor[0]


def test_potential_temperature():
    rng = np.random.default_rng(2)
    energy = 0.5 * units.kB * 400 * np.square(rng.normal(size=(20_000, 24))).sum(1)
    given = {"temperature": 500.0, "freedom": 24}
    mean = 0.5 * units.kB * 500 * 24
    assert relaxation.potential_temperature(energy, mean, **given).mean() == pytest.approx(400, abs=3)


# -- the cut


def test_a_relaxation_is_cut_off():
    rng = np.random.default_rng(3)
    starts = []
    for _ in range(20):
        noise = rng.normal(size=1000)
        starts.append(thermostat.equilibration(10 * np.exp(-np.arange(1000) / 40) + noise).start)
    assert 60 <= np.median(starts) <= 250  # the transient is below the noise after 2.3 times 40 frames
    assert max(starts) <= 500


def test_nothing_is_cut_from_an_equilibrated_series():
    rng = np.random.default_rng(4)
    starts = [thermostat.equilibration(rng.normal(size=1000)).start for _ in range(20)]
    assert np.median(starts) <= 50
    found = thermostat.equilibration(np.repeat(rng.normal(size=200), 5))
    assert found.effective == pytest.approx(200, rel=0.25)
    with pytest.raises(ValueError, match="finite"):
        thermostat.equilibration([1.0, np.nan, 1.0, 1.0])


# -- verdicts


def test_verdicts_by_hand():
    level = np.array([480.0, 490, 500, 510, 520])[:, None]
    wave = level + RNG.normal(size=(5, 401))
    table = thermostat.temperatures(
        [rollout(wave), rollout(wave - 100, model="nequip"), rollout(wave + 60, model="botnet")]
    )
    row = table.loc[("rollout", "mine", "mace")]
    half = 2.776 * level.std(ddof=1) / np.sqrt(5) / 500  # Student's t for five replicas
    assert (row.low, row.high) == pytest.approx((1 - half, 1 + half), abs=2e-3)
    assert list(table.verdict) == ["at target", "too cold", "too hot"]
    assert row.replicas == 5
    assert row.expected == pytest.approx(1, abs=2e-3)


def test_a_broken_replica_is_left_out_and_told():
    hot = np.full((3, 201), 500.0) + RNG.normal(size=(3, 201))
    hot[1] = 9000.0
    one = [Break(1, 150, 75.0, "contact")]
    table = thermostat.temperatures([rollout(hot, breaks=one)])
    assert table.iloc[0][["replicas", "broke"]].to_list() == [2, 1]
    assert table.iloc[0].ratio == pytest.approx(1, abs=0.01)
    all_three = [*one, Break(0, 9, 4.5, "bond"), Break(2, 9, 4.5, "move")]
    table = thermostat.temperatures([rollout(hot, breaks=all_three)])
    assert table.verdict.to_list() == [thermostat.NO_VERDICT]
    text = thermostat.verdict_table(table)
    assert text.iloc[0, 0] == "all broke"
    assert list(text) == ["MACE"]


def test_the_interval_covers_and_the_verdict_errs_as_often_as_it_says():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(200):
        drift = 500 * (1 + 0.1 * rng.normal(size=(5, 1)) + 0.05 * rng.normal(size=(5, 40)))
        wrong += thermostat.temperatures([rollout(drift)]).verdict.iloc[0] != "at target"
    assert 2 <= wrong <= 20


# -- equipartition


def elements(ratios, frames=(40, 60)):
    """Replicas around 500 K whose elements have these temperatures over it."""
    levels = 500 * (1 + 0.1 * RNG.normal(size=(5, 1)))
    noise = 1 + 0.01 * RNG.normal(size=(5, len(frames), len(ratios)))
    more = {"species": np.array(["H", "C"]), "block_frames": np.tile(frames, (5, 1))}
    more["temperature_species"] = levels[:, :, None] * np.array(ratios) * noise
    return rollout(np.repeat(levels, 100, axis=1), **more)


def test_equipartition():
    table = thermostat.equipartition([elements([1.0, 1.0])])
    assert table.equal.all()
    table = thermostat.equipartition([elements([1.3, 0.8])]).droplevel([0, 1, 2])
    assert not table.equal.any()
    assert table.ratio["H"] == pytest.approx(1.3, abs=0.02)
    assert thermostat.equipartition([rollout(np.ones((2, 9)))]).empty


# -- protocols


def frame_of(rows):
    names = ["kind", "dataset", "model", "metric", "value"]
    return pd.DataFrame(rows, columns=names).reindex(columns=COLUMNS).astype({"value": float})


def test_protocols_side_by_side():
    rows = [(k, "ethanol", "mace", "wf", v) for k, v in (("rollout", 2.0), ("rollout_as_coded", 8.0))]
    rows += [("rollout", "aspirin", "mace", "wf", 1.0), ("rollout", "ethanol", "mace", "fv", 0.5)]
    table = thermostat.protocols(frame_of(rows))
    assert list(table.index) == [("ethanol", "mace")]
    assert thermostat.protocol_ratio(table, "wf") == pytest.approx(4)
    assert np.isnan(thermostat.protocol_ratio(table, "fv"))


def test_spreads_of_the_models_by_protocol():
    values = {
        ("ethanol", "mace"): (2.0, 8.0),
        ("ethanol", "nequip"): (3.0, 8.0),
        ("gete", "mace"): (1.0, 4.0),
    }
    kinds = ("rollout", "rollout_as_coded")
    rows = [(k, *at, "wf", v) for at, two in values.items() for k, v in zip(kinds, two, strict=True)]
    found = thermostat._spreads(thermostat.protocols(frame_of(rows)))
    assert found == "1.0 to 1.5 corrected and 1.0 as coded"


def test_nothing_gives_empty_tables_and_figures():
    table, shares = thermostat.temperatures([]), thermostat.equipartition([])
    pair = thermostat.protocols(frame_of([]))
    assert table.empty
    assert shares.empty
    assert pair.empty
    assert thermostat.verdict_table(table).empty
    (
        thermostat_figures.temperature_grid([]),
        thermostat_figures.reached_plot(table),
        thermostat_figures.equipartition_grid(shares),
    )
    thermostat_figures.protocol_plot(pair)
    plt.close("all")


def test_figures_of_records():
    records = [elements([1.0, 1.0]), rollout(300 + RNG.normal(size=(3, 50)), kind="rollout_as_coded")]
    table = thermostat.temperatures(records)
    assert len(thermostat_figures.temperature_grid(records).axes) == 2
    labels = [text.get_text() for text in thermostat_figures.reached_plot(table).axes[0].get_yticklabels()]
    assert labels == ["mine", "mine, as coded"]
    thermostat_figures.equipartition_grid(thermostat.equipartition(records))
    plt.close("all")


def test_models_that_are_too_hot_and_too_cold_are_counted_apart():
    rows = [("nequip", "too hot", 0.9), ("mace", "too cold", -0.2), ("botnet", "too cold", -0.1)]
    index = pd.MultiIndex.from_tuples([("rollout", "ethanol", model) for model, *_ in rows])
    table = pd.DataFrame([row[1:] for row in rows], index.set_names(["kind", "dataset", "model"]))
    table.columns = ["surprise", "excess"]
    assert thermostat._surprises(table) == "Ethanol: 2 models, -0.15; Ethanol: 1 model, +0.90"
