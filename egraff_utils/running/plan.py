"""What fits into the available time? One step of every cell of a campaign is timed, and budgets are derived.

``python -m egraff_utils.running.plan CAMPAIGN --budget 25m --jobs 6``
"""

import argparse
import heapq
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from egraff_utils import campaign as campaigns
from egraff_utils import cards, paths, records, weights
from egraff_utils.config import Config, Key
from egraff_utils.records import Metric

FRAMES = 40  # frames of the training set, spread over it; they give eight steps per epoch
EPOCHS = 4  # the first one does not count, as everything is compiled in it
STEPS, WARM_UP = 30, 10  # steps of the dynamics, and the first ones, which do not count
MOST_SECONDS = 20.0  # s, limit of each of the two timings
NOTEBOOK = 8.0  # s that a notebook takes in addition to its work
LEAST_TRAINING = 10.0  # s, shortest training
SPARE = 2.0  # a rollout is stopped after this multiple of its predicted length
TASKS = {"horizon": 3.0}  # length of a task in rollouts of its dataset, if it is not one
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class TimingConfig(Config):
    """One cell whose steps are timed."""

    kind = "timing"
    WORKING_FIELDS = ("campaign", "dataset", "model", "seed")

    model: str
    dataset: str
    campaign: str = "demo"
    seed: int = 0
    preset: str = "small"
    replicas: int = 5
    device: str = "cpu"
    threads: int = 1
    jobs: int = 1
    """Number of cells that are timed at once, which is the number that will run at once."""


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

    def __init__(self, campaign, costs, *, budget, jobs):
        self.campaign, self.costs, self.budget, self.jobs = campaign, costs, budget, jobs

    @property
    def seconds(self):
        """Predicted wall time of the campaign, s."""
        lengths = [_cell(self.campaign, self.costs, *cell) for cell in self.campaign.cells()]
        pages = len(self.campaign.datasets) + _pages()
        return makespan([*lengths, *[NOTEBOOK] * pages], self.jobs)

    def table(self):
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

    def write(self):
        """Write the budgets to ``results/<campaign>/plan.yml``, where ``campaign.load`` finds them."""
        path = campaigns.plan_path(self.campaign.name)
        budgets = {dataset: _limits(self.campaign, dataset) for dataset in self.campaign.datasets}
        content = {"budget": self.budget, "predicted": round(self.seconds), "jobs": self.jobs}
        head = "# Budgets (s) made by egraff_utils.running.plan; remove this file to plan anew.\n"
        text = yaml.safe_dump(content | {"budgets": budgets}, sort_keys=False, default_flow_style=None)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text)
        return path

    def __repr__(self):
        total = (
            f"predicted: {self.seconds / 60:.1f} of {self.budget / 60:.1f} min, {self.jobs} runs at a time"
        )
        return f"{self.table().to_string()}\n{total}"


@dataclass(frozen=True)
class Cost:
    """Times that the parts of a cell take, s."""

    set_up: float
    """Loading frames and building the model."""
    train_step: float
    """One optimiser step, with its share of the validations."""
    md_step: float
    """One MD step of all replicas."""
    prepare_frame: float
    """Building the graph of a frame, once at the start of a training."""
    predict_frame: float
    """Prediction of a frame of the test set."""
    start: float
    """Additional time of the first steps of a rollout, in which the model is compiled."""

    @classmethod
    def of(cls, record):
        """Costs in a record of kind ``timing``."""
        return cls(**{name: record[name] / 1e3 for name in cls.__dataclass_fields__})


def make(name, *, budget=None, jobs=None):
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
    made = fit(campaign, timings(campaign, jobs=jobs), budget=seconds(budget), jobs=jobs)
    made.write()
    return made


