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
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from filelock import FileLock

from egraff_utils import cards, data, paths, records, reference, structure, weights
from egraff_utils.breaks import Cause, account
from egraff_utils.config import AS_CODED, Config, Kind
from egraff_utils.md import analysis, own_frames
from egraff_utils.md.calculator import ForceFieldCalculator, ReplicaCalculator
from egraff_utils.md.dynamics import PER_FRAME, Thermostat, Trajectory, simulate

PROTOCOLS = ("corrected", AS_CODED)
RULE_WINDOW = 50  # frames; a radial distribution of fewer frames is too noisy to be judged


@dataclass(frozen=True)
class RolloutConfig(Config):
    """One rollout: replicas of one trained model on one dataset."""

    WORKING_FIELDS = (*Config.WORKING_FIELDS, "skin")

    model: str
    """Architecture, whose weights are those of the training of the same campaign, dataset and seed, or
    ``"reference"`` for the oracle of the dataset."""
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

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise cards.unknown("protocol", self.protocol, PROTOCOLS)
        for name in ("replicas", "steps", "record_every", "checkpoint_every", "friction"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def parameters(self):
        """What determines the result, as stored in the record."""
        parameters = super().parameters()
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
        and was made with the same weights and
        frames. The status is ``unstable`` if a replica broke; the
        message says when and why.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the dataset, split or model is unknown, or there are fewer frames than replicas.
    """
    if len(several := parts(config)) > 1:
        return _pooled(config, {part.split: roll_out(part, force_field=force_field) for part in several})
    card = cards.dataset(config.target or config.dataset)
    config = _settled(config, card)
    digest = weights.digest(config, force_field)
    digests = {"weights": digest, "frames": data.scene_digest(card, config.split)}
    return records.run(config, lambda: _rolled_out(config, card, force_field, digest), **digests)


def _rolled_out(config, card, force_field, digest):
    torch.set_num_threads(config.threads)
    make_calculator = _calculators(config, card, force_field)
    scene = _scene(config, card)
    checkpoint = _checkpoint(config, digest, scene)
    trajectory = simulate(
        scene.starts,
        make_calculator,
        rule=_rule(card, scene.frames),
        checkpoint=checkpoint,
        max_seconds=config.max_seconds,
        clock=records.clock(config.device),
        progress=f"{config.model} on {config.dataset}" if config.progress else None,
        **_dynamics(config),
    )
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
    """Record that pools the replicas of several compositions."""
    config = replace(config, dataset=cards.dataset(config.dataset).name)
    metrics, curves = analysis.pool(found)
    first, *_ = found.values()
    message = "; ".join(f"{name}: {record.message}" for name, record in found.items() if record.message)
    before = np.cumsum([0, *(len(record.curves["stable_step"]) for record in found.values())])
    breaks = [
        replace(end, replica=int(end.replica + count))
        for record, count in zip(found.values(), before, strict=False)
        for end in record.breaks
    ]
    status = "unstable" if breaks else "complete"
    record = records.Record(*config.key, config.parameters(), metrics, status, message, breaks=breaks)
    record.provenance = dict(first.provenance)
    record.provenance["wall_time"] = round(sum(part.provenance["wall_time"] for part in found.values()), 1)
    records.write(record, curves)
    return record


# -- what is rolled out ---------------------------------------------------------------------------------


def _calculators(config, card, force_field):
    """Function that returns a calculator for n replicas."""
    if config.model == "reference" and force_field is None:
        return _oracles(card)
    if force_field is None:
        force_field = weights.load(config)
    device, skin = torch.device(config.device), config.skin
    return lambda n: ForceFieldCalculator(force_field, device, skin=skin, replicas=n)


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


def _dynamics(config):
    """Arguments of :func:`~egraff_utils.md.dynamics.simulate` that the model and a live reference share."""
    thermostat = Thermostat(
        temperature=config.temperature,
        timestep=config.timestep,
        friction=config.friction,
        center_of_mass="ase" if config.protocol == "as_coded" else "exact",
        seed=config.seed,
    )
    return {
        "thermostat": thermostat,
        "steps": config.steps,
        "record_every": config.record_every,
        "checkpoint_every": max(config.checkpoint_every, RULE_WINDOW * config.record_every),
    }


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

    Of a time-ordered split, only the frames after its last jump are returned.

    Raises
    ------
    ValueError
        If the split holds several compositions.
    """
    frames = data.checked(card, (split,))[split][card.first_contiguous.get(split, 0) :]
    if not all(np.array_equal(atoms.numbers, frames[0].numbers) for atoms in frames):
        raise ValueError(
            f"{card.name}/{split} holds several compositions; a rollout needs one. Name a split for each in "
            f"the card, with `subset_of: [{split}]`"
        )
    return frames


def _scene(config, card):
    frames = reference_of(card, split=config.split)
    first = start_frames(config, len(frames), ordered=config.split in card.time_ordered)
    starts = [_start(config, card, frames, i, replica) for replica, i in enumerate(first)]
    digest = records.digest(*[array for a in starts for array in (a.numbers, a.positions, a.get_momenta())])
    if card.oracle is not None:
        reference.calculator(card, starts[0])  # so that an error is raised before the simulation
    live = config.protocol == "corrected" and card.oracle is not None
    found = _live(config, card, starts, digest) if live else _stored(config, card, frames, first)
    return Scene(frames, first, starts, found, digest)


def start_frames(config, total, *, ordered):
    """Indices of the starting frames of the replicas, among ``total`` frames.

    With ``as_coded`` these are the first frames. With ``corrected`` they are equally spaced; in a
    time-ordered split they lie in its first half, so that the reference continues after every start.

    Raises
    ------
    ValueError
        If there are fewer frames than replicas.

    Examples
    --------
    >>> start_frames(RolloutConfig("mace", "ethanol", replicas=4), 1000, ordered=True)
    [0, 125, 250, 375]
    """
    if total < config.replicas:
        raise ValueError(f"{config.replicas} replicas need as many frames; {config.split} has {total}")
    if config.protocol == "as_coded":
        return list(range(config.replicas))
    span = total // 2 if ordered and total // 2 >= config.replicas else total
    return [replica * span // config.replicas for replica in range(config.replicas)]


def _start(config, card, frames, index, replica):
    """Starting structure with momenta.

    The momenta are zero with ``as_coded``, those of the reference in a time-ordered split, else thermal.
    """
    atoms = frames[index].copy()
    if config.protocol == "as_coded":
        atoms.set_momenta(np.zeros((len(atoms), 3)))
    elif config.split in card.time_ordered:
        atoms.set_velocities(reference.velocities(frames, index, card.time_ordered[config.split]))
        Stationary(atoms, preserve_temperature=False)
    else:
        rng = np.random.default_rng([config.seed, replica, 0])
        MaxwellBoltzmannDistribution(atoms, temperature_K=config.temperature, rng=rng)
        Stationary(atoms)
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


def _live(config, card, starts, digest):
    """Reference simulated by the dataset's oracle with the same starts and noise; cached for all models."""
    dynamics = _dynamics(config)
    settings = asdict(dynamics["thermostat"]) | {"steps": config.steps, "every": config.record_every}
    mark = records.digest(card.oracle, digest, settings, config.checkpoint_every, PER_FRAME)
    path = paths.generated() / "trajectories" / f"{card.name}-{mark}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not paths.readable(path):
            label = f"reference of {card.name}" if config.progress else None
            simulate(starts, _oracles(card), progress=label, **dynamics).save(path)
    return analysis.Reference.from_trajectory(Trajectory.load(path), starts[0])


# -- stability ------------------------------------------------------------------------------------------


def _rule(card, frames):
    """Stability rule of a molecule or of a bulk system (Fu et al. 2023), as ``simulate`` expects it."""
    positions = np.stack([atoms.positions for atoms in frames])
    if card.system == "molecule":
        numbers = frames[0].numbers
        trained = data.positions(card, "train", numbers) if "train" in card.splits else positions[:0]
        return _bond_rule(frames[0], positions, trained)
    return _bulk_rule(frames[0], positions)


def _bond_rule(atoms, reference_positions, training_positions):
    """Stability rule of a molecule.

    A bond that breaks in the training frames, such as that of a hopping proton, does not count as fixed.
    """
    pairs, lengths = structure.reference_bonds(atoms, reference_positions)
    change = np.abs(structure.bond_lengths(training_positions, pairs) - lengths)
    fixed = (change <= structure.BOND_TOLERANCE).all(axis=0)
    pairs, lengths = pairs[fixed], lengths[fixed]

    def rule(positions):
        frame = structure.unstable_step_molecule(positions, pairs, lengths)
        if frame is None:
            return None
        if structure.unstable_bonds(positions, pairs, lengths) == frame:
            return frame, Cause.BOND
        return frame, Cause.CONTACT_OR_ESCAPE

    return rule


def _bulk_rule(atoms, reference_positions):
    r_max = min(structure.as_coded_r_max(atoms), structure.RDF_RANGE)
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    g = structure.radial_distributions(reference_positions, atoms.numbers, r_max=r_max, **box).total

    def rule(positions):
        settings = {"g_ref": g, "r_max": r_max, "window": max(RULE_WINDOW, min(100, len(positions))), **box}
        frame = structure.unstable_step_bulk(positions, atoms.numbers, **settings)
        if frame is None:
            return None
        if structure.unstable_contacts(positions[frame : frame + 1], **box) is not None:
            return frame, Cause.CONTACT
        return frame, Cause.STRUCTURE

    return rule


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
    breaks = trajectory.breaks(config.timestep)
    message = _message(breaks, trajectory.step, config)
    return records.Outcome(metrics, curves, message=message, breaks=breaks, provenance={"data": scene.digest})


def _message(breaks, step, config):
    """Message of the record: which replicas broke, when and why, and whether the time limit ended the run."""
    parts = [account(breaks, config.replicas)] if breaks else []
    if step < config.steps and len(breaks) < config.replicas:
        parts.append(f"ended after {step} of {config.steps} steps at {config.max_seconds:g} s")
    return "; ".join(parts)
