"""Which run is this? A configuration says what is run, and a key says where its record is stored."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ase.data import chemical_symbols

from egraff_utils import cards, paths, schema

AS_CODED = "as_coded"
LARGEST = {"seed": schema.LARGEST_SEED, "temperature": 1e5, "timestep": 1e3, "steps": 1e8}
"""Largest values of fields: what generators of random numbers take, and far beyond what atoms survive."""
FAILURES = ("failure", "failure_datasets", "failure_training", "failure_rollout")
"""Kinds of records of failures because of which a dataset and a model have no values in the main tables."""


class Kind(NamedTuple):
    """What was done, by which protocol and on which frames; its text is the name of the folder of records.

    >>> str(Kind("rollout", "as_coded", "600K")), Kind.parse("rollout_600K"), str(Kind("training"))
    ('rollout_as_coded_600K', Kind(act='rollout', protocol='', shift='600K'), 'training')
    """

    act: str
    """``rollout``, ``errors``, ``floor``, ``training``, ..."""
    protocol: str = ""
    """``as_coded``; empty for ``corrected`` and for acts without a protocol."""
    shift: str = ""
    """Set of frames other than the test set (:func:`~egraff_utils.cards.shift`), or a composition."""

    def __str__(self) -> str:
        return "_".join(filter(None, self))

    @classmethod
    def parse(cls, text: str) -> "Kind":
        """The kind that a folder's name stands for."""
        act, _, rest = text.partition("_")
        if rest == AS_CODED or rest.startswith(f"{AS_CODED}_"):
            return cls(act, AS_CODED, rest[len(AS_CODED) + 1 :])
        return cls(act, shift=rest)


def changed(kind: str, **changes: str) -> str:
    """Text of a kind, given as text, after changes of its act, protocol or shift.

    >>> changed("rollout_600K", act="floor"), changed("rollout_as_coded_crystals", shift="Li2S")
    ('floor_600K', 'rollout_as_coded_Li2S')
    """
    return str(Kind.parse(kind)._replace(**changes))


class Key(NamedTuple):
    """Identity of the run that a record belongs to."""

    kind: str
    """Text of a :class:`Kind`."""
    campaign: str
    dataset: str
    model: str
    seed: int = 0

    @property
    def path(self) -> Path:
        """``results/<campaign>/<kind>/<dataset>-<model>-s<seed>.json``; raises ValueError for a bad name."""
        for field in ("kind", "campaign", "dataset"):
            name = getattr(self, field)
            if name or field == "campaign":  # a benchmark is of no dataset
                schema.check_name(name, f"name of a {field}")
        if self.model not in ("", "-"):  # a benchmark of no model
            schema.check_model_name(self.model)
        name = f"{self.dataset}-{self.model}-s{self.seed}.json"
        return paths.results() / self.campaign / self.kind / name

    def of(self, **changes: Any) -> "Key":
        """Key of a run that differs in some of act, protocol, shift, model, dataset and seed.

        >>> Key("rollout_600K", "cpu", "acac", "mace").of(act="floor", model="reference").kind
        'floor_600K'
        """
        own = {name: changes.pop(name) for name in Kind._fields if name in changes}
        return self._replace(kind=changed(self.kind, **own), **changes)


class Config:
    """Base class of the configurations of runs; all fields but a few determine the result.

    A subclass has the fields of a :class:`Key`; its ``kind`` is a class attribute or a property.
    """

    kind: Kind | str
    campaign: str
    dataset: str
    model: str
    seed: int
    device: str
    threads: int

    WORKING_FIELDS: tuple[str, ...] = (
        "campaign",
        "dataset",
        "model",
        "seed",
        "device",
        "threads",
        "progress",
    )
    """Fields that are left out of :meth:`parameters`: the key of the record, and what does not change the
    result."""

    @property
    def card(self) -> cards.DatasetCard:
        """Card of the dataset."""
        return cards.dataset(self.dataset)

    @property
    def key(self) -> Key:
        """:class:`Key` of the record."""
        model = cards.model_name(self.model)
        return Key(str(self.kind), self.campaign, self.card.name, model, self.seed)

    def require_positive(self, *names: str, whole: bool = False) -> None:
        """Reject fields that are not positive and finite, or not whole; ``None`` is a field that is not set.

        Seed and device, which every configuration has, are checked too, and what is too large is in
        :data:`LARGEST`.

        Raises
        ------
        ValueError
            The message names the field and its value.
        """
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.seed > LARGEST["seed"]:
            raise ValueError(f"seed must be {LARGEST['seed']} at most, not {self.seed}")
        schema.check_device(self.device)
        for name in names:
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")
            if value > LARGEST.get(name, math.inf):
                raise ValueError(f"{name} must be {LARGEST[name]:g} at most, not {value}")
            if whole and int(value) != value:
                raise ValueError(f"{name} must be a whole number, not {value}")

    def parameters(self) -> dict[str, Any]:
        """What determines the result, as stored in the record."""
        found = asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        return {key: value for key, value in found.items() if key not in self.WORKING_FIELDS}


def check_shift(name: str, split: str = "test", target: str | None = None) -> None:
    """Reject a set of frames on which no model that is trained on a dataset can be evaluated.

    Raises
    ------
    ValueError
        If the set is the test set of the dataset itself, there is no such split, or the card of the target
        lists an element that the dataset does not have; the message names both cards and the elements.
    """
    card, other = cards.dataset(name), cards.dataset(target or name)
    other.split(split)
    if not cards.shift(split, target) or (split, other.name) == ("test", card.name):
        raise ValueError(f"the test set of {card.name} is no shift of itself; name another split or a target")
    if foreign := sorted(set(other.elements) - set(card.elements)):
        symbols = ", ".join(chemical_symbols[number] for number in foreign)
        raise ValueError(
            f"{other.name} holds {symbols}, which {card.name} does not, so that a model trained on "
            f"{card.name} does not know it; name a target with elements of {card.name} only"
        )
