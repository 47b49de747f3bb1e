"""Which arguments and options do commands share? Those of the command line, with the names they complete."""

from collections.abc import Callable
from typing import Any

import click

OWN = "mine"
"""Campaign of runs that are asked for one by one."""


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What adds arguments or options to the function of a command."""


def completed(
    list_names: Callable[[], list[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completion of an argument by names that are listed when they are asked for."""
    return lambda context, parameter, start: [name for name in list_names() if name.startswith(start)]


def campaigns() -> list[str]:
    from egraff_utils import campaign

    return campaign.names()


def datasets() -> list[str]:
    from egraff_utils import cards

    return cards.datasets()


def models() -> list[str]:
    from egraff_utils import cards

    return [*cards.shipped_models(), *cards.offered_models()]


def presets() -> list[str]:
    from egraff_utils import cards

    return cards.presets()


def notebooks() -> list[str]:
    from egraff_utils import paths

    folder = paths.ROOT / "notebooks"
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.glob("*/*.ipynb"))]


def pages() -> list[str]:
    from egraff_utils import cards, paths

    return list(cards.read_yaml(paths.ROOT / "params" / "book.yml")["pages"])


def _splits(context, _parameter, start):
    """Completion of a split by those of the dataset that the command is given, or of its target."""
    from egraff_utils import cards

    # an option without its value, as it is here, leaves the arguments before it unread
    given = [context.params.get("target"), context.params.get("dataset"), *context.args[1:2]]
    try:
        card = cards.dataset(next(filter(None, given)))
    except (StopIteration, ValueError):  # there is no dataset yet, or none of this name
        return []
    return [name for name in card.splits if name.startswith(start)]


class Preset(click.Option):
    """Option whose help names what there is when it is asked for."""

    def get_help_record(self, context: click.Context) -> tuple[str, str] | None:
        self.help = f"Size, a preset of the model's card; all models have {', '.join(presets())}."
        return super().get_help_record(context)


CAMPAIGN = click.argument("name", metavar="CAMPAIGN", shell_complete=completed(campaigns))
MODEL = click.argument("model", metavar="MODEL|CARD", shell_complete=completed(models))
DATASET = click.argument("dataset", shell_complete=completed(datasets))
SPLIT = click.option("--split", default="test", show_default=True, shell_complete=_splits)
TARGET = "Dataset that the split belongs to, if not the one trained on."
JOBS = click.option("--jobs", type=click.IntRange(1), help="Number of notebooks at a time.")


def options(*more: Decorator) -> Decorator:
    """Decorator with the options of a single run, and more."""
    common = (
        click.option("--campaign", default=OWN, show_default=True, help="Where the record is stored."),
        click.option("--seed", default=0, show_default=True),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
        click.option("--threads", default=1, show_default=True),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*more, *common)):
            function = option(function)
        return function

    return decorate


def hyperparameters(
    _context: click.Context, _option: click.Parameter, words: tuple[str, ...]
) -> dict[str, Any]:
    """Dictionary of the words ``KEY=VALUE``."""
    pairs = [word.partition("=") for word in words]
    if bare := [word for word, (key, sign, value) in zip(words, pairs, strict=True) if not (key and value)]:
        raise click.BadParameter(f"'{bare[0]}' is not of the form KEY=VALUE, such as batch_size=2")
    from egraff_utils import schema

    return schema.guess({key: schema.Plain(value) for key, _, value in pairs})
