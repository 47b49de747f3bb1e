"""The command line ``egraff``, also ``python -m egraff_utils``: what can be asked of the project?

Exit status: 0, or 1 if a run failed, 2 for wrong input, 130 after Ctrl-C. Modules are imported when a verb
needs them, so that help and mistakes cost no time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from egraff_utils import options
from egraff_utils.running.data_commands import data_group

if TYPE_CHECKING:
    from egraff_utils.records import Record

SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return egraff.main(arguments, prog_name="egraff", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: the memory is too small: {error}; ask for less at a time", file=sys.stderr)
        return 1
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def egraff() -> None:
    """Train force fields, let them run molecular dynamics, and compare them.

    \b
    egraff demo                          all of it on two small systems: ten minutes
    egraff data list                     which datasets there are
    egraff train mace ethanol --max-seconds 60
    egraff rollout mace ethanol --steps 500
    egraff campaign run cpu              a matrix of datasets, models and seeds

    Names are completed after: eval "$(_EGRAFF_COMPLETE=bash_source egraff)"
    """


@egraff.group("campaign")
def campaign_group() -> None:
    """Run, plan or look at a campaign, a file in params/ or a path.

    \b
    egraff campaign run cpu
    egraff campaign status cpu
    """


@campaign_group.command("run", context_settings={"ignore_unknown_options": True})
@options.CAMPAIGN
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[SNAKEMAKE ARGUMENTS]...")
@options.JOBS
@click.option("--only", metavar="DATASET,...", help="Run the cells of these datasets, without reports.")
@click.option("--no-book", is_flag=True, help="Build no book at the end.")
def campaign_run(name: str, extra: tuple[str, ...], jobs: int | None, only: str | None, no_book: bool) -> int:
    """Run the cells of a campaign that are not done, then its reports, and build the book of them; further
    arguments go to Snakemake.

    \b
    egraff campaign run cpu
    egraff campaign run mine.yml --jobs 4
    egraff campaign run gpu --only lips,gete       the share of one machine
    egraff campaign run paper --dry-run            what would run
    egraff campaign run paper --profile profiles/slurm --no-book
    """
    from egraff_utils import campaign
    from egraff_utils.running import cells, pages

    datasets = only.split(",") if only else []
    status = cells.run_campaign(name, jobs=jobs, only=datasets, extra=list(extra))
    name = campaign.load(name).name
    if only or cells.IDLE & set(extra) or not pages.report_page(name).is_file():
        return status
    print(f"{cells.leaderboard_text(name)}\n\nIn full: {pages.report_page(name)}", flush=True)
    if no_book:
        print(f"As a book: egraff book --campaign {name}")
    elif not pages.jupyter_book().is_file():
        print("No book was built, as jupyter-book is not installed: pip install 'egraff-utils[book]'")
    else:
        print(f"The book with these results: {pages.build_book(name)}")
    return status


@campaign_group.command("plan")
@options.CAMPAIGN
@options.JOBS
@click.option("--budget", metavar="TIME", help="Time for the whole campaign, such as 25m or 1h30m.")
def campaign_plan(name: str, jobs: int | None, budget: str | None) -> None:
    """Time a step of every cell, and write budgets with which the campaign fits a time.

    \b
    egraff campaign plan gpu --budget 8h --jobs 6
    """
    from egraff_utils.running import plan

    print(plan.make(name, budget=budget, jobs=jobs))


@campaign_group.command("status")
@options.CAMPAIGN
def campaign_status(name: str) -> None:
    """Show which cells are done, running, failed or waiting, the time left, why some failed, and files that
    are damaged.

    \b
    egraff campaign status cpu
    """
    from egraff_utils import records
    from egraff_utils.config import Kind
    from egraff_utils.running import progress

    found = progress.of(name)
    print(f"{found.table().to_string()}\n{found.time_left()}")
    for record in found.records.values():
        if Kind.parse(record.kind).act == "failure":
            print(f"failed: {record.parameters['notebook']}, {record.path.stem}: {record.message}")
    for reason in records.damaged(found.campaign.name).values():
        print(f"left out: {reason}")


@egraff.command()
@click.argument(
    "notebook",
    type=click.Path(dir_okay=False, path_type=Path),
    shell_complete=options.completed(options.notebooks),
)
@click.argument("output", required=False, type=click.Path(path_type=Path))
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="Parameter of the notebook.")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
def run(notebook: Path, output: Path | None, given: tuple[tuple[str, str], ...], quiet: bool) -> None:
    """Execute a notebook, given by its path or by a name such as yours/dataset; without OUTPUT into
    runs/<campaign>/.

    \b
    egraff run yours/dataset -p dataset my_card.yml        what is in your data
    egraff run yours/training -p dataset my_card.yml -p model nequip
    egraff run yours/rollout -p dataset my_card.yml -p model nequip
    egraff run notebooks/training/mace.ipynb -p campaign mine -p dataset ethanol -p max_seconds 120
    egraff run notebooks/report/leaderboard.ipynb board.ipynb -p campaign mine
    """
    from egraff_utils import paths
    from egraff_utils.running import batch

    for variable in SINGLE_THREAD:
        os.environ.setdefault(variable, "1")
    start, notebook = time.monotonic(), batch.located(notebook)
    parameters = batch.typed(notebook, dict(given))
    campaign = (batch.parameters_of(notebook) | parameters).get("campaign", options.OWN)
    output = output or paths.runs() / campaign / notebook.parent.name / notebook.name
    batch.execute(notebook, output, parameters=parameters, quiet=quiet)
    print(f"{output.parent.name}/{output.stem}: {time.monotonic() - start:.0f} s", flush=True)


@egraff.command()
@click.argument("names", nargs=-1, metavar="[PAGE]...", shell_complete=options.completed(options.pages))
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def pages(names: tuple[str, ...], jobs: int) -> int:
    """Execute pages of the book from stored records, by default all.

    \b
    egraff pages
    egraff pages rollout/lips report/leaderboard
    """
    from egraff_utils.running import pages

    return int(pages.make_pages(names, jobs=jobs) > 0)


@egraff.command()
@click.option("--campaign", help="Show the pages of this campaign in place of the committed ones.")
def book(campaign: str | None) -> None:
    """Build the book as HTML; executes nothing.

    \b
    egraff book
    egraff book --campaign mine
    """
    from egraff_utils.running import pages

    print(f"The book: {pages.build_book(campaign)}")


@egraff.command()
@click.argument(
    "name", default="demo", metavar="[CAMPAIGN]", shell_complete=options.completed(options.campaigns)
)
@options.JOBS
def demo(name: str, jobs: int | None) -> int:
    """Run a campaign in a folder of its own, and build the book on it.

    \b
    egraff demo
    egraff demo tiny
    """
    from egraff_utils.running import cells

    return cells.run_demo(name, jobs=jobs)


egraff.add_command(data_group)


@egraff.command()
@options.MODEL
@options.DATASET
@options.options(
    click.option(
        "--preset",
        cls=options.Preset,
        default="small",
        show_default=True,
        shell_complete=options.completed(options.presets),
    ),
    click.option("--max-seconds", type=float, help="Limit of the time, s; without any limit 60."),
    click.option("--max-steps", type=int),
    click.option("--max-epochs", type=int),
    click.option(
        "--set",
        "training",
        multiple=True,
        metavar="KEY=VALUE",
        callback=options.hyperparameters,
        help="A training hyperparameter that replaces that of the preset; as often as wanted.",
    ),
)
def train(**asked: Any) -> int:
    """Train a model on a dataset, given by name or by the path of a card, and show its errors.

    For a calculator, given by name or by the path of a card, only its errors are computed.

    \b
    egraff train mace ethanol --max-seconds 60
    egraff train nequip my_card.yml --campaign mine --preset paper --device cuda
    egraff train mace my_crystal.yml --set virial_weight=10 --set batch_size=2
    egraff train my_calculator.yml ethanol_xtb
    """
    from egraff_utils.train import TrainConfig, fit

    if not any(value for name, value in asked.items() if name.startswith("max_")):
        asked["max_seconds"] = 60.0
    return _shown(fit(TrainConfig(**asked)))


@egraff.group("models")
def models_group() -> None:
    """Describe trained models.

    \b
    egraff models card cpu ethanol mace
    """


@models_group.command("card")
@options.CAMPAIGN
@options.DATASET
@options.MODEL
@click.argument("seed", type=click.IntRange(0), default=0)
@click.option("--output", type=click.File("w", atomic=True), default="-", help="File to write.")
def models_card(name: str, dataset: str, model: str, seed: int, output: TextIO) -> None:
    """Show or write the card of a file of weights, markdown with the metadata that Hugging Face reads.

    \b
    egraff models card cpu ethanol mace
    egraff models card mine my_card.yml nequip 1 --output README.md
    """
    from egraff_utils import weight_card

    output.write(weight_card.text(name, dataset, model, seed))


@egraff.command()
@options.MODEL
@options.DATASET
@click.option("--output", type=click.Path(path_type=Path), help="File to write; by default MODEL-DATASET.")
@click.option("--target", default="ase", help="Of NequIP and Allegro: ase, pair_nequip or pair_allegro.")
@click.option("--double", is_flag=True, help="In double precision.")
@click.option("--campaign", default=options.OWN, show_default=True, help="Where the training is stored.")
@click.option("--seed", default=0, show_default=True, help="Of the training.")
def export(
    model: str, dataset: str, output: Path | None, target: str, double: bool, campaign: str, seed: int
) -> None:
    """Write a trained model for the package that its network is from: mace, NequIP, Allegro, TorchMD-Net.

    \b
    egraff export mace ethanol --campaign cpu
    egraff export allegro lips --campaign cpu --target pair_allegro    for LAMMPS; takes minutes
    """
    from egraff_utils import cards, config, weights
    from egraff_utils import export as files

    if cards.is_calculator(model):
        raise click.UsageError(f"{model} is an ASE calculator, which other programs call as it is")
    name = cards.dataset(dataset).name
    force_field = weights.load(config.Key("training", campaign, name, model, seed))
    assert isinstance(force_field, files.ForceField)  # no calculator
    output = output or Path(f"{model}-{name}{files.FORMATS.get(model, '')}")
    print(files.export(force_field.double() if double else force_field, output, target=target))


@egraff.command()
@options.MODEL
@options.DATASET
@options.options(
    click.option("--protocol", type=click.Choice(["corrected", "as_coded"]), default="corrected"),
    click.option("--replicas", type=int, default=5, show_default=True),
    click.option("--steps", type=int, default=1000, show_default=True),
    click.option("--max-seconds", type=float),
    click.option("--temperature", type=float, help="K; by default that of the split."),
    options.SPLIT,
    click.option("--target", help=options.TARGET, shell_complete=options.completed(options.datasets)),
    click.option("--keep", type=click.Choice(["xyz", "traj"]), help="Keep the trajectories in this format."),
)
def rollout(**asked: Any) -> int:
    """Let a trained model run molecular dynamics, and compare it with the reference.

    \b
    egraff rollout mace ethanol --steps 500
    egraff rollout mace acac --split test_600K --temperature 600
    """
    from egraff_utils.md.rollout import RolloutConfig, kept, roll_out

    config = RolloutConfig(**asked)
    status = _shown(roll_out(config))
    for path in kept(config) if config.keep else ():
        print(f"kept: {path}")
    return status


@egraff.command()
@options.MODEL
@options.DATASET
@options.options(
    options.SPLIT,
    click.option("--target", help=options.TARGET, shell_complete=options.completed(options.datasets)),
    click.option("--frames", type=click.IntRange(1), help="Largest number of frames of every composition."),
)
def evaluate(**asked: Any) -> int:
    """Take the errors of a trained model, or of a calculator, on a split or on another dataset.

    \b
    egraff evaluate mace acac --split test_600K
    egraff evaluate mace ethanol --target benzene --frames 200
    egraff evaluate my_calculator.yml my_card.yml --split val
    """
    from egraff_utils.accuracy import TransferConfig, errors

    return _shown(errors(TransferConfig(**asked)))


@egraff.command()
@options.MODEL
@options.DATASET
@options.options(options.SPLIT)
def gate(**asked: Any) -> int:
    """Check the physics of a trained model: symmetries, gradients, smoothness, conservation.

    \b
    egraff gate mace ethanol
    """
    from egraff_utils.checks.gate import GateConfig, check

    return _shown(check(GateConfig(**asked)))


def _shown(record: Record) -> int:
    print(record)
    return int(record.status == "failed")


@egraff.command()
@options.CAMPAIGN
def leaderboard(name: str) -> None:
    """Print the leaderboard of a campaign.

    \b
    egraff leaderboard cpu
    """
    from egraff_utils import campaign, paths, records
    from egraff_utils.running import cells

    known = name in campaign.names() or (paths.results() / name).is_dir()
    if records.read(name).empty:
        missing = f"campaign {name} has no records; make them: egraff campaign run {name}"
        if not known:
            raise ValueError(missing)
        print(missing)
        return
    print(cells.leaderboard_text(name))


@egraff.command()
@click.argument(
    "name", metavar="[CAMPAIGN]", required=False, shell_complete=options.completed(options.campaigns)
)
@click.option("--dataset", help="Periodic dataset; by default lips.")
@click.option("--sizes", hidden=True, help="Settings of a measurement, for a process of its own.")
def cost(name: str | None, dataset: str | None, sizes: str | None) -> None:
    """Measure what a step of the trained models of a campaign costs, with nothing else running.

    \b
    egraff cost cpu
    """
    from egraff_utils.running import cost

    if sizes:
        for row in cost.evaluate(cost.CostConfig(**json.loads(sizes))):
            print(json.dumps(row), flush=True)
    elif name:
        for record in cost.measure_campaign(name, dataset=dataset):
            print(record)
    else:
        raise click.UsageError("which campaign? For example: egraff cost cpu")


@egraff.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[BENCHMARK]... [OPTIONS]")
def bench(arguments: tuple[str, ...]) -> int:
    """Time this project beside the upstream packages.

    \b
    egraff bench --quick
    egraff bench md training --device cuda
    """
    from egraff_utils import paths
    from egraff_utils.running import cells

    if not (paths.ROOT / "benchmarks" / "__main__.py").is_file():
        raise click.UsageError("the benchmarks are not installed with the package; clone the project")
    words = [sys.executable, "-m", "benchmarks", *arguments]
    return int(cells.run_to_the_end(words, cwd=paths.ROOT) != 0)


if __name__ == "__main__":
    sys.exit(main())
