"""How does a notebook become a result? Papermill executes it, Snakemake runs campaigns, the book shows pages.

The command line is ``python -m egraff_utils {run,campaign,pages,demo} ...``.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
import yaml
from traitlets.config import Config

from egraff_utils import campaign as campaigns
from egraff_utils import cards, paths, records
from egraff_utils.config import Key

NOTEBOOKS = paths.ROOT / "notebooks"
BOOK = paths.ROOT / "book"
SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


# one notebook


def parameters_of(notebook):
    """Parameters of a notebook and their defaults, as written in its parameters cell.

    Returns
    -------
    dict
        Name -> default; a default that is not a literal is given as ``None``.
    """
    found = papermill.inspect_notebook(str(notebook))
    return {name: yaml.safe_load(item["default"].replace("None", "null")) for name, item in found.items()}


def check_parameters(notebook, parameters):
    """Reject parameters that the notebook does not have.

    Raises
    ------
    ValueError
        If a parameter is unknown; the message names it, the closest known one, and all known ones.
    """
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise cards.unknown(f"parameter of {Path(notebook).name}", name, known)


def execute(notebook, output, *, parameters=None, quiet=False):
    """Execute a notebook into ``output``, which is written only if all cells succeed.

    The notebook runs under a temporary name and is moved when it has finished. If a cell fails, the partial
    notebook is kept as ``<output>.failed.ipynb`` and a record of kind ``failure`` is written, so that the
    leaderboard lists the run.

    Raises
    ------
    ValueError
        If a parameter is unknown; nothing is executed then.
    RuntimeError
        If a cell failed or the kernel died.
    """
    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    parameters = dict(parameters or {})
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    with kernel_sockets() as config:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters,
                cwd=str(paths.ROOT),
                progress_bar=not quiet,
                config=config,
            )
        except Exception as error:
            failed = output.with_suffix(".failed.ipynb")
            see = ""
            if partial.exists():  # papermill may fail before it writes the notebook
                os.replace(partial, failed)
                see = f"; see {failed}"
            _record_failure(notebook, parameters, error)
            raise RuntimeError(f"{notebook.name} failed ({_first_line(error)}){see}") from error
    nbformat.write(clean(nbformat.read(partial, as_version=4)), partial)
    os.replace(partial, output)
    output.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    _forget_failure(notebook, parameters)
    return output


@contextmanager
def kernel_sockets():
    """Context with settings for one kernel that uses Unix sockets, in a folder that exists only within it.

    Jupyter's default is TCP: free ports are chosen, and the kernel binds them a second later. When notebooks
    run in parallel, another process may take a port in between, and the kernel dies. The folder is known to
    no other process.

    Yields
    ------
    traitlets.config.Config
        Settings for a ``KernelManager``, or for an object that creates one.
    """
    # The paths of Unix sockets are limited to about 100 characters, hence /tmp.
    with tempfile.TemporaryDirectory(prefix="kernel-", dir="/tmp") as folder:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/socket"})


def clean(notebook):
    """Remove what differs between runs: times, addresses, progress bars and standard error.

    The ``nbformat`` notebook is changed in place and returned.
    """
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
            for output in cell.outputs:
                for kind, text in output.get("data", {}).items():
                    if kind.endswith("text/plain"):
                        output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", text)
    return notebook


def _is_noise(output):
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or output.get("name") == "stderr"


def run_key(notebook, parameters):
    """Campaign, dataset, model and seed of the run of a notebook, under which its records are stored."""
    values = {**parameters_of(notebook), **parameters}
    stem, folder = Path(notebook).stem, Path(notebook).parent.name
    identity = {
        "datasets": {"dataset": stem, "model": "reference"},
        "training": {"dataset": values.get("dataset"), "model": stem},
        "rollout": {"dataset": stem, "model": values.get("model")},
        **dict.fromkeys(campaigns.TASKS, {"dataset": values.get("dataset"), "model": values.get("model")}),
    }.get(folder, {"dataset": "all", "model": stem})
    return {"campaign": values.get("campaign", "demo"), **identity, "seed": values.get("seed", 0)}


def _record_failure(notebook, parameters, error):
    if notebook.parent.name == "report":  # a report shows the cells of a campaign but is not one of them
        return
    message = _first_line(error).replace(f"{paths.ROOT}/", "")
    origin = f"{notebook.parent.name}/{notebook.name}"
    records.write(
        records.Record(
            kind="failure",
            **run_key(notebook, parameters),
            parameters={"notebook": origin, **parameters},
            status="failed",
            message=message,
        )
    )


def _forget_failure(notebook, parameters):
    path = Key("failure", **run_key(notebook, parameters)).path
    if not path.exists():
        return
    origin = json.loads(path.read_text())["parameters"].get("notebook")
    if origin == f"{notebook.parent.name}/{notebook.name}":
        path.unlink()


def _first_line(error):
    name = getattr(error, "ename", type(error).__name__)
    text = str(getattr(error, "evalue", error)).strip()
    return f"{name}: {text.splitlines()[0] if text else ''}"


# a campaign


def words(parameters):
    """Parameters of a notebook as arguments for the shell.

    Examples
    --------
    >>> words({"seed": 0, "dataset": "lips", "max_seconds": None})
    '-p seed 0 -p dataset lips -p max_seconds null'
    """
    return " ".join(f"-p {name} {shlex.quote(_plain(value))}" for name, value in parameters.items())


def _plain(value):
    return value if isinstance(value, str) else json.dumps(value)


def run_campaign(name, *, jobs=None, only=(), extra=()):
    """Run a campaign with Snakemake: datasets, training, rollouts, tasks, reports.

    A campaign with a budget is planned first, unless it already has a plan
    (:func:`egraff_utils.running.plan.make`).
    A run that fails does not stop the others; the reports are then made from the available records.

    Parameters
    ----------
    name
        Name of a file in ``params/``, without its ending, or path of such a file.
    jobs
        Number of notebooks at a time; by default the campaign's ``jobs``.
    only
        Datasets whose cells are run, without reports, such as the share of one of several machines.
    extra
        Further arguments for Snakemake, such as ``["--profile", "profiles/slurm"]``.

    Returns
    -------
    int
        Snakemake's exit status: 0 if every run finished.
    """
    name = Path(name).resolve() if Path(name).suffix else name
    campaign = campaigns.load(name)
    for folder in campaigns.TASKS:
        tasks = [path.stem for path in (NOTEBOOKS / folder).glob("*.ipynb")]
        for task in getattr(campaign, folder):
            if task not in tasks:
                raise cards.unknown(f"task in notebooks/{folder}", task, tasks)
    dry = {"-n", "--dry-run", "--dryrun"} & set(extra)
    if campaign.budget and not dry and not campaigns.plan_path(campaign.name).is_file():
        _plan(name, jobs)
        campaign = campaigns.load(name)
    folder = paths.runs() / campaign.name
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "snakemake", *map(str, cell_notebooks(campaign, only))]
    words += ["--snakefile", str(paths.ROOT / "Snakefile")]
    words += ["--directory", str(folder), "--config", f"campaign={name}"]
    if not any(word.startswith("--profile") for word in extra):
        words += ["--cores", str((jobs or campaign.jobs) * campaign.threads), *_LOCAL]
    status = subprocess.run([*words, *extra], cwd=paths.ROOT).returncode
    if status and not dry and not only:
        for page in reports():
            made = report_page(campaign.name, page)
            execute(NOTEBOOKS / "report" / f"{page}.ipynb", made, parameters={"campaign": campaign.name})
    return status


def cell_notebooks(campaign, datasets):
    """Executed notebooks of all rollouts and tasks of a campaign on these datasets, a list of paths.

    Raises
    ------
    ValueError
        If the campaign does not have a dataset.
    """
    for dataset in datasets:
        if dataset not in campaign.datasets:
            raise cards.unknown(f"dataset of campaign {campaign.name}", dataset, campaign.datasets)
    folders = campaigns.FOLDERS
    cells = [(folders[p], *cell) for cell in campaign.cells() for p in campaign.protocols(cell[0])]
    cells += [(f"{folder}/{task}", *cell) for folder, task, *cell in campaign.task_cells()]
    runs = paths.runs() / campaign.name
    return [
        runs / folder / campaigns.CELL.format(dataset=dataset, model=model, seed=seed)
        for folder, dataset, model, seed in cells
        if dataset in datasets
    ]


def _plan(name, jobs):
    from egraff_utils.running import plan  # no other command needs it

    print(plan.make(name, jobs=jobs), flush=True)


# --nolock: outputs are moved into place, so a killed run leaves no partial file and needs no lock
_LOCAL = ["--keep-going", "--rerun-incomplete", "--nolock", "--quiet", "rules", "reason", "host"]
_LOCAL += ["--rerun-triggers", "mtime", "params"]


def reports():
    """Names of the report pages of the book."""
    return [page.removeprefix("report/") for page in pages()["pages"] if page.startswith("report/")]


def report_page(name, page="leaderboard"):
    """Executed report notebook of a campaign."""
    return paths.runs() / name / "report" / f"{page}.ipynb"


def leaderboard_text(name):
    """Leaderboard of a campaign as plain text, see :func:`egraff_utils.report.tables.text_leaderboard`."""
    from egraff_utils.report import tables  # matplotlib, which no other command needs

    return tables.text_leaderboard(records.read(name))


# the book


def pages():
    """Settings in ``params/book.yml``: the reference campaign and the pages that are executed notebooks."""
    return yaml.safe_load((paths.ROOT / "params" / "book.yml").read_text())


def page_parameters(page, settings, campaign):
    """Notebook parameters of a page for a campaign, equal to those of the campaign's own run.

    A training page shows one dataset, a rollout page one model, and the page of a task one of both. These are
    the ones in ``settings`` if the campaign has them, else the first of the campaign. Report pages show all
    datasets and models, and compare with further campaigns.
    """
    kind, stem = page.split("/")
    seed = campaign.seeds[0]
    if kind == "datasets":
        return {"campaign": campaign.name}
    if kind == "training":
        dataset = _choose(settings.get("dataset"), campaign.datasets)
        return campaign.training_parameters(dataset, stem, seed)
    model = _choose(settings.get("model"), campaign.models)
    if kind == "rollout":
        version = {name: settings[name] for name in ("version",) if name in settings}
        return campaign.rollout_parameters(stem, model, seed, "corrected") | version
    if kind in campaigns.TASKS:
        dataset = _choose(settings.get("dataset"), getattr(campaign, kind)[stem])
        return task_parameters(page, campaign, dataset, model, seed)
    return {"campaign": campaign.name, "beside": _beside(campaign.name)}


def task_parameters(notebook, campaign, dataset, model, seed):
    """Parameters of a task's notebook, such as ``"ood/benzene"``, without those that it does not have."""
    known = parameters_of(NOTEBOOKS / f"{notebook}.ipynb")
    values = campaign.task_parameters(dataset, model, seed)
    return {name: value for name, value in values.items() if name in known}


