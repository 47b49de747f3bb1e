"""Does a force field survive simulation? Rollouts of a trained model are compared with its reference.

There are two protocols, which are never mixed. ``as_coded`` does what the published code does: starting
frames are consecutive, every run starts at 0 K, and frame t is compared with frame t of the reference even if
the two are unrelated. In ``corrected``, starts are spread over the reference and have its temperature, every
model receives the same noise, and a run is compared with the continuation of its own start where there is
one.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from egraff_utils import cards, data, paths, records, reference, weights
from egraff_utils.breaks import account
from egraff_utils.config import AS_CODED, Config, Kind
from egraff_utils.md import analysis, averages, own_frames, stability
from egraff_utils.md.calculator import ReplicaCalculator, calculator_of, difference
from egraff_utils.md.dynamics import PER_FRAME, Thermostat, Trajectory, simulate
from egraff_utils.md.temperature import draw_velocities, kinetic_temperature, rest, stationary_ratio

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

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise cards.unknown("protocol", self.protocol, PROTOCOLS)
        self.require_positive("replicas", "steps", "record_every", "checkpoint_every", "threads", whole=True)
        self.require_positive("friction", "temperature", "timestep", "max_seconds")
        if not self.skin >= 0:
            raise ValueError(f"skin must not be negative, not {self.skin}")
        if self.keep not in (None, "xyz", "traj"):
            raise ValueError(f"trajectories are kept as xyz or traj, not as {self.keep}")

    def parameters(self):
        """What determines the result, as stored in the record, with :data:`VERSION`."""
        parameters = super().parameters() | {"version": VERSION}
        if self.target is None:
            parameters.pop("target")
        return parameters

    @property
    def kind(self):
        """:class:`~egraff_utils.config.Kind` ``rollout`` with the protocol and the shift."""
        protocol = self.protocol if self.protocol == AS_CODED else ""
        return Kind("rollout", protocol, cards.shift(self.split, self.target))


def roll_out(config, *, force_field=None):
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
        :mod:`egraff_utils.md.analysis` and, where the dataset has an oracle, of
        :func:`egraff_utils.md.own_frames.label`. A stored record is returned if it has the same parameters
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


def _digests(config, card, force_field=None):
    frames = data.scene_digest(card, config.split)
    return {"weights": weights.digest(config, force_field), "frames": frames}


def kept(config, *, force_field=None):
    """Files of the trajectories that :func:`roll_out` has kept, a list of paths, one for every replica.

    They lie in ``runs/<campaign>/trajectories/``, since they are large and can be made again, and are read by
    ``ase.io.read(path, ":")``. Those of several compositions follow each other.
    """
    card = cards.dataset(config.target or config.dataset)
    settled = [_settled(part, card) for part in parts(config)]
    return [path for part in settled for path in _files(part, _digests(part, card, force_field))]


def _files(config, digests):
    found = _keeping(config, digests).glob(f"replica-*.{config.keep}")
    return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))


def _keeping(config, digests):
    """Folder of kept trajectories, whose name has a digest of everything that determines them."""
    name = (
        f"{config.dataset}-{config.key.model}-s{config.seed}-{records.digest(config.parameters(), digests)}"
    )
    return paths.runs() / config.campaign / "trajectories" / str(config.kind) / name


def _rolled_out(config, card, force_field, digests):
    torch.set_num_threads(config.threads)
    make_calculator = _calculators(config, card, force_field)
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
        trajectory.write(_keeping(config, digests), scene.starts[0], config.timestep, config.keep)
    return replace(_judged(config, card, scene, trajectory), checkpoint=checkpoint.parent)


def parts(config):
    """Configs of the compositions of a split, a list; only the config itself if there is just one.

    Examples
    --------
    >>> [part.split for part in parts(RolloutConfig("mace", "lips20", split="crystals"))]
    ['beta-Li3PS4', 'gamma-Li3PS4', 'Li2PS3-hex', 'Li2PS3-orth']
    """
    card = cards.dataset(config.target or config.dataset)
    return [replace(config, split=split) for split in card.parts(config.split)]


def _pooled(config, found):
    """Record that pools the replicas of several compositions, or the stored one of the same parts."""
    config = replace(config, dataset=cards.dataset(config.dataset).name)
    parts = records.digest(*[record.path for record in found.values()])
    return records.run(config, lambda: _pool(found), parts=parts)


def _pool(found):
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


def _calculators(config, card, force_field):
    """Function that returns a calculator for n replicas."""
    model = weights.load(config) if force_field is None else force_field
    device, skin = torch.device(config.device), config.skin
    calculator_of(model, device)  # so that an error is raised now rather than during the simulation
    return lambda n: calculator_of(model, device, skin=skin, replicas=n)


def _oracles(card):
    reference.calculator(card)  # so that an error is raised now rather than during the simulation
    return lambda n: ReplicaCalculator([reference.calculator(card) for _ in range(n)])


def _settled(config, card):
    """The config, with the temperature and timestep of the split where it does not set them."""
    temperature, timestep = card.conditions(config.split)
    return replace(
        config,
        dataset=cards.dataset(config.dataset).name,
        target=config.target and card.name,
        temperature=temperature if config.temperature is None else config.temperature,
        timestep=timestep if config.timestep is None else config.timestep,
    )


def _dynamics(config, *, noise=0):
    """Arguments of :func:`~egraff_utils.md.dynamics.simulate` that the model and a live reference share.

    ``noise`` is added to the seed of the noise.
    """
    thermostat = Thermostat(
        temperature=config.temperature,
        timestep=config.timestep,
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


def _rule(config, card, frames):
    """Stability rule; the noise as coded has a stationary temperature of its own."""
    as_coded = config.protocol == AS_CODED and len(frames[0]) > 1
    warm = config.temperature * (stationary_ratio(frames[0].get_masses()) if as_coded else 1.0)
    interval = config.timestep * config.record_every
    return stability.rule(card, frames, temperature=warm, interval=interval)


def _checkpoint(config, weights, scene):
    """Path of the checkpoint; the name of its folder has a digest of everything that the run depends on."""
    mark = records.digest(config.parameters(), weights, scene.digest)
    name = f"{config.dataset}-{config.model}-s{config.seed}-{config.protocol}-{mark}"
    return paths.runs() / config.campaign / "rollout" / name / "state.npz"


# -- where it starts, and what it is compared with ------------------------------------------------------


class Scene(NamedTuple):
    """Starts of the replicas and their reference."""

    frames: list
    """Frames of the split, of one composition, starting with the first contiguous one."""
    first: list
    """Index in ``frames`` of the start of each replica."""
    starts: list
    """Starting structures with momenta, R ``ase.Atoms``."""
    reference: analysis.Reference
    digest: str
    """Hash of the starts."""


def reference_of(card, *, split="test"):
    """Frames that a rollout starts from and is compared with, a list of ``ase.Atoms``.

    If the split is ordered in time, only the frames after its last jump are returned.

    Raises
    ------
    ValueError
        If the frames are not copies of one system, which all replicas and their reference are.
    """
    skipped = card.first_contiguous.get(split, 0)
    frames = data.checked(card, (split,))[split][skipped:]
    check_alike(frames, f"{card.name}/{split}", skipped)
    return frames


def check_alike(frames, where, skipped=0):
    """Reject frames that are not copies of one system; ``where`` is ``dataset/split``.

    Raises
    ------
    ValueError
        The message names the first frame that differs, in what, and the remedy.
    """
    for index, atoms in enumerate(frames):
        if unlike := difference(atoms, frames[0]):
            raise ValueError(
                f"{where}: frame {index + skipped} {unlike}, as frame {skipped} does; replicas "
                "need frames of one composition, cell, periodicity and masses. Name a split for each in the "
                f"card, with `subset_of: [{where.rpartition('/')[2]}]`"
            )


def _scene(config, card):
    frames = reference_of(card, split=config.split)
    first = start_frames(config, len(frames), ordered=config.split in card.time_ordered)
    starts = [_start(config, card, frames, i, replica) for replica, i in enumerate(first)]
    arrays = [[a.numbers, a.positions, a.get_momenta(), a.get_masses(), a.cell.array, a.pbc] for a in starts]
    digest = records.digest(*sum(arrays, []))
    if card.oracle is not None:
        reference.calculator(card, starts[0])  # so that an error is raised before the simulation
    live = config.protocol == "corrected" and card.oracle is not None
    found = _live(config, card, frames, starts, digest) if live else _stored(config, card, frames, first)
    return Scene(frames, first, starts, found, digest)


def start_frames(config, total, *, ordered):
    """Indices of the starting frames of the replicas, among ``total`` frames.

    With ``as_coded`` these are the first frames. With ``corrected`` they are equally spaced; in a
    time-ordered split they lie in its first half, so that the reference continues after every start, and
    between its two ends, so that every start has both neighbours for its velocities: one-sided differences
    miss the kinetic energy by 3 to 10 %.

    Raises
    ------
    ValueError
        If there are fewer frames than replicas.

    Examples
    --------
    >>> start_frames(RolloutConfig("mace", "ethanol", replicas=4), 1000, ordered=True)
    [1, 125, 250, 375]
    """
    ends = int(ordered and config.protocol != AS_CODED)
    inside, replicas = total - 2 * ends, config.replicas
    if inside < replicas:
        where = " between two others" * ends
        raise ValueError(f"{replicas} replicas need as many frames{where}; {config.split} has {inside}")
    if config.protocol == AS_CODED:
        return list(range(replicas))
    span = inside // 2 if ordered and inside // 2 >= replicas else inside
    return [ends + replica * span // replicas for replica in range(replicas)]


def _start(config, card, frames, index, replica):
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
        draw_velocities(atoms, config.temperature, np.random.default_rng([config.seed, replica, 0]))
    return atoms


def _stored(config, card, frames, first):
    """Reference from the frames of the split, matched by time in a time-ordered split, else by index."""
    steps = np.arange(0, config.steps + 1, config.record_every)
    interval = card.time_ordered.get(config.split)
    contiguous = config.protocol == "corrected" and interval is not None
    if contiguous:
        index = match_frames(first, steps, config.timestep, interval=interval, total=len(frames))
    else:
        index = (np.array(first)[:, None] + steps) % len(frames)
    return analysis.Reference.from_frames(frames, index, contiguous=contiguous)


def match_frames(first, steps, timestep, *, interval, total):
    """Indices of the reference frames at the times of the recorded steps, -1 where there is none.

    Parameters
    ----------
    first
        Frame at which each replica starts, shape ``(R,)``.
    steps
        Recorded steps, shape ``(T,)``.
    timestep, interval
        Timestep of the rollout, and time between two reference frames, fs.
    total
        Number of reference frames.

    Returns
    -------
    ndarray
        Shape ``(R, T)``, int.

    Examples
    --------
    >>> match_frames([0, 3], [0, 1, 2, 3, 4], 0.5, interval=1.0, total=5)
    array([[ 0, -1,  1, -1,  2],
           [ 3, -1,  4, -1, -1]])
    """
    ahead = np.asarray(steps) * timestep / interval
    whole = np.rint(ahead).astype(int)
    index = np.asarray(first)[:, None] + whole
    return np.where((np.abs(ahead - whole) < 1e-6) & (index < total), index, -1)


def _live(config, card, frames, starts, digest):
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


def _judged(config, card, scene, trajectory):
    """Outcome of a rollout: metrics, curves and breaks of its trajectory."""
    start = scene.starts[0]
    lengths = {"timestep": config.timestep, "steps": config.steps}
    metrics, curves = analysis.measure(trajectory, start, scene.reference, **lengths)
    if card.oracle is not None:
        errors, labelled = own_frames.label(trajectory, start, reference.calculator(card))
        metrics, curves = metrics + errors, curves | labelled
    curves["start_frame"] = np.array(scene.first)
    momenta = np.stack([atoms.get_momenta() for atoms in scene.starts])
    curves["start_temperature"] = kinetic_temperature(momenta, start.get_masses())
    breaks = trajectory.breaks(config.timestep)
    message = _message(breaks, trajectory.step, config)
    return records.Outcome(metrics, curves, message=message, breaks=breaks, provenance={"data": scene.digest})


def _message(breaks, step, config):
    """Message of the record: which replicas broke, when and why, and whether the time limit ended the run."""
    parts = [account(breaks, config.replicas)] if breaks else []
    if step < config.steps and len(breaks) < config.replicas:
        parts.append(f"ended after {step} of {config.steps} steps at {config.max_seconds:g} s")
    return "; ".join(parts)
