"""Do drawn velocities have their temperature, and when is a run too hot?"""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egraff_utils.breaks import Cause
from egraff_utils.md.stability import heat_rule
from egraff_utils.md.temperature import (
    degrees_of_freedom,
    draw_velocities,
    first_too_hot,
    hottest,
    kinetic_temperature,
    rest,
)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 32])
def test_drawn_velocities_have_the_temperature_over_their_own_degrees_of_freedom(count):
    """ASE's ``Stationary`` would be hot by N / (N - 1): twice the temperature of two atoms."""
    rng, draws = np.random.default_rng(count), 3000
    atoms = Atoms(numbers=rng.integers(1, 30, count))
    masses = atoms.get_masses()
    momenta = np.array([draw_velocities(atoms, 300.0, rng).get_momenta() for _ in range(draws)])
    error = 300.0 * np.sqrt(2 / degrees_of_freedom(count) / draws)
    assert kinetic_temperature(momenta, masses).mean() == pytest.approx(300.0, abs=4 * error)
    if count > 1:
        assert np.abs(momenta.sum(1)).max() < 1e-12


def test_a_single_atom_keeps_its_velocity_and_others_their_relative_ones():
    one, two = Atoms("Ar", momenta=[[40.0, 0, 0]]), Atoms("Ar2", momenta=[[40.0, 0, 0], [0, 0, 0]])
    assert rest(one).get_momenta().tolist() == [[40, 0, 0]]
    np.testing.assert_allclose(rest(two).get_momenta(), [[20, 0, 0], [-20, 0, 0]])


def test_the_limit_is_what_one_perfect_run_in_ten_thousand_exceeds():
    rng, modes = np.random.default_rng(0), degrees_of_freedom(9)
    energy = (
        0.5 * 500.0 * np.square(rng.normal(size=(400_000, 2 * modes))).sum(1)
    )  # over k_B, of f oscillators
    share = (energy / modes > hottest(500.0, 9)).mean()
    assert 0.3e-4 < share < 2e-4


def test_a_window_of_time_is_judged_not_a_spike():
    spike, jump = np.full(400, 500.0), np.repeat([480.0, 860.0], 200)
    spike[50:60] = 3000.0
    assert first_too_hot(spike, 776.0, interval=0.5) is None
    assert (
        first_too_hot(jump, 776.0, interval=0.5) == 355
    )  # 480 + 380 k / 200 > 776 from k = 156 hot frames on
    assert first_too_hot(jump[:100], 0.0, interval=0.5) is None  # shorter than a window


def test_heat_breaks_a_replica_unless_its_start_was_as_hot():
    atoms = molecule("C6H6")
    heated = np.r_[np.full(100, 480.0), np.full(400, 1100.0)]
    new = np.zeros((200, len(atoms), 3))  # the last 200 of 500 frames
    verdict = heat_rule(new[:150], heated[:350], temperature=500.0, interval=1.0)
    assert verdict.cause == Cause.HEATED
    warm = np.r_[1000.0, heated[1:]]
    assert heat_rule(new, warm, temperature=500.0, interval=1.0) is None