def _beside(name):
    """Campaigns in ``params/book.yml`` that have records and are shown next to a campaign."""
    return [other for other in pages()["beside"] if other != name and len(records.read(other))]


def _choose(wanted, available):
    return wanted if wanted in available else available[0]


def make_pages(names=(), *, jobs=2):
    """Execute pages of the book from stored records, into ``book/``.

    Parameters
    ----------
    names
        Pages such as ``"rollout/lips"``; by default all pages in ``params/book.yml``.
    jobs
        Number of pages at a time.

    Returns
    -------
    int
        Number of pages that failed.
    """
    book = pages()
    unknown = set(names) - set(book["pages"])
    if unknown:
        raise ValueError(f"no page {sorted(unknown)} in params/book.yml; it has: {', '.join(book['pages'])}")
    names = list(names) or list(book["pages"])
    failed = 0
    with ProcessPoolExecutor(jobs) as pool:
        for k, (name, message) in enumerate(zip(names, pool.map(_make_page, names), strict=True), start=1):
            print(f"page {k} of {len(names)}: {name}{message}", flush=True)
            failed += bool(message)
    return failed


def _make_page(name):
    book = pages()
    settings = book["pages"][name] or {}
    campaign = campaigns.load(settings.get("campaign", book["reference"]))
    try:
        execute(
            NOTEBOOKS / f"{name}.ipynb",
            BOOK / f"{name}.ipynb",
            parameters=page_parameters(name, settings, campaign),
            quiet=True,
        )
    except (RuntimeError, ValueError) as error:
        return f": {error}"
    return ""


