"""How do time and memory of an MD step grow with the number of atoms?

The systems are supercells of copper, from 32 atoms, and of LiPS, from 83 atoms, with trained weights. One
step is that of a rollout (see `egraff_utils.running.cost.grow`). Each model and system runs in a separate
process.
"""

import time
from collections.abc import Iterator

from benchmarks import Settings, measured
from egraff_utils.records import Record

TITLE = "Scaling: time and memory of an MD step against the number of atoms"
MODELS = ("mace", "nequip", "allegro", "botnet", "torchmd_net", "equiformer")
COPIES = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))
SYSTEMS = {"copper_emt": ("demo", COPIES), "lips": ("cpu", COPIES[:6])}
"""Dataset -> campaign whose weights are used, and copies of the frame, up to 2048 and 2656 atoms."""
RUNS = 3  # runs, the fastest of which counts for each size


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_scaling``, one per system and model.

    Metrics and curves are those of :func:`egraff_utils.running.cost.grow`.
    """
    began = time.monotonic()
    systems = {"copper_emt": ("demo", (COPIES[0], *COPIES[3:5]))} if settings.quick else SYSTEMS
    for dataset, (campaign, cells) in systems.items():
        for model in MODELS[:1] if settings.quick else MODELS:
            if not settings.quick and time.monotonic() - began > settings.share("scaling"):
                print(f"no time left for {model} on {dataset}")
                continue
            yield _cell(settings, dataset, campaign, model, cells)


def _cell(settings, dataset, campaign, model, cells):
    from egraff_utils import weights
    from egraff_utils.running import cost

    runs = 1 if settings.quick else RUNS
    config = cost.CostConfig(
        model,
        campaign,
        dataset,
        cells=cells,
        steps=3,
        max_seconds=60,
        device=settings.device,
        threads=settings.threads,
    )

    def measure():
        metrics, curves, message = cost.grow(config, runs=runs)
        if not metrics:
            raise RuntimeError(message)
        return metrics, curves, message

    parameters = {**config.parameters(), "preset": "small", "weights": campaign, "runs": runs}
    hashes = {"weights": weights.digest(config)}
    return measured(settings, "bench_scaling", dataset, model, parameters, measure, **hashes)
