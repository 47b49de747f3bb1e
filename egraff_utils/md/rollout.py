"""Does a force field survive simulation? Rollouts of a trained model are compared with its reference.

There are two protocols, which are never mixed. ``as_coded`` does what the published code does: starting
frames are consecutive, every run starts at 0 K, and frame t is compared with frame t of the reference even if
the two are unrelated. In ``corrected``, starts are spread over the reference and have its temperature, every
model receives the same noise, and a run is compared with the continuation of its own start where there is
one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from egraff_utils import cards, data, paths, records, reference, weights
from egraff_utils.breaks import Break, account
from egraff_utils.calculated import Calculated
from egraff_utils.config import AS_CODED, Config, Kind
from egraff_utils.md import analysis, averages, own_frames, pressure, stability
from egraff_utils.md.calculator import ReplicaCalculator, calculator_of
from egraff_utils.md.dynamics import PER_FRAME, Thermostat, Trajectory, simulate
from egraff_utils.md.frames import match_frames, reference_of, start_frames
from egraff_utils.md.temperature import draw_velocities, kinetic_temperature, rest, stationary_ratio
from egraff_utils.models import ForceField

PROTOCOLS = ("corrected", AS_CODED)
VERSION = 2
"""What the starts and the stored curves of a rollout mean; a record of another version is made anew.

Drawn velocities have the temperature over 3N - 3 degrees of freedom; starts have both neighbours; stored
energies are exact to 1e-6 eV; a replica that heats counts as broken, and records hold the atoms at which a
replica broke and the temperature of its start.
"""
OWN_NOISE = 1_000_003
"""Added to the seed of the noise of a model that is the reference method itself. With the noise of the
reference trajectory it would repeat that trajectory instead of showing what a perfect model can reach."""


@dataclass(frozen=True)
class RolloutConfig(Config):
    """One rollout: replicas of one trained model on one dataset."""

    WORKING_FIELDS = (*Config.WORKING_FIELDS, "skin", "keep")

    model: str
    """Architecture, whose weights are those of the training of the same campaign, dataset and seed; name or
    path of the card of a calculator; or ``"reference"`` for the oracle of the dataset, the perfect model,
    which runs with noise of its own."""
    dataset: str
    campaign: str = "demo"
    seed: int = 0
    """Seed of the training, of the initial velocities and of the noise."""
    protocol: str = "corrected"
    """``corrected`` or ``as_coded``."""
    replicas: int = 5
    steps: int = 1000
    max_seconds: float | None = None
    """Time after which the simulation ends early, s: on a CPU the processor time, on a GPU the wall time."""
    temperature: float | None = None
    """Temperature of the thermostat, K; by default that of the split."""
    timestep: float | None = None
    """Timestep, fs; by default that of the split."""
    friction: float = 5e-3
    """Friction, inverse ASE time units; the published 5e-3 is 0.491 per ps."""
    split: str = "test"
    """Split that provides the starting frames and the reference."""
    target: str | None = None
    """Dataset that the split belongs to, if it is not the one trained on."""
    record_every: int = 1
    """Steps between recorded frames."""
    checkpoint_every: int = 100
    """Steps between checkpoints, at which the stability rule is applied too; raised to 50 recorded frames."""
    skin: float = 1.0
    """Skin of the neighbour list, Å; it does not change the result."""
    device: str = "cpu"
    threads: int = 1
    progress: bool = True
    keep: str | None = None
    """Format in which the trajectories are kept (:func:`kept`): ``xyz`` (extended xyz), ``traj`` (that of
    ASE), or None for not at all. A run whose record is stored without them is run again."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise cards.unknown("protocol", self.protocol, PROTOCOLS)
        self.require_positive("replicas", "steps", "record_every", "checkpoint_every", "threads", whole=True)
        self.require_positive("friction", "temperature", "timestep", "max_seconds")
        if not self.skin >= 0:
            raise ValueError(f"skin must not be negative, not {self.skin}")
        if self.keep not in (None, "xyz", "traj"):
            raise ValueError(f"trajectories are kept as xyz or traj, not as {self.keep}")

    def parameters(self) -> dict:
        """What determines the result, as stored in the record, with :data:`VERSION`."""
        parameters = super().parameters() | {"version": VERSION}
        if self.target is None:
            parameters.pop("target")
        return parameters

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """:class:`~egraff_utils.config.Kind` ``rollout`` with the protocol and the shift."""
        protocol = self.protocol if self.protocol == AS_CODED else ""
        return Kind("rollout", protocol, cards.shift(self.split, self.target))


