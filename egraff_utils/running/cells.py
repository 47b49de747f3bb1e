"""What of a campaign is done, and how is the rest run? Snakemake makes its cells, executed notebooks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from egraff_utils import calculated, cards, paths, records
from egraff_utils import campaign as campaigns
from egraff_utils.campaign import Campaign
from egraff_utils.running import batch, pages

IDLE = {"-n", "--dry-run", "--dryrun", "--unlock"}
"""Arguments with which Snakemake runs nothing."""

# --nolock: outputs are moved into place, so a killed run leaves no partial file and needs no lock
_LOCAL = ["--keep-going", "--rerun-incomplete", "--nolock", "--quiet", "rules", "reason", "host"]
_LOCAL += ["--rerun-triggers", "mtime", "params"]


class Cell(NamedTuple):
    """One notebook of a campaign for one dataset, model and seed: a training, a rollout or a task."""

    output: Path
    notebook: Path
    dataset: str
    model: str
    seed: int
    protocol: str = ""
    """Protocol of a rollout."""

    def parameters(self, campaign: Campaign) -> dict[str, Any]:
        """Parameters of the notebook."""
        identity = (self.dataset, self.model, self.seed)
        if self.output.parent.name == "training":
            return campaign.training_parameters(*identity)
        if self.protocol:
            return campaign.rollout_parameters(*identity, self.protocol)
        return batch.task_parameters("/".join(self.output.parts[-3:-1]), campaign, *identity)


def cells(campaign: Campaign, datasets: Sequence[str] = ()) -> list[Cell]:
    """All cells of a campaign, or those of some of its datasets, a list of :class:`Cell`.

    Raises
    ------
    ValueError
        If the campaign does not have a dataset.
    """
    for dataset in datasets:
        if dataset not in campaign.datasets:
            raise cards.unknown(f"dataset of campaign {campaign.name}", dataset, campaign.datasets)
    found = []
    for dataset, model, seed in campaign.cells():
        same, identity = _output(campaign, dataset, model, seed), (dataset, model, seed)
        found.append(Cell(same("training"), training_notebook(model), *identity))
        for protocol in campaign.protocols(dataset):
            notebook = batch.notebook_of("rollout", dataset)
            found.append(Cell(same(campaigns.FOLDERS[protocol]), notebook, *identity, protocol))
    for folder, task, dataset, model, seed in campaign.task_cells():
        output = _output(campaign, dataset, model, seed)(f"{folder}/{task}")
        notebook = batch.task_notebook(f"{folder}/{task}", campaign)
        found.append(Cell(output, notebook, dataset, model, seed))
    return [cell for cell in found if not datasets or cell.dataset in datasets]


def training_notebook(model: str) -> Path:
    """Notebook that trains a model or takes errors of a calculator; networks from elsewhere share one."""
    if cards.model_builder(model):
        return batch.NOTEBOOKS / "yours" / "training.ipynb"
    stem = "calculator" if cards.is_calculator(model) else model
    return batch.NOTEBOOKS / "training" / f"{stem}.ipynb"


def _output(campaign: Campaign, dataset: str, model: str, seed: int) -> Callable[[str], Path]:
    name = campaigns.CELL.format(dataset=dataset, model=model, seed=seed)
    return lambda folder: paths.runs() / campaign.name / folder / name


def run_campaign(
    name: str | Path, *, jobs: int | None = None, only: Sequence[str] = (), extra: Sequence[str] = ()
) -> int:
    """Run a campaign with Snakemake: datasets, training, rollouts, tasks, reports.

    A campaign with a budget is planned first, unless it already has a plan
    (:func:`egraff_utils.running.plan.make`). A run that fails does not stop the others; the reports are then
    made from the available records, and the next call runs it again. Cells whose executed notebook or whose
    records are gone are run again too.

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
        0 if every cell and every report is there.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted, after Snakemake has ended.
    """
    campaign, idle = campaigns.load(name), bool(IDLE & set(extra))
    _check_tasks(campaign)
    _check_calculators(campaign)
    wanted = cells(campaign, only)
    if not idle:
        _check_rollouts(campaign, wanted)
    if campaign.budget and not idle and not campaigns.plan_path(campaign.name).is_file():
        _plan(name, jobs)
        campaign = campaigns.load(name)
    folder = paths.runs() / campaign.name
    folder.mkdir(parents=True, exist_ok=True)
    if not idle:
        campaigns.keep(name)
        tidy(campaign, wanted)
    status = _snakemake(campaign, campaigns.path_of(name), jobs, only, extra)
    if idle or _in_part(extra):
        return status
    _record_killed(campaign, wanted)
    missing = [cell for cell in wanted if not cell.output.is_file()]
    failed = _reports_of_what_there_is(campaign) if missing and not only else 0
    if missing:
        print(f"{len(missing)} of {len(wanted)} cells are missing; the same command runs them again")
    return int(bool(status or missing or failed))


def _in_part(extra):
    """Whether arguments for Snakemake name what is to be made, so that other cells may be missing."""
    return any(word in ("-U", "--until", "-O", "--omit-from") or word.endswith(".ipynb") for word in extra)


def _check_tasks(campaign):
    for folder in campaigns.TASKS:
        tasks = [path.stem for path in (batch.NOTEBOOKS / folder).glob("*.ipynb")]
        for task in getattr(campaign, folder):
            if task not in tasks and not campaign.own_task(f"{folder}/{task}"):
                raise cards.unknown(f"task in notebooks/{folder}", task, tasks)


def _check_calculators(campaign):
    """Make every calculator once, so that a card that cannot be used fails before the first run."""
    for dataset, model, _ in campaign.cells():
        if cards.is_calculator(model):
            calculated.of(model, dataset).make()


def _check_rollouts(campaign, wanted):
    """Reject rollouts that the frames at hand do not allow, before anything is trained for them."""
    from egraff_utils.checks.audit import sources_at_hand
    from egraff_utils.md.rollout import RolloutConfig, check  # torch, which no other command needs

    asked = {}
    for cell in wanted:
        task = campaign.own_task("/".join(cell.output.parts[-3:-1]))
        more = {"protocol": cell.protocol} if cell.protocol else dict(task.shifted) if task else None
        if more:
            more["replicas"] = cell.parameters(campaign)["replicas"]
            asked[cell.dataset, *more.values()] = RolloutConfig(cards.REFERENCE, cell.dataset, **more)
    for config in asked.values():
        card = cards.dataset(config.target or config.dataset)
        sources = {part.source for split in card.splits.values() for part in split.parts}
        if card.generate or (not card.folder and sources - set(sources_at_hand(card))):
            continue  # a user's file that is not there is told now too
        try:
            check(config)
        except ValueError as error:
            raise ValueError(
                f"{error}. To train without rollouts, write `rollout: {{protocols: []}}` in the campaign"
            ) from error


def _plan(name, jobs):
    from egraff_utils.running import plan  # no other command needs it

    print(plan.make(name, jobs=jobs), flush=True)


def tidy(campaign: Campaign, wanted: Iterable[Cell]) -> None:
    """Remove what a killed run left, and executed notebooks that cannot be read or whose records are gone.

    Snakemake makes their cells again. It knows the notebooks but not the records, which are no outputs.
    """
    for folder in (paths.runs() / campaign.name, paths.results() / campaign.name):
        for path in paths.leftovers(folder):
            path.unlink(missing_ok=True)
    for output in (cell.output for cell in wanted if cell.output.is_file()):
        try:
            used = nbformat.read(output, as_version=4).metadata.get("records", [])
        except (ValueError, AttributeError) as error:
            paths.set_aside(output, f"it holds no notebook: {error}")
            continue
        if lost := next(filter(None, map(_lost, used)), None):
            print(f"{output.parent.name}/{output.stem} is made again: {lost}", file=sys.stderr)
            output.unlink()


def _lost(name):
    """Reason why a record, given by its path below the results, cannot be used, or ``None``."""
    try:
        records.sound(paths.results() / name)
    except FileNotFoundError:
        return f"the record {name} is gone"
    except ValueError as error:
        return str(error)
    return None


def _snakemake(campaign, file, jobs, only, extra):
    """Run Snakemake and return its status; raise KeyboardInterrupt after it if it was interrupted."""
    words = [sys.executable, "-m", "snakemake"]
    settings = {"campaign": str(file), "only": list(only)}
    words += ["--config", *(f"{name}={json.dumps(v, ensure_ascii=False)}" for name, v in settings.items())]
    if not any(word.startswith("--profile") for word in extra):
        words += ["--cores", str((jobs or campaign.jobs) * campaign.threads), *_LOCAL]
    words += ["--snakefile", str(paths.ROOT / "Snakefile")]  # takes one word, so others may follow
    words += ["--directory", str(paths.runs() / campaign.name)]
    home = paths.home()  # jobs run in the folder of the campaign, and write where this process does
    return run_to_the_end([*words, *extra], cwd=home, env=os.environ | {paths.HOME: str(home)})


def run_to_the_end(words: Sequence[str], **options: Any) -> int:
    """Status of a command, which is waited for even if Ctrl-C is pressed, so that it can clean up.

    Raises
    ------
    KeyboardInterrupt
        After the end of a command that was interrupted.
    """
    interrupted = False
    with subprocess.Popen(words, **options) as process:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                if not interrupted and not _terminal_interrupts(process):
                    process.send_signal(signal.SIGINT)
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return status


def _terminal_interrupts(process):
    """Whether the terminal sends Ctrl-C to a process itself, as to all in its foreground group."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgid(process.pid)
    except (OSError, ValueError):  # there is no terminal, or the process has ended
        return False


