"""Does training keep up? Our training is compared step by step with the commands of the upstream packages.

Both sides are complete programs, ``fit`` of :mod:`egraff_utils.train` and ``mace_run_train``,
``nequip-train`` or ``torchmd-train``, each in a separate process, with the same files, batches, dtype,
hyperparameters and initial weights. Ours is compiled; it is also compared with ``nequip-train`` with its own
compilation, and with ours in eager mode. A hook after every optimiser step makes two programs take turns, so
that the time includes everything between two steps, but neither start nor compilation.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import Settings, measured
from benchmarks.commands import UPSTREAM, nequip_compiled, torchmd
from benchmarks.compare import compare, same
from benchmarks.programs import PRESET, STEPS, Plan, Program, own_folders
from egraff_utils.records import Metric, Record

TITLE = "Training: structures per second of ours and of the packages' own commands"
DATASETS = ("ethanol", "lips")
TRAINING = {"batch_size": 5, "scheduler": "none", "optimizer": "adam"}
LIKE_TORCHMD = {
    "optimizer": "adamw",
    "amsgrad": False,
    "ema_decay": None,
    "clip_norm": None,
    "energy_per_atom": False,
}
"""Hyperparameters that torchmd-train cannot change."""
SETTLING = 5  # first steps of both, in which compiled code is specialised
ROUNDING = 5e-5  # relative difference of forces, as float32 holds coordinates of periodic frames to 1e-6 Å
GRADIENT_ROUNDING = 1e-3  # relative difference of gradients, which are sums of many terms that cancel


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of the kinds in :data:`OPPONENTS`.

    Metrics: ``ratio``, ``ours``, ``theirs`` (structures/s), and ``force_difference`` of the first batch, or
    ``gradient_difference`` if both sides are ours. Curves: times of ``STEPS`` steps, s. In a quick run ours
    is not compiled, which the parameters of its records say.
    """
    chosen = [(kind, *cell) for kind in OPPONENTS for cell in cells(kind)]
    for kind, model, dataset in chosen[:2] if settings.quick else chosen:
        training = TRAINING | (LIKE_TORCHMD if OPPONENTS[kind][model] is torchmd else {})
        parameters = {"preset": PRESET, "training": training, "steps": STEPS, "compile": not settings.quick}
        cell = kind, model, dataset, training, settings
        yield measured(settings, kind, dataset, model, parameters, partial(_measure, *cell))


def cells(kind: str) -> list[tuple[str, str]]:
    """Models and datasets of a kind; torchmd-train cannot read periodic frames."""
    mains = OPPONENTS[kind].items()
    return [(m, d) for d in DATASETS for m, main in mains if (main, d) != (torchmd, "lips")]


def _measure(kind, model, dataset, training, settings):
    main = OPPONENTS[kind][model]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = Plan(folder, model, dataset, settings, training)
        theirs = stack.enter_context(Program(plan, main))
        ours = stack.enter_context(Program(plan, _plain if settings.quick else _ours))
        first, gradients = theirs.receive(), ours.receive()
        if main is _plain:
            name, difference = "gradient", same(gradients, first, relative=GRADIENT_ROUNDING)
        else:
            name, difference = "force", same(*plan.forces(*first), relative=ROUNDING)
        for program in (theirs, ours):
            program.receive()
            program.step(SETTLING)
        alone = settings.threads == 1 and settings.device == "cpu"
        clock = (lambda: ours.seconds + theirs.seconds) if alone else time.perf_counter
        seconds = 3.5 if settings.quick else 9.0
        found = compare(ours.step, theirs.step, seconds=seconds, warm_up=1, clock=clock)
    structures = STEPS * training["batch_size"]
    metrics = found.metrics(unit_per_call=structures, unit="structures/s")
    return [*metrics, Metric(f"{name}_difference", difference, "1")], found.curves()


def _ours(plan, report, **options):
    """Run ``fit``, compiled, and report the gradients of its first batch."""
    import torch

    from egraff_utils import train

    own_folders(plan)
    config = plan.config(**({"compile": True} | options))
    backward = train.Learner.backward

    def once(learner, loss):
        if config.compile and learner.gradients is None:
            raise RuntimeError("our step is not compiled")
        backward(learner, loss)
        train.Learner.backward = backward
        weights = [p for p in learner.force_field.parameters() if p.requires_grad]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        report(torch.cat([gradient.flatten() for gradient in found]).cpu().numpy())

    train.Learner.backward = once
    train.fit(config)  # flushes denormal numbers to zero; upstream programs run as they do for their users


def _plain(plan, report):
    _ours(plan, report, compile=False)


OPPONENTS = {
    "bench_training": UPSTREAM,
    "bench_training_compiled": {"nequip": nequip_compiled, "allegro": nequip_compiled},
    "bench_training_plain": dict.fromkeys([*UPSTREAM, "equiformer"], _plain),
}
"""Kind of record -> model -> what our compiled training is compared with: the package's command, the same
compiled by its package, and our own training in eager mode."""
