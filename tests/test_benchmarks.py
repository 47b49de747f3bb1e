"""Is a comparison what it says? Order of calls, ratios, the bound on differences, records that are kept."""

import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as command
from benchmarks import coverage
from benchmarks.compare import Comparison, compare, same
from egraff_utils import paths, records


class Bench:
    """A clock, and two callables that let it run on; no time passes otherwise."""

    def __init__(self, ours=1.0, theirs=3.0):
        self.now, self.called, self.costs = 0.0, [], {"ours": ours, "theirs": theirs}

    def clock(self):
        return self.now

    def call(self, side):
        self.called.append(side)
        self.now += self.costs[side]

    def compare(self, **options):
        sides = (lambda: self.call("ours"), lambda: self.call("theirs"))
        return compare(*sides, clock=self.clock, **options)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    return benchmarks.Settings(quick=True)


def test_calls_are_interleaved_and_the_order_alternates():
    bench = Bench()
    found = bench.compare(least=3, most=3, warm_up=1)
    pairs = ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert bench.called == ["ours", "theirs", *pairs]
    assert (found.ratio, found.ours, found.theirs, found.pairs) == (3, 1, 3, 3)


@pytest.mark.parametrize(("seconds", "pairs"), [(0, 5), (40, 10), (41, 11), (1e9, 20)])
def test_pairs_end_with_the_time_between_least_and_most(seconds, pairs):
    assert Bench().compare(seconds=seconds, least=5, most=20).pairs == pairs


def test_the_device_is_waited_for_before_a_time_is_read():
    waits = []
    bench = Bench()
    bench.compare(least=1, most=1, warm_up=0, synchronize=lambda: waits.append(len(bench.called)))
    assert waits == [0, 1, 1, 2]


def test_a_rest_before_every_call_is_not_timed(monkeypatch):
    bench = Bench()
    monkeypatch.setattr("time.sleep", lambda seconds: bench.called.append(seconds))
    found = bench.compare(least=1, most=1, warm_up=0, rest=0.5)
    assert bench.called == [0.5, "ours", 0.5, "theirs"]
    assert (found.ours, found.theirs) == (1, 3)


def test_no_pairs_no_comparison():
    with pytest.raises(ValueError, match="least=0"):
        Bench().compare(least=0)


def test_the_ratio_is_that_of_pairs_not_of_medians():
    found = Comparison.of([1.0, 10.0, 100.0], [2.0, 30.0, 50.0])
    assert found.ratio == 2
    assert found.theirs / found.ours == 3
    assert (found.low, found.high) == pytest.approx((0.8, 2.8))


def test_metrics_are_throughputs_with_their_unit():
    found = Comparison.of([0.5, 0.5], [1.0, 2.0])
    ratio, ours, theirs = found.metrics("5", unit_per_call=100, unit="replica-steps/s")
    assert (ratio.name, ratio.value, ratio.unit, ratio.n) == ("ratio_5", 3, "1", 2)
    assert (ours.name, ours.value, ours.unit) == ("ours_5", 200, "replica-steps/s")
    assert (theirs.name, theirs.value) == ("theirs_5", 75)
    assert [m.name for m in found.metrics()] == ["ratio", "ours", "theirs"]
    assert list(found.curves("5")["times_theirs_5"]) == [1, 2]


def test_same_bounds_the_difference_by_the_largest_force():
    reference = np.array([[1.0, 0.0], [0.0, -200.0]])
    assert same(reference + 1e-3, reference) == pytest.approx(5e-6)
    with pytest.raises(AssertionError, match="differ by 0.01 of 200"):
        same(reference - 0.01, reference)
    with pytest.raises(ValueError, match="shape"):
        same(reference[0], reference)


def test_same_refuses_what_is_not_a_number():
    with pytest.raises(AssertionError):
        same([np.nan, 1.0], [1.0, 1.0])


def test_a_cell_is_kept_until_its_parameters_change(settings):
    made = []

    def measure():
        made.append(1)
        return [records.Metric("ratio", 2, "1")], {"times": np.ones(2)}

    def cell(settings, steps):
        return benchmarks.measured(settings, "bench_md", "ethanol", "mace", {"steps": steps}, measure)

    first, again = cell(settings, 5), cell(settings, 5)
    assert len(made) == 1
    assert again["ratio"] == 2
    assert list(again.curves["times"]) == [1, 1]
    assert first.path.parent.parent.name == "bench_quick"
    cell(settings, 6)
    cell(benchmarks.Settings(quick=True, threads=2), 6)
    cell(benchmarks.Settings(quick=True, threads=2, anew=True), 6)
    assert len(made) == 4