def campaign_pages(name):
    """Pages of the book that a campaign can show, and their executed notebooks.

    Returns
    -------
    dict
        Page such as ``"training/mace"`` -> executed notebook in ``runs/<campaign>/``.
    """
    campaign, folder = campaigns.load(name), paths.runs() / name
    chosen = {}
    for page, settings in pages()["pages"].items():
        kind, stem = page.split("/")
        known = {
            "datasets": campaign.datasets,
            "rollout": campaign.datasets,
            "training": campaign.models,
            "ood": campaign.ood,
            "checks": campaign.checks,
        }
        if stem not in known.get(kind, [stem]):
            continue
        values = {"dataset": stem, "model": stem, **page_parameters(page, settings or {}, campaign)}
        cell = {"dataset": values["dataset"], "model": values["model"], "seed": campaign.seeds[0]}
        run, own = campaigns.CELL.format(**cell), f"{stem}.ipynb"
        names = {"datasets": own, "report": own} | dict.fromkeys(campaigns.TASKS, f"{stem}/{run}")
        chosen[page] = folder / kind / names.get(kind, run)
    return {page: path for page, path in chosen.items() if path.exists()}


def build_book(name):
    """Build the book with a campaign's own pages from a copy, which leaves the repository unchanged.

    Returns
    -------
    Path
        First page of the HTML.
    """
    site = paths.runs() / name / "site"
    shutil.rmtree(site / "book", ignore_errors=True)
    shutil.copytree(BOOK, site / "book", ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints"))
    for page, source in campaign_pages(name).items():
        target = site / "book" / f"{page}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copy(paths.ROOT / "_config.yml", site)
    toc = (paths.ROOT / "_toc.yml").read_text()
    (site / "_toc.yml").write_text(_existing_pages(toc, site))
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([jupyter_book, "build", site, "--all", "--quiet"], check=True)
    return site / "_build" / "html" / "index.html"


def _existing_pages(toc, folder):
    """Table of contents without the pages that do not exist."""

    def missing(line):
        page = re.match(r"\s*- file: (\S+)", line)
        return page and not any((folder / f"{page[1]}{ending}").exists() for ending in (".md", ".ipynb"))

    return "\n".join(line for line in toc.splitlines() if not missing(line)) + "\n"


def run_demo(name="demo", *, jobs=None):
    """Run a campaign anew in its own folder, build the book from it, and print the leaderboard.

    Records go to ``runs/<name>/results``, so that committed records are neither used nor changed. A second
    call continues where the first one was stopped.

    Returns
    -------
    int
        Exit status: 0 if every run finished.
    """
    start = time.monotonic()
    os.environ["EGRAFF_RESULTS"] = str(paths.runs() / name / "results")
    _say(f"step 1 of 3: campaign {name}: data, training, rollouts, reports")
    status = run_campaign(name, jobs=jobs)
    _say("step 2 of 3: the book")
    page = build_book(name)
    _say(f"step 3 of 3: results after {(time.monotonic() - start) / 60:.1f} min")
    print(leaderboard_text(name))
    print(f"\nThe book with these results: {page}")
    return status


def _say(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


# the command line


def parser():
    """Parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m egraff_utils", description=__doc__.splitlines()[0])
    commands = root.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute one notebook")
    run.add_argument("notebook", type=Path)
    run.add_argument("output", type=Path)
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    run.add_argument("--quiet", action="store_true", help="show no progress bar")

    campaign = commands.add_parser("campaign", help="run a campaign; further arguments go to Snakemake")
    campaign.add_argument("name", help="name of a file in params/")
    campaign.add_argument("--jobs", type=int, help="number of notebooks at a time")
    campaign.add_argument("--only", type=lambda text: text.split(","), default=[], metavar="DATASET,...")

    page = commands.add_parser("pages", help="execute the pages of the book from stored records")
    page.add_argument("names", nargs="*", metavar="page")
    page.add_argument("--jobs", type=int, default=2)

    demo = commands.add_parser("demo", help="run the demo campaign and build the book from it")
    demo.add_argument("name", nargs="?", default="demo")
    demo.add_argument("--jobs", type=int)
    return root


def main(arguments=None):
    """Run the command line; returns the exit status (2 for a wrong parameter, 1 for a failed run)."""
    options, extra = parser().parse_known_args(arguments)
    if extra and options.command != "campaign":
        parser().error(f"unknown arguments: {' '.join(extra)}")
    try:
        if options.command == "run":
            return _run(options)
        if options.command == "campaign":
            return int(run_campaign(options.name, jobs=options.jobs, only=options.only, extra=extra) != 0)
        if options.command == "pages":
            return int(make_pages(options.names, jobs=options.jobs) > 0)
        return int(run_demo(options.name, jobs=options.jobs) != 0)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130


def _run(options):
    for name in SINGLE_THREAD:
        os.environ.setdefault(name, "1")
    start = time.monotonic()
    parameters = {name: yaml.safe_load(value) for name, value in options.parameters}
    execute(options.notebook, options.output, parameters=parameters, quiet=options.quiet)
    print(f"{options.output.parent.name}/{options.output.stem}: {time.monotonic() - start:.0f} s", flush=True)
    return 0
