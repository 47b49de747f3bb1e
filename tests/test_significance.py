"""Letters of models from records, and the intervals that records are given anew."""

from types import SimpleNamespace

import numpy as np
import pytest

from egraff_utils import metrics, records
from egraff_utils.md import averages
from egraff_utils.records import Metric, Record
from egraff_utils.report import significance, windows


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))


def curves_of(seed, *, shift=0.0, replicas=3, frames=200, bins=30, old=False):
    """Curves of a rollout with noise that depends on the seed and a shift of the radial distribution."""
    rng = np.random.default_rng(seed)
    reference = 1 + np.sin(np.arange(bins)) ** 2
    blocks = reference * (1 + shift) + 0.05 * rng.normal(size=(replicas, 10, bins))
    curves = {
        "time": np.arange(float(frames)),
        "fv": rng.uniform(0.5, 0.9, (replicas, frames)),
        "ev_root": 1e-5 * rng.lognormal(size=(replicas, frames)),
        "temperature": 300 + rng.normal(size=(replicas, frames)),
        "rmsd": np.cumsum(rng.random((replicas, frames)), axis=1),
        "energy": rng.normal(size=(replicas, frames)),
        "stable_step": np.full(replicas, frames - 1),
        "rdf": blocks.mean(1),
        "rdf_reference": reference,
    }
    return curves if old else curves | {"rdf_blocks": blocks, "block_frames": np.full((replicas, 10), 20)}


def record_of(model, curves, kind="rollout"):
    values = averages.replica_values(curves)
    measured = [Metric.of(name, np.nanmean(v), 0.0, 0.0, 3) for name, v in values.items()]
    steps = len(curves["time"]) - 1
    measured += [Metric("steps", steps, "1"), Metric("energy_drift", 2.0, "meV/atom/ps", 2.0, 2.0, 3)]
    measured += [Metric(n, 1.0, "1") for n in ("stable_fraction", "ms_per_step", "replica_steps_per_second")]
    measured += [Metric("reference_contiguous", 1.0, "1")]
    record = Record(kind, "test", "lips20", model, 0, {"steps": steps}, measured)
    records.write(record, curves)
    return record


def test_block_values_average_to_the_metric_of_the_replica():
    curves = curves_of(0)
    values = averages.block_values(curves)
    assert values["fv"].shape == values["wf"].shape == (3, 10)
    geometric = [metrics.geometric_mean(curve[1:]) for curve in curves["fv"]]  # the start is shared
    assert values["fv"].mean(1) == pytest.approx(geometric)
    wright = [metrics.wright_factor(g, curves["rdf_reference"]) for g in curves["rdf"]]
    assert values["wf"].mean(1) == pytest.approx(wright)
    assert values["temperature"].mean(1) == pytest.approx(curves["temperature"].mean(1))
    assert values["ev"].mean(1) == pytest.approx(values["ev_root"].mean(1) ** 2)
    last = curves["rmsd"][:, -20:].mean(1)
    assert values["rmsd"][:, 0] == pytest.approx(last)


def test_block_values_of_a_mean_are_the_blocks():
    curves = curves_of(0)
    blocks = curves["temperature"].reshape(3, 10, 20).mean(-1)
    assert averages.block_values(curves)["temperature"] == pytest.approx(blocks)


def test_blocks_behind_a_failure_are_left_out():
    curves = curves_of(0)
    for name in ("fv", "ev_root", "temperature"):
        curves[name][1, 65:] = np.nan
    curves["rdf_blocks"][1, 4:], curves["block_frames"][1, 3:] = np.nan, [5, *[0] * 6]
    values = averages.block_values(curves)
    assert np.isfinite(values["fv"]).sum(1).tolist() == [10, 4, 10]
    assert np.isfinite(values["wf"]).sum(1).tolist() == [10, 4, 10]
    metric = averages.summary("fv", values["fv"])
    assert 0 < metric.low < metric.value < metric.high
    assert metric.n == 3


def test_exact_agreement_has_the_value_zero():
    curves = curves_of(0) | {"fv": np.zeros((3, 200))}
    metric = averages.summary("fv", averages.block_values(curves)["fv"])
    assert (metric.value, metric.low, metric.high) == (0, 0, 0)


def test_drawing_blocks_and_scoring_anew_would_miss_the_value():
    """Redrawn blocks are twice as noisy as the run, and Wright's factor near zero measures noise."""
    curves = curves_of(0)
    rng = np.random.default_rng(1)
    rows, cut = np.arange(3)[:, None], curves["rdf_blocks"]
    drawn = [cut[rows, rng.integers(10, size=(3, 10))].mean(1) for _ in range(300)]
    anew = [np.mean([metrics.wright_factor(g, curves["rdf_reference"]) for g in gs]) for gs in drawn]
    value = averages.replica_values(curves)["wf"].mean()
    assert np.mean(anew) > 1.5 * value


def test_letters_of_records():
    found = [record_of("mace", curves_of(0)), record_of("nequip", curves_of(1))]
    found += [record_of("botnet", curves_of(2, shift=0.2))]
    assert significance.letters(found, "wf") == {"mace": "a", "nequip": "a", "botnet": "b"}
    assert set(significance.letters(found, "deviation").values()) == {""}
    assert set(significance.letters(found, "stable_fraction").values()) == {"a"}
    assert significance.letters(found[:1], "wf") == {"mace": ""}


