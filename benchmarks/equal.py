"""Does our trainer learn as well as the packages' commands? Validation errors of both after the same epochs.

Both sides start from the same weights and have the same network, frames, batch size, loss, optimiser (Adam of
the card), plateau scheduler and average of weights; the orders of their batches differ. What differs beyond
these is what the trainers add.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks import Settings, measured
from benchmarks.accuracy import follow_all, learn, learn_upstream, training
from benchmarks.commands import UPSTREAM
from benchmarks.programs import PRESET
from egraff_utils.records import Metric, Record

TITLE = "Equal epochs: validation errors of ours and the packages' commands"
DATASET = "ethanol"
EPOCHS = 15
SEEDS = (0, 1, 2)


def run(settings: Settings) -> Iterator[Record]:
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
                settings, "bench_equal", DATASET, model, parameters, partial(_measure, *cell), seed=seed
            )


def _measure(model, changed, seed, settings, **preset):
    sides = {"ours": (learn, changed), "theirs": (learn_upstream, changed)}
    cell = model, DATASET, settings
    found = follow_all(sides, lambda points: len(points) >= EPOCHS, *cell, budget=None, seed=seed, **preset)
    curves = {f"{side}_error": errors for side, (_, errors, _) in found.items()}
    least = {side: float(np.min(curves[f"{side}_error"])) for side in sides}
    metrics = [Metric(side, value, "meV/Å") for side, value in least.items()]
    return [*metrics, Metric("ratio", least["ours"] / least["theirs"], "1")], curves
