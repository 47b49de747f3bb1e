"""Why does a simulation break? Its end as data, and the words that pages make of it."""

from dataclasses import dataclass
from enum import StrEnum

from egraff_utils.structure import BOND_TOLERANCE, MINIMUM_DISTANCE, RDF_TOLERANCE

FARTHEST_MOVE = 1.0
"""Å in one step; an atom at 3000 K moves about 0.1 Å in 1 fs, so more is an explosion."""


class Cause(StrEnum):
    """What a simulation broke by; the value is what records hold."""

    BOND = "bond"
    CONTACT = "contact"
    CONTACT_OR_ESCAPE = "contact_or_escape"
    STRUCTURE = "structure"
    MOVE = "move"
    NOT_FINITE = "not_finite"

    @property
    def words(self):
        """The cause in words.

        >>> Cause("bond").words
        'a bond changed by more than 0.5 Å'
        """
        return {
            Cause.BOND: f"a bond changed by more than {BOND_TOLERANCE} Å",
            Cause.CONTACT: f"two atoms came closer than {MINIMUM_DISTANCE} Å",
            Cause.CONTACT_OR_ESCAPE: "an atom came too close to another or left the molecule",
            Cause.STRUCTURE: f"the radial distribution left the reference's by more than {RDF_TOLERANCE} Å",
            Cause.MOVE: f"an atom moved more than {FARTHEST_MOVE} Å in a step",
            Cause.NOT_FINITE: "energy or forces not finite",
        }[self]


@dataclass
class Break:
    """The end of a replica before its time."""

    replica: int
    """Its place in the curves of the record."""
    step: int
    """Last sound step."""
    time: float
    """Of that step, fs."""
    cause: Cause

    def __post_init__(self):
        self.cause = Cause(self.cause)

    def __str__(self):
        return f"replica {self.replica} after {self.step} steps ({self.cause.words})"


def account(breaks, replicas):
    """What broke, in a sentence; empty if nothing did.

    >>> account([Break(1, 30, 15.0, "contact")], 5)
    '1 of 5 replicas broke: replica 1 after 30 steps (two atoms came closer than 0.5 Å)'
    """
    return f"{len(breaks)} of {replicas} replicas broke: {', '.join(map(str, breaks))}" if breaks else ""
