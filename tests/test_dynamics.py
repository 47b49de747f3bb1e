"""The dynamics: equal to ASE's, replicas independent, restarts exact, broken replicas leave alone."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from egraff_utils.breaks import Cause
from egraff_utils.md.calculator import ReplicaCalculator
from egraff_utils.md.dynamics import (
    Newtonian,
    Noise,
    ReplicaLangevin,
    Thermostat,
    kinetic_temperature,
    simulate,
)

THERMOSTAT = Thermostat(temperature=600, timestep=2.0)


def emt(replicas):
    return ReplicaCalculator([EMT() for _ in range(replicas)])


def starts(replicas=2, temperature=600):
    systems = []
    for replica in range(replicas):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=replica)
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(replica))
        Stationary(atoms)
        systems.append(atoms)
    return systems


class Failing(ReplicaCalculator):
    """EMT that gives the first replica NaN forces, or huge ones, after some calls."""

    calls = 0

    def __init__(self, replicas, value, after):
        super().__init__([EMT() for _ in range(replicas)])
        self.value, self.after = value, after

    def calculate(self, *args, **keywords):
        super().calculate(*args, **keywords)
        Failing.calls += 1
        if Failing.calls > self.after and len(self.calculators) == 2:
            self.results["forces"][:4] *= self.value


@pytest.mark.filterwarnings("ignore")
def test_as_coded_center_of_mass_is_that_of_ase():
    ours, theirs = starts(1)[0], starts(1)[0]
    ours.calc, theirs.calc = emt(1), EMT()
    keywords = {"temperature_K": 600, "friction": 5e-3}
    noises = Noise(3, [0]), Noise(3, [0])
    replica = ReplicaLangevin(ours, 2 * units.fs, replicas=1, center_of_mass="ase", rng=noises[0], **keywords)
    ase = Langevin(theirs, 2 * units.fs, fixcm=True, rng=noises[1], **keywords)
    for _ in range(20):
        replica.step()
        ase.step()
    assert np.allclose(ours.positions, theirs.positions, atol=1e-10)
    assert np.allclose(ours.get_momenta(), theirs.get_momenta(), atol=1e-10)


@pytest.mark.parametrize("center_of_mass", ["exact", "ase"])
def test_a_replica_of_a_batch_is_the_replica_alone(center_of_mass):
    thermostat = Thermostat(600, 2.0, center_of_mass=center_of_mass)
    batch = simulate(starts(3), emt, thermostat=thermostat, steps=50)
    alone = simulate(starts(3)[1:2], emt, thermostat=thermostat, steps=50, replicas=[1])
    assert np.allclose(batch.positions[1], alone.positions[0], atol=1e-6)
    assert np.allclose(batch.energy[1], alone.energy[0], atol=1e-6)
    assert not np.allclose(batch.positions[0], batch.positions[1], atol=1e-2)


def test_center_of_mass_stays_at_rest():
    run = simulate(starts(2), emt, thermostat=THERMOSTAT, steps=30)
    assert np.allclose(np.diff(run.positions.mean(2), axis=1), 0, atol=1e-5)


def test_temperature_of_the_thermostat():
    thermostat = Thermostat(600, 4.0, friction=0.1)
    run = simulate(starts(4), emt, thermostat=thermostat, steps=250)
    assert run.temperature[:, 20:].mean() == pytest.approx(600, rel=0.15)


def test_cold_start_stays_cold():
    cold = starts(2)
    for atoms in cold:
        atoms.set_momenta(np.zeros((4, 3)))
    run = simulate(cold, emt, thermostat=THERMOSTAT, steps=100)
    assert run.temperature[:, 0] == pytest.approx(0)
    assert run.temperature.mean() < 300


@pytest.mark.parametrize("harm", [None, lambda content: b"", lambda content: content[:-99]])
def test_interrupted_equals_uninterrupted(tmp_path, harm):
    options = {"thermostat": THERMOSTAT, "checkpoint_every": 20}
    whole = simulate(starts(), emt, steps=50, **options)
    file = tmp_path / "run" / "state.npz"
    calls = iter(range(1000))

    class Killed(ReplicaCalculator):
        def calculate(self, *args, **keywords):
            if next(calls) == 35:
                raise KeyboardInterrupt
            super().calculate(*args, **keywords)

    with pytest.raises(KeyboardInterrupt):
        simulate(starts(), lambda n: Killed([EMT() for _ in range(n)]), steps=50, checkpoint=file, **options)
    assert file.is_file()
    if harm:
        file.write_bytes(harm(file.read_bytes()))
    resumed = simulate(starts(), emt, steps=50, checkpoint=file, **options)
    for name in ("steps", "positions", "forces", "energy", "temperature", "stable_step"):
        assert np.array_equal(getattr(whole, name), getattr(resumed, name)), name
    assert (tmp_path / "run" / "state.npz.unreadable").is_file() == bool(harm)


@pytest.mark.parametrize(("value", "cause"), [(np.nan, Cause.NOT_FINITE), (1e30, Cause.MOVE)])
def test_a_broken_replica_leaves_and_the_other_goes_on(value, cause):
    Failing.calls = 0
    run = simulate(starts(), lambda n: Failing(n, value, after=10), thermostat=THERMOSTAT, steps=30)
    assert run.causes == [cause, ""]
    assert 8 <= run.stable_step[0] <= 12
    assert run.stable_step[1] == 30
    assert np.isnan(run.energy[0, run.frames(0) :]).all()
    assert np.isfinite(run.positions[0, : run.frames(0)]).all()
    healthy = simulate(starts(), emt, thermostat=THERMOSTAT, steps=30)
    assert np.allclose(run.positions[1], healthy.positions[1], atol=1e-6)


def test_a_rule_ends_the_run_when_no_replica_is_left():
    begin = np.stack([atoms.positions for atoms in starts()])
    run = simulate(
        starts(),
        emt,
        thermostat=THERMOSTAT,
        steps=200,
        checkpoint_every=10,
        record_every=2,
        rule=lambda x: None if np.abs(x[0] - begin).max((1, 2)).min() < 1e-5 else (3, Cause.BOND),
    )
    assert run.step == 20
    assert run.stable_step.tolist() == [16, 16]
    assert run.frames(0) == 9
    assert run.causes == [Cause.BOND, Cause.BOND]


def test_time_limit_ends_the_run_early():
    run = simulate(starts(), emt, thermostat=THERMOSTAT, steps=10_000, max_seconds=0.2)
    assert 0 < run.step < 10_000
    assert run.energy.shape == (2, run.step + 1)
    assert np.isfinite(run.energy).all()


def test_kinetic_temperature():
    atoms = starts(1)[0]
    expected = atoms.get_kinetic_energy() / (1.5 * units.kB * 3)  # three of four atoms' degrees of freedom
    assert kinetic_temperature(atoms.get_momenta(), atoms.get_masses()) == pytest.approx(expected)


def test_newtonian_dynamics_are_those_of_ase_and_keep_the_energy():
    run = simulate(starts(2), emt, thermostat=Newtonian(2.0), steps=100)
    alone = starts(2)[1]
    alone.calc = EMT()
    VelocityVerlet(alone, 2 * units.fs).run(100)
    assert np.allclose(run.positions[1, -1], alone.positions, atol=1e-5)
    total = run.energy + run.temperature * 1.5 * units.kB * 3
    assert np.abs(total - total[:, :1]).max() < 0.02 * np.ptp(run.energy, axis=1).min()


def test_a_constant_friction_slows_a_free_atom():
    atom = bulk("Cu")
    atom.set_velocities([[0.01, 0, 0]])
    h, zeta, n = 2.0, 0.05, 30
    friction = Newtonian(h, friction=np.full((1, n + 1), zeta))
    run = simulate([atom], emt, thermostat=friction, steps=n)
    decay = ((1 - zeta * h / 2) / (1 + zeta * h / 2)) ** (2 * n)
    assert run.temperature[0, -1] / run.temperature[0, 0] == pytest.approx(decay, rel=1e-6)
