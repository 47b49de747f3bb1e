"""Do the intervals of a rollout cover? The oracle runs as the model, many times from the same starts.

Every repetition has other noise and nothing else differs, so that the mean over repetitions is what an
interval has to cover if it is right for these starts. The temperature has a second truth, that of the
thermostat, which is the mean over the whole ensemble.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from benchmarks import Settings, measured
from egraff_utils.md.rollout import RolloutConfig, roll_out
from egraff_utils.records import Metric, Record

TITLE = "Coverage: the same perfect model from the same starts, with other noise"
LENGTHS = {"ethanol_xtb": 400, "copper_emt": 100}
"""Dataset -> steps of every replica."""
REPETITIONS = 20
KEPT = ("temperature", "wf", "jsd", "ev_root", "fv", "rmsd")


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_coverage``, one per dataset and repetition, which is the seed.

    Metrics: those in :data:`KEPT` of a rollout of five replicas, with their intervals.
    """
    if settings.quick or settings.on_gpu or settings.threads > 1:
        return
    for dataset, steps in LENGTHS.items():
        for seed in range(1, REPETITIONS + 1):
            parameters = {"replicas": 5, "steps": steps}
            cell = dataset, parameters, seed
            yield measured(
                settings, "bench_coverage", dataset, "reference", parameters, partial(measure, *cell), seed
            )


def measure(dataset: str, lengths: Mapping[str, int], seed: int) -> tuple[list[Metric], dict]:
    """Metrics of one repetition, a list, and no curves; the rollout itself is not kept."""
    config = RolloutConfig("reference", dataset, seed=seed, progress=False, **lengths)  # type: ignore[arg-type]
    with _elsewhere():
        record = roll_out(config)
    return [metric for metric in record.metrics if metric.name in KEPT], {}


@contextmanager
def _elsewhere():
    """Records and checkpoints in a temporary folder, which is deleted."""
    names = ("EGRAFF_RESULTS", "EGRAFF_RUNS")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.environ.update({name: f"{folder}/{name}" for name in names})
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