def roll_out(config: RolloutConfig, *, force_field: ForceField | Calculated | None = None) -> records.Record:
    """Simulate replicas of a trained force field and compare them with the reference.

    A replica that breaks leaves the batch while the others continue; its metrics are those of its valid part.
    A run that was killed continues from its last checkpoint, on a CPU to bitwise identical numbers. The
    compositions of a split are rolled out separately, with a record each; the returned record pools their
    replicas.

    Parameters
    ----------
    config
        :class:`RolloutConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``rollout`` or ``rollout_as_coded``. Metrics and curves are those of
        :mod:`egraff_utils.md.analysis`, where the dataset has an oracle of
        :func:`egraff_utils.md.own_frames.label`, and where its frames have a stress of
        :func:`egraff_utils.md.pressure.compare`. A stored record is returned if it has the same parameters
        and was made with the same weights and frames. The status is ``unstable`` if a replica broke; the
        message says when and why.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the dataset, split or model is unknown, there are fewer frames than replicas, or frames differ in
        composition, cell, periodicity or masses.
    """
    if len(several := parts(config)) > 1:
        return _pooled(config, {part.split: roll_out(part, force_field=force_field) for part in several})
    card = cards.dataset(config.target or config.dataset)
    config = _settled(config, card)
    digests = _digests(config, card, force_field)
    record = records.run(config, lambda: _rolled_out(config, card, force_field, digests), **digests)
    if config.keep and not _files(config, digests):
        _rolled_out(config, card, force_field, digests)
    return record


def _digests(
    config: RolloutConfig, card: cards.DatasetCard, force_field: ForceField | Calculated | None = None
) -> dict[str, str | None]:
    frames = data.scene_digest(card, config.split)
    return {"weights": weights.digest(config, force_field), "frames": frames}


def kept(config: RolloutConfig, *, force_field: ForceField | Calculated | None = None) -> list[Path]:
    """Files of the trajectories that :func:`roll_out` has kept, a list of paths, one for every replica.

    They lie in ``runs/<campaign>/trajectories/``, since they are large and can be made again, and are read by
    ``ase.io.read(path, ":")``. Those of several compositions follow each other.
    """
    card = cards.dataset(config.target or config.dataset)
    settled = [_settled(part, card) for part in parts(config)]
    return [path for part in settled for path in _files(part, _digests(part, card, force_field))]


def _files(config: RolloutConfig, digests: Mapping[str, str | None]) -> list[Path]:
    found = _keeping(config, digests).glob(f"replica-*.{config.keep}")
    return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))


def _keeping(config: RolloutConfig, digests: Mapping[str, str | None]) -> Path:
    """Folder of kept trajectories, whose name has a digest of everything that determines them."""
    name = (
        f"{config.dataset}-{config.key.model}-s{config.seed}-{records.digest(config.parameters(), digests)}"
    )
    return paths.runs() / config.campaign / "trajectories" / str(config.kind) / name


def _rolled_out(
    config: RolloutConfig,
    card: cards.DatasetCard,
    force_field: ForceField | Calculated | None,
    digests: Mapping[str, str | None],
) -> records.Outcome:
    torch.set_num_threads(config.threads)
    try:
        make_calculator = _calculators(config, card, force_field)
    except FileNotFoundError:  # the model has to be trained first, which may be in vain
        frames, *_ = _begun(config, card)
        with _of(card, config.split):
            _rule(config, card, frames)
        raise
    scene = _scene(config, card)
    checkpoint = _checkpoint(config, digests["weights"], scene)
    trajectory = simulate(
        scene.starts,
        make_calculator,
        rule=_rule(config, card, scene.frames),
        checkpoint=checkpoint,
        max_seconds=config.max_seconds,
        clock=records.clock(config.device),
        progress=f"{config.model} on {config.dataset}" if config.progress else None,
        **_dynamics(config, noise=OWN_NOISE if config.model == "reference" else 0),
    )
    if config.keep:
        folder, timestep = _keeping(config, digests), config.timestep
        trajectory.write(folder, scene.starts[0], timestep, config.keep)  # type: ignore[arg-type]  # settled
    outcome = _judged(config, card, scene, trajectory, make_calculator)
    return replace(outcome, checkpoint=checkpoint.parent)


