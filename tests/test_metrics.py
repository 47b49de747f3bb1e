"""Metrics by hand, at their bounds, and on inputs that make no sense."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from egraff_utils import metrics

CURVES = (metrics.wright_factor, metrics.jsd, metrics.jsd_raw)


@pytest.fixture
def distributions():
    rng = np.random.default_rng(0)
    g, g_ref = rng.random(40), rng.random(40)
    g[:5], g_ref[:8] = 0, 0
    return g, g_ref


def test_wright_factor_by_hand():
    assert metrics.wright_factor([1.0, 3.0], [2.0, 1.0]) == pytest.approx(100 * (1 + 4) / (4 + 1))


def test_energy_violation_by_hand():
    predicted, reference = np.array([-5.0, 3.0, 0.0]), np.array([-5.0, -4.0, 0.0])
    np.testing.assert_allclose(metrics.energy_violation(predicted, reference), [0, 49 / 25, 0])
    np.testing.assert_allclose(metrics.energy_violation_root(predicted, reference), [0, 1.4, 0])


def test_published_energy_violation_is_the_root():
    """1.2 eV off a total energy of -10,000 eV: 1e-5 in size, as printed, is the root and not Eq. 4."""
    assert metrics.energy_violation_root([-10000.0], [-10001.2])[0] == pytest.approx(8.5e-5, rel=0.01)
    assert metrics.energy_violation([-10000.0], [-10001.2])[0] == pytest.approx(7.2e-9, rel=0.01)


def test_force_violation_by_hand():
    predicted = np.array([[[3.0, 0, 0], [0, 4, 0]], [[0, 0, 0], [0, 0, 0]]])
    reference = np.array([[[3.0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    np.testing.assert_allclose(metrics.force_violation(predicted, reference), [4 / (5 + 3), 0])


def test_uncorrelated_forces_give_one_over_root_two():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 200, 3))
    np.testing.assert_allclose(metrics.force_violation(first, second), np.sqrt(0.5), atol=0.05)


def test_violations_are_bounded():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 4, 3))
    assert (metrics.force_violation(first, second) <= 1).all()
    assert (metrics.energy_violation(np.abs(first), np.abs(second)) <= 1).all()


def test_jsd_equals_scipy(distributions):
    assert metrics.jsd(*distributions) == pytest.approx(jensenshannon(*distributions) ** 2, rel=1e-12)


def test_jsd_is_bounded_symmetric_and_free_of_the_density(distributions):
    g, g_ref = distributions
    assert 0 < metrics.jsd(g, g_ref) < np.log(2)
    assert metrics.jsd(g, g_ref) == pytest.approx(metrics.jsd(g_ref, 7 * g))
    assert metrics.jsd_raw(7 * g, 7 * g_ref) == pytest.approx(7 * metrics.jsd_raw(g, g_ref))


def test_jsd_raw_by_hand():
    by_hand = 0.5 * (3 * np.log(3 / 2) + 1 * np.log(1 / 2)) / 2
    assert metrics.jsd_raw([3.0, 0.0], [1.0, 0.0]) == pytest.approx(by_hand)


def test_rmsd_by_hand_and_without_drift():
    reference = np.zeros((2, 2, 3))
    positions = reference + [[[1, 0, 0], [3, 0, 0]], [[2, 0, 0], [2, 0, 0]]]
    np.testing.assert_allclose(metrics.rmsd(positions, reference), [np.sqrt(5), 2])
    np.testing.assert_allclose(metrics.rmsd(positions, reference[0]), [np.sqrt(5), 2])
    np.testing.assert_allclose(metrics.rmsd(positions, reference, remove_drift=True), [1, 0])


def test_geometric_mean():
    assert metrics.geometric_mean([1e-8, 1e-4]) == pytest.approx(1e-6)
    assert metrics.geometric_mean([1e-300] * 5) == pytest.approx(1e-300)
    assert metrics.geometric_mean([0.0, 1.0]) == 0
    np.testing.assert_allclose(metrics.geometric_mean([[1, 4], [9, 4]], axis=1), [2, 6])
    for values in ([], [1.0, -1.0]):
        with pytest.raises(ValueError):
            metrics.geometric_mean(values)


def test_identical_trajectories_give_zero(distributions):
    rng = np.random.default_rng(0)
    energies, vectors = rng.normal(size=7), rng.normal(size=(7, 5, 3))
    assert metrics.mae(vectors, vectors) == 0
    for metric in CURVES:
        assert metric(distributions[0], distributions[0]) == 0
    for metric in (metrics.energy_violation, metrics.energy_violation_root):
        assert not metric(energies, energies).any()
    for metric in (metrics.force_violation, metrics.rmsd):
        assert not metric(vectors, vectors).any()


def test_shapes_that_differ_are_named():
    pairs = {
        metrics.mae: ((2,), (3,)),
        metrics.wright_factor: ((2,), (3,)),
        metrics.jsd: ((2,), (3,)),
        metrics.jsd_raw: ((2,), (3,)),
        metrics.energy_violation: ((2,), (2, 1)),
        metrics.energy_violation_root: ((2,), (1,)),
        metrics.force_violation: ((2, 5, 3), (2, 4, 3)),
        metrics.rmsd: ((2, 5, 3), (4, 3)),
    }
    for metric, (first, second) in pairs.items():
        with pytest.raises(ValueError) as error:
            metric(np.ones(first), np.ones(second))
        assert str(first) in str(error.value)
        assert str(second) in str(error.value)


def test_nothing_to_compare_is_an_error():
    for metric in CURVES:
        with pytest.raises(ValueError, match="zero throughout"):
            metric([1.0, 2.0], [0.0, 0.0])
        with pytest.raises(ValueError, match="never negative"):
            metric([1.0, -2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="T, N, 3"):
        metrics.force_violation(np.ones(3), np.ones(3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(bad):
    for metric in (metrics.mae, *CURVES):
        assert not np.isfinite(metric([1.0, bad], [1.0, 1.0]))
    assert not np.isfinite(metrics.geometric_mean([1.0, 0.0, bad]))
    energies = metrics.energy_violation([1.0, bad], [1.0, 2.0])
    assert np.isfinite(energies[0])
    assert not np.isfinite(energies[1])
    vectors = np.ones((2, 4, 3))
    vectors[1, 2, 0] = bad
    for metric in (metrics.force_violation, metrics.rmsd):
        frames = metric(vectors, np.ones((2, 4, 3)))
        assert np.isfinite(frames[0])
        assert not np.isfinite(frames[1])