def test_a_cell_that_fails_is_a_record_and_is_tried_again(settings):
    def fail():
        same([1.0], [2.0])

    record = benchmarks.measured(settings, "bench_md", "ethanol", "mace", {}, fail)
    assert (record.status, record.metrics) == ("failed", [])
    assert record.message.startswith("AssertionError: results differ by 1 of 2")
    record = benchmarks.measured(settings, "bench_md", "ethanol", "mace", {}, lambda: ([], {}))
    assert (record.status, record.message) == ("complete", "")


def test_a_cell_may_say_what_ended_it(settings):
    record = benchmarks.measured(settings, "bench_scaling", "lips", "mace", {}, lambda: ([], {}, "no memory"))
    assert (record.status, record.message) == ("complete", "no memory")


@pytest.mark.parametrize(
    ("options", "campaign"),
    [({}, "bench"), ({"quick": True}, "bench_quick"), ({"device": "cuda"}, "bench_gpu")],
)
def test_where_records_lie(options, campaign):
    assert benchmarks.Settings(**options).campaign == campaign


@pytest.mark.parametrize("options", [{"threads": 2}, {"device": "cuda"}])
def test_processor_time_is_that_of_one_thread_only(options):
    assert benchmarks.Settings().clock is time.process_time
    assert benchmarks.Settings(**options).clock is time.perf_counter


def test_shares_add_up_to_what_is_promised():
    shares = [share for name, share in benchmarks.SHARES.items() if name not in benchmarks.BY_NAME]
    quick, full = (sum(times) for times in zip(*shares, strict=True))
    assert quick <= 120
    assert full <= 110 * 60


def test_the_command_runs_what_is_named_and_goes_on_after_a_failure(monkeypatch, capsys):
    def broken(settings):
        yield f"threads {settings.threads}, {settings.campaign}"
        raise RuntimeError("no more")

    monkeypatch.setitem(sys.modules, "benchmarks.md", SimpleNamespace(TITLE="Steps", run=broken))
    whole = SimpleNamespace(TITLE="Epochs", run=lambda _: iter(["a record"]))
    monkeypatch.setitem(sys.modules, "benchmarks.training", whole)
    assert command.main(["md", "training", "--quick"]) == 1
    said = capsys.readouterr()
    assert "threads 1, bench_quick" in said.out
    assert "a record" in said.out
    assert "no more" in said.err


def test_what_takes_hours_runs_only_where_it_is_named(monkeypatch):
    ran = []
    monkeypatch.setattr(command, "_run", lambda name, settings: ran.append((name, settings.budget)) or True)
    assert command.main(["--quick"]) == 0
    assert [name for name, _ in ran] == [n for n in benchmarks.SHARES if n not in benchmarks.BY_NAME]
    assert command.main(["accuracy", "--budget", "60"]) == 0
    assert ran[-1] == ("accuracy", 60)


def test_a_run_compiles_into_a_folder_of_its_own(monkeypatch):
    caches = []
    monkeypatch.delenv(command.CACHE, raising=False)
    monkeypatch.setattr(command, "_run", lambda *_: caches.append(os.environ[command.CACHE]))
    command.main(["md"])
    command.main(["md"])
    assert len(set(caches)) == 2
    assert command.CACHE not in os.environ


def test_the_command_knows_its_benchmarks(capsys):
    with pytest.raises(SystemExit):
        command.main(["mds"])
    assert "no benchmark 'mds'" in capsys.readouterr().err


def test_a_repetition_of_the_coverage_leaves_no_record(monkeypatch):
    seen = []

    def roll_out(config):
        found = [records.Metric("fv", 0.5, "1", 0.4, 0.6), records.Metric("steps", 7.0, "1")]
        record = records.Record("rollout", "demo", config.dataset, config.model, config.seed, {}, found)
        seen.append(records.write(record))
        return record

    before = paths.results(), paths.runs()
    monkeypatch.setattr(coverage, "roll_out", roll_out)
    metrics, _ = coverage.measure("copper_emt", {"replicas": 2, "steps": 7}, 3)
    assert [(metric.name, metric.low, metric.high) for metric in metrics] == [("fv", 0.4, 0.6)]
    assert (paths.results(), paths.runs()) == before
    assert not seen[0].exists()
    assert not seen[0].is_relative_to(before[0])