def _record_killed(campaign, wanted):
    """Record a failure of every cell whose process was killed in the midst of it, and remove what it left.

    What a process of another node has left looks like that of a living one. Snakemake, which has ended,
    waited for its jobs, so that the cell has failed unless another campaign runs it now; the file is left.
    """
    here, anywhere = _cells_of(_left(campaign)), _cells_of(_folder(campaign).rglob(".*.partial*"))
    for cell in wanted:
        place, running = cell.output.with_suffix(""), batch.is_running(cell.output)
        done = cell.output.is_file() and not running
        failed = batch.failure_key(cell.notebook, cell.parameters(campaign)).path.is_file()
        if (place in here and not done) or (place in anywhere and not (done or running or failed)):
            reason = RuntimeError("the process was killed, by hand, at a limit of time or for want of memory")
            batch.record_failure(cell.notebook, cell.parameters(campaign), reason)
    for path in _left(campaign):
        path.unlink(missing_ok=True)


def _cells_of(leftovers: Iterable[Path]) -> set[Path]:
    """Outputs, without their endings, that temporary files would have become."""
    return {path.parent / path.name[1:].partition(".")[0] for path in leftovers}


def _left(campaign):
    return paths.leftovers(_folder(campaign))


def _folder(campaign: campaigns.Campaign) -> Path:
    return paths.runs() / campaign.name


