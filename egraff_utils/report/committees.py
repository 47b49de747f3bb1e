"""Does the spread of seeds show a shift? Committees on frames like those trained on, and on shifted ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egraff_utils import committee, quantities
from egraff_utils.config import Kind, changed
from egraff_utils.report import shifts, titles
from egraff_utils.report.beside import cell_place
from egraff_utils.report.values import listed, span

SHOWN = ("member_mae", "committee_mae", "spread", "spread_share", "spread_correlation")
"""Metrics that a table shows of both sides."""
MEMBERS = (quantities.of("members").head, "")
APART = ("Shifted frame has the larger spread (probability)", "")


def values(found: list, task: str) -> pd.DataFrame:
    """Metrics of the committees of a task.

    Parameters
    ----------
    found
        Records of a campaign.
    task
        Task out of distribution, such as ``"benzene"``.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns (head with unit, side), where the side is ``in``
    or ``out``, with the number of members before and the probability of `committee.told_apart` after them.
    It has a row for each model with both sides.
    """
    known = {(r.kind, r.dataset, r.model): r for r in found if Kind.parse(r.kind).act == "committee"}
    rows = {}
    for shift in shifts.shifts_of(task):
        sides = (shift.kinds(side, rollout=False)[0] for side in (shifts.IN, shifts.OUT))
        kinds = [changed(kind, act="committee") for kind in sides]
        for kind, dataset, model in known:
            pair = [known.get((other, dataset, model)) for other in kinds]
            if kind == kinds[1] and dataset == shift.dataset and None not in pair:
                rows[dataset, model] = _row(*pair)
    index = pd.MultiIndex.from_tuples(sorted(rows, key=cell_place), names=["dataset", "model"])
    heads = [(quantities.of(name).head, side) for name in SHOWN for side in (shifts.IN, shifts.OUT)]
    columns = pd.MultiIndex.from_tuples([MEMBERS, *heads, APART])
    return pd.DataFrame([rows[place] for place in index], index, columns, dtype=float)


def summary(found: pd.DataFrame) -> dict:
    """Number of committees, and ranges over them of what a page says of them, from `values`."""
    share, order = (quantities.of(name).head for name in ("spread_share", "spread_correlation"))
    numbers = {side: found[share, side] for side in (shifts.IN, shifts.OUT)}
    numbers |= {f"order-{side}": found[order, side] for side in (shifts.IN, shifts.OUT)}
    texts = {name: shifts.spread_of(column) for name, column in (numbers | {"apart": found[APART]}).items()}
    sets = [titles.dataset_title(name) for name in found.index.unique("dataset")]
    texts |= {"sets": listed(sets) if sets else "nothing", "members": span(found[MEMBERS], ".0f")}
    return {"seeds-count": len(found)} | {f"seeds-{name}": text for name, text in texts.items()}


def _row(home, away):
    numbers = [record[name] for name in SHOWN for record in (home, away)]
    numbers = [away["members"], *numbers, committee.told_apart(home, away)]
    return [np.nan if number is None else number for number in numbers]