def test_runs_that_the_clock_cut_are_compared_over_the_same_time():
    """The longer one is worse only after the end of the shorter."""
    whole, late = curves_of(0), np.arange(200) >= 120
    worse = whole | {"fv": np.where(late, 1.0, whole["fv"] + 1e-3 * np.cos(np.arange(200)))}
    short = whole | {name: whole[name][..., :120] for name in ("time", *windows.TIMED) if name in whole}
    found = [
        record_of(*pair) for pair in (("mace", short | {"stable_step": np.full(3, 119)}), ("nequip", worse))
    ]
    found[0].parameters["steps"] = 199
    assert windows.window(found) == 119
    assert set(significance.letters(found, "fv").values()) == {"a"}
    ends = [windows.within(record, 119) for record in found]
    assert [len(record.curves["fv"][0]) for record in ends] == [120, 120]
    assert ends[1]["fv"] == pytest.approx(found[0]["fv"], rel=1e-3)
    assert found[1]["fv"] > 1.1 * found[0]["fv"]
    found[0].curves["stable_step"][:] = 60  # all broke: its length is a result
    assert windows.window(found) is None


def test_seeds_that_differ_more_than_architectures_tell_none_apart():
    """Replicas agree to 0.1 %, seeds differ by 20 %: one seed tells weights apart, three tell nothing."""
    draws, found = np.random.default_rng(3), []
    for model, seed in [(m, s) for m in ("mace", "nequip") for s in range(3)]:
        curves = curves_of(0) | {"temperature": 300 * draws.uniform(0.8, 1.2) + draws.normal(size=(3, 200))}
        found.append(SimpleNamespace(model=model, seed=seed, curves=curves))
    one = [record for record in found if record.seed == 0]
    assert set(significance.letters(one, "temperature").values()) == {"a", "b"}
    assert set(significance.letters(found, "temperature").values()) == {"a"}
    mixed = [*one, found[1]]  # the shared seed alone is compared
    assert set(significance.letters(mixed, "temperature").values()) == {"a", "b"}


def test_letters_of_stable_runs_by_fisher():
    """None of ten broke against all of ten: p = 2 / C(20, 10) < 0.05. Of three: 2 / 20."""
    for replicas, letters in ((10, {"mace": "a", "nequip": "b"}), (3, {"mace": "a", "nequip": "a"})):
        sound, broken = curves_of(0, replicas=replicas), curves_of(1, replicas=replicas)
        broken["stable_step"] = np.full(replicas, 50)
        found = [record_of("mace", sound), record_of("nequip", broken)]
        assert significance.letters(found, "stable_fraction") == letters


def test_stability_of_several_trainings_is_compared_by_training():
    """Both trainings of a model break throughout, in 20 replicas: the chance of that is 2 / C(4, 2)."""
    found = []
    for model, seed in [(m, s) for m in ("mace", "nequip") for s in range(2)]:
        curves = curves_of(seed, replicas=10)
        if model == "nequip":
            curves["stable_step"] = np.full(10, 50)
        found.append(record_of(model, curves))
        found[-1].seed = seed
    alone = [record for record in found if record.seed == 0]
    assert significance.letters(alone, "stable_fraction") == {"mace": "a", "nequip": "b"}
    assert significance.letters(found, "stable_fraction") == {"mace": "a", "nequip": "a"}


def test_letters_of_errors_on_frames():
    error = np.random.default_rng(0).uniform(5, 6, 100)
    found = [
        Record("errors_test", "test", "lips", model, 0, metrics=[Metric("force_mae", 5.5 + add, "meV/Å")])
        for model, add in (("mace", 0.0), ("nequip", 1.0))
    ]
    for record, add in zip(found, (0.0, 1.0), strict=True):
        records.write(record, {"force_error": error + add})
    assert significance.letters(found, "force_mae") == {"mace": "a", "nequip": "b"}


def test_replicas_of_several_compositions_are_averaged_together():
    parts = {n: record_of("mace", curves_of(i), f"rollout_{n}") for i, n in enumerate(("Li", "S"))}
    pooled, curves = averages.pool(parts)
    assert curves["wf_blocks"].shape == (6, 10)
    (found,) = [metric for metric in pooled if metric.name == "wf"]
    assert found.n == 6
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.mean([part["wf"] for part in parts.values()]), rel=1e-3)


def test_a_replica_of_an_older_record_is_one_block_of_its_structure():
    old, new = (averages.block_values(curves_of(0, old=old))["wf"] for old in (True, False))
    assert old.shape == (3, 1)
    assert old[:, 0] == pytest.approx(new.mean(1))


def test_errors_of_trainings_have_letters():
    draws = np.random.default_rng(0)
    truth, names = np.zeros(200), np.full(200, "H2")
    found = {"mace": 10.0, "nequip": 10.0, "botnet": 20.0}
    errors = {m: scale + draws.normal(size=200) for m, scale in found.items()}
    made = [
        SimpleNamespace(
            model=m,
            seed=0,
            curves={"force_error": e, "energy": e / 1e3, "energy_reference": truth, "composition": names},
        )
        for m, e in errors.items()
    ]
    for metric in ("force_mae", "energy_mae"):
        letters = significance.letters(made, metric)
        assert letters["botnet"] == "b"
        assert letters["mace"] == letters["nequip"] == "a"
