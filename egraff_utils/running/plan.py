"""What fits into the available time? Budgets are derived from the costs of the steps of all cells.

``egraff campaign plan CAMPAIGN --budget 25m --jobs 6``
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from egraff_utils import campaign as campaigns
from egraff_utils import cards, paths
from egraff_utils.campaign import Campaign
from egraff_utils.running.pages import reports
from egraff_utils.running.timing import Cost, timings
from egraff_utils.units import seconds

NOTEBOOK = 8.0  # s that a notebook takes in addition to its work
LEAST_TRAINING = 10.0  # s, shortest training
SPARE = 2.0  # a rollout is stopped after this multiple of its predicted length
TASKS = {"horizon": 3.0}  # length of a task in rollouts of its dataset, if it is not one


class Plan:
    """Budgets of the datasets of a campaign that fit a given time, with predictions.

    Parameters
    ----------
    campaign
        :class:`~egraff_utils.campaign.Campaign` with these budgets.
    costs
        ``{(dataset, model): Cost}``.
    budget
        Time for the whole campaign, s.
    jobs
        Number of runs at a time.
    """

    def __init__(
        self, campaign: Campaign, costs: Mapping[tuple[str, str], Cost], *, budget: float, jobs: int
    ) -> None:
        self.campaign, self.costs, self.budget, self.jobs = campaign, costs, budget, jobs

    @property
    def seconds(self) -> float:
        """Predicted wall time of the campaign, s."""
        lengths = [_cell(self.campaign, self.costs, *cell) for cell in self.campaign.cells()]
        pages = len(self.campaign.datasets) + len(reports(self.campaign))
        return makespan([*lengths, *[NOTEBOOK] * pages], self.jobs)

    def table(self) -> pd.DataFrame:
        """Data frame with one row per dataset.

        Columns are budgets, s; predicted numbers of training steps of the slowest and the fastest model; and
        the mean time of a cell, s.
        """
        return pd.DataFrame([self._row(dataset) for dataset in self.campaign.datasets]).set_index("dataset")

    def _row(self, dataset):
        limits = _limits(self.campaign, dataset)
        cells = [cell for cell in self.campaign.cells() if cell[0] == dataset]
        costs = [self.costs[cell[:2]] for cell in cells]
        steps = [
            _training(self.campaign, cost, *cell) / cost.train_step
            for cost, cell in zip(costs, cells, strict=True)
        ]
        return {
            "dataset": dataset,
            "training (s)": limits["training"]["max_seconds"],
            "rollout (s, at most)": limits["rollout"]["max_seconds"],
            "training steps": f"{_digits(min(steps))} to {_digits(max(steps))}",
            "cell (s)": round(np.mean([_cell(self.campaign, self.costs, *cell) for cell in cells])),
        }

    def write(self) -> Path:
        """Write the budgets to ``results/<campaign>/plan.yml``, where ``campaign.load`` finds them."""
        path = campaigns.plan_path(self.campaign.name)
        budgets = {dataset: _limits(self.campaign, dataset) for dataset in self.campaign.datasets}
        content = {"budget": self.budget, "predicted": round(self.seconds), "jobs": self.jobs}
        head = "# Budgets (s) made by egraff campaign plan; remove this file to plan anew.\n"
        text = yaml.safe_dump(content | {"budgets": budgets}, sort_keys=False, default_flow_style=None)
        with paths.written(path) as temporary:
            temporary.write_text(head + text)
        return path

    def __repr__(self) -> str:
        total = (
            f"predicted: {self.seconds / 60:.1f} of {self.budget / 60:.1f} min, {self.jobs} runs at a time"
        )
        return f"{self.table().to_string()}\n{total}"


def make(name: str | Path, *, budget: str | float | None = None, jobs: int | None = None) -> Plan:
    """Plan a campaign: time its cells, or read stored timings, and fit the budgets to the time.

    The time that rollouts and checks of full length need is reserved; the rest is for training. All models of
    a dataset train for an equal time. Between datasets this time grows with the square root of the mean time
    of a training step, halfway between equal times and equal numbers of steps. As many cells are timed at
    once as will run at once, so that the times include their competition for resources.

    Parameters
    ----------
    name
        Name of a campaign or path of its file.
    budget
        Time for the whole campaign, such as ``"25m"``; by default the campaign's ``budget``.
    jobs
        Number of runs at a time; by default the campaign's.

    Returns
    -------
    Plan
        Plan that was written to ``results/<campaign>/plan.yml``.

    Raises
    ------
    ValueError
        If there is no budget, the shortest possible campaign does not fit, or the device is not available and
        timings are missing.
    """
    campaign = campaigns.load(name, planned=False)
    budget, jobs = budget or campaign.budget, jobs or campaign.jobs
    if not budget:
        raise ValueError(f"campaign {campaign.name} has no budget; give one, such as --budget 25m")
    if campaign.calculators:
        raise ValueError(
            f"campaign {campaign.name} has models that are not trained ({', '.join(campaign.calculators)}), "
            "whose time cannot be planned; give limits (max_seconds) of training and rollout, and no budget"
        )
    total = seconds(budget)  # raises before anything is timed
    made = fit(campaign, timings(campaign, jobs=jobs), budget=total, jobs=jobs)
    made.write()
    return made


def makespan(lengths: Iterable[float], jobs: int) -> float:
    """Time at which the last of several tasks ends if each begins as soon as one of ``jobs`` places is free.

    Examples
    --------
    >>> makespan([3, 1, 1, 1, 4], jobs=2)
    7
    """
    ends: list[float] = [0] * jobs
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


# -- budgets --------------------------------------------------------------------------------------------


def fit(campaign: Campaign, costs: Mapping[tuple[str, str], Cost], *, budget: float, jobs: int) -> Plan:
    """:class:`Plan` of a campaign whose costs are known.

    Parameters
    ----------
    campaign
        :class:`~egraff_utils.campaign.Campaign`.
    costs
        ``{(dataset, model): Cost}`` of all its cells.
    budget
        Time for the whole campaign, s.
    jobs
        Number of runs at a time.

    Raises
    ------
    ValueError
        If the shortest trainings and full rollouts do not fit; the message names the smallest budget.
    """
    means = {d: np.mean([costs[d, m].train_step for m in campaign.models]) for d in campaign.datasets}
    weights = {dataset: math.sqrt(mean / min(means.values())) for dataset, mean in means.items()}

    def planned(unit: float) -> Plan:
        budgeted = replace(campaign, jobs=jobs, overrides=_overrides(campaign, costs, weights, unit))
        return Plan(budgeted, costs, budget=budget, jobs=jobs)

    low, high = LEAST_TRAINING, budget
    least = planned(low)
    if least.seconds > budget:
        needed = math.ceil(least.seconds / 60)
        raise ValueError(f"campaign {campaign.name} needs {needed} min at least, with {jobs} runs at a time")
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if planned(middle).seconds <= budget else (low, middle)
    return planned(low)


def _overrides(campaign, costs, weights, unit):
    """Overrides of a campaign with trainings of these lengths, and rollouts as long as they need to be."""
    found = {}
    for dataset in campaign.datasets:
        slowest = max(_rollout(campaign, costs[dataset, m], dataset, parts=1) for m in campaign.models)
        limits = {"training": weights[dataset] * unit, "rollout": max(LEAST_TRAINING, SPARE * slowest)}
        own = campaign.override(dataset)
        found[dataset] = replace(
            own,
            **{
                part: getattr(own, part) | {"max_seconds": float(math.floor(limit))}
                for part, limit in limits.items()
            },
        )
    return found


def _limits(campaign, dataset):
    own = campaign.override(dataset)
    return {part: {"max_seconds": getattr(own, part)["max_seconds"]} for part in ("training", "rollout")}


def _cell(campaign, costs, dataset, model, seed):
    """Predicted length of a cell from the start of its training to the end of its last task, s."""
    cost, card = costs[dataset, model], cards.dataset(dataset)
    training = _training(campaign, cost, dataset, model, seed)
    frames = {name: card.split(name).frames or 0 for name in ("train", "val", "test")}
    ready = cost.prepare_frame * (frames["train"] + frames["val"]) + cost.predict_frame * frames["test"]
    rollout = _rollout(campaign, cost, dataset, parts=len(card.parts("test")))
    tasks = [
        TASKS.get(task, 1.0) for _, task, *cell in campaign.task_cells() if cell == [dataset, model, seed]
    ]
    times = len(campaign.protocols(dataset)) + sum(tasks)
    runs = 1 + len(campaign.protocols(dataset)) + len(tasks)
    return cost.set_up + ready + training + times * rollout + runs * NOTEBOOK


def _training(campaign, cost, dataset, model, seed):
    """Predicted length of a training, s, which ends at the first of its limits of time, steps and epochs."""
    limits = campaign.training_parameters(dataset, model, seed)
    hyperparameters = cards.model(model).training(campaign.preset)
    frames = cards.dataset(dataset).split("train").frames or math.inf
    batches = frames / hyperparameters.batch_size
    steps = (limits["max_epochs"] or hyperparameters.max_epochs) * batches
    return min(limits["max_seconds"], cost.train_step * min(steps, limits["max_steps"] or math.inf))


def _rollout(campaign, cost, dataset, *, parts):
    steps = campaign.rollout_parameters(dataset, "", 0, "corrected")["steps"]
    return cost.start + parts * steps * cost.md_step


def _digits(value):
    """Whole number with two significant digits, such as 1,300."""
    return f"{round(value, 1 - math.floor(math.log10(max(value, 1)))):,.0f}"
