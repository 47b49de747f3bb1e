"""Where does the time of a training step go? Our compiled step is timed part by part.

The function ``learn`` of :mod:`egraff_utils.train` itself is timed, in a separate process, with clocks around
its parts during whole epochs, once with each optimiser. The time of a part excludes that of other parts that
it calls.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import Settings, measured
from benchmarks.programs import PRESET, Plan, Program, Report, own_folders
from benchmarks.training import DATASETS, TRAINING
from egraff_utils.records import Metric, Record

TITLE = "A training step: milliseconds of its parts"
OPTIMIZERS = ("adam", "muon")
EPOCHS = 2
PARTS = ("function", "collation", "clipping", "validation")
NO_END = 10**9  # steps


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_step``, one per model and dataset; none in a quick run or on a GPU.

    Metrics in ms per step: ``function``, the compiled function and its call; ``collation``, including
    padding; ``adam`` and ``muon``; ``clipping``, including the average of the weights; ``validation``;
    ``rest``, which is Lightning; and ``step``, the whole with Adam. Metrics in s of processor time:
    ``compile_seconds``, and ``compile_again_seconds`` if the compiler finds its results in the cache.
    """
    from egraff_utils import models

    if settings.quick or settings.on_gpu:
        return
    parameters = {"preset": PRESET, "training": TRAINING, "epochs": EPOCHS}
    for dataset in DATASETS:
        for model in models.NAMES:
            cell = model, dataset, settings, TRAINING
            yield measured(settings, "bench_step", dataset, model, parameters, partial(_measure, *cell))


def _measure(*cell, **preset):
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), *cell, **preset)
        with Program(plan, break_down) as program:
            program.receive()  # the program waits after its first step
            program.connection.send(NO_END)
            return program.receive(), {}


class Parts:
    """Processor times of named parts, without those of the parts that they call.

    For a part in ``whole`` all its time counts.
    """

    def __init__(self, whole: Sequence[str] = (), clock: Callable[[], float] = time.process_time) -> None:
        self.seconds: Counter[str] = Counter()
        self.whole, self.clock = whole, clock
        self.running: list[list] = []

    def timed(self, name: str, call: Callable) -> Callable:
        """Wrapper of a callable whose time counts for a part."""

        def counted(*arguments, **keywords):
            outer = self.running[-1] if self.running else None
            if outer and outer[0] in self.whole:
                return call(*arguments, **keywords)
            inner, begun = [name, 0.0], self.clock()
            self.running.append(inner)
            try:
                return call(*arguments, **keywords)
            finally:
                spent = self.clock() - begun
                self.running.pop()
                self.seconds[name] += spent - inner[1]
                if outer:
                    outer[1] += spent

        return counted

    def replace(self, owner: type | ModuleType, method: str, name: str) -> None:
        """Replace a method, or a function of a module, by its timed wrapper."""
        setattr(owner, method, self.timed(name, getattr(owner, method)))


def break_down(plan: Plan, report: Report) -> None:
    """Train as ``fit`` does, with clocks around its parts, and report metrics."""
    import torch

    from egraff_utils import data, models, train

    own_folders(plan)
    parts = _with_clocks(Parts(whole=("validation",)))
    frames = [data.load(f"{plan.folder}/card.yml", split) for split in ("train", "val")]
    learner: Any = None
    found = {}
    for optimizer in OPTIMIZERS:
        config = plan.config(training=plan.training | {"optimizer": optimizer}, compile=True)
        hyper = models.card(plan.model).training(plan.preset, **config.training)
        first, learner = learner, train.new_learner(config, hyper, frames[0])
        if first:  # a compiled function belongs to its force field and is made anew with it
            learner = train.Learner(first.force_field, hyper)
            learner.compiled = first.compiled
        learner.limits = {"epochs": EPOCHS}
        train.learn(learner, config, {"optimizer": optimizer}, *frames)
        steps, whole = learner.steps, learner.history[-1]["seconds"]
        milliseconds = {name: 1000 * parts.seconds[name] / steps for name in (*PARTS, "optimizer")}
        rest = 1000 * whole / steps - sum(milliseconds.values())
        found[optimizer] = milliseconds | {"rest": rest, "step": 1000 * whole / steps}
    step = learner.compiled
    seconds = {"compile_seconds": step.seconds}
    torch._dynamo.reset()
    step.compile(next(iter(train.Batches(frames[0], hyper.batch_size, cutoff=step.cutoff, device="cpu"))))
    seconds["compile_again_seconds"] = step.seconds
    report(_metrics(found, seconds))


def _metrics(found, seconds):
    """Metrics of a record, from milliseconds by part for each optimiser and seconds of compilation."""
    parts = found["adam"] | {name: parts["optimizer"] for name, parts in found.items()}
    order = [*PARTS[:2], *OPTIMIZERS, *PARTS[2:], "rest", "step"]
    milliseconds = [Metric(name, parts[name], "ms") for name in order]
    return [*milliseconds, *(Metric(name, value, "s") for name, value in seconds.items())]


def _with_clocks(parts):
    """Put clocks into the training code, in this process only and permanently; returns the parts."""
    import torch
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

    from egraff_utils import train
    from egraff_utils.train import batches, compiled, optimizers

    parts.replace(compiled.Step, "__call__", "function")
    parts.replace(compiled.Step, "_arguments", "collation")
    parts.replace(batches, "_join", "collation")
    parts.replace(train.Learner, "configure_gradient_clipping", "clipping")
    parts.replace(train.WeightAverage, "on_train_batch_end", "clipping")
    parts.replace(_EvaluationLoop, "run", "validation")
    for kind in (torch.optim.Adam, optimizers.Muon):
        kind.step = _stepping(parts, kind.step)
    begin = train.Watch.on_train_start

    def from_here(*arguments):
        parts.seconds.clear()
        begin(*arguments)

    train.Watch.on_train_start = from_here
    return parts


def _stepping(parts, step):
    """Timed step of an optimiser without its closure, in which Lightning does everything else."""

    def alone(optimizer, closure=None):
        return step(optimizer, closure and parts.timed("rest", closure))

    return parts.timed("optimizer", alone)
