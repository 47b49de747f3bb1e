"""Does our trainer learn as well as the packages' commands? Validation errors of both after the same epochs.

Both sides start from the same weights and have the same network, frames, batch size, loss, optimiser (Adam of
the card), plateau scheduler and average of weights; the orders of their batches differ. What differs beyond
these is what the trainers add.
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measured
from benchmarks.accuracy import follow, learn, learn_upstream, training
from benchmarks.commands import UPSTREAM
from benchmarks.programs import PRESET, Plan, Program
from egraff_utils.records import Metric

TITLE = "Equal epochs: validation errors of ours and the packages' commands"
DATASET = "ethanol"
EPOCHS = 15
SEEDS = (0, 1, 2)


def run(settings):
    """Yield records of kind ``bench_equal``, one per model and seed; only on one thread of a CPU.

    Metrics: ``ours`` and ``theirs``, least validation error of the forces, meV/Å, and ``ratio``, ours over
    theirs. Curves: ``ours_error`` and ``theirs_error``, meV/Å, one value per epoch.
    """
    if settings.quick or settings.on_gpu or settings.threads > 1:
        return
    for model in UPSTREAM:
        changed = training(model, PRESET)
        for seed in SEEDS:
            parameters = {"preset": PRESET, "epochs": EPOCHS, "training": changed}
            cell = model, changed, seed, settings
            yield measured(
                settings, "bench_equal", DATASET, model, parameters, lambda c=cell: _measure(*c), seed=seed
            )


def _measure(model, changed, seed, settings, **preset):
    curves = {}
    for side, main in (("ours", learn), ("theirs", learn_upstream)):
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(Path(folder), model, DATASET, settings, changed, seed=seed, **preset)
            plan.budget = None
            with Program(plan, main) as program:
                _, errors, _ = follow(program, plan, lambda points: len(points) >= EPOCHS)
        curves[f"{side}_error"] = errors
    least = {side: float(np.min(curves[f"{side}_error"])) for side in ("ours", "theirs")}
    metrics = [Metric(side, value, "meV/Å") for side, value in least.items()]
    return [*metrics, Metric("ratio", least["ours"] / least["theirs"], "1")], curves