def parts(config: RolloutConfig) -> list[RolloutConfig]:
    """Configs of the compositions of a split, a list; only the config itself if there is just one.

    Examples
    --------
    >>> [part.split for part in parts(RolloutConfig("mace", "lips20", split="crystals"))]
    ['beta-Li3PS4', 'gamma-Li3PS4', 'Li2PS3-hex', 'Li2PS3-orth']
    """
    card = cards.dataset(config.target or config.dataset)
    return [replace(config, split=split) for split in card.parts(config.split)]


def check(config: RolloutConfig) -> None:
    """Reject a rollout that its frames do not allow. This needs no trained model and simulates nothing.

    Raises
    ------
    ValueError
        If :func:`roll_out` would raise one for the frames, or if they have no g(r), without which a rollout
        has no saturation levels; the message names dataset, split and remedy.
    """
    for part in parts(config):
        card = cards.dataset(part.target or part.dataset)
        part = replace(_settled(part, card), steps=1, record_every=1)
        frames, first, _ = _begun(part, card)
        with _of(card, part.split):
            _rule(part, card, frames)
            _check_distances(_stored(part, card, frames, first))


@contextmanager
def _of(card: cards.DatasetCard, split: str) -> Iterator[None]:
    """Context in which the message of a ``ValueError`` begins with dataset and split."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{card.name}/{split}: {error}") from error


def _pooled(config: RolloutConfig, found: Mapping[str, records.Record]) -> records.Record:
    """Record that pools the replicas of several compositions, or the stored one of the same parts."""
    config = replace(config, dataset=cards.dataset(config.dataset).name)
    parts = records.digest(*[record.path for record in found.values()])
    return records.run(config, lambda: _pool(found), parts=parts)


def _pool(found: Mapping[str, records.Record]) -> records.Outcome:
    metrics, curves = averages.pool(found)
    first, *_ = found.values()
    message = "; ".join(f"{name}: {record.message}" for name, record in found.items() if record.message)
    before = np.cumsum([0, *(len(record.curves["stable_step"]) for record in found.values())])
    breaks = [
        replace(end, replica=int(end.replica + count))
        for record, count in zip(found.values(), before, strict=False)
        for end in record.breaks
    ]
    wall_time = round(sum(part.provenance["wall_time"] for part in found.values()), 1)
    made = {name: value for name, value in first.provenance.items() if name != "started"}
    made["wall_time"] = wall_time
    return records.Outcome(metrics, curves, message=message, breaks=breaks, provenance=made)


# -- what is rolled out ---------------------------------------------------------------------------------


def _calculators(
    config: RolloutConfig, card: cards.DatasetCard, force_field: ForceField | Calculated | None
) -> Callable[[int], Calculator]:
    """Function that returns a calculator for n replicas."""
    model = weights.load(config) if force_field is None else force_field
    device, skin = torch.device(config.device), config.skin
    calculator_of(model, device)  # so that an error is raised now rather than during the simulation
    return lambda n: calculator_of(model, device, skin=skin, replicas=n)


def _oracles(card: cards.DatasetCard) -> Callable[[int], Calculator]:
    reference.calculator(card)  # so that an error is raised now rather than during the simulation
    return lambda n: ReplicaCalculator([reference.calculator(card) for _ in range(n)])


def _settled(config: RolloutConfig, card: cards.DatasetCard) -> RolloutConfig:
    """The config, with the temperature and timestep of the split where it does not set them."""
    temperature, timestep = card.conditions(config.split)
    return replace(
        config,
        dataset=cards.dataset(config.dataset).name,
        target=config.target and card.name,
        temperature=temperature if config.temperature is None else config.temperature,
        timestep=timestep if config.timestep is None else config.timestep,
    )


def _dynamics(config: RolloutConfig, *, noise: int = 0) -> dict[str, Any]:
    """Arguments of :func:`~egraff_utils.md.dynamics.simulate` that the model and a live reference share.

    ``noise`` is added to the seed of the noise.
    """
    thermostat = Thermostat(
        temperature=config.temperature,  # type: ignore[arg-type]  # settled
        timestep=config.timestep,  # type: ignore[arg-type]
        friction=config.friction,
        center_of_mass="ase" if config.protocol == AS_CODED else "exact",
        seed=config.seed + noise,
    )
    return {
        "thermostat": thermostat,
        "steps": config.steps,
        "record_every": config.record_every,
        "checkpoint_every": max(config.checkpoint_every, stability.RULE_WINDOW * config.record_every),
    }


def _rule(config: RolloutConfig, card: cards.DatasetCard, frames: Sequence[Atoms]) -> stability.Rule:
    """Stability rule; the noise as coded has a stationary temperature of its own."""
    as_coded = config.protocol == AS_CODED and len(frames[0]) > 1
    ratio = stationary_ratio(frames[0].get_masses()) if as_coded else 1.0
    warm = config.temperature * ratio  # type: ignore[operator]  # settled
    interval = config.timestep * config.record_every  # type: ignore[operator]
    return stability.rule(card, frames, temperature=warm, interval=interval)


def _checkpoint(config: RolloutConfig, weights: str | None, scene: "Scene") -> Path:
    """Path of the checkpoint; the name of its folder has a digest of everything that the run depends on."""
    mark = records.digest(config.parameters(), weights, scene.digest)
    name = f"{config.dataset}-{config.model}-s{config.seed}-{config.protocol}-{mark}"
    return paths.runs() / config.campaign / "rollout" / name / "state.npz"


# -- where it starts, and what it is compared with ------------------------------------------------------


class Scene(NamedTuple):
    """Starts of the replicas and their reference."""

    frames: list[Atoms]
    """Frames of the split, of one composition, starting with the first contiguous one."""
    first: list[int]
    """Index in ``frames`` of the start of each replica."""
    starts: list[Atoms]
    """Starting structures with momenta, R ``ase.Atoms``."""
    reference: analysis.Reference
    digest: str
    """Hash of the starts."""


def _scene(config: RolloutConfig, card: cards.DatasetCard) -> "Scene":
    frames, first, starts = _begun(config, card)
    arrays = [[a.numbers, a.positions, a.get_momenta(), a.get_masses(), a.cell.array, a.pbc] for a in starts]
    digest = records.digest(*sum(arrays, []))
    live = config.protocol == "corrected" and card.oracle is not None
    with _of(card, config.split):
        found = _live(config, card, frames, starts, digest) if live else _stored(config, card, frames, first)
    return Scene(frames, first, starts, found, digest)


def _begun(config: RolloutConfig, card: cards.DatasetCard) -> tuple[list[Atoms], list[int], list[Atoms]]:
    """Frames of the split, the indices of the starts among them, and the starts."""
    frames = reference_of(card, split=config.split)
    with _of(card, config.split):
        first = start_frames(config, len(frames), ordered=config.split in card.time_ordered)
    starts = [_start(config, card, frames, i, replica) for replica, i in enumerate(first)]
    if card.oracle is not None:
        reference.calculator(card, starts[0])  # so that an error is raised before the simulation
    return frames, first, starts


def _check_distances(found: analysis.Reference) -> None:
    """Reject a reference without a radial distribution, with which no run can be compared."""
    if not found.rdf.total.any():
        reach = found.rdf.r[-1] + found.rdf.r[0]
        raise ValueError(
            f"no two atoms are within {reach:g} Å, up to which g(r) is compared in a cell of this size; "
            "repeat the cell"
        )


def _start(
    config: RolloutConfig, card: cards.DatasetCard, frames: Sequence[Atoms], index: int, replica: int
) -> Atoms:
    """Starting structure with momenta.

    The momenta are zero with ``as_coded``, those of the reference in a time-ordered split, else thermal.
    """
    atoms = frames[index].copy()
    if config.protocol == AS_CODED:
        atoms.set_momenta(np.zeros((len(atoms), 3)))
    elif config.split in card.time_ordered:
        atoms.set_velocities(reference.velocities(frames, index, card.time_ordered[config.split]))
        rest(atoms)
    else:
        rng = np.random.default_rng([config.seed, replica, 0])
        draw_velocities(atoms, config.temperature, rng)  # type: ignore[arg-type]  # settled
    return atoms


def _stored(
    config: RolloutConfig, card: cards.DatasetCard, frames: Sequence[Atoms], first: Sequence[int]
) -> analysis.Reference:
    """Reference from the frames of the split, matched by time in a time-ordered split, else by index."""
    steps = np.arange(0, config.steps + 1, config.record_every)
    interval = card.time_ordered.get(config.split)
    contiguous = config.protocol == "corrected" and interval is not None
    if contiguous:
        index = match_frames(
            first,
            steps,
            config.timestep,  # type: ignore[arg-type]  # settled
            interval=interval,  # type: ignore[arg-type]  # as contiguous says
            total=len(frames),
        )
    else:
        index = (np.array(first)[:, None] + steps) % len(frames)
    return analysis.Reference.from_frames(frames, index, contiguous=contiguous)


def _live(
    config: RolloutConfig,
    card: cards.DatasetCard,
    frames: Sequence[Atoms],
    starts: Sequence[Atoms],
    digest: str,
) -> analysis.Reference:
    """Reference simulated by the dataset's oracle with the same starts and noise; cached for all models."""
    dynamics = _dynamics(config)
    settings = asdict(dynamics["thermostat"]) | {"steps": config.steps, "every": config.record_every}
    mark = records.digest(card.oracle, digest, settings, config.checkpoint_every, PER_FRAME)
    path = paths.generated() / "trajectories" / f"{card.name}-{mark}.npz"
    label = f"reference of {card.name}" if config.progress else None
    reference.made_once(
        path, lambda temporary: simulate(starts, _oracles(card), progress=label, **dynamics).save(temporary)
    )
    return analysis.Reference.from_trajectory(Trajectory.load(path), frames)


