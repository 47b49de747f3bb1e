"""Why does a simulation break? The end of a replica as data, and the words for it that pages show."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from egraff_utils.structure import BOND_TOLERANCE, MINIMUM_DISTANCE, RDF_TOLERANCE

FARTHEST_MOVE = 1.0
"""Largest move of an atom in one step, Å. At 3000 K an atom moves about 0.1 Å in 1 fs, so a longer move is an
explosion."""


class Cause(StrEnum):
    """Cause of a break; records store its value."""

    BOND = "bond"
    CONTACT = "contact"
    CONTACT_OR_ESCAPE = "contact_or_escape"
    STRUCTURE = "structure"
    HEATED = "heated"
    MOVE = "move"
    NOT_FINITE = "not_finite"

    @property
    def words(self) -> str:
        """The cause in words.

        >>> Cause("bond").words
        'a bond changed by more than 0.5 Å'
        """
        return {
            Cause.BOND: f"a bond changed by more than {BOND_TOLERANCE} Å",
            Cause.CONTACT: f"two atoms came closer than {MINIMUM_DISTANCE} Å",
            Cause.CONTACT_OR_ESCAPE: "an atom came too close to another or left the molecule",
            Cause.STRUCTURE: f"the radial distribution left the reference's by more than {RDF_TOLERANCE} Å",
            Cause.HEATED: "it became hotter than the thermostat explains",
            Cause.MOVE: f"an atom moved more than {FARTHEST_MOVE} Å in a step",
            Cause.NOT_FINITE: "energy or forces not finite",
        }[self]


class Verdict(NamedTuple):
    """What a stability rule says about a replica that broke."""

    frame: int
    """First frame that counts as broken, among those that were judged."""
    cause: Cause
    atoms: tuple[int, ...] = ()
    """Indices of the one or two atoms at which it broke; empty if it concerns all."""


@dataclass
class Break:
    """The early end of a replica."""

    replica: int
    """Index of the replica in the curves of the record."""
    step: int
    """Last valid step."""
    time: float
    """Time of that step, fs."""
    cause: Cause
    """Which rule the next step broke."""
    where: tuple[int, ...] = ()
    """Indices of the one or two atoms at which it broke; empty if it concerns all."""

    def __post_init__(self) -> None:
        self.cause = Cause(self.cause)
        self.where = tuple(map(int, self.where))

    def __str__(self) -> str:
        return f"replica {self.replica} after {self.step} steps ({self.cause.words})"


def account(breaks: Sequence[Break], replicas: int) -> str:
    """Sentence that lists the replicas that broke; empty if none did.

    >>> account([Break(1, 30, 15.0, "contact")], 5)
    '1 of 5 replicas broke: replica 1 after 30 steps (two atoms came closer than 0.5 Å)'
    """
    return f"{len(breaks)} of {replicas} replicas broke: {', '.join(map(str, breaks))}" if breaks else ""
