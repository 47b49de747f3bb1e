r"""How long does a model follow its reference? Simulations start from reference frames and velocities.

They are compared with the continuation of the reference at equal times. The force violation rises from the
error of a single prediction to the floor of two unrelated frames; the time at which it crosses half of the
floor is the predictability horizon. Symbols: S starts, T frames, N atoms.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from ase import units
from filelock import FileLock

from egraff_utils import cards, data, metrics, paths, records, reference, statistics, weights
from egraff_utils.config import Config
from egraff_utils.md import analysis
from egraff_utils.md.calculator import ReplicaCalculator, calculator_of
from egraff_utils.md.dynamics import Newtonian, Thermostat, Trajectory, simulate
from egraff_utils.md.rollout import reference_of
from egraff_utils.records import Metric

DYNAMICS = ("langevin", "nve", "driven")
THEMSELVES = {"noise": ("langevin", "nve"), "friction": ("driven", "nve"), "control": ("control", "nve")}
"""Name of a comparison of a model with itself -> the two dynamics."""

TIMES = (20.0, 50.0, 100.0, 200.0)
"""Times at which the deviation is reported, fs."""

MOST_STARTS, MOST_ATOMS = 12, 400
"""Default number of starts, which is reduced so that a batch holds at most this number of atoms."""

EXPLAINED = 0.01
"""Largest fraction of the length of the forces that a single friction for all atoms may leave unexplained,
for the friction to count as measured."""

CONTROL_STARTS = 4
CONTROL_SHIFT = (0.37, 0.11, 0.23)
"""Translation of the control runs, Å. It does not change the forces apart from the rounding of positions, and
it changes the neighbour list."""


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

    def __post_init__(self):
        self.require_positive("starts", "duration", "short", "friction")


def datasets():
    """Names of the datasets with time-ordered test frames, which simulations can follow.

    LiPS20 is not among them, as its frames are draws from a trajectory, with gaps between them.

    >>> "ethanol" in datasets(), "lips20" in datasets()
    (True, False)
    """
    return [name for name in cards.datasets() if "test" in cards.dataset(name).time_ordered]


def horizon(config, *, force_field=None):
    """Measure how long a trained force field follows the reference.

    All starts run in one batch, under three dynamics: ``langevin`` has the thermostat of the rollouts and the
    same noise for all models; ``nve`` has no thermostat; ``driven`` has the friction of the reference
    (:func:`friction`), so that a perfect model would stay on it. If the dataset has an oracle, the reference
    is simulated under the same dynamics, with the same noise; a perfect model then follows ``nve`` exactly,
    and ``driven`` is identical to it.

    Parameters
    ----------
    config
        :class:`HorizonConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``horizon``, with the metrics and curves of :func:`measure` for every dynamics that applies;
        there is no ``driven`` if no friction explains the reference. The status is ``unstable`` if a start
        broke; after its break its force violation counts as one. A stored record is returned if nothing has
        changed.

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
        "data": records.digest(analysis.unwrap(frames), _forces(frames)),
        "frames": data.scene_digest(config.dataset, config.split),
    }
    return records.run(config, lambda: _followed(config, frames, interval, force_field), **digests)


def _followed(config, frames, interval, force_field):
    card = config.card
    torch.set_num_threads(config.threads)
    force_field = force_field or weights.load(config)
    steps = [round(length / interval) for length in (config.duration, min(config.short, config.duration))]
    thermostat = Thermostat(card.conditions(config.split)[0], interval, config.friction, seed=config.seed)
    label = f"{config.model} on {card.name}" if config.progress else None
    if card.oracle is None:
        course = stored_course(frames, interval, starts=config.starts, steps=steps[0], short=steps[1])
    else:
        course = _live_course(card, frames, interval, config, thermostat, steps[0])

    def make_calculator(replicas, skin=1.0):
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


# -- the reference ----------------------------------------------------------------------------------------


class Course(NamedTuple):
    """Starts, and the continuation of the reference under every dynamics, each with its own T frames."""

    starts: list
    """Starting structures with the momenta of the reference, S ``ase.Atoms``."""
    first: np.ndarray
    """Index of the frame of each start, shape ``(S,)``."""
    interval: float
    """Time between two frames, which is also the timestep of the simulations, fs."""
    moved: dict
    """Dynamics -> displacement of the reference from the start, shape ``(S, T, N, 3)``, Å."""
    forces: dict
    """Dynamics -> forces of the reference, shape ``(S, T, N, 3)``, eV/Å."""
    friction: np.ndarray | None = None
    """Friction of the reference at every frame, shape ``(S, T)``, 1/fs; ``None`` if it was not measured."""

    def steps(self, name):
        """Number of steps of the simulations under a dynamics, T - 1."""
        return self.forces[name].shape[1] - 1


def friction(frames, interval):
    r"""Friction of a Nosé-Hoover thermostat at each frame, determined from the frames.

    The friction is one number for all atoms, which is obtained by least squares from

    .. math:: m_i a_i - F_i = -\zeta m_i v_i, \quad
        a(t) = \frac{x(t+h) - 2 x(t) + x(t-h)}{h^2}, \quad v(t) = \frac{x(t+h) - x(t-h)}{2h}

    Parameters
    ----------
    frames
        Consecutive frames with forces, T ``ase.Atoms``.
    interval
        Time h between two frames, fs.

    Returns
    -------
    friction, residual, residual_without
        Arrays of shape ``(T - 2,)``, without the two ends: :math:`\zeta`, 1/fs; the length of the remainder
        of :math:`m a - F` over that of F, with the friction and without it.

    Raises
    ------
    ValueError
        If there are fewer than three frames.
    """
    if len(frames) < 3:
        raise ValueError(f"a friction needs three frames or more, not {len(frames)}")
    h, x, forces = interval * units.fs, analysis.unwrap(frames), _forces(frames)[1:-1]
    momenta = frames[0].get_masses()[:, None] * (x[2:] - x[:-2]) / (2 * h)
    rest = frames[0].get_masses()[:, None] * (x[2:] - 2 * x[1:-1] + x[:-2]) / h**2 - forces
    velocities = momenta / frames[0].get_masses()[:, None]
    zeta = -(rest * velocities).sum((1, 2)) / (momenta * velocities).sum((1, 2))
    length = _length(forces)
    return zeta * units.fs, _length(rest + zeta[:, None, None] * momenta) / length, _length(rest) / length


def check_reference(frames, interval):
    """Properties of a reference that follow from its frames alone, a dict of (value, unit).

    Parameters
    ----------
    frames
        Consecutive frames with forces, a list of ``ase.Atoms``.
    interval
        Time h between two frames, fs.

    Returns
    -------
    dict
        ``temperature`` over 3N degrees of freedom, as the thermostat of MD17 counts
        them, from finite-difference velocities, K; ``friction`` (root
        mean square, 1/fs); ``residual`` and ``residual_friction``: what Newton's equation leaves unexplained
        without and with the friction, as a fraction of the forces (median over frames); ``step_error`` and
        ``step_error_friction``: root mean square difference between one step of velocity Verlet, from the
        positions, velocities and forces of the reference, and its next frame, Å. As velocities are central
        differences, this error is that residual times h²/2m.
    """
    zeta, with_friction, without = friction(frames, interval)
    masses, h = frames[0].get_masses()[:, None], interval * units.fs
    x = analysis.unwrap(frames)
    v = (x[2:] - x[:-2]) / (2 * h)
    a = _forces(frames)[1:-1] / masses
    braked = a - (zeta / units.fs)[:, None, None] * v

    def error(acceleration):
        return np.sqrt(np.square(x[1:-1] + h * v + h**2 / 2 * acceleration - x[2:]).sum(-1).mean())

    return {
        "temperature": ((masses * v**2).sum((1, 2)).mean() / (3 * len(masses) * units.kB), "K"),
        "friction": (np.sqrt(np.mean(zeta**2)), "1/fs"),
        "residual": (np.median(without), "1"),
        "residual_friction": (np.median(with_friction), "1"),
        "step_error": (error(a), "Å"),
        "step_error_friction": (error(braked), "Å"),
    }


def stored_course(frames, interval, *, starts, steps, short=None):
    """:class:`Course` along stored frames, with equally spaced starts that enough frames follow.

    Parameters
    ----------
    frames
        Consecutive frames with forces, a list of ``ase.Atoms``.
    interval
        Time between two frames, fs.
    starts, steps
        Number S of starts, and number T - 1 of steps.
    short
        Steps under the dynamics that leave the reference, all but ``driven``; by default ``steps``.

    Raises
    ------
    ValueError
        If there are too few frames.
    """
    spare = len(frames) - 2 - steps  # the first and the last frame have no central-difference velocity
    if spare < starts:
        raise ValueError(f"{len(frames)} frames are too few for {starts=} of {steps} steps each")
    first = 1 + np.arange(starts) * (spare - 1) // max(starts - 1, 1)
    index = first[:, None] + np.arange(steps + 1)
    path = analysis.unwrap(frames)
    zeta, rest, _ = friction(frames, interval)
    names = DYNAMICS if np.median(rest) < EXPLAINED else DYNAMICS[:2]
    cut = {name: steps + 1 if name == "driven" or short is None else short + 1 for name in names}
    moved = (path[index] - path[first][:, None]).astype(np.float32)
    forces = _forces(frames).astype(np.float32)[index]
    return Course(
        starts=[_start(frames, i, interval) for i in first],
        first=first,
        interval=interval,
        moved={name: moved[:, :end] for name, end in cut.items()},
        forces={name: forces[:, :end] for name, end in cut.items()},
        friction=zeta[index - 1] if "driven" in names else None,
    )


def _live_course(card, frames, interval, config, thermostat, steps):
    """:class:`Course` simulated by the oracle of the dataset, which is cached for all models."""
    first = np.linspace(1, len(frames) - 2, config.starts).astype(int)
    starts = [_start(frames, i, interval) for i in first]
    runs = {}
    for name, dynamics in (("langevin", thermostat), ("nve", Newtonian(interval))):
        what = [asdict(thermostat) if name == "langevin" else interval, steps, first]
        mark = records.digest(card.oracle, name, *what, *[a.positions for a in starts])
        path = paths.generated() / "trajectories" / f"{card.name}-{name}-{mark}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not paths.readable(path):
                label = f"reference of {card.name}" if config.progress else None
                _run(starts, lambda n: _oracles(card, n), dynamics, steps, label).save(path)
        runs[name] = Trajectory.load(path)
    moved = {name: run.positions - run.positions[:, :1] for name, run in runs.items()}
    return Course(starts, first, interval, moved, {name: run.forces for name, run in runs.items()})


def _oracles(card, replicas):
    return ReplicaCalculator([reference.calculator(card) for _ in range(replicas)])


def _start(frames, index, interval):
    atoms = frames[index].copy()
    atoms.set_velocities(reference.velocities(frames, index, interval))
    return atoms


def _frames(card, split):
    """Consecutive frames of a time-ordered split, and the time between them, fs."""
    if split not in card.time_ordered:
        ordered = ", ".join(card.time_ordered) or "none"
        raise ValueError(
            f"frames of {card.name}/{split} do not follow each other in time; splits that do: {ordered}"
        )
    return reference_of(card, split=split), card.time_ordered[split]


def _settled(config, card, frames, interval):
    """The config with default starts and duration where it does not set them."""
    stored = min(250.0, 2 * len(frames) // 3 * interval)
    duration = config.duration or (stored if card.oracle is None else 120.0)
    starts = config.starts or min(MOST_STARTS, max(CONTROL_STARTS, MOST_ATOMS // len(frames[0])))
    return replace(config, dataset=card.name, starts=starts, duration=duration)


def _floor(frames):
    """FV of pairs of frames of the reference that are at least a quarter of its length apart."""
    energy = [atoms.get_potential_energy() for atoms in frames]
    return statistics.floor_ev_fv(energy, _forces(frames), separation=len(frames) // 4)["fv"]


# -- the simulations --------------------------------------------------------------------------------------


def follow(course, make_calculator, *, thermostat, progress=None):
    """Simulations from the starts under every dynamics of the course, name -> ``Trajectory``.

    ``control`` repeats ``nve`` for a few starts with all atoms moved by a constant vector and another skin of
    the neighbour list. Its difference from ``nve`` is the numerical error of the algorithm.

    Parameters
    ----------
    course
        :class:`Course`.
    make_calculator
        Function ``make_calculator(n, skin=...)`` that returns a calculator for n replicas.
    thermostat
        :class:`~egraff_utils.md.dynamics.Thermostat` of ``langevin``.
    progress
        Label of the progress bars, or ``None`` for no bars.
    """
    kinds = {
        "langevin": thermostat,
        "nve": Newtonian(course.interval),
        "driven": Newtonian(course.interval, friction=course.friction),
    }
    runs = {
        name: _run(course.starts, make_calculator, kinds[name], course.steps(name), progress)
        for name in course.forces
    }
    shifted = [atoms.copy() for atoms in course.starts[:CONTROL_STARTS]]
    for atoms in shifted:
        atoms.positions += CONTROL_SHIFT
    other = lambda n: make_calculator(n, skin=0.7)  # noqa: E731
    return runs | {"control": _run(shifted, other, kinds["nve"], course.steps("nve"), progress)}


def _run(starts, make_calculator, dynamics, steps, progress):
    options = {"thermostat": dynamics, "steps": steps, "checkpoint_every": steps + 1, "progress": progress}
    return simulate(starts, make_calculator, **options)


# -- the numbers ------------------------------------------------------------------------------------------


def measure(course, runs, *, floor):
    """Metrics and curves of simulations along a reference.

    Parameters
    ----------
    course
        :class:`Course`.
    runs
        Trajectories as returned by :func:`follow`.
    floor
        FV of two unrelated frames of the reference, dimensionless.

    Returns
    -------
    metrics
        ``fv_start``: geometric mean over the starts of FV at t = 0. For every dynamics ``horizon_<name>``,
        fs, with ``horizon_<name>_reached`` (1, or 0 if the simulations ended earlier, in which case the value
        is their length), ``deviation_<name>_<t>``, Å, root mean square distance of an atom from its reference
        at t fs, and ``growth_<name>``, 1/ps (:func:`growth_rate`). The same for the model compared with
        itself: ``horizon_noise``, with and without the thermostat; ``horizon_friction``, with and without the
        friction of the reference; ``horizon_control``; and ``fv_noise``, ``fv_friction``, ``fv_control`` at
        the end of the shorter of the two. Also ``floor_fv`` and ``ms_per_step``.
    curves
        ``time`` (T,) fs, ``start_frame`` (S,), and over the first t of these times ``fv_<name>`` (S, t) and
        ``deviation_<name>`` (S, t) Å.
    """
    moved = {name: run.positions - run.positions[:, :1] for name, run in runs.items()}
    forces = {name: run.forces for name, run in runs.items()}
    pairs = {
        name: (runs[name].forces, course.forces[name], moved[name], course.moved[name])
        for name in course.forces
    }
    for name, (one, other) in THEMSELVES.items():
        if one in runs:
            starts, frames = np.minimum(forces[one].shape[:2], forces[other].shape[:2])
            pairs[name] = [kind[run][:starts, :frames] for kind in (forces, moved) for run in (one, other)]
    longest = max(course.steps(name) for name in course.forces)
    curves = {"time": np.arange(longest + 1) * course.interval, "start_frame": course.first}
    for name, (force, force_reference, move, move_reference) in pairs.items():
        curves[f"fv_{name}"] = violations(force, force_reference)
        curves[f"deviation_{name}"] = np.sqrt(np.square(move - move_reference).sum(-1).mean(-1))
    found = [_mean("fv_start", curves["fv_nve"][:, 0], "1"), Metric("floor_fv", floor, "1")]
    for name in pairs:
        found += horizon_metrics(name, curves, floor)
    found += [_mean(f"fv_{name}", curves[f"fv_{name}"][:, -1], "1") for name in THEMSELVES if name in pairs]
    found.append(Metric("ms_per_step", np.median(runs["nve"].step_times[3:]) * 1000, "ms"))
    return found, curves


def horizon_metrics(name, curves, floor):
    """Horizon, deviations and growth rate of one dynamics, a list of ``Metric``; see :func:`measure`."""
    fv, deviation = curves[f"fv_{name}"], curves[f"deviation_{name}"]
    t = curves["time"][: fv.shape[1]]
    value = horizon_time(t, fv, floor)
    low, high = quantiles(resamples(t, fv, floor))
    reached = np.isfinite(value)
    found = [
        Metric(f"horizon_{name}", value if reached else t[-1], "fs", min(low, t[-1]), high, len(fv)),
        Metric(f"horizon_{name}_reached", float(reached), "1"),
    ]
    if name in DYNAMICS:
        for moment in TIMES:
            if moment <= t[-1]:
                here = deviation[:, np.argmin(abs(t - moment))]
                found.append(_mean(f"deviation_{name}_{moment:g}", here[np.isfinite(here)], "Å"))
        found.append(_growth(f"growth_{name}", t, deviation, horizon_time(t, fv, floor)))
    return found


def violations(forces, forces_reference):
    """FV of every start and frame, shape ``(S, T)``; it is one after a simulation has broken.

    Parameters
    ----------
    forces, forces_reference
        Forces of model and reference, shape ``(S, T, N, 3)``, eV/Å; NaN after a break.

    Examples
    --------
    >>> forces = np.array([[[[1.0, 0, 0]], [[np.nan, 0, 0]]]])
    >>> violations(forces, np.array([[[[3.0, 0, 0]], [[1.0, 0, 0]]]]))
    array([[0.5, 1. ]])
    """
    pairs = zip(forces.astype(float), forces_reference.astype(float), strict=True)
    found = np.stack([metrics.force_violation(f, g) for f, g in pairs])
    return np.where(np.isfinite(found), found, 1.0)


def horizon_time(time, fv, floor):
    """Time at which the geometric mean of FV over the starts first reaches half of the floor, fs.

    The mean is taken before the crossing is sought, since FV of a single start oscillates with the bonds and
    may touch half of the floor long before it stays there. The mean is interpolated linearly between two
    frames.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    fv
        FV of every start, shape ``(S, T)``, dimensionless.
    floor
        FV of two unrelated frames, dimensionless.

    Returns
    -------
    float
        Horizon, fs; zero if FV starts above half of the floor, infinite if it does not reach it.

    Examples
    --------
    >>> horizon_time([0.0, 1.0, 2.0], [[0.1, 0.2, 0.4]], floor=0.6)
    1.5
    """
    return float(_crossings(time, _log(fv).mean(0)[None], floor)[0])


def resamples(time, fv, floor, *, count=1000, seed=0):
    """Horizons of bootstrap resamples of the starts, shape ``(count,)``, fs; infinite where not reached.

    Records with the same number of starts share their draws, so that differences between models are paired.

    Parameters
    ----------
    time, fv, floor
        As in :func:`horizon_time`.
    count, seed
        Number and seed of the draws.
    """
    draws = np.random.default_rng(seed).integers(len(fv), size=(count, len(fv)))
    weights = np.stack([np.bincount(draw, minlength=len(fv)) for draw in draws]) / len(fv)
    return _crossings(time, weights @ _log(fv), floor)


def _crossings(time, curves, floor):
    """Times at which logarithmic curves, shape ``(C, T)``, first cross half the floor, shape ``(C,)``, fs."""
    time, curves = np.asarray(time, dtype=float), np.exp(curves)
    above = curves >= floor / 2
    last = np.argmax(above, axis=1)
    rows, before = np.arange(len(curves)), np.maximum(last - 1, 0)
    low, high = curves[rows, before], curves[rows, last]
    part = np.where(last > 0, (floor / 2 - low) / np.where(high > low, high - low, 1.0), 0.0)
    found = time[before] + part * (time[last] - time[before])
    return np.where(above.any(1), found, np.inf)


def _log(fv):
    return np.log(np.maximum(np.asarray(fv, dtype=float), 1e-12))


def quantiles(values, level=0.95):
    """Bounds of the central ``level`` of resampled values; infinite values count as the largest."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(values, ends, method="nearest")
    return float(low), float(high)


def growth_rate(time, deviation, end):
    r"""Exponential rate at which two trajectories diverge, 1/ps.

    It is the slope of the mean over starts of :math:`\ln d(t)`, by least squares over the second half of the
    time before ``end``. In the first half, a distance caused by force errors grows like :math:`t^2`.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    deviation
        Distance d of the two trajectories, shape ``(S, T)``, Å.
    end
        End of the time that is used, fs.

    Returns
    -------
    float
        Rate, 1/ps; NaN if there are fewer than ten frames in that time.

    Examples
    --------
    >>> t = np.arange(101.0)
    >>> round(growth_rate(t, np.exp(0.02 * t)[None], end=80.0), 6)
    20.0
    """
    time = np.asarray(time, dtype=float)
    chosen = (time >= min(end, time[-1]) / 2) & (time <= end)
    if chosen.sum() < 10:
        return float("nan")
    curve = np.log(np.maximum(np.asarray(deviation)[:, chosen], 1e-9))
    curve = curve[np.isfinite(curve).all(1)].mean(0)
    return float(np.polyfit(time[chosen] / 1000, curve, 1)[0])


def _growth(name, time, deviation, end):
    sound = np.isfinite(deviation).all(1)
    if not sound.any():
        return Metric(name, None, "1/ps", n=0)
    draws = np.random.default_rng(0).integers(sound.sum(), size=(200, sound.sum()))
    rates = [growth_rate(time, deviation[sound][draw], end) for draw in draws]
    low, high = quantiles(rates)
    return Metric(name, growth_rate(time, deviation[sound], end), "1/ps", low, high, int(sound.sum()))


def _mean(name, values, unit):
    """Metric whose value is the geometric mean over starts, with its interval."""
    values = np.maximum(np.asarray(values, dtype=float), 1e-12)
    if not len(values):
        return Metric(name, None, unit, n=0)
    low, high = statistics.bootstrap_interval(np.log(values))
    return Metric(name, np.exp(np.log(values).mean()), unit, np.exp(low), np.exp(high), len(values))


def _forces(frames):
    return np.stack([atoms.get_forces() for atoms in frames])


def _length(vectors):
    """Norm over atoms and components of every frame, shape ``(T, N, 3)`` -> ``(T,)``."""
    return np.sqrt(np.square(vectors).sum((1, 2)))
