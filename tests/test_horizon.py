"""The predictability horizon: a reference with a known thermostat is followed, a perturbed model loses it."""

import numpy as np
import pytest
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from test_calculator import SoftSpheres

from egraff_utils import cards
from egraff_utils.checks import horizon
from egraff_utils.checks.horizon import HorizonConfig, divergence, friction
from egraff_utils.md.calculator import ReplicaCalculator
from egraff_utils.md.dynamics import Newtonian, Thermostat, simulate
from egraff_utils.records import Metric, Record
from egraff_utils.report import horizon as report

INTERVAL, TEMPERATURE = 2.0, 900
THERMOSTAT = Thermostat(TEMPERATURE, INTERVAL)


def copper(seed=0):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(seed))
    Stationary(atoms)
    return atoms


class Scaled(ReplicaCalculator):
    """EMT with all forces too large by a part of themselves: a model with a known error."""

    def __init__(self, replicas, error=0.0):
        super().__init__([EMT() for _ in range(replicas)])
        self.error = error

    def calculate(self, *args, **keywords):
        super().calculate(*args, **keywords)
        self.results["forces"] = self.results["forces"] * (1 + self.error)


def emt(error=0.0):
    return lambda replicas, skin=1.0: Scaled(replicas, error)


@pytest.fixture(scope="module")
def reference():
    """Frames of a Nosé-Hoover trajectory by position Verlet, and its friction in 1/fs."""
    atoms, h = copper(), INTERVAL * units.fs
    atoms.calc = EMT()
    masses, goal, period = atoms.get_masses()[:, None], 12 * units.kB * TEMPERATURE, 40 * units.fs
    before, zeta, frames, frictions = atoms.positions - h * atoms.get_velocities(), 0.0, [], []
    for _ in range(160):
        forces, x = atoms.get_forces(), atoms.get_positions()
        frame = atoms.copy()
        frame.set_momenta(None)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=forces)
        frames.append(frame)
        frictions.append(zeta * units.fs)
        after = (2 * x - before * (1 - zeta * h / 2) + h**2 * forces / masses) / (1 + zeta * h / 2)
        twice_kinetic = (masses * ((after - x) / h) ** 2).sum()
        zeta += h * (twice_kinetic / goal - 1) * (2 * np.pi / period) ** 2
        before = x
        atoms.set_positions(after)
    return frames, np.array(frictions)


@pytest.fixture(scope="module")
def course(reference):
    return horizon.stored_course(reference[0], INTERVAL, starts=4, steps=60)


def test_the_friction_of_a_thermostat_is_found(reference):
    frames, zeta = reference
    found, residual, without = friction.friction(frames, INTERVAL)
    assert np.abs(zeta).max() > 0.01
    np.testing.assert_allclose(found, zeta[1:-1], atol=1e-7)
    assert residual.max() < 1e-6 < 0.1 < np.median(without)


def test_friction_of_one_free_atom_by_hand():
    frames = [bulk("Cu", cubic=True)[:1] for _ in range(3)]
    for atoms, x in zip(frames, (0.0, 1.0, 1.5), strict=True):  # v = 0.75, a = -0.5 per step
        atoms.positions[:] = [x, 0, 0]
        atoms.pbc = False
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.full((1, 3), 1e-9))
    zeta, residual, _ = friction.friction(frames, 2.0)
    assert zeta == pytest.approx(0.5 / 0.75 / 2.0)
    assert residual < 2


def test_checks_of_the_reference(reference):
    found = {name: value for name, (value, _) in horizon.check_reference(reference[0], INTERVAL).items()}
    assert found["step_error_friction"] < 1e-9 < found["step_error"]
    assert found["friction"] == pytest.approx(np.sqrt(np.mean(reference[1][1:-1] ** 2)))
    assert 300 < found["temperature"] < 2000


def test_the_driven_integrator_follows_the_thermostatted_trajectory(course):
    driven = Newtonian(INTERVAL, friction=course.friction)
    run = simulate(course.starts, emt(), thermostat=driven, steps=60)
    moved = run.positions - run.positions[:, :1]
    assert np.abs(moved - course.moved["driven"]).max() < 1e-5
    free = simulate(course.starts, emt(), thermostat=Newtonian(INTERVAL), steps=60)
    assert np.abs(free.positions - free.positions[:, :1] - course.moved["driven"]).max() > 0.05


def test_the_friction_goes_with_its_replica_when_another_leaves(course):
    class Failing(Scaled):
        def calculate(self, *args, **keywords):
            super().calculate(*args, **keywords)
            if len(self.calculators) == 4 and abs(self.atoms.positions - began).max() > 0.05:
                self.results["forces"][:4] = np.nan

    began = np.concatenate([atoms.positions for atoms in course.starts])
    driven = Newtonian(INTERVAL, friction=course.friction)
    run = simulate(course.starts, Failing, thermostat=driven, steps=60)
    assert run.causes[0]
    assert run.stable_step[0] < 60
    moved = run.positions[1:] - run.positions[1:, :1]
    assert np.abs(moved - course.moved["driven"][1:]).max() < 1e-5