def seconds(text):
    """Time in s, from a number of seconds or from a text such as ``25m``.

    Raises
    ------
    ValueError
        If the argument is neither.

    Examples
    --------
    >>> seconds("25m"), seconds("1h30m"), seconds("2d"), seconds(90)
    (1500.0, 5400.0, 172800.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(text))
    if not found or not any(found.groups()):
        raise ValueError(f"'{text}' is no time; write 90s, 25m, 1h30m or 2d")
    numbers = (float(number or 0) for number in found.groups())
    return sum(number * UNITS[unit] for number, unit in zip(numbers, "dhms", strict=True))


def makespan(lengths, jobs):
    """Time at which the last of several tasks ends if each begins as soon as one of ``jobs`` places is free.

    Examples
    --------
    >>> makespan([3, 1, 1, 1, 4], jobs=2)
    7
    """
    ends = [0] * jobs
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


# -- budgets --------------------------------------------------------------------------------------------


def fit(campaign, costs, *, budget, jobs):
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

    def planned(unit):
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
        parts = campaign.overrides.get(dataset, {})
        found[dataset] = {
            part: {**parts.get(part, {}), "max_seconds": float(math.floor(limit))}
            for part, limit in limits.items()
        }
    return found


def _limits(campaign, dataset):
    parts = campaign.overrides[dataset]
    return {part: {"max_seconds": parts[part]["max_seconds"]} for part in ("training", "rollout")}


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


def _pages():
    pages = cards.read_yaml(paths.ROOT / "params" / "book.yml")["pages"]
    return sum(page.startswith("report/") for page in pages)


def _digits(value):
    """Whole number with two significant digits, such as 1,300."""
    return f"{round(value, 1 - math.floor(math.log10(max(value, 1)))):,.0f}"


# -- timings --------------------------------------------------------------------------------------------


def timings(campaign, *, jobs):
    """Costs of all cells of a campaign, which are timed now if there is no stored timing on this hardware.

    If the device of the campaign is not available, stored timings on any hardware are used.

    Returns
    -------
    dict
        ``{(dataset, model): Cost}``. A model that could not be timed has the mean costs of the others on the
        dataset; its record says why.

    Raises
    ------
    ValueError
        If the device is not available and a timing is missing, or no model of a dataset could be timed.
    """
    configs = [_config(campaign, d, m, jobs) for d in campaign.datasets for m in campaign.models]
    hardware = _hardware(campaign.device)
    found = {config: _stored(config, hardware) for config in configs}
    missing = [config for config in configs if found[config] is None]
    if missing and hardware is None:
        names = ", ".join(f"{config.dataset}-{config.model}" for config in missing[:3])
        raise ValueError(
            f"{campaign.device} is not available, and {len(missing)} cells of campaign {campaign.name} have "
            f"no stored timing with {jobs} runs at a time ({names}, ...); plan where it is, or bring "
            f"{Key(TimingConfig.kind, campaign.name, '', '').path.parent}"
        )
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            label = f"timing {campaign.name}"
            done = tqdm(pool.map(measure, missing), desc=label, total=len(missing), file=sys.stderr)
            found |= dict(zip(missing, done, strict=True))
    return _costs(campaign, {(c.dataset, c.model): record for c, record in found.items()})


def _config(campaign, dataset, model, jobs):
    return TimingConfig(
        model,
        dataset,
        campaign.name,
        campaign.seeds[0],
        preset=campaign.preset,
        replicas=campaign.rollout_parameters(dataset, model, 0, "corrected")["replicas"],
        device=campaign.device,
        threads=campaign.threads,
        jobs=jobs,
    )


def _stored(config, hardware):
    """Stored timing of a cell on this hardware, or on any hardware if it is ``None``."""
    record = records.find(config.key, config.parameters())
    fits = record and hardware in (None, record.provenance.get("hardware"))
    return record if fits else None


def _hardware(device):
    """Name of the device, or ``None`` if it is not available."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    return records.provenance(time.time())["hardware"]


def _costs(campaign, found):
    costs = {cell: Cost.of(record) for cell, record in found.items() if record.status == "complete"}
    for dataset, model in found:
        others = [costs[dataset, m] for m in campaign.models if (dataset, m) in costs]
        if not others:
            raise ValueError(f"no model could be timed on {dataset}: {found[dataset, model].message}")
        mean = {name: np.mean([getattr(c, name) for c in others]) for name in Cost.__dataclass_fields__}
        costs.setdefault((dataset, model), Cost(**mean))
    return costs


def measure(config):
    """Time the steps of a cell in this process, on a few frames; the record is written.

    Parameters
    ----------
    config
        :class:`TimingConfig`.

    Returns
    -------
    Record
        Kind ``timing``, with the metrics of :class:`Cost`, ms. The status is ``failed`` if the cell could not
        be run; the message gives the reason.
    """
    started = time.time()
    status, message, metrics = "complete", "", []
    try:
        metrics = [Metric(name, 1e3 * value, "ms") for name, value in asdict(_timed(config)).items()]
    except Exception as error:  # the other cells can be planned whatever the error is
        status, message = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    made = records.provenance(started, device=config.device, threads=config.threads)
    record = records.Record(*config.key, config.parameters(), metrics, status, message, made)
    records.write(record)
    return record


