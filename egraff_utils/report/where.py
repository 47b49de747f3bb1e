"""Where is each table of the paper, and how much of it has been measured here?"""

from __future__ import annotations

import pandas as pd

from egraff_utils.report import beside
from egraff_utils.report.beside import OURS, PAPER

MEASURED = ("1", "2", "3", "4", "5", "6", "7a", "7b", "18", "19")
"""Tables of results that a campaign can fill; the others hold settings and literature."""


def states(frame: pd.DataFrame) -> dict[str, str]:
    """How many published cells of each table of results have a value of ours.

    Parameters
    ----------
    frame
        Records of a campaign, as `records.read` returns them.

    Examples
    --------
    >>> from egraff_utils import records
    >>> states(records.read("no such campaign"))["1"]
    'not measured'
    """
    return {number: state(*filled(frame, number)) for number in MEASURED}


def filled(frame: pd.DataFrame, number: str) -> tuple[int, int]:
    """Number of published cells of a table that have a value of ours, and number of published cells.

    The values of Table 7b were not published as numbers: all values of ours are counted, of none.
    """
    if frame.empty:
        return 0, 0
    present = beside.paper_values(frame, number).notna()
    ours = present.xs(OURS, axis=1, level=1)
    published = present.xs(PAPER, axis=1, level=1).reindex(columns=ours.columns, fill_value=False)
    counted = ours & published if published.to_numpy().any() else ours
    return int(counted.to_numpy().sum()), int(published.to_numpy().sum())


def state(measured: int, published: int) -> str:
    """The state of a table in words.

    Examples
    --------
    >>> state(108, 108), state(90, 108), state(0, 108)
    ('all 108 cells', '90 of 108 cells', 'not measured')
    >>> state(36, 0)
    'all 36 cells, published without numbers'
    """
    if not measured:
        return "not measured"
    if not published:
        return f"all {measured} cells, published without numbers"
    return f"all {published} cells" if measured == published else f"{measured} of {published} cells"


def summary(states: dict[str, str]) -> str:
    """How many tables are measured in full, and which are not.

    Examples
    --------
    >>> summary({"1": "all 108 cells", "4": "90 of 108 cells"})
    '1 of 2 tables of results are measured in full; not in full: 4 (90 of 108 cells)'
    """
    rest = [f"{number} ({text})" for number, text in states.items() if not text.startswith("all")]
    text = f"{len(states) - len(rest)} of {len(states)} tables of results are measured in full"
    return f"{text}; not in full: {', '.join(rest)}" if rest else text
