"""How fast is it beside what a user would write with the upstream packages? One module per question.

A benchmark is a module here with a ``TITLE`` and ``run(settings)``, which yields records as they are made;
its line in `SHARES` says how long it may take. ``python -m benchmarks`` runs them, and the page report/speed
shows what they found.
"""

import time
from dataclasses import dataclass

from egraff_utils import paths, records
from egraff_utils.config import Key

SHARES = {
    "md": (50, 1080),
    "compiled": (0, 360),
    "step": (0, 2100),
    "training": (30, 1500),
    "scaling": (10, 600),
    "limit": (5, 60),
    "metrics": (5, 90),
    "pipeline": (10, 660),
    "precision": (10, 120),
    "accuracy": (0, 9000),
}
"""Benchmark -> its share of time, s: of a quick run, of a full one."""
BY_NAME = ("accuracy",)
"""Benchmarks that take hours, and run only where they are asked for."""


@dataclass(frozen=True)
class Settings:
    """How the benchmarks are run."""

    quick: bool = False
    """Fewer cells and repetitions: two minutes in all."""
    device: str = "cpu"
    threads: int = 1
    """Of both sides of a comparison."""
    anew: bool = False
    """Measure also what is stored with the same parameters."""
    budget: float = 300.0
    """Of a training in the benchmark ``accuracy``, s."""

    @property
    def campaign(self):
        """Name under which the records lie: ``bench`` (``bench_2`` of two threads), ``bench_gpu``,
        ``bench_quick``.

        >>> Settings(threads=2).campaign
        'bench_2'
        """
        if self.quick:
            return "bench_quick"
        if self.on_gpu:
            return "bench_gpu"
        return "bench" if self.threads == 1 else f"bench_{self.threads}"

    @property
    def on_gpu(self):
        """Whether the device is one of CUDA's."""
        return self.device.startswith("cuda")

    @property
    def synchronize(self):
        """What waits until the device is done: a function on a GPU, ``None`` on a CPU."""
        if not self.on_gpu:
            return None
        import torch

        return torch.cuda.synchronize

    @property
    def clock(self):
        """Seconds of this process, for `compare`: of its processor in one thread, else of the wall.

        Processor time leaves out what other programs take; with several threads it would count each of them.
        """
        alone = self.device == "cpu" and self.threads == 1
        return time.process_time if alone else time.perf_counter

    def share(self, name):
        """Time that a benchmark may take, s.

        >>> Settings(quick=True).share("md")
        50
        """
        quick, full = SHARES[name]
        return quick if self.quick else full


def measured(settings, kind, dataset, model, parameters, measure, **hashes):
    """Record of one cell of a benchmark, written: the stored one, or what `measure` gives.

    Parameters
    ----------
    settings
        :class:`Settings`; device and threads become parameters of the record.
    kind, dataset, model
        Of the record, such as ``bench_md``, ``ethanol``, ``mace``.
    parameters
        What determines the result. A record that is stored with the same is taken up again, unless it failed
        or `settings` ask for all anew.
    measure
        Called without arguments; returns a list of :class:`~egraff_utils.records.Metric` and a dictionary of
        curves, and a message where there is something to say, such as what ended it. What it raises becomes
        the message of a record of status ``failed``.
    hashes
        Of what went in, for the provenance: ``weights=...``.

    Returns
    -------
    Record
    """
    parameters = {**parameters, "device": settings.device, "threads": settings.threads}
    key = Key(kind, settings.campaign, dataset, model)
    stored = records.find(key, parameters)
    if stored and stored.status != "failed" and not settings.anew:
        return stored
    started, metrics, curves, status, message = time.time(), [], {}, "complete", ""
    try:
        metrics, curves, *said = measure()
        message = " ".join(said)
    except Exception as error:  # a cell that fails is a result; the others go on
        status, message = "failed", _reason(error)
    made = records.provenance(started, device=settings.device, threads=settings.threads, **hashes)
    record = records.Record(*key, parameters, metrics, status, message, made)
    records.write(record, curves)
    return record


def _reason(error):
    text = " ".join(str(error).split())[:300].replace(f"{paths.ROOT}/", "")
    return f"{type(error).__name__}: {text}"
