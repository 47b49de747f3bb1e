"""What does the pipeline add to the functions it calls, by Snakemake, papermill, kernels, pages and imports?

A run of a campaign is compared with a new interpreter that calls the same functions with the same parameters.
All records are stored already, so that neither side computes anything. The demo is timed as on a fresh clone:
its data are generated, and every notebook computes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import Settings, measured
from benchmarks.compare import RANGE
from egraff_utils import campaign as campaigns
from egraff_utils import paths
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record

TITLE = "Pipeline: what a run of a campaign, the import, the book and the demo cost"
CAMPAIGN, SYSTEM, MODEL = "demo", "ethanol_xtb", "mace"
KINDS = ("dataset", "training", "rollout")
"""Kinds of runs, each of which needs the one before; a quick benchmark runs only the first."""
DEMO = ("-m", "egraff_utils", "demo")
"""Command that ``make demo`` runs after the installation."""
PLACES = ("results", "runs", "data", "generated")
"""Folders of `paths` that a command can be given in place of those of the repository."""
LIGHT = (
    "campaign cards data records statistics structure metrics md.analysis checks.audit checks.floors "
    "report report.tables report.plots running.batch"
)
"""Modules that must not import torch."""


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_pipeline``, model ``-``, of datasets ``ethanol_xtb``, ``-`` and ``demo``.

    Metrics of ``ethanol_xtb``, for every kind of run: ``overhead_per_run``, ``run_time``, ``call_time`` (s).
    Metrics of ``-``: ``import_time`` (s) of the package, ``import_batch_time`` (s) of the module that starts
    a run, ``imports_torch`` (1 if any module in `LIGHT` does) and, in a full benchmark, ``book_time`` (s),
    even if the book has warnings. Metrics of ``demo``, in a full benchmark: ``demo_time`` (s) of ``make
    demo`` after the installation, with nothing stored, and ``notebooks``, the number of notebooks that it
    ran.
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
            [_import_time("egraff_utils.running.batch") for _ in range(1 if settings.quick else 3)],
        ),
        Metric("imports_torch", float(imports_torch()), "1"),
    ]
    if not settings.quick:
        metrics.append(_metric("book_time", [_book_time()]))
    return metrics, {}


def _import_time(module):
    """Time of an import in a new interpreter, s."""
    code = f"import time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"
    return float(_python("-c", code))


def imports_torch() -> bool:
    """Whether one of the modules in :data:`LIGHT` imports torch."""
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
    """Environment with a copy of the campaign's records, in which its notebooks have not been run."""
    for kind in KINDS[1:]:
        stored = Key(kind, CAMPAIGN, SYSTEM, MODEL).path
        if not stored.is_file():
            raise FileNotFoundError(f"no record {stored.name}; make campaign CAMPAIGN={CAMPAIGN} creates it")
    shutil.copytree(paths.results() / CAMPAIGN, folder / "results" / CAMPAIGN)
    return _places(folder, PLACES[:2])


def _places(folder, names=PLACES):
    """Environment in which these folders of `paths` are below another folder."""
    return {f"EGRAFF_{name.upper()}": str(folder / name) for name in names}


def _campaign_time(kind, environment):
    """Time of a campaign up to one of its notebooks, with one job at a time, s."""
    stem = SYSTEM if kind == "dataset" else f"{SYSTEM}-{MODEL}-s0"
    folder = "datasets" if kind == "dataset" else kind
    target = Path(environment["EGRAFF_RUNS"]) / CAMPAIGN / folder / f"{stem}.ipynb"
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", CAMPAIGN, "--jobs", "1", target]
    return _timed(words, environment)


def _call_time(kind, environment):
    """Time of a new interpreter that calls the functions of a notebook, s."""
    code = f"from benchmarks import pipeline; pipeline.call({kind!r})"
    return _timed([sys.executable, "-c", code], environment)


def call(kind: str) -> Record:
    """Call the functions that a notebook of a kind calls, with the parameters of the campaign."""
    settings = campaigns.load(CAMPAIGN)
    if kind == "dataset":
        from egraff_utils.checks import audit, floors

        audit.audit(SYSTEM, campaign=CAMPAIGN)
        return floors.measure(SYSTEM, campaign=CAMPAIGN)
    from egraff_utils.train import TrainConfig, fit

    training = fit(TrainConfig(MODEL, **settings.training_parameters(SYSTEM, MODEL, 0)))
    if kind == "training":
        return training
    from egraff_utils.checks import floors
    from egraff_utils.md.rollout import RolloutConfig, roll_out

    given = settings.rollout_parameters(SYSTEM, MODEL, 0, "corrected")
    known = {key: value for key, value in given.items() if key in RolloutConfig.__dataclass_fields__}
    config = RolloutConfig(dataset=SYSTEM, **known)
    floors.of_rollout(config)
    return roll_out(config)


# -- the demo -------------------------------------------------------------------------------------------


def _demo():
    """Time of the demo if nothing was run or generated before, s, and the number of its notebooks."""
    with tempfile.TemporaryDirectory() as folder:
        taken = _timed([sys.executable, *DEMO], _places(Path(folder)))
        runs = Path(folder) / "runs" / CAMPAIGN
        ran = [path for path in runs.rglob("*.ipynb") if path.relative_to(runs).parts[0] != "site"]
    return [_metric("demo_time", [taken]), Metric("notebooks", len(ran), "1")], {}


# -- clocks ---------------------------------------------------------------------------------------------


def _timed(words, environment=None, *, check=True):
    """Wall time of a command, s; raises ``RuntimeError`` with the reason if it fails."""
    begun = time.perf_counter()
    done = _command(words, environment)
    taken = time.perf_counter() - begun
    if check and done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {_reason(done)}")
    return taken


def _reason(done):
    """Error of the first notebook that failed, else the end of the output of the command."""
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
    """Metric with the median of times and the 10th and 90th percentiles, s."""
    low, high = np.percentile(values, RANGE) if len(values) > 1 else (None, None)
    return Metric(name, np.median(values), "s", low, high, len(values))
