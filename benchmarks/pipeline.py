"""What does the pipeline add to the functions it calls: Snakemake, papermill, kernels, pages, imports?

Ours is not faster than nothing here: a run of a campaign is set beside a fresh interpreter that calls the
same functions with the same parameters. All records are stored ones, so that neither side computes anything.
The demo is timed from nothing, as on a fresh clone: its data are made, and every notebook computes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measured
from benchmarks.compare import RANGE
from egraff_utils import campaign as campaigns
from egraff_utils import paths
from egraff_utils.config import Key
from egraff_utils.records import Metric

TITLE = "Pipeline: what a run of a campaign, the import, the book and the demo cost"
CAMPAIGN, SYSTEM, MODEL = "demo", "ethanol_xtb", "mace"
KINDS = ("dataset", "training", "rollout")
"""Runs that follow from each other; a quick benchmark makes the first alone."""
DEMO = ("-m", "egraff_utils.batch", "demo")
"""What ``make demo`` runs after the install."""
PLACES = ("results", "runs", "data", "generated")
"""Folders of `paths` that a command may be given in place of the repository's."""
LIGHT = (
    "batch campaign cards data records audit floors statistics structure metrics analysis tables plots report"
)
"""Modules that are to be had without torch."""


def run(settings):
    """Records of kind ``bench_pipeline``, model ``-``: of dataset ``ethanol_xtb``, ``-`` and ``demo``.

    ``ethanol_xtb``, of every run: ``overhead_per_run``, ``run_time``, ``call_time`` (s). ``-``:
    ``import_time`` (s) of the package, ``import_batch_time`` (s) of what starts a run, ``imports_torch`` (1
    if any module of `LIGHT` does) and, in a full benchmark, ``book_time`` (s), whatever the book warns of.
    ``demo``, in a full benchmark: ``demo_time`` (s) of ``make demo`` after the install, with nothing stored,
    and ``notebooks``, the number of those that it ran.
    """
    kinds, rounds = (KINDS[:1], 1) if settings.quick else (KINDS, 2)
    book = {"book": not settings.quick}
    yield measured(settings, "bench_pipeline", "-", "-", book, lambda: _fixed(settings))
    parameters = {"campaign": CAMPAIGN, "model": MODEL, "kinds": list(kinds), "rounds": rounds}
    yield measured(settings, "bench_pipeline", SYSTEM, "-", parameters, lambda: _runs(kinds, rounds))
    if not settings.quick:
        demo = {"campaign": CAMPAIGN, "jobs": campaigns.load(CAMPAIGN).jobs}
        yield measured(settings, "bench_pipeline", "demo", "-", demo, _demo)


# -- imports and the book -------------------------------------------------------------------------------


def _fixed(settings):
    metrics = [
        _metric("import_time", [_import_time("egraff_utils") for _ in range(5)]),
        _metric(
            "import_batch_time",
            [_import_time("egraff_utils.batch") for _ in range(1 if settings.quick else 3)],
        ),
        Metric("imports_torch", float(imports_torch()), "1"),
    ]
    if not settings.quick:
        metrics.append(_metric("book_time", [_book_time()]))
    return metrics, {}


def _import_time(module):
    """Time of an import in a fresh interpreter, s."""
    code = f"import time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"
    return float(_python("-c", code))


def imports_torch():
    """Whether one of the modules that need no torch imports it."""
    names = " ".join(f"egraff_utils.{name}," for name in LIGHT.split())
    return _python("-c", f"import sys, {names[:-1]}; print('torch' in sys.modules)").strip() == "True"


