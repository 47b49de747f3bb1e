"""How far is a campaign? Its records say which cells are done, and what the others will take."""

import math
from collections.abc import Iterable
from statistics import fmean

import pandas as pd

from egraff_utils import campaign as campaigns
from egraff_utils import cards, records
from egraff_utils.campaign import Campaign
from egraff_utils.config import Key, Kind
from egraff_utils.records import Record
from egraff_utils.running import batch, plan
from egraff_utils.running.cells import Cell, cells

STATES = ("done", "running", "failed", "waiting")
LIMITS = ("preset", "max_seconds", "max_steps", "max_epochs", "replicas", "steps")
"""Parameters in which a record must agree with its campaign, where it has them."""


class Progress:
    """State of every cell of a campaign, and the time that the remaining ones will take.

    Parameters
    ----------
    campaign
        :class:`~egraff_utils.campaign.Campaign`.
    found
        Its records.
    """

    def __init__(self, campaign: Campaign, found: Iterable[Record]) -> None:
        self.campaign = campaign
        self.records = {record.key: record for record in found}
        self.states = {cell: self._state(cell) for cell in cells(campaign)}

    def _state(self, cell):
        if batch.is_running(cell.output):
            return "running"
        if batch.failure_key(cell.notebook, cell.parameters(self.campaign)) in self.records:
            return "failed"
        return "done" if self._records(cell) else "waiting"

    def _records(self, cell):
        """Records of a cell that is done, a list; it is empty for others."""
        asked = cell.parameters(self.campaign)
        kinds = kinds_of(cell, self.campaign)
        keys = [Key(kind, self.campaign.name, cell.dataset, cell.model, cell.seed) for kind in kinds]
        made = [self.records[key] for key in keys if key in self.records]
        fit = all(
            record.parameters.get(name, asked[name]) == asked[name]
            for record in made
            for name in LIMITS
            if name in asked
        )
        return made if fit and len(made) == len(kinds) else []

    def table(self) -> pd.DataFrame:
        """One row per dataset and one column per model, with texts such as ``3 done, 1 failed``."""
        rows = [(cell.dataset, cell.model, state) for cell, state in self.states.items()]
        found = pd.DataFrame(rows, columns=["dataset", "model", "state"]).groupby(["dataset", "model"]).state
        datasets = list(self.campaign.datasets)
        models = dict.fromkeys(model for name in datasets for model in self.campaign.models_of(name))
        shown = found.agg(_counts).unstack("model")
        return shown.reindex(index=datasets, columns=list(models)).fillna("")

    def seconds(self) -> dict[Cell, float | None]:
        """Predicted time of every cell that is not done, s; None where there is nothing to go by.

        It is the mean time of the cells of its kind that are done: those of its dataset and model, else those
        of its dataset; or what the plan or the budget of the campaign lets it take; or the mean of its kind.
        """
        times = {cell: self._took(cell) for cell, state in self.states.items() if state == "done"}
        return {cell: self._expected(cell, times) for cell, state in self.states.items() if state != "done"}

    def _took(self, cell):
        return sum(record.provenance.get("wall_time", 0.0) for record in self._records(cell)) + plan.NOTEBOOK

    def _expected(self, cell, times):
        same = {other: time for other, time in times.items() if _kind(other) == _kind(cell)}
        own = [other for other in same if other.dataset == cell.dataset]
        for chosen in ([other for other in own if other.model == cell.model], own):
            if chosen:
                return fmean(same[other] for other in chosen)
        return self._allowed(cell) or (fmean(same.values()) if same else None)

    def _allowed(self, cell):
        """What the budget lets a cell take, s; a plan gives simulations more than it expects of them."""
        limit = cell.parameters(self.campaign).get("max_seconds")
        if limit is None or cards.is_calculator(cell.model):
            return None
        planned = campaigns.plan_path(self.campaign.name).is_file() and _kind(cell) != "training"
        return (limit / plan.SPARE if planned else limit) + plan.NOTEBOOK

    def time_left(self) -> str:
        """Time that the remaining cells will take, in words."""
        expected = self.seconds()
        if not expected:
            return "every cell is done"
        known = {cell: time for cell, time in expected.items() if time is not None}
        chains: dict[tuple, float] = {}
        for cell, time in known.items():  # those of one model wait for each other
            chain = (cell.dataset, cell.model, cell.seed)
            chains[chain] = chains.get(chain, 0.0) + time
        unknown = len(expected) - len(known)
        rest = f"{unknown} of {len(expected)} cells have neither a limit of time nor one of their kind done"
        if not known:
            return f"time left: not known, as {rest}"
        text = (
            f"time left: {_words(plan.makespan(chains.values(), self.campaign.jobs))} for {len(known)} cells"
        )
        text += f", {self.campaign.jobs} at a time" if self.campaign.jobs > 1 else ""
        return text + (f"; {rest}" if unknown else "")


def of(name: str) -> Progress:
    """:class:`Progress` of a campaign, given by its name or the path of its file."""
    campaign = campaigns.load(name)
    return Progress(campaign, records.read_all(campaign.name))


def kinds_of(cell: Cell, campaign: Campaign) -> list[str]:
    """Kinds of the records that a cell must leave."""
    folder, task = cell.output.parts[-3:-1]
    if folder == "checks":
        return [task]
    if folder != "ood":
        return ["training" if task == "training" else str(Kind("rollout", _protocol(cell)))]
    if own := campaign.own_task(f"ood/{task}"):
        shift = cards.shift(own.shifted["split"], own.target)
        return [str(Kind(act, shift=shift)) for act in ("errors", "rollout")]
    from egraff_utils.report import shifts  # matplotlib, which no other command needs

    simulated = "replicas" in batch.parameters_of(cell.notebook)
    found = [shift for shift in shifts.TASKS.get(task, ()) if shift.dataset == cell.dataset]
    acts = (False, True) if simulated else (False,)
    return [shift.kinds(shifts.OUT, rollout=rollout)[0] for shift in found for rollout in acts]


def _protocol(cell):
    return "" if cell.protocol == "corrected" else cell.protocol


def _kind(cell):
    """Folder of a cell, such as ``rollout`` or ``benzene``."""
    return cell.output.parent.name


def _counts(states):
    counts = states.value_counts()
    return ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)


def _words(seconds):
    """A time in words.

    >>> _words(40), _words(1500), _words(16200), _words(400000)
    ('1 min', '25 min', '4.5 h', '4.6 d')
    """
    if seconds < 3600:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
