"""How fast is it compared with what a user would write with the upstream packages? One module per question.

A benchmark is a module with a ``TITLE`` and a function ``run(settings)`` that yields records; its entry in
`SHARES` gives the time that it may take. ``python -m benchmarks`` runs the benchmarks, and the page
report/speed shows the results.
"""

import time
from collections.abc import Callable
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
    "equal": (0, 3600),
    "shuffled": (0, 1800),
    "coverage": (0, 7200),
}
"""Benchmark -> time that it may take in a quick and in a full run, s."""
BY_NAME = ("accuracy", "equal", "shuffled", "coverage")
"""Benchmarks that take an hour or more, and run only if they are named."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run of benchmarks."""

    quick: bool = False
    """Whether there are fewer cells and repetitions, which take two minutes altogether."""
    device: str = "cpu"
    threads: int = 1
    """Number of threads of both sides of a comparison."""
    anew: bool = False
    """Whether cells with a stored record of the same parameters are measured again."""
    budget: float = 300.0
    """Budget of a training in the benchmark ``accuracy``, s."""

    @property
    def campaign(self) -> str:
        """Campaign of the records: ``bench`` (``bench_2`` with two threads), ``bench_gpu``, ``bench_quick``.

        >>> Settings(threads=2).campaign
        'bench_2'
        """
        if self.quick:
            return "bench_quick"
        if self.on_gpu:
            return "bench_gpu"
        return "bench" if self.threads == 1 else f"bench_{self.threads}"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    @property
    def synchronize(self) -> Callable[[], None] | None:
        """Function that waits until the device is done, on a GPU; ``None`` on a CPU."""
        if not self.on_gpu:
            return None
        import torch

        return torch.cuda.synchronize

    @property
    def clock(self) -> Callable[[], float]:
        """Clock of this process for `compare`: processor time with one thread, else wall time.

        Processor time excludes the time of other programs, but with several threads it would count each of
        them.
        """
        alone = self.device == "cpu" and self.threads == 1
        return time.process_time if alone else time.perf_counter

    def share(self, name: str) -> float:
        """Time that a benchmark may take, s.

        >>> Settings(quick=True).share("md")
        50
        """
        quick, full = SHARES[name]
        return quick if self.quick else full


def measured(
    settings: Settings,
    kind: str,
    dataset: str,
    model: str,
    parameters: dict,
    measure: Callable[[], tuple],
    seed: int = 0,
    **hashes: str | None,
) -> records.Record:
    """Record of one cell of a benchmark, which is the stored one or a new one from `measure`.

    Parameters
    ----------
    settings
        :class:`Settings`; device and threads become parameters of the record.
    kind, dataset, model
        Kind, dataset and model of the record, such as ``bench_md``, ``ethanol``, ``mace``.
    parameters
        Everything that determines the result. A stored record with the same parameters is returned, unless it
        failed or `settings` request new measurements.
    measure
        Function without arguments that returns a list of :class:`~egraff_utils.records.Metric`, a dictionary
        of curves and, optionally, a message, such as the reason why it ended. An exception that it raises
        becomes the message of a record with status ``failed``.
    seed
        Seed in the key of the record.
    hashes
        Hashes of the inputs for the provenance, such as ``weights=...``.

    Returns
    -------
    Record
    """
    parameters = {**parameters, "device": settings.device, "threads": settings.threads}
    key = Key(kind, settings.campaign, dataset, model, seed)
    stored = records.find(key, parameters)
    if stored and stored.status != "failed" and not settings.anew:
        return stored
    started, metrics, curves, status, message = time.time(), [], {}, "complete", ""
    try:
        metrics, curves, *said = measure()
        message = " ".join(said)
    except Exception as error:  # a failed cell is a result too, and the others continue
        status, message = "failed", _reason(error)
    made = records.provenance(started, device=settings.device, threads=settings.threads, **hashes)
    record = records.Record(*key, parameters, metrics, status, message, made)
    records.write(record, curves)
    return record


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300].replace(f"{paths.ROOT}/", "")
    return f"{type(error).__name__}: {text}"