# -- the record -----------------------------------------------------------------------------------------


def _judged(
    config: RolloutConfig,
    card: cards.DatasetCard,
    scene: "Scene",
    trajectory: Trajectory,
    make_calculator: Callable[[int], Calculator],
) -> records.Outcome:
    """Outcome of a rollout: metrics, curves and breaks of its trajectory."""
    start = scene.starts[0]
    lengths: dict[str, Any] = {"timestep": config.timestep, "steps": config.steps}
    metrics, curves = analysis.measure(trajectory, start, scene.reference, **lengths)
    if card.oracle is not None:
        errors, labelled = own_frames.label(trajectory, start, reference.calculator(card))
        metrics, curves = metrics + errors, curves | labelled
    temperature: float = config.temperature  # type: ignore[assignment]  # settled
    pressures, on_frames = pressure.compare(
        trajectory, scene.frames, make_calculator, temperature=temperature
    )
    metrics, curves = metrics + pressures, curves | on_frames
    curves["start_frame"] = np.array(scene.first)
    momenta = np.stack([atoms.get_momenta() for atoms in scene.starts])
    curves["start_temperature"] = kinetic_temperature(momenta, start.get_masses())
    breaks = trajectory.breaks(config.timestep)  # type: ignore[arg-type]  # settled
    message = _message(breaks, trajectory.step, config)
    return records.Outcome(metrics, curves, message=message, breaks=breaks, provenance={"data": scene.digest})


def _message(breaks: Sequence[Break], step: int, config: RolloutConfig) -> str:
    """Message of the record: which replicas broke, when and why, and whether the time limit ended the run."""
    parts = [account(breaks, config.replicas)] if breaks else []
    if step < config.steps and len(breaks) < config.replicas:
        parts.append(f"ended after {step} of {config.steps} steps at {config.max_seconds:g} s")
    return "; ".join(parts)
