"""Coverage of intervals on series whose truth is known; floors against those computed from the data."""

import re
from itertools import combinations

import numpy as np
import pytest
from scipy.signal import lfilter

from egraff_utils import data, metrics, paths, statistics, structure
from egraff_utils.statistics import saturation


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


def test_few_values_are_covered():
    """Plain percentiles of five normal values cover their mean in 84 % of cases."""
    draws = np.random.default_rng(0).normal(size=(300, 5))
    found = [statistics.bootstrap_interval(draw, resamples=400) for draw in draws]
    assert 0.90 <= coverage(found) <= 0.98


def blocks_of_replicas(rng, replicas, frames, *, tau, apart, draws=500):
    """Means of ten blocks, (draws, R, 10): autoregressions of integrated time tau, the same climb in every
    replica, and replicas that differ by `apart` times the error of one. The truth is zero."""
    memory = (tau - 1) / (tau + 1)
    noise = rng.normal(size=(draws, replicas, frames))
    noise[..., 1:] *= np.sqrt(1 - memory**2)
    series = lfilter([1], [1, -memory], noise)
    error = series.mean(-1).std()
    series += apart * error * rng.normal(size=(draws, replicas, 1))
    return series.reshape(draws, replicas, 10, -1).mean(-1) + np.linspace(-4, 4, 10)


@pytest.mark.parametrize("apart", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("tau", [1, 20, 150])
@pytest.mark.parametrize(("replicas", "frames"), [(5, 1000), (3, 200)])
def test_interval_over_replicas_and_blocks_covers_the_truth(replicas, frames, tau, apart):
    rng = np.random.default_rng([replicas, tau, int(apart)])
    values = blocks_of_replicas(rng, replicas, frames, tau=tau, apart=apart)
    assert 0.90 <= coverage([statistics.replica_interval(v) for v in values]) <= 0.98


def test_blocks_narrow_the_interval_where_replicas_are_alike():
    values = blocks_of_replicas(np.random.default_rng(0), 5, 1000, tau=5, apart=0, draws=200)
    wide = np.mean([np.ptp(statistics.replica_interval(v.mean(1))) for v in values])
    assert np.mean([np.ptp(statistics.replica_interval(v)) for v in values]) < 0.95 * wide


def test_error_by_hand():
    """Replica means 1 and 3; about them and the course that both have in common the blocks are +-1."""
    values = np.array([[2.0, 0.0], [2.0, 4.0]])
    error, degrees = statistics.standard_error(values)
    # Vb = 2 / 2 = 1, of one degree; Vw = 4 / 1 / (2 * 2) = 1, of (2 - 1)(2 - 1)
    assert (error, degrees) == pytest.approx((1.0, 1.0))
    climb = np.array([[0.0, 10.0, 20.0], [2.0, 12.0, 22.0]])
    assert statistics.standard_error(climb)[0] == pytest.approx(1.0)
    assert np.isnan(statistics.standard_error(climb[:1])[0])
    groups = ["Li", "Li", "S", "S"]
    apart = np.array([1.0, 3.0, 101.0, 103.0])
    assert statistics.standard_error(apart, groups=groups) == pytest.approx((np.sqrt(0.5), 2.0))


def test_missing_blocks_and_replicas_are_left_out():
    values = blocks_of_replicas(np.random.default_rng(0), 5, 1000, tau=5, apart=1, draws=1)[0]
    values[1, 6:] = np.nan
    broken = np.concatenate([values, np.full((1, 10), np.nan)])
    assert statistics.replica_interval(broken) == statistics.replica_interval(values)
    low, high = statistics.replica_interval(values)
    assert low < np.nanmean(values, axis=1).mean() < high


def test_interval_of_a_fraction():
    """Binomial: 5 of 5 has the lower end 0.025**(1/5), 0 of 3 the upper end 1 - 0.025**(1/3)."""
    assert statistics.fraction_interval(np.ones(5)) == pytest.approx((0.025**0.2, 1.0))
    assert statistics.fraction_interval(np.zeros(3)) == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))
    draws = np.random.default_rng(0).random((500, 5)) < 0.7
    assert coverage([statistics.fraction_interval(draw) for draw in draws], 0.7) >= 0.95


def test_letters_by_hand():
    """Best to worst a b c d; told apart: a-c, a-d, b-d. Groups of those alike: ab, bc, cd."""
    found = statistics.compact_letters(list("abcd"), [("a", "c"), ("a", "d"), ("b", "d")])
    assert found == {"a": "a", "b": "ab", "c": "bc", "d": "c"}
    assert statistics.compact_letters(list("ab"), []) == {"a": "a", "b": "a"}


def test_letters_are_shared_exactly_by_those_not_told_apart():
    rng, names = np.random.default_rng(0), list("abcdef")
    for _ in range(30):
        pairs = [(p, q) for p, q in combinations(names, 2) if rng.random() < 0.5]
        found = statistics.compact_letters(names, pairs)
        for p, q in combinations(names, 2):
            assert bool(set(found[p]) & set(found[q])) == ((p, q) not in pairs)


MEMORIES = (1, 5, 20, 100, 300, 1000)
"""Autocorrelation times, frames, of runs of 1000 frames."""


def equal_models(time, *, draws=300, models=6, replicas=5):
    """Means of ten blocks of equal models without common noise, shape (draws, models, replicas, 10)."""
    rng, memory = np.random.default_rng(time), (time - 1) / (time + 1)
    noise = rng.standard_normal((draws, models * replicas, 1000))
    noise[..., 1:] *= np.sqrt(1 - memory**2)
    series = lfilter([1], [1, -memory], noise, axis=-1)
    return series.reshape(draws, models, replicas, 10, 100).mean(-1)


def alarms(values):
    return np.mean([bool(statistics.told_apart(dict(enumerate(draw)))) for draw in values])


def found(values):
    """Fraction of the pairs with the first model that are told apart."""
    return np.mean([sum(a == 0 for a, _ in statistics.told_apart(dict(enumerate(d)))) / 5 for d in values])


@pytest.mark.slow
@pytest.mark.parametrize("time", MEMORIES)
def test_rates_and_power_are_those_of_the_method_page(time):
    """Whatever the autocorrelation time, six equal models are told apart in fewer than 6 % of cases."""
    page = (paths.ROOT / "book" / "method.md").read_text()
    row = re.search(rf"^\| {time} \| (\d+) % \| (\d+) % \| (\d+) % \| (\d+) % \|$", page, re.MULTILINE)
    values = equal_models(time)
    deviation = np.sqrt(2) * values.mean(-1).std()
    shifts = [np.array([size * deviation, 0, 0, 0, 0, 0])[:, None, None] for size in (1, 2, 3)]
    rates = [alarms(values), *(found(values[:100] + shift) for shift in shifts)]
    assert rates[0] < 0.06
    assert [f"{100 * rate:.0f}" for rate in rates] == list(row.groups())


def test_a_model_that_scatters_more_raises_no_alarm():
    values = equal_models(1000)
    values[:, 0] *= 10
    assert alarms(values) < 0.1


def test_pairing_tells_apart_what_intervals_alone_do_not():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(5, 10)) + rng.normal(size=(5, 1))
    values = {"a": shared, "b": shared + 0.2 + 0.01 * rng.normal(size=(5, 10))}
    assert statistics.told_apart(values) == [("a", "b")]
    (low_a, high_a), (low_b, high_b) = (statistics.replica_interval(v) for v in values.values())
    assert low_b < high_a
    assert statistics.told_apart({"a": shared, "b": shared[:4]}) == []


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
    first, second = saturation._independent_pairs(20, 500, 0, 15)
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