def test_the_horizon_falls_with_the_error_and_the_exact_model_has_none(course):
    found = []
    for error in (0.0, 0.03, 0.3):
        runs = horizon.follow(course, emt(error), thermostat=THERMOSTAT)
        metrics, curves = horizon.measure(course, runs, floor=0.7)
        found.append({m.name: m for m in metrics})
        assert curves["fv_driven"].shape == (4, 61)
        assert found[-1]["fv_control"].value < 1e-6
    exact, good, bad = found
    assert exact["horizon_driven_reached"].value == 0
    assert exact["horizon_driven"].value == 120
    assert exact["horizon_driven"].high is None
    assert exact["deviation_driven_100"].value < 1e-5
    assert exact["deviation_nve_100"].value > 0.01
    assert good["fv_start"].value == pytest.approx(0.03 / 2.03, rel=1e-3)
    assert bad["horizon_driven"].value < 120
    assert bad["horizon_driven"].value < good["horizon_driven"].value
    assert bad["deviation_driven_50"].value > good["deviation_driven_50"].value


def test_no_driven_dynamics_where_no_friction_explains_the_frames(reference):
    frames = [atoms.copy() for atoms in reference[0]]
    for atoms, old in zip(frames, reference[0], strict=True):
        forces = old.get_forces() + 0.1 * np.random.default_rng(len(atoms)).standard_normal((4, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    course = horizon.stored_course(frames, INTERVAL, starts=3, steps=50, short=20)
    assert set(course.forces) == {"langevin", "nve"}
    assert course.friction is None
    assert course.steps("nve") == 20


def test_starts_spread_over_the_frames_that_go_on_long_enough(reference):
    course = horizon.stored_course(reference[0], INTERVAL, starts=4, steps=60)
    assert course.first.tolist() == [1, 33, 65, 98]
    with pytest.raises(ValueError, match="too few"):
        horizon.stored_course(reference[0], INTERVAL, starts=4, steps=156)


@pytest.mark.parametrize(("frames", "duration"), [(1000, 250), (200, 159.6)])
def test_a_short_reference_is_followed_for_two_thirds_of_its_length(frames, duration):
    config = horizon._settled(
        HorizonConfig("mace", "gete"), cards.dataset("gete"), [Atoms("Ge")] * frames, 1.2
    )
    assert config.duration == pytest.approx(duration)


def test_horizon_time_by_hand():
    time = np.arange(5.0)
    fv = np.array([[0.1, 0.2, 0.4, 0.4, 0.4], [0.1, 0.2, 0.1, 0.4, 0.4]])  # geometric: 0.1 0.2 0.2 0.4 0.4
    assert divergence.horizon_time(time, fv, 0.6) == pytest.approx(2.5)
    assert divergence.horizon_time(time, fv, 0.1) == 0
    assert divergence.horizon_time(time, fv, 1.0) == np.inf
    draws = divergence.resamples(time, fv, 0.6)
    assert set(np.round(draws, 6)) <= {1.5, 2.5, round(2 + 0.2 / 0.3, 6)}


def test_resamples_are_paired_and_late_ones_are_censored():
    time = np.arange(10.0)
    fv = np.linspace(0.05, 0.5, 10) * np.array([[0.5], [0.8], [1.0]])
    first, second = divergence.resamples(time, fv, 0.6), divergence.resamples(time + 5, fv, 0.6)
    both = np.isfinite(first)
    np.testing.assert_allclose(second[both] - first[both], 5)
    assert 0.01 < 1 - both.mean() < 0.5  # only those made of the first start alone, or nearly
    assert divergence.quantiles(first)[1] == np.inf


def test_a_dataset_without_order_in_time_is_refused():
    with pytest.raises(ValueError, match="do not follow each other in time"):
        horizon.horizon(HorizonConfig("mace", "lips20"), force_field=SoftSpheres([3]))


def test_a_live_reference_is_run_again_and_the_record_kept(tmp_path, monkeypatch):
    for name in ("GENERATED", "RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{name}", str(tmp_path / name))
    stage = {"frames": 4, "stride": 1, "friction": 0.01}
    card = {
        **{"name": "copper_test", "system": "bulk", "elements": [29], "temperature": 900, "timestep": 2.0},
        **{"reader": "generated", "oracle": "emt", "time_ordered": {"test": 2.0}},
        "generate": {
            **{"bulk": "Cu", "lattice_constant": 3.7, "repeat": 1, "seed": 1},
            "stages": [{"frames": 1, "stride": 60, "friction": 0.02}]
            + [
                {**stage, "split": split, "frames": n}
                for split, n in (("train", 4), ("val", 4), ("test", 40))
            ],
        },
        "splits": {split: {"source": split} for split in ("train", "val", "test")},
    }
    (tmp_path / "copper.yml").write_text(yaml.safe_dump(card))
    config = HorizonConfig("spheres", str(tmp_path / "copper.yml"), starts=2, duration=40, progress=False)
    record = horizon.horizon(config, force_field=SoftSpheres([29]))
    assert record.kind == "horizon"
    assert record["horizon_driven"] == record["horizon_nve"]
    assert record.curves["fv_nve"].shape == (2, 21)
    assert 0 < record["fv_start"] < 1
    courses = (tmp_path / "GENERATED" / "trajectories").glob("*.json")
    assert sorted("langevin" in path.name for path in courses) == [False, True]
    again = horizon.horizon(config, force_field=SoftSpheres([29]))
    assert again.provenance["started"] == record.provenance["started"]
    (tmp_path / "copper.yml").write_text(yaml.safe_dump(card | {"temperatures": {"test": 600}}))
    colder = horizon.horizon(config, force_field=SoftSpheres([29]))
    assert not np.array_equal(colder.curves["fv_langevin"], record.curves["fv_langevin"])


def follower(model, shift, *, starts=12, seed=0):
    """Record of a model whose FV climbs linearly from start to start; its horizon is 50 fs less the shift."""
    time = np.arange(101.0)
    late = np.random.default_rng(seed).normal(0, 5, (starts, 1))
    fv = np.clip(0.007 * (time + shift + late), 1e-3, 1)
    found = [Metric("horizon_nve", 50.0 - shift, "fs"), Metric("floor_fv", 0.7, "1")]
    record = Record("horizon", "demo", "ethanol", model, 0, {}, found)
    record.curves = {"time": time, "fv_nve": fv}
    return record


def longest(found):
    return report.longest(found, report.told_apart(found, "nve"), "nve")


def test_pairs_of_horizons_are_corrected_for_their_number():
    rng = np.random.default_rng(1)
    found = [follower(name, shift) for name, shift in (("mace", 0), ("nequip", 20), ("botnet", 20.1))]
    found[2].curves["fv_nve"] = found[2].curves["fv_nve"][rng.permutation(12)]  # no better in every start
    assert report.told_apart(found, "nve") == {"ethanol": {(0, 2): True, (1, 2): True, (0, 1): False}}
    assert report.pairs_apart(report.told_apart(found, "nve")) == (2, 3)
    ahead = "On Ethanol MACE is told to follow it longer than each of NequIP and BOTNet"
    assert longest(found) == ahead
    two = [r for r in found if r.model != "mace"]
    for record in two:
        record.dataset = "aspirin"
    assert longest(found).startswith("On none of the datasets")
    alone = [follower("mace", 0), follower("nequip", 20)]
    assert longest([*alone, *two]).endswith("longer than NequIP; on the others no such group exists")
    for record in two:
        record.dataset = "ethanol"
    letters = report.letters(found, report.told_apart(found, "nve"), "nve")
    assert letters["ethanol", "mace", 0] == "a"
    assert len(set(letters.values())) == 2
    assert report.chance_of_difference(found[0], found[1], "nve") == 2 / 2**12  # itself, mirrored
    few = [follower("mace", 0, starts=4), follower("nequip", 20, starts=4)]
    assert report.pairs_apart(report.told_apart(few, "nve")) == (0, 1)  # the least p of four starts is 1/8
    assert longest(few).startswith("On none of the datasets")


def test_equal_models_are_seldom_told_apart():
    """Six equal models have 15 pairs; any is told apart in at most one of 20 cases."""
    alarms = 0
    for case in range(40):
        names = ("mace", "nequip", "botnet", "allegro", "equiformer", "torchmd_net")
        found = [follower(name, 0, starts=10, seed=10 * case + n) for n, name in enumerate(names)]
        alarms += report.pairs_apart(report.told_apart(found, "nve"))[0] > 0
    assert alarms <= 6  # more than six have a chance of 0.3 % at the nominal rate


def test_the_difference_of_horizons_that_is_found(monkeypatch):
    rng = np.random.default_rng(0)
    draws = {"a": rng.normal(50, 3, 20_000), "b": rng.normal(60, 4, 20_000), "c": np.full(20_000, np.inf)}
    monkeypatch.setattr(report, "_grouped", lambda found: [("ethanol", list(draws))])
    monkeypatch.setattr(report, "_draws", lambda record, name: draws[record])
    factor = 2.394 + 0.842  # normal quantiles of one minus 0.025 over three pairs, and of 0.8
    assert report.detectable([]) == pytest.approx(factor * 5, rel=0.02)
    monkeypatch.setattr(report, "_grouped", lambda found: [])
    assert np.isnan(report.detectable([]))


def test_further_seeds_add_no_pairs():
    """With them a correction for the number of pairs could leave none that a few starts can tell apart."""
    found = [follower("mace", 0), follower("nequip", 20)]
    more = [follower(name, shift, seed=1) for name, shift in (("mace", 0), ("nequip", 20))]
    for record in more:
        record.seed = 1
    assert report.following([*more, *found]) == found[::-1]  # the order of the book
    assert report.told_apart([*found, *more], "nve") == report.told_apart(found, "nve")
    assert len(report.following([*found, *more], seeds=True)) == 4
