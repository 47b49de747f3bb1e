"""What can be asked of datasets? The commands ``egraff data``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import click

from egraff_utils import options


@click.group("data")
def data_group() -> None:
    """List datasets, download or check one.

    \b
    egraff data list
    egraff data fetch ethanol
    egraff data check my_card.yml
    """


@data_group.command("list")
def data_list() -> None:
    """List the datasets of the project with their numbers of frames.

    \b
    egraff data list
    """
    from egraff_utils import cards

    for card in map(cards.dataset, cards.datasets()):
        splits = [name for name in ("train", "val", "test") if name in card.splits]
        frames = ", ".join(f"{name} {card.split(name).frames or '?'}" for name in splits)
        print(f"{card.name:18s}{card.system:10s}{card.title}; {frames}")


@data_group.command("fetch")
@click.argument(
    "datasets",
    nargs=-1,
    required=True,
    metavar="DATASET...",
    shell_complete=options.completed(options.datasets),
)
def data_fetch(datasets: tuple[str, ...]) -> None:
    """Download or generate datasets ahead, as for a machine without internet, and check the hashes of files.

    \b
    egraff data fetch ethanol lips
    egraff data fetch my_card.yml
    """
    from egraff_utils import cards, files

    for card in [cards.dataset(name) for name in datasets]:  # a wrong name is told before any download
        for path in dict.fromkeys(files.fetch(card).values()):
            print(f"{card.name}: {path}")


@data_group.command("check")
@click.argument("dataset", metavar="DATASET|CARD|FILE", shell_complete=options.completed(options.datasets))
@click.option(
    "--campaign", default=options.OWN, show_default=True, help="Where the record of an audit is stored."
)
@click.option("--write-card", is_flag=True, help="Write the card of a FILE of frames beside it.")
@click.option(
    "--temperature", type=float, help="K, for the card; by default that of velocities in the file, else 300."
)
@click.option("--timestep", type=float, default=0.5, show_default=True, help="fs, for the card.")
def data_check(
    dataset: str, campaign: str, write_card: bool, temperature: float | None, timestep: float
) -> int:
    """Show the card of a dataset, or what a file of frames holds, and audit the frames.

    For a file, the command says what it understood, which units it guessed and why, and what has to be mended
    before a training; the last ends with exit code 1.

    \b
    egraff data check ethanol
    egraff data check my_card.yml
    egraff data check frames.xyz --write-card --temperature 350
    """
    from egraff_utils import cards, data
    from egraff_utils.checks import audit, own_data

    if _is_frames(dataset):
        found = own_data.describe(dataset, temperature=temperature, timestep=timestep)
        print(found)
        if write_card:
            print(f"card: {found.write_card()}")
        return 1 if found.problems else 0
    if write_card:
        raise click.UsageError(f"{dataset}: a card is written for a file of frames")
    card = cards.dataset(dataset)
    counted = {name: replace(split, frames=len(data.load(card, name))) for name, split in card.splits.items()}
    print(replace(card, splits=counted))
    for finding in audit.findings(audit.audit(card.name, campaign=campaign)):
        print(f"{finding.check}: {finding.text}")
    for remark in own_data.rollout_remarks(card):
        print(f"rollout: {remark}")
    return 0


@data_group.command("croissant")
@click.argument("dataset", metavar="DATASET|CARD", shell_complete=options.completed(options.datasets))
@click.option("--output", type=click.File("w", atomic=True), default="-", help="File to write.")
def data_croissant(dataset: str, output: TextIO) -> None:
    """Show or write a dataset's card as metadata in the format Croissant, which search engines read.

    \b
    egraff data croissant ethanol
    egraff data croissant my_card.yml --output croissant.json
    """
    from egraff_utils import croissant

    output.write(json.dumps(croissant.metadata(dataset), indent=1, ensure_ascii=False) + "\n")


def _is_frames(text: str) -> bool:
    """Whether an argument is a file of frames: not the name of a dataset, not a card."""
    from egraff_utils.sources import reader_of

    path = Path(text)
    return path.suffix not in (".yml", ".yaml") and (path.is_file() or reader_of(path) is not None)
