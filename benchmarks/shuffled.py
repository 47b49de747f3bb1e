"""What is a shuffled split worth? A network trained on frames of LiPS20 before or between those of its test.

The authors shuffled the frames of every trajectory before they split them, so that a test frame has
neighbours among the training frames that are a few steps of molecular dynamics away. The splits of the card
are blocks in time. One network, from the same weights and for the same time, is trained and tested with
either.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from ase import Atoms

from benchmarks import Settings, measured
from egraff_utils import accuracy, cards, data, models
from egraff_utils.records import Metric, Record

TITLE = "Shuffled: test errors of a network on LiPS20, split in blocks and at random"
DATASET = "lips20"
MODELS = ("torchmd_net",)
PRESET = "day"
SECONDS = 300.0
SPLITS = {"train": slice(800), "val": slice(820, 890, 4), "test": slice(910, None)}
"""Frames of every composition of 1000 frames, in order of time or shuffled, as in the card."""


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_shuffled``, one per model; only on one thread of a CPU.

    Metrics: ``blocks`` and ``shuffled``, mean absolute errors of the forces on the test frames, meV/Å,
    ``ratio``, blocks over shuffled, and ``blocks_steps`` and ``shuffled_steps``.
    """
    if settings.quick or settings.on_gpu or settings.threads > 1:
        return
    for model in MODELS:
        parameters = {"preset": PRESET, "seconds": SECONDS}
        yield measured(settings, "bench_shuffled", DATASET, model, parameters, partial(_measure, model))


def _measure(model):
    found, metrics = {}, []
    for name, frames in splits().items():
        found[name], steps = _error(model, frames)
        metrics += [Metric(name, found[name], "meV/Å"), Metric(f"{name}_steps", steps, "1")]
    return [*metrics, Metric("ratio", found["blocks"] / found["shuffled"], "1")], {}


def splits(seed: int = 0) -> dict[str, dict[str, list[Atoms]]]:
    """Way to split -> split -> frames, a list of Atoms; the same numbers of frames in both ways."""
    card = cards.dataset(DATASET)
    sources = card.parts("test")
    alone: dict = {name: name for name in sources}  # the card turns names into splits
    whole = replace(card, splits=alone, temperatures={}, timesteps={})
    random = np.random.default_rng(seed)
    divided: dict[str, dict[str, list[Atoms]]]
    divided = {name: {split: [] for split in SPLITS} for name in ("blocks", "shuffled")}
    for source in sources:
        frames = data.load(whole, source)
        orders = {"blocks": np.arange(len(frames)), "shuffled": random.permutation(len(frames))}
        for name, order in orders.items():
            for split, chosen in SPLITS.items():
                divided[name][split] += [frames[i] for i in order[chosen]]
    return divided


def _error(model, frames):
    """Mean absolute error of the forces on the test frames, meV/Å, and the steps of the training."""
    from egraff_utils import train

    config = train.TrainConfig(
        model, DATASET, preset=PRESET, campaign="bench_shuffled", max_seconds=SECONDS, compile=True
    )
    learner = train.new_learner(config, models.card(model).training(PRESET), frames["train"])
    checkpoint = train._checkpoint_path(config)
    checkpoint.unlink(missing_ok=True)
    status, message = train.learn(learner, config, config.parameters(), frames["train"], frames["val"])
    checkpoint.unlink(missing_ok=True)
    if status != "complete":
        raise RuntimeError(message)
    learner.force_field.load_state_dict(learner.best)
    metrics, _ = accuracy.compare(frames["test"], *accuracy.predict(learner.force_field, frames["test"]))
    return next(m.value for m in metrics if m.name == "force_mae"), learner.steps