def _reports_of_what_there_is(campaign):
    """Make the reports of an unfinished campaign; returns how many failed."""
    if not any(cell.output.is_file() for cell in cells(campaign)):
        return 0  # nothing could be run, for a reason that Snakemake has given
    failed = 0
    for page in pages.reports(campaign):
        output, notebook = (
            pages.report_page(campaign.name, page),
            batch.NOTEBOOKS / "report" / f"{page}.ipynb",
        )
        try:
            batch.execute(notebook, output, parameters={"campaign": campaign.name}, quiet=True)
        except (RuntimeError, ValueError, OSError) as error:
            print(f"report/{page} could not be made: {error}", file=sys.stderr)
            failed += 1
    return failed


def leaderboard_text(name: str) -> str:
    """Leaderboard of a campaign as text, see :func:`egraff_utils.report.leaderboards.text_leaderboard`."""
    from egraff_utils.report import leaderboards  # matplotlib, which no other command needs

    return leaderboards.text_leaderboard(records.read(name))


def run_demo(name: str = "demo", *, jobs: int | None = None) -> int:
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
    page = pages.build_book(name)
    _say(f"step 3 of 3: results after {(time.monotonic() - start) / 60:.1f} min")
    print(leaderboard_text(name))
    print(f"\nThe book with these results: {page}")
    return status


def _say(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)
