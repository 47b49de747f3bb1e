"""What does the book show? Its pages are notebooks that are executed from the records of a campaign."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from egraff_utils import campaign as campaigns
from egraff_utils import cards, paths, records
from egraff_utils.campaign import Campaign
from egraff_utils.running import batch

BOOK = paths.ROOT / "book"
BESIDE = ("_config.yml", "benchmarks/tried.csv")
"""Files outside the pages that a book needs: its settings, and what a page offers for download."""
HEADLINE = BOOK / "_static" / "headline.png"


def pages() -> dict[str, Any]:
    """Settings in ``params/book.yml``: the reference campaign and the pages that are executed notebooks."""
    return yaml.safe_load((paths.ROOT / "params" / "book.yml").read_text())


def contents() -> list[str]:
    """Files of the book without their endings, in the order of ``_toc.yml``, such as ``"book/intro"``."""
    toc = yaml.safe_load((paths.ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def reports(campaign: Campaign) -> list[str]:
    """Names of the report pages that a campaign makes, in the order of the book.

    Pages on checks, protocols or references that it does not have are left out, and those on measurements of
    the project that belong to no campaign (``needs`` in ``params/book.yml``).
    """
    held = {None, *campaign.checks, *(p for name in campaign.datasets for p in campaign.protocols(name))}
    held |= {"oracle"} if any(cards.dataset(name).oracle for name in campaign.datasets) else set()
    needs = {page: (settings or {}).get("needs") for page, settings in pages()["pages"].items()}
    return [
        page.removeprefix("report/") for page in needs if page.startswith("report/") and needs[page] in held
    ]


def report_page(name: str, page: str = "leaderboard") -> Path:
    """Executed report notebook of a campaign."""
    return paths.runs() / name / "report" / f"{page}.ipynb"


def page_parameters(page: str, settings: Mapping[str, Any], campaign: Campaign) -> dict[str, Any]:
    """Notebook parameters of a page for a campaign, equal to those of the campaign's own run.

    A training page shows one dataset, that of calculators also one of these, a rollout page one model, and
    the page of a task one of both. These are the ones in ``settings`` if the campaign has them, else the
    first of the campaign. Report pages show all datasets and models, and compare with further campaigns.
    """
    kind, stem = page.split("/")
    seed = campaign.seeds[0]
    if kind == "datasets":
        return {"campaign": campaign.name}
    if kind == "yours":  # shows the example with the defaults of the notebooks
        return {"campaign": kind}
    if kind == "training":
        dataset = _choose(settings.get("dataset"), campaign.datasets)
        model = _choose(settings.get("model"), campaign.calculators) if stem == "calculator" else stem
        return campaign.training_parameters(dataset, model, seed)
    model = _choose(settings.get("model"), campaign.models)
    if kind == "rollout":
        return campaign.rollout_parameters(stem, model, seed, "corrected")
    if kind in campaigns.TASKS:
        dataset = _choose(settings.get("dataset"), campaign.task_datasets(page))
        return batch.task_parameters(page, campaign, dataset, model, seed)
    return {"campaign": campaign.name, "beside": settings.get("beside", _beside(campaign.name))}


def _beside(name):
    """Campaigns in ``params/book.yml`` that have records and are shown next to a campaign."""
    return [other for other in pages()["beside"] if other != name and len(records.read(other))]


def _choose(wanted, available):
    return wanted if wanted in available else available[0]


def make_pages(names: Sequence[str] = (), *, jobs: int = 2) -> int:
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
    for k, (name, message) in enumerate(_made(names, jobs), start=1):
        print(f"page {k} of {len(names)}: {name}{message}", flush=True)
        failed += bool(message)
    if "report/leaderboard" in names and not failed:
        write_headline()
    return failed


def _made(names: Sequence[str], jobs: int) -> Iterator[tuple[str, str]]:
    """Yield the name of every page and its message, empty if it was made, as they are done.

    A process that is killed takes its whole pool with it. The pages that were then under way or waiting are
    made one by one, each in a pool of its own, so that the one that needs too much memory is told.
    """
    left = dict.fromkeys(names)
    asked: dict[Future[str], str] = {}
    with ProcessPoolExecutor(jobs) as pool:
        with suppress(BrokenProcessPool):
            for name in left:
                asked[pool.submit(_make_page, name)] = name
        for done in as_completed(asked):
            with suppress(BrokenProcessPool):
                message = done.result()
                del left[asked[done]]
                yield asked[done], message
    for name in left:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield name, pool.submit(_make_page, name).result()
            except BrokenProcessPool:
                yield name, ": its process was killed, by hand or for want of memory"


def write_headline() -> None:
    """Write the figure of the first page, which the leaderboard makes, as the picture of ``README.md``."""
    notebook = json.loads((BOOK / "report" / "leaderboard.ipynb").read_text())
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        glued = output.get("metadata", {}).get("scrapbook", {})
        if glued.get("name") == "headline_figure":
            picture = output["data"][f"{glued['mime_prefix']}image/png"]
            HEADLINE.write_bytes(base64.b64decode(picture))


def _make_page(name):
    book = pages()
    settings = book["pages"][name] or {}
    try:
        campaign = campaigns.load(settings.get("campaign", book["reference"]))
        batch.execute(
            batch.NOTEBOOKS / f"{name}.ipynb",
            BOOK / f"{name}.ipynb",
            parameters=page_parameters(name, settings, campaign),
            quiet=True,
        )
    except Exception as error:  # whatever it is, the pages after it are made
        return f": {type(error).__name__}: {error}"
    return ""


def campaign_pages(name: str) -> dict[str, Path]:
    """Pages of the book that a campaign can show, and their executed notebooks.

    Pages of ``yours`` show the first dataset of the campaign that is not one of the project.

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
            "training": [*campaign.models, *["calculator"] * bool(campaign.calculators)],
            "ood": campaign.ood,
            "checks": campaign.checks,
            "yours": [],
        }
        if stem not in known.get(kind, [stem]):
            continue
        values = {"dataset": stem, "model": stem, **page_parameters(page, settings or {}, campaign)}
        model = cards.model_name(values["model"])
        dataset = cards.dataset(values["dataset"]).name if kind in ("training", *campaigns.TASKS) else stem
        cell = {"dataset": dataset, "model": model, "seed": campaign.seeds[0]}
        run, own = campaigns.CELL.format(**cell), f"{stem}.ipynb"
        names = {"datasets": own, "report": own} | dict.fromkeys(campaigns.TASKS, f"{stem}/{run}")
        chosen[page] = folder / kind / names.get(kind, run)
    for dataset in [name for name in campaign.datasets if name not in cards.datasets()][:1]:
        run = campaigns.CELL.format(dataset=dataset, model=campaign.models[0], seed=campaign.seeds[0])
        chosen |= {"yours/dataset": folder / "datasets" / f"{dataset}.ipynb"}
        chosen |= {"yours/rollout": folder / "rollout" / run}
    return {page: path for page, path in chosen.items() if path.exists()}


