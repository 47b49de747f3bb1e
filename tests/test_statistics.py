"""Coverage of intervals on series whose truth is known; floors against those computed from the data."""

import numpy as np
import pytest

from egraff_utils import data, metrics, statistics, structure


def autoregression(rng, length, memory):
    """Series with autocorrelation memory**k, so integrated time (1 + memory) / (1 - memory)."""
    noise = rng.normal(size=length) * np.sqrt(1 - memory**2)
    series = np.empty(length)
    series[0] = rng.normal()
    for t in range(1, length):
        series[t] = memory * series[t - 1] + noise[t]
    return series


def coverage(intervals, truth=0.0):
    return np.mean([low <= truth <= high for low, high in intervals])


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=30) for _ in range(200)]
    found = [statistics.bootstrap_interval(draw, seed=k, resamples=200) for k, draw in enumerate(draws)]
    assert 0.90 < coverage(found) < 0.99
    half = [statistics.bootstrap_interval(draw, level=0.5, seed=0, resamples=200) for draw in draws]
    assert 0.40 < coverage(half) < 0.60


def test_bootstrap_interval_of_a_geometric_mean():
    rng = np.random.default_rng(0)
    draws = [np.exp(rng.normal(size=40)) for _ in range(200)]
    found = [statistics.bootstrap_interval(d, metrics.geometric_mean, resamples=200) for d in draws]
    assert 0.90 < coverage(found, truth=1.0) < 0.99


def test_blocks_cover_where_plain_resampling_does_not():
    rng = np.random.default_rng(0)
    draws = [autoregression(rng, 1000, 0.8) for _ in range(150)]
    blocks = [statistics.block_bootstrap_interval(draw, resamples=200) for draw in draws]
    plain = [statistics.bootstrap_interval(draw, resamples=200) for draw in draws]
    assert 0.85 < coverage(blocks) < 0.99
    assert coverage(plain) < 0.6


def test_one_block_length_for_whole_frames():
    series = np.random.default_rng(0).normal(size=(60, 4))
    low, high = statistics.block_bootstrap_interval(series, np.max, block=7, resamples=50)
    assert low <= series.max() == high
    with pytest.raises(ValueError, match="block=61"):
        statistics.block_bootstrap_interval(series, block=61)


def test_intervals_are_repeatable_and_honest_about_too_little():
    values = np.random.default_rng(0).normal(size=9)
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
    assert statistics.bootstrap_interval(values) != statistics.bootstrap_interval(values, seed=1)
    assert np.isnan(statistics.bootstrap_interval(values[:1])).all()
    assert np.isnan(statistics.block_bootstrap_interval(values[:1])).all()
    assert np.isnan(statistics.bootstrap_interval([1.0, np.nan, 2.0])).all()
    with pytest.raises(ValueError, match="level"):
        statistics.bootstrap_interval(values, level=95)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregression(memory):
    series = autoregression(np.random.default_rng(0), 40_000, memory)
    assert statistics.autocorrelation_time(series) == pytest.approx((1 + memory) / (1 - memory), rel=0.15)


def test_autocorrelation_time_at_its_edges():
    assert np.isnan(statistics.autocorrelation_time(np.ones(10)))
    assert statistics.autocorrelation_time(np.tile([1.0, -1.0], 50)) == 1
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        statistics.autocorrelation_time(np.ones((2, 3)))


def test_floor_of_equal_halves_is_zero():
    half = np.random.default_rng(0).random((5, 30))
    assert statistics.floor(np.concatenate([half, half]), metrics.wright_factor) == pytest.approx(0)
    with pytest.raises(ValueError, match="two frames"):
        statistics.floor(half[:1], metrics.mae)


def test_floor_ev_fv_of_independent_frames():
    """Normal energies around -1000 eV: ln|x| of a standard normal x has the mean -(gamma + ln 2) / 2."""
    rng = np.random.default_rng(0)
    floor = statistics.floor_ev_fv(-1000 + rng.normal(size=2000), rng.normal(size=(2000, 30, 3)))
    expected = np.sqrt(2) * np.exp(-(np.euler_gamma + np.log(2)) / 2) / (np.sqrt(2) * 1000)
    assert floor["ev_root"] == pytest.approx(expected, rel=0.1)
    assert floor["ev"] == pytest.approx(floor["ev_root"] ** 2)
    assert floor["fv"] == pytest.approx(np.sqrt(0.5), rel=0.01)


def test_pairs_of_a_floor_are_apart():
    first, second = statistics._independent_pairs(20, 500, 0, 15)
    assert np.abs(first - second).min() == 15
    assert {0, 19} <= set(first) | set(second) <= set(range(20))
    with pytest.raises(ValueError, match="separation=20"):
        statistics.floor_ev_fv(np.ones(20), np.ones((20, 1, 3)), separation=20)
    with pytest.raises(ValueError, match="forces.shape"):
        statistics.floor_ev_fv(np.ones(20), np.ones((19, 1, 3)))


def arrays_of(name, *splits):
    frames = [atoms for split in splits for atoms in data.load(name, split)]
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    forces = np.stack([atoms.get_forces() for atoms in frames])
    return frames[0], np.stack([atoms.positions for atoms in frames]), energies, forces


@pytest.mark.data
def test_floors_of_lips():
    _, _, energies, forces = arrays_of("lips", "train", "val", "test")
    floor = statistics.floor_ev_fv(energies, forces)
    assert floor["ev_root"] == pytest.approx(80e-5, rel=0.08)
    assert floor["fv"] == pytest.approx(0.707, abs=0.004)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "splits", "percent"),
    [("acac", ["test"], 0.16), ("lips", ["train", "val", "test"], 0.02), ("ethanol", ["test"], 0.6)],
)
def test_floor_of_wright_factor(name, splits, percent):
    atoms, positions, *_ = arrays_of(name, *splits)
    r_max = structure.as_coded_r_max(atoms)
    kwargs = {"cell": atoms.cell.array, "pbc": atoms.pbc, "r_max": r_max}
    floor = statistics.floor_rdf(positions, atoms.numbers, **kwargs)
    assert floor["wf"] == pytest.approx(percent, rel=0.2)
    assert 0 < floor["jsd"] < 0.01
