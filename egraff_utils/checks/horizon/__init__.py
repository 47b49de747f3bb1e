r"""How long does a model follow its reference? Simulations start from reference frames and velocities.

They are compared with the continuation of the reference at equal times. The force violation rises from the
error of a single prediction to the floor of two unrelated frames; the time at which it crosses half of the
floor is the predictability horizon. Symbols: S starts, T frames, N atoms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms

from egraff_utils import cards, data, records, statistics, weights
from egraff_utils.calculated import Calculated
from egraff_utils.checks.horizon.course import live_course, stored_course
from egraff_utils.checks.horizon.divergence import measure
from egraff_utils.checks.horizon.following import CONTROL_STARTS, follow
from egraff_utils.checks.horizon.friction import check_reference, forces_of
from egraff_utils.config import Config
from egraff_utils.md import analysis
from egraff_utils.md.calculator import ForceFieldCalculator, ReplicaCalculator, calculator_of
from egraff_utils.md.dynamics import Thermostat
from egraff_utils.md.frames import reference_of
from egraff_utils.models import ForceField
from egraff_utils.records import Metric

MOST_STARTS, MOST_ATOMS = 12, 400
"""Default number of starts, which is reduced so that a batch holds at most this number of atoms."""


@dataclass(frozen=True)
class HorizonConfig(Config):
    """One trained model and the reference that it should follow."""

    kind = "horizon"

    model: str
    """Architecture, whose weights are those of the training of the same campaign, dataset and seed."""
    dataset: str
    campaign: str = "demo"
    seed: int = 0
    """Seed of the training and of the noise."""
    starts: int | None = None
    """Number of starting frames; by default 12, fewer for large systems, but at least four."""
    duration: float | None = None
    """Duration of the simulations in which a perfect model would stay on its reference, fs; by default 250,
    at most two thirds of the stored frames, and 120 if the reference is simulated as well."""
    short: float = 100.0
    """Duration of the simulations in which a perfect model would leave its reference, because they lack the
    thermostat of the reference, fs."""
    friction: float = 5e-3
    """Friction of the thermostat in ``langevin``, inverse ASE time units, as in rollouts."""
    split: str = "test"
    device: str = "cpu"
    threads: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        self.require_positive("starts", "duration", "short", "friction")


def datasets() -> list[str]:
    """Names of the datasets with time-ordered test frames, which simulations can follow.

    LiPS20 is not among them, as its frames are draws from a trajectory, with gaps between them.

    >>> "ethanol" in datasets(), "lips20" in datasets()
    (True, False)
    """
    return [name for name in cards.datasets() if "test" in cards.dataset(name).time_ordered]


def horizon(config: HorizonConfig, *, force_field: ForceField | Calculated | None = None) -> records.Record:
    """Measure how long a trained force field follows the reference.

    All starts run in one batch, under three dynamics: ``langevin`` has the thermostat of the rollouts and the
    same noise for all models; ``nve`` has no thermostat; ``driven`` has the friction of the reference, which
    :func:`~egraff_utils.checks.horizon.friction.friction` determines, so that a perfect model would stay on
    it. If the dataset has an oracle, the reference is simulated under the same dynamics, with the same noise;
    a perfect model then follows ``nve`` exactly, and ``driven`` is identical to it.

    Parameters
    ----------
    config
        :class:`HorizonConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``horizon``, with the metrics and curves of
        :func:`~egraff_utils.checks.horizon.divergence.measure` for every dynamics that applies; there is no
        ``driven`` if no friction explains the reference. The status is ``unstable`` if a start broke; after
        its break its force violation counts as one. A stored record is returned if nothing has changed.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the frames of the dataset have no order in time, or are too few.
    """
    frames, interval = _frames(config.card, config.split)
    config = _settled(config, config.card, frames, interval)
    digests = {
        "weights": weights.digest(config, force_field),
        "data": records.digest(analysis.unwrap(frames), forces_of(frames)),
        "frames": data.scene_digest(config.dataset, config.split),
        "conditions": records.digest(config.card.conditions(config.split)),
    }
    return records.run(config, lambda: _followed(config, frames, interval, force_field), **digests)


def _followed(
    config: HorizonConfig,
    frames: Sequence[Atoms],
    interval: float,
    force_field: ForceField | Calculated | None,
) -> records.Outcome:
    card = config.card
    torch.set_num_threads(config.threads)
    force_field = force_field or weights.load(config)
    duration: float = config.duration  # type: ignore[assignment]  # settled
    starts: int = config.starts  # type: ignore[assignment]
    steps = [round(length / interval) for length in (duration, min(config.short, duration))]
    thermostat = Thermostat(card.conditions(config.split)[0], interval, config.friction, seed=config.seed)
    label = f"{config.model} on {card.name}" if config.progress else None
    if card.oracle is None:
        course = stored_course(frames, interval, starts=starts, steps=steps[0], short=steps[1])
    else:
        course = live_course(card, frames, interval, config, thermostat, steps[0])

    def make_calculator(replicas: int, skin: float = 1.0) -> ForceFieldCalculator | ReplicaCalculator:
        return calculator_of(force_field, torch.device(config.device), skin=skin, replicas=replicas)

    runs = follow(course, make_calculator, thermostat=thermostat, progress=label)
    found, curves = measure(course, runs, floor=_floor(frames))
    if card.oracle is not None:  # the reference has no friction, so ``driven`` is ``nve``
        found += [replace(m, name=m.name.replace("_nve", "_driven")) for m in found if "_nve" in m.name]
    checks = check_reference(frames, interval)
    found += [Metric(f"reference_{name}", *value) for name, value in checks.items()]
    broke = [
        f"{name}: start {end.replica} ({end.cause.words})"
        for name, run in runs.items()
        for end in run.breaks(interval)
    ]
    status, message = ("unstable" if broke else "complete"), "; ".join(broke)
    return records.Outcome(found, curves, status, message)


def _frames(card: cards.DatasetCard, split: str) -> tuple[list[Atoms], float]:
    """Consecutive frames of a time-ordered split, and the time between them, fs."""
    if split not in card.time_ordered:
        ordered = ", ".join(card.time_ordered) or "none"
        raise ValueError(
            f"frames of {card.name}/{split} do not follow each other in time; splits that do: {ordered}"
        )
    return reference_of(card, split=split), card.time_ordered[split]


def _settled(
    config: HorizonConfig, card: cards.DatasetCard, frames: Sequence[Atoms], interval: float
) -> HorizonConfig:
    """The config with default starts and duration where it does not set them."""
    stored = min(250.0, 2 * len(frames) // 3 * interval)
    duration = config.duration or (stored if card.oracle is None else 120.0)
    starts = config.starts or min(MOST_STARTS, max(CONTROL_STARTS, MOST_ATOMS // len(frames[0])))
    return replace(config, dataset=card.name, starts=starts, duration=duration)


def _floor(frames: Sequence[Atoms]) -> float:
    """FV of pairs of frames of the reference that are at least a quarter of its length apart."""
    energy = [atoms.get_potential_energy() for atoms in frames]
    return statistics.floor_ev_fv(energy, forces_of(frames), separation=len(frames) // 4)["fv"]
