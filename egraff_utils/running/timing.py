"""What does a step of every cell of a campaign cost? A short training and a short simulation are timed."""

import math
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
from tqdm import tqdm

from egraff_utils import cards, records, weights
from egraff_utils.campaign import Campaign
from egraff_utils.config import Config, Key
from egraff_utils.records import Metric, Record
from egraff_utils.running import cost

FRAMES = 40  # frames of the training set, spread over it; they give eight steps per epoch
EPOCHS = 4  # the first one does not count, as everything is compiled in it
STEPS, WARM_UP = 30, 10  # steps of the dynamics, and the first ones, which do not count
MOST_SECONDS = 20.0  # s, limit of each of the two timings


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
    def of(cls, record: Record) -> "Cost":
        """Costs in a record of kind ``timing``."""
        # the times of a complete record are numbers
        return cls(**{name: record[name] / 1e3 for name in cls.__dataclass_fields__})  # type: ignore[operator]


def timings(campaign: Campaign, *, jobs: int) -> dict[tuple[str, str], Cost]:
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


def measure(config: TimingConfig) -> Record:
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

    from egraff_utils import accuracy, data, train

    torch.set_num_threads(config.threads)
    card, clock = cards.dataset(config.dataset), records.clock(config.device)
    began = clock()
    training, force_field = _briefly_trained(config, _thin(card))
    set_up = clock() - began - training["seconds"]
    sample = data.load(_thin(card), "train")[: FRAMES // 4]
    marks = [clock()]
    for _ in range(2):
        accuracy.predict(force_field, sample, batch_size=len(sample))
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
    from egraff_utils import data

    split = _typical_part(card)
    temperature, timestep = card.conditions(split)
    options = {"replicas": config.replicas, "device": config.device, "seed": config.seed}
    options |= {"temperature": temperature, "timestep": timestep}
    step = cost.stepper(force_field, data.load(card, split)[0], **options)
    marks = [clock()]
    while len(marks) <= STEPS and marks[-1] - marks[0] < MOST_SECONDS:
        step()
        marks.append(clock())
    times = np.diff(marks)
    settled = float(np.mean(times[min(WARM_UP, len(times) - 1) :]))
    return settled, max(0.0, float(times.sum()) - settled * len(times))


def _typical_part(card):
    """Split of the composition whose number of atoms is nearest the mean; ``test`` if there is only one."""
    from egraff_utils import data

    sizes = {part: len(data.load(card, part)[0]) for part in card.parts("test")}
    return min(sizes, key=lambda part: abs(sizes[part] - np.mean(list(sizes.values()))))
