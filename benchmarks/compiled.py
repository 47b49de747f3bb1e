"""Does a network compiled by its package pay off within a rollout? Molecular dynamics is compared with ours.

The package of NequIP and Allegro recommends a C++ library that inductor compiles from the network and the
derivative of its energy, for one set of weights (`nequip-compile`). This takes a C++ compiler and a minute.
Everything else is as in `benchmarks.md`.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Settings, md, measured
from benchmarks.elsewhere import Elsewhere
from benchmarks.upstream import compiled_calculators
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record

TITLE = "Molecular dynamics beside NequIP and Allegro compiled by their package"
CELLS = (("ethanol", "nequip"), ("ethanol", "allegro"), ("lips", "nequip"), ("lips", "allegro"))
REPLICAS = (1, 5)
STEPS = 1000
"""Number of steps of a rollout, as in this book."""


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_compiled``, one per system and model; none in a quick run or on a GPU.

    The metrics are those of `benchmarks.md` and, in wall time, ``compile_time`` (s); ``rollout_ratio``, the
    ratio of their time to ours for a rollout of five replicas, including compilation; and, if their step of
    one replica is faster, ``payback_steps``, the number of steps after which the compilation has paid off.
    """
    if settings.quick or settings.on_gpu:
        return
    began, theirs = time.monotonic(), Elsewhere(settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for system, model in CELLS:
                if time.monotonic() - began > settings.share("compiled"):
                    print(f"no time left for {model} on {system}")
                else:
                    yield _cell(settings, theirs, folder, system, model)
        finally:
            theirs.stop()


def _cell(settings, theirs, folder, system, model):
    from egraff_utils import weights

    def measure():
        library, cell = Path(folder) / f"{system}-{model}.nequip.pt2", ("small", system, model)
        seconds = theirs.make(_compiled, library, *cell)
        metrics, curves = md.compared(settings, theirs, partial(Compiled, library), REPLICAS, *cell)
        return metrics + costs(metrics, seconds), curves

    parameters = {"preset": "small", "replicas": list(REPLICAS), "steps": STEPS, "weights": md.CAMPAIGN}
    digest = weights.digest(Key("training", md.CAMPAIGN, system, model))
    return measured(settings, "bench_compiled", system, model, parameters, measure, weights=digest)


def costs(metrics: Sequence[Metric], seconds: float) -> list[Metric]:
    """Metrics of a compilation that took ``seconds``, from those of the dynamics."""
    value: dict[str, Any] = {metric.name: metric.value for metric in metrics}
    many = REPLICAS[-1]
    ours, theirs = (many * STEPS / value[f"{side}_{many}"] for side in ("ours", "theirs"))
    ratio = (seconds + theirs) / (value[f"start_ours_{many}"] + ours)
    gain = 1 / value["ours_1"] - 1 / value["theirs_1"]
    return [
        Metric("compile_time", seconds, "s"),
        Metric("rollout_ratio", ratio, "1"),
        Metric("payback_steps", round(seconds / gain) if gain > 0 else None, "1"),
    ]


def _compiled(library, preset, system, model):
    """``None`` in place of an object to run, and the time to compile the library of a network, s."""
    scene = md.Scene.of(preset, system, model, 1)
    began = time.perf_counter()
    compiled_calculators(scene.force_field, 1, scene.starts[0], library)
    return None, time.perf_counter() - began


class Compiled(md.Theirs):
    """One replica after another, with a compiled network."""

    def __init__(self, library: Path, scene: md.Scene, device: str) -> None:
        self.library = library
        super().__init__(scene, device)

    def _calculators(self, scene, device):
        starts = scene.starts
        return compiled_calculators(scene.force_field, len(starts), starts[0], self.library)
