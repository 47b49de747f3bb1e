"""What are models, datasets and campaigns called for readers?"""

from __future__ import annotations

from egraff_utils import campaign as campaigns
from egraff_utils import cards
from egraff_utils.config import Kind

OTHER_TITLES = {"painn": "PaiNN", "dimenet++": "DimeNet++", cards.REFERENCE: "Reference, own noise"}
"""Titles of models without a card: those that the paper quotes from the literature, and the reference."""


def budget(campaign: str) -> str:
    """Settings by which the values of a campaign were obtained, as a sentence without its full stop.

    Examples
    --------
    >>> print(budget("demo"))
    campaign demo: preset small, at most 25 s of training each, 3 replicas of 200 steps in at most 25 s,
    on CPU
    """
    try:
        settings = campaigns.load(campaign)
    except ValueError:  # records without the file that they were made by
        return f"campaign {campaign}: settings not in params"
    training, rollout = _limits(settings)
    words = [f"campaign {campaign}: preset {settings.preset}", training, rollout]
    for dataset in settings.datasets:
        own = [text for text in _limits(settings, dataset) if text not in (training, rollout)]
        words += [f"on {short_title(dataset)} {' and '.join(own)}"] if own else []
    return ", ".join([*words, "on a GPU" if settings.device == "cuda" else "on CPU"])


def model_title(name: str) -> str:
    """Name of a model for readers, the title of its card, or the name itself if there is no card.

    >>> model_title("mace"), model_title("gfn1"), model_title("reference"), model_title("mine")
    ('MACE', 'GFN1-xTB', 'Reference, own noise', 'mine')
    """
    if name in OTHER_TITLES:
        return OTHER_TITLES[name]
    return cards.model(name).title if cards.is_model(name) else name


def run_title(kind: str) -> str:
    """What a run of a kind is, for readers.

    Examples
    --------
    >>> run_title("training"), run_title("rollout_as_coded_600K"), run_title("errors_dihedral")
    ('training', 'simulation, as coded, 600K', 'errors, dihedral')
    """
    parts = Kind.parse(kind)
    act = {"rollout": "simulation"}.get(parts.act, parts.act.replace("_", " of "))
    return ", ".join(filter(None, [act, parts.protocol.replace("_", " "), parts.shift]))


def dataset_title(name: str) -> str:
    """Name of a dataset for readers, the title of its card up to a comma, or the name itself without a card.

    >>> dataset_title("ethanol"), dataset_title("example"), dataset_title("unheard-of")
    ('Ethanol (MD17)', 'Copper and gold by effective medium theory', 'unheard-of')
    """
    try:
        return cards.dataset(name).title.partition(",")[0]  # a user's own is found where it is kept
    except ValueError:
        return name


def short_title(name: str) -> str:
    """Short name of a dataset, its title without brackets, or what is in them if the title is long.

    Examples
    --------
    >>> [short_title(name) for name in ("3bpa", "ethanol", "ethanol_xtb", "example")]
    ['3BPA', 'Ethanol', 'Ethanol by GFN2-xTB', 'Copper and gold']
    """
    title, _, bracket = dataset_title(name).partition(" (")
    if bracket:
        return bracket.rstrip(")") if len(title) > 20 else title
    return title.partition(" by ")[0] if len(title) > 30 else title


def _limits(settings, dataset=None):
    """Budgets of a dataset in words; without one, those of datasets that have no overrides."""
    training = settings.training if dataset is None else settings._budget("training", dataset)
    rollout = settings.rollout if dataset is None else settings._budget("rollout", dataset)
    units = {"max_seconds": "s", "max_steps": "steps", "max_epochs": "epochs"}
    limits = [f"{getattr(training, key):g} {unit}" for key, unit in units.items() if getattr(training, key)]
    trained = f"at most {' or '.join(limits)}" if limits else "the published number of epochs"
    length = f" in at most {rollout.max_seconds:g} s" if rollout.max_seconds else ""
    return f"{trained} of training each", f"{rollout.replicas} replicas of {rollout.steps} steps{length}"