def jupyter_book() -> Path:
    """Path of the command that builds books, which need not be installed."""
    return Path(sys.executable).with_name("jupyter-book")


def build_book(name: str | None = None) -> Path:
    """Build the committed pages, or those of a campaign from a copy, which leaves the repository unchanged.

    Returns
    -------
    Path
        First page of the HTML.

    Raises
    ------
    RuntimeError
        If the book cannot be built; the messages of Jupyter Book stand above.
    ValueError
        If the committed pages are asked for but were not installed with the package.
    """
    if not name and not paths.CLONED:
        raise ValueError(
            "the installed package has no committed pages; name a campaign, or clone the project"
        )
    site, options = (_site(name), ["--quiet"]) if name else (paths.ROOT, ["-W", "-n", "--keep-going"])
    done = subprocess.run([jupyter_book(), "build", site, "--all", *options], check=False)
    if done.returncode:
        raise RuntimeError(f"the book in {site} was not built; see the messages above")
    return site / "_build" / "html" / "index.html"


def _site(name: str) -> Path:
    """Folder with the pages of the book, in which those of a campaign have taken the place of ours."""
    site = paths.runs() / name / "site"
    shutil.rmtree(site / "book", ignore_errors=True)
    shutil.copytree(BOOK, site / "book", ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints"))
    for page, source in campaign_pages(name).items():
        target = site / "book" / f"{page}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for beside in filter(Path.is_file, (paths.ROOT / name for name in BESIDE)):
        target = site / beside.relative_to(paths.ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(beside, target)
    toc = (paths.ROOT / "_toc.yml").read_text()
    (site / "_toc.yml").write_text(_existing_pages(toc, site))
    return site


def _existing_pages(toc, folder):
    """Table of contents without the pages that do not exist."""

    def kept(entry):
        there = any((folder / f"{entry[1]}{ending}").exists() for ending in (".md", ".ipynb"))
        return entry[0] if there else ""

    return re.sub(r"^ *- file: (\S+).*\n(?: +title: .*\n)?", kept, toc, flags=re.MULTILINE)