def _book_time():
    """Time of ``make book`` into a temporary folder, s."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--path-output", folder, "-W", "-n", "--keep-going", "--all"]
        return _timed([jupyter_book, "build", paths.ROOT, *options], check=False)


# -- runs of a campaign ---------------------------------------------------------------------------------


def _runs(kinds, rounds):
    times = {"run_time": [], "call_time": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            environment = _workplace(Path(folder))
            times["run_time"].append(_campaign_time(kinds[-1], environment) / len(kinds))
            times["call_time"].append(sum(_call_time(kind, environment) for kind in kinds) / len(kinds))
    run, call = (np.array(values) for values in times.values())
    metrics = [_metric("overhead_per_run", run - call), _metric("run_time", run), _metric("call_time", call)]
    return metrics, times


def _workplace(folder):
    """Environment in which the campaign's records are a copy and its notebooks are still to be run."""
    for kind in KINDS[1:]:
        stored = Key(kind, CAMPAIGN, SYSTEM, MODEL).path
        if not stored.is_file():
            raise FileNotFoundError(f"no record {stored.name}; make campaign CAMPAIGN={CAMPAIGN} gives it")
    shutil.copytree(paths.results() / CAMPAIGN, folder / "results" / CAMPAIGN)
    return _places(folder, PLACES[:2])


def _places(folder, names=PLACES):
    """Environment in which these folders of `paths` lie in one of their own."""
    return {f"EGRAFF_{name.upper()}": str(folder / name) for name in names}


def _campaign_time(kind, environment):
    """Time of a campaign up to one of its notebooks, one job at a time, s."""
    stem = SYSTEM if kind == "dataset" else f"{SYSTEM}-{MODEL}-s0"
    folder = "datasets" if kind == "dataset" else kind
    target = Path(environment["EGRAFF_RUNS"]) / CAMPAIGN / folder / f"{stem}.ipynb"
    words = [sys.executable, "-m", "egraff_utils.batch", "campaign", CAMPAIGN, "--jobs", "1", "--", target]
    return _timed(words, environment)


def _call_time(kind, environment):
    """Time of a fresh interpreter that calls the functions of a notebook, s."""
    code = f"from benchmarks import pipeline; pipeline.call({kind!r})"
    return _timed([sys.executable, "-c", code], environment)


def call(kind):
    """Call what a notebook of a kind calls, with the parameters that the campaign gives it."""
    settings = campaigns.load(CAMPAIGN)
    if kind == "dataset":
        from egraff_utils import audit, floors

        audit.audit(SYSTEM, campaign=CAMPAIGN)
        return floors.measure(SYSTEM, campaign=CAMPAIGN)
    from egraff_utils.train import TrainConfig, fit

    training = fit(TrainConfig(MODEL, **settings.training_parameters(SYSTEM, MODEL, 0)))
    if kind == "training":
        return training
    from egraff_utils import floors
    from egraff_utils.rollout import RolloutConfig, roll_out

    given = settings.rollout_parameters(SYSTEM, MODEL, 0, "corrected")
    known = {key: value for key, value in given.items() if key in RolloutConfig.__dataclass_fields__}
    config = RolloutConfig(dataset=SYSTEM, **known)
    floors.of_rollout(config)
    return roll_out(config)


# -- the demo -------------------------------------------------------------------------------------------


def _demo():
    """Time of the demo where nothing was run or made before, s, and the number of its notebooks."""
    with tempfile.TemporaryDirectory() as folder:
        taken = _timed([sys.executable, *DEMO], _places(Path(folder)))
        runs = Path(folder) / "runs" / CAMPAIGN
        ran = [path for path in runs.rglob("*.ipynb") if path.relative_to(runs).parts[0] != "site"]
    return [_metric("demo_time", [taken]), Metric("notebooks", len(ran), "1")], {}


# -- clocks ---------------------------------------------------------------------------------------------


def _timed(words, environment=None, *, check=True):
    """Wall time of a command, s; one that fails raises why."""
    begun = time.perf_counter()
    done = _command(words, environment)
    taken = time.perf_counter() - begun
    if check and done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {_reason(done)}")
    return taken


def _reason(done):
    """What the first notebook that failed said, else the end of what the command said."""
    errors = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return next(errors, (done.stderr or done.stdout)[-300:])


def _python(*words):
    done = _command([sys.executable, *words], None)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    return done.stdout


def _command(words, environment):
    variables = os.environ | (environment or {})
    return subprocess.run(words, cwd=paths.ROOT, env=variables, capture_output=True, text=True, check=False)


def _metric(name, values):
    """Median of times with the 10th and 90th percentile, s."""
    low, high = np.percentile(values, RANGE) if len(values) > 1 else (None, None)
    return Metric(name, np.median(values), "s", low, high, len(values))
