"""How fast is fast enough? Goals for ratios to upstream packages and for fractions of the machine."""

from __future__ import annotations

import math
from typing import NamedTuple

TWO = "cpu, 2 threads"


class Goal(NamedTuple):
    """A goal, which is a pair of bounds on one metric in all cells of a kind."""

    title: str
    kind: str
    metric: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    dataset: str = ""
    """Name of the only dataset, if the goal does not apply to all."""
    device: str = "cpu"

    @property
    def asked(self):
        """The bounds as text.

        >>> Goal("", "", "", low=3).asked, Goal("", "", "", high=8, unit="s").asked
        ('at least 3', 'at most 8 s')
        """
        if math.isinf(self.high):
            text = f"at least {self.low:g}"
        else:
            text = f"at most {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"
        return f"{text} {self.unit}".strip()


GOALS = (
    Goal("MD of ethanol, 5 replicas", "bench_md", "ratio_5", 3, unit="times", dataset="ethanol"),
    Goal("MD of LiPS, 5 replicas", "bench_md", "ratio_5", 1.5, unit="times", dataset="lips"),
    Goal("MD, 1 replica", "bench_md", "ratio_1", 1, unit="times"),
    Goal("MD of ethanol, two threads", "bench_md", "ratio_5", 3, unit="times", dataset="ethanol", device=TWO),
    Goal("MD of LiPS, two threads", "bench_md", "ratio_5", 1.5, unit="times", dataset="lips", device=TWO),
    Goal("MD, 1 replica, two threads", "bench_md", "ratio_1", 1, unit="times", device=TWO),
    Goal("MD on a GPU, 5 replicas", "bench_md", "ratio_5", 4, unit="times", device="cuda"),
    Goal("MD on a GPU, 20 replicas", "bench_md", "ratio_20", 10, unit="times", device="cuda"),
    *(
        Goal(f"training on {title}, {beside}", kind, "ratio", low, unit="times", dataset=dataset)
        for kind, beside in {
            "bench_training_plain": "beside operator by operator",
            "bench_training": "beside the packages' commands",
            "bench_training_compiled": "beside the same, compiled",
        }.items()
        for dataset, title, low in (("ethanol", "ethanol", 2.5), ("lips", "LiPS", 1.5))
    ),
    Goal("exponent of time against atoms", "bench_scaling", "time_exponent", 0.9, 1.1),
    Goal("the same from 250 atoms on", "bench_scaling", "time_exponent_large", 0.9, 1.1),
    Goal("largest system", "bench_scaling", "largest_size", 2000, unit="atoms"),
    Goal("RDF beside ASE's", "bench_metrics", "ratio_rdf", 15, unit="times"),
    Goal("metrics over their rollout, time", "bench_metrics", "share_of_rollout", high=0.05),
    Goal("pipeline, per run", "bench_pipeline", "overhead_per_run", high=8, unit="s", dataset="ethanol_xtb"),
    Goal("import egraff_utils", "bench_pipeline", "import_time", high=0.3, unit="s", dataset="-"),
    Goal("import egraff_utils without torch", "bench_pipeline", "imports_torch", high=0, dataset="-"),
    Goal(
        "float32, difference over the force error",
        "bench_precision",
        "force_difference_over_error_float32",
        high=0.01,
    ),
    Goal(
        "the same on a GPU",
        "bench_precision",
        "force_difference_over_error_float32",
        high=0.01,
        device="cuda",
    ),
    Goal("forces, fast beside plain, float64", "bench_precision", "plain_difference_float64", high=1e-9),
    Goal("make book", "bench_pipeline", "book_time", high=120, unit="s", dataset="-"),
    Goal("make demo", "bench_pipeline", "demo_time", high=600, unit="s", dataset="demo"),
)