def _timed(config):
    """:class:`Cost` from a short training on a thinned dataset and a short simulation with its weights."""
    import torch

    from egraff_utils import data, train

    torch.set_num_threads(config.threads)
    card, clock = cards.dataset(config.dataset), records.clock(config.device)
    began = clock()
    training, force_field = _briefly_trained(config, _thin(card))
    set_up = clock() - began - training["seconds"]
    sample = data.load(_thin(card), "train")[: FRAMES // 4]
    marks = [clock()]
    for _ in range(2):
        _predict(force_field, sample)
        marks.append(clock())
    train.Batches(sample, 5, cutoff=force_field.cutoff, device=config.device)
    first, again, prepared = np.diff([*marks, clock()])
    step, start = _simulated(config, card, force_field, clock)
    return Cost(
        set_up=max(0.0, set_up),
        train_step=_train_step(training),
        md_step=step,
        prepare_frame=prepared / len(sample),
        predict_frame=again / len(sample),
        start=start + max(0.0, first - again),
    )


def _briefly_trained(config, card):
    """Record and force field of a short training whose files are removed."""
    from egraff_utils import train

    options = {name: getattr(config, name) for name in ("preset", "seed", "device", "threads")}
    limits = {"max_epochs": EPOCHS, "max_seconds": MOST_SECONDS}
    few = train.TrainConfig(config.model, card, progress=False, **limits, **options)
    with tempfile.TemporaryDirectory() as folder, _elsewhere(folder):
        training = train.fit(few)
        force_field = weights.load(few)
        return training, force_field.to(config.device)


def _predict(force_field, frames):
    from egraff_utils.graph import build_graph

    force_field.eval()
    graph = build_graph(frames, force_field.cutoff)
    return force_field(graph.to(force_field.scale.device, dtype=force_field.dtype)).forces.cpu()


class _elsewhere:
    """Context in which records and checkpoints are stored in another folder."""

    def __init__(self, folder):
        self.wanted = {"EGRAFF_RESULTS": f"{folder}/results", "EGRAFF_RUNS": f"{folder}/runs"}

    def __enter__(self):
        self.before = {name: os.environ.get(name) for name in self.wanted}
        os.environ.update(self.wanted)

    def __exit__(self, *_):
        for name, value in self.before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _thin(card):
    """Card of the same dataset with a few equally spaced frames of every split, and all elements."""
    few = {"train": FRAMES, "val": FRAMES // 8, "test": FRAMES // 8}
    thin = replace(card, splits=card.splits | {s: _thin_split(card.split(s), n) for s, n in few.items()})
    return replace(thin, splits=thin.splits | {"train": _with_all_elements(thin, card)})


def _with_all_elements(thin, card):
    """Training split of a thinned card, with the first frames of the full one that add an element."""
    from egraff_utils import data

    split = thin.split("train")
    seen, parts = {z for atoms in data.load(thin, "train") for z in atoms.numbers}, list(split.parts)
    for atoms in data.load(card, "train"):
        if set(atoms.numbers) - seen:
            source, index = atoms.info["source"], atoms.info["frame"]
            parts.append(cards.Part(source, f"{index}:{index + 1}"))
            seen.update(atoms.numbers)
    return replace(split, parts=parts)


def _thin_split(split, frames):
    every = math.ceil((split.frames or frames) / frames)
    return replace(split, frames=None, parts=[_thin_part(part, every) for part in split.parts])


def _thin_part(part, every):
    start, stop, step = (*part.slice.split(":"), "")[:3]
    return replace(part, slice=f"{start}:{stop}:{int(step or 1) * every}")


def _train_step(record):
    """Seconds per step after the first epoch, or over all steps if there was only one epoch."""
    steps, times = record.curves["step"], record.curves["seconds"]
    if len(steps) < 2:
        return record["seconds"] / record["steps"]
    return (times[-1] - times[0]) / (steps[-1] - steps[0])


def _simulated(config, card, force_field, clock):
    """Seconds of an MD step, and additional seconds of the first steps."""
    from egraff_utils.md.calculator import ForceFieldCalculator
    from egraff_utils.md.dynamics import Thermostat, simulate

    split = _typical_part(card)
    temperature, timestep = card.conditions(split)
    starts = _starts(card, split, config.replicas, temperature, config.seed)
    trajectory = simulate(
        starts,
        lambda n: ForceFieldCalculator(force_field, config.device, replicas=n),
        thermostat=Thermostat(temperature, timestep),
        steps=STEPS,
        max_seconds=MOST_SECONDS,
        clock=clock,
    )
    times = trajectory.step_times
    settled = times[min(WARM_UP, len(times) - 1) :]
    step = float(np.mean(settled))
    return step, max(0.0, float(times.sum()) - step * len(times))


def _typical_part(card):
    """Split of the composition whose number of atoms is nearest the mean; ``test`` if there is only one."""
    from egraff_utils import data

    sizes = {part: len(data.load(card, part)[0]) for part in card.parts("test")}
    return min(sizes, key=lambda part: abs(sizes[part] - np.mean(list(sizes.values()))))


def _starts(card, split, replicas, temperature, seed):
    from egraff_utils import data
    from egraff_utils.md.temperature import draw_velocities

    frames = data.load(card, split)
    starts = [atoms.copy() for atoms in frames if np.array_equal(atoms.numbers, frames[0].numbers)][:replicas]
    for replica, atoms in enumerate(starts):
        draw_velocities(atoms, temperature, np.random.default_rng([seed, replica]))
    return starts


def main(arguments=None):
    """Run the command line; returns the exit status, 2 if the campaign cannot be planned."""
    parser = argparse.ArgumentParser(
        prog="python -m egraff_utils.running.plan", description=__doc__.splitlines()[0]
    )
    parser.add_argument("campaign", help="name of a file in params/, or a path")
    parser.add_argument("--budget", help="time for the whole campaign, such as 25m or 1h30m")
    parser.add_argument("--jobs", type=int, help="number of runs at a time; by default that of the campaign")
    chosen = parser.parse_args(arguments)
    try:
        print(make(chosen.campaign, budget=chosen.budget, jobs=chosen.jobs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
