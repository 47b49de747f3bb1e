"""What does a trajectory say of its model? Metrics and curves of a rollout beside its reference.

R replicas, T recorded frames, F reference frames, N atoms, B bins, P pairs of elements, S elements, K blocks
of equal time. Curves are NaN behind the last sound frame of a replica and where the reference has no frame.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from egraff_utils import metrics, statistics, structure
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV

MOST_FRAMES = 1001
"""Frames in a stored curve; longer ones are thinned (metrics are taken before)."""

BLOCKS = 10
"""Blocks of equal time that a rollout is cut into, so that intervals can be had by resampling them."""

LAST_FRAMES = 10
"""Sound frames kept of a replica that broke."""

UNITS = {
    "wf": "%",
    "jsd": "nats",
    "jsd_raw": "nats",
    "ev": "1",
    "ev_root": "1",
    "fv": "1",
    "rmsd": "Å",
    "deviation": "Å",
    "temperature": "K",
    "stable_steps": "1",
    "stable_fraction": "1",
    "energy_drift": "meV/atom/ps",
}


STRUCTURE = {"wf": metrics.wright_factor, "jsd": metrics.jsd, "jsd_raw": metrics.jsd_raw}


@dataclass(frozen=True)
class Reference:
    """What a rollout is compared with, frame by frame and on average."""

    energy: np.ndarray
    """Shape ``(R, T)``, eV."""
    forces: np.ndarray
    """Shape ``(R, T, N, 3)``, eV/Å."""
    rdf: structure.RadialDistributions
    """Over all reference frames, with the published range and bins."""
    contiguous: bool
    """Whether frame t of the reference is the continuation of the rollout's own start. If not, EV and FV sit
    at their floor by construction."""
    moved: np.ndarray | None = None
    """Displacement of every atom of the reference from the starts, shape ``(R, T, N, 3)``, Å; only if
    contiguous."""

    @classmethod
    def from_frames(cls, frames, index, *, contiguous):
        """Reference from stored frames; ``index`` (R, T) is the frame of each step, -1 for none."""
        missing = index < 0
        energy = np.array([atoms.get_potential_energy() for atoms in frames])[index]
        forces = np.stack([atoms.get_forces() for atoms in frames]).astype(np.float32)[index]
        energy[missing], forces[missing] = np.nan, np.nan
        path = unwrap(frames)
        moved = None
        if contiguous:
            moved = (path[index] - path[index[:, :1]]).astype(np.float32)
            moved[missing] = np.nan
        rdf = _rdf(np.stack([atoms.positions for atoms in frames]), frames[0])
        return cls(energy, forces, rdf, contiguous, moved)

    @classmethod
    def from_trajectory(cls, trajectory, atoms):
        """Reference from a trajectory of the oracle with the rollout's starts."""
        moved = trajectory.positions - trajectory.positions[:, :1]
        return cls(trajectory.energy, trajectory.forces, _rdf(_sound(trajectory), atoms), True, moved)


def unwrap(frames):
    """Positions of frames that follow each other, without jumps through the cell, shape ``(F, N, 3)``, Å.

    Examples
    --------
    >>> from ase import Atoms
    >>> frames = [Atoms("H", [[x, 0, 0]], cell=[4, 4, 4], pbc=True) for x in (3.5, 0.5)]
    >>> unwrap(frames)[:, 0, 0]
    array([3.5, 4.5])
    """
    positions = np.stack([atoms.positions for atoms in frames])
    if not frames[0].pbc.any():
        return positions
    cell = frames[0].cell.complete()
    steps = cell.scaled_positions(np.diff(positions, axis=0).reshape(-1, 3))
    steps -= np.rint(steps) * frames[0].pbc
    moved = cell.cartesian_positions(steps).reshape(-1, *positions.shape[1:])
    return positions[0] + np.concatenate([np.zeros_like(positions[:1]), np.cumsum(moved, axis=0)])


def measure(trajectory, atoms, reference, *, timestep, steps):
    """Metrics and curves of a rollout.

    Parameters
    ----------
    trajectory
        :class:`~egraff_utils.dynamics.Trajectory`.
    atoms
        A start, for elements and cell.
    reference
        :class:`Reference`.
    timestep
        fs.
    steps
        Steps that were asked for.

    Returns
    -------
    metrics : list of Metric
        Means over replicas with bootstrap intervals (of EV and FV: of the geometric means over time); then
        ``ms_per_step``, ``replica_steps_per_second``, ``steps``, ``reference_contiguous``.
    curves : dict
        ``time`` (T,) fs; ``energy``, ``temperature``, ``ev_root``, ``fv``, ``rmsd``, (R, T);
        ``energy_reference``; where the reference is contiguous ``rmsd_reference`` and ``deviation`` (R, T),
        Å: displacement of the reference, and distance between the two trajectories; ``rdf_r`` (B,), ``rdf``
        (R, B), ``rdf_reference`` (B,), ``pairs`` (P,), ``rdf_partial`` (R, P, B),
        ``rdf_partial_reference`` (P, B); ``stable_step`` (R,). Of :data:`BLOCKS` blocks of the time that was
        asked for: ``block_frames`` (R, K), ``rdf_blocks`` (R, K, B), ``temperature_species`` (R, K, S) K, of
        the elements ``species`` (S,). Of L replicas that broke, ``broken`` (L,): ``last_positions``
        (L, :data:`LAST_FRAMES`, N, 3) Å, and ``last_energy`` (L, :data:`LAST_FRAMES`) eV, up to the last
        sound frame.
    """
    frames = len(trajectory.steps)
    time = trajectory.steps * timestep
    curves = _violations(trajectory, reference.energy[:, :frames], reference.forces[:, :frames])
    curves |= {"energy": trajectory.energy, "temperature": trajectory.temperature}
    curves["energy_reference"] = reference.energy[:, :frames]
    curves |= _displacements(trajectory.positions, reference.moved)
    blocks = _blocks(trajectory, asked=steps // _every(trajectory, steps) + 1)
    structures = _rdf_curves(trajectory.positions, blocks, atoms, reference.rdf)
    structures |= _species_curves(trajectory, blocks, atoms) | _last_frames(trajectory)
    structures["stable_step"] = trajectory.stable_step
    values = replica_values(curves | structures)
    values["stable_fraction"] = [
        stable / steps if reason else 1.0
        for stable, reason in zip(trajectory.stable_step, trajectory.reasons, strict=True)
    ]
    values["energy_drift"] = [_drift(time, energy) / len(atoms) for energy in curves["energy"]]
    curves = {name: _thin(curve, name) for name, curve in curves.items()} | {"time": _thin(time)}
    ordered = [summary(name, values.get(name, []), unit) for name, unit in UNITS.items()]
    contiguous = Metric("reference_contiguous", reference.contiguous, "1")
    return ordered + _costs(trajectory) + [contiguous], curves | structures


def replica_values(curves):
    """One value per replica of every metric that the curves of a rollout determine.

    Parameters
    ----------
    curves
        As :func:`measure` gives them; a pooled record's have no radial distributions.

    Returns
    -------
    dict of ndarray
        Shape ``(R,)``: geometric means over time of ``ev``, ``ev_root``, ``fv``; means over the last tenth of
        the time of ``rmsd`` and ``deviation`` (Å); mean ``temperature`` (K); ``wf`` (%), ``jsd`` and
        ``jsd_raw`` (nats); ``stable_steps``. NaN where a replica has no value.
    """
    curves = dict(curves)
    if "ev_root" in curves:
        curves["ev"] = np.square(curves["ev_root"], dtype=float)
    over_time = dict.fromkeys(("ev", "ev_root", "fv"), _geometric)
    over_time |= {"rmsd": _late_mean, "deviation": _late_mean, "temperature": np.nanmean}
    values = {
        name: np.array([average(curve) for curve in curves[name]])
        for name, average in over_time.items()
        if name in curves
    }
    if "rdf" in curves:
        for name, compare in STRUCTURE.items():
            reference = curves["rdf_reference"]
            values[name] = np.array([compare(g, reference) if g.any() else np.nan for g in curves["rdf"]])
    return values | {"stable_steps": curves["stable_step"]}


def pool(parts):
    """Metrics and curves of rollouts of several compositions by one model, over all their replicas.

    Parameters
    ----------
    parts
        ``{composition: Record}`` of rollouts.

    Returns
    -------
    metrics : list of Metric
        As :func:`measure` gives them; costs are means over the parts.
    curves : dict
        Those over time, NaN behind the end of a shorter part, and ``composition`` (R,).
    """
    found = [record.curves for record in parts.values()]
    time = max((curves["time"] for curves in found), key=len)
    curves = {"time": time}
    for name in ("ev_root", "fv", "rmsd", "temperature"):
        curves[name] = np.concatenate([_pad(c[name], len(time)) for c in found])
    curves["stable_step"] = np.concatenate([c["stable_step"] for c in found])
    replicas = [len(c["stable_step"]) for c in found]
    curves["composition"] = np.repeat(list(parts), replicas)
    each = [replica_values(c) for c in found]
    values = {name: np.concatenate([v[name] for v in each]) for name in each[0]}
    values["stable_fraction"] = np.concatenate([_stable_fraction(r) for r in parts.values()])
    ordered = [summary(name, values[name], unit) for name, unit in UNITS.items() if name in values]
    for name in ("ms_per_step", "replica_steps_per_second", "steps", "reference_contiguous"):
        costs = [r.metric(name) for r in parts.values()]
        ordered.append(Metric(name, np.mean([m.value for m in costs]), costs[0].unit))
    return ordered, curves


def _stable_fraction(record):
    """Of every replica, shape ``(R,)``; one that ran to the end of the simulation is stable."""
    stable = record.curves["stable_step"]
    return np.where(stable < record["steps"], stable / record.parameters["steps"], 1.0)


def _pad(curve, length):
    """A curve (R, T) with NaN up to a number of frames."""
    return np.pad(curve, [(0, 0), (0, length - curve.shape[1])], constant_values=np.nan)


def summary(name, values, unit):
    """:class:`~egraff_utils.records.Metric`: mean of one value per replica with its bootstrap interval."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Metric(name, None, unit, n=0)
    low, high = statistics.bootstrap_interval(values)
    return Metric(name, values.mean(), unit, low, high, len(values))


def _violations(trajectory, energy, forces):
    root = metrics.energy_violation_root(trajectory.energy, energy)
    force = [metrics.force_violation(f, g) for f, g in zip(trajectory.forces, forces, strict=True)]
    return {"ev_root": root, "fv": np.stack(force)}


def _displacements(positions, reference):
    """Root mean square displacement from the start; that of the reference; and from the reference."""
    moved = positions - positions[:, :1]
    curves = {"rmsd": _over_atoms(moved)}
    if reference is not None:
        reference = reference[:, : moved.shape[1]]
        curves |= {"rmsd_reference": _over_atoms(reference), "deviation": _over_atoms(moved - reference)}
    return curves


def _over_atoms(moved):
    return np.sqrt(np.square(moved).sum(-1).mean(-1))


def _late_mean(curve):
    """Mean over the last tenth of the frames that have a value."""
    values = curve[np.isfinite(curve)]
    return values[-max(1, len(values) // 10) :].mean() if len(values) else np.nan


def _geometric(values):
    """Geometric mean over the frames that have a value, without those that agree exactly; zero if all do."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan
    return metrics.geometric_mean(values[values > 0]) if (values > 0).any() else 0.0


def _drift(time, energy):
    """Slope of the potential energy, meV/ps; time in fs, energy in eV, NaN behind the end."""
    sound = np.isfinite(energy)
    if sound.sum() < 10:
        return np.nan
    return np.polyfit(time[sound] / 1000, energy[sound] - energy[0], 1)[0] * EV_TO_MEV


def _every(trajectory, steps):
    """Steps between recorded frames."""
    return int(trajectory.steps[1]) if len(trajectory.steps) > 1 else steps


def _blocks(trajectory, *, asked):
    """Sound frames of every block of equal time, ``[replica][block]`` a slice; an end cut off is empty."""
    bounds = np.linspace(0, asked, BLOCKS + 1).astype(int)
    return [
        [slice(*np.minimum(ends, trajectory.frames(r))) for ends in zip(bounds, bounds[1:], strict=False)]
        for r in range(len(trajectory.energy))
    ]


def _rdf_curves(positions, blocks, atoms, reference):
    """Radial distributions of every block, and their means over the frames of every replica."""
    frames = np.array([[b.stop - b.start for b in replica] for replica in blocks])
    total = np.full((*frames.shape, len(reference.r)), np.nan)
    partial = np.zeros((len(frames), *reference.partials.shape))
    for r, k in np.argwhere(frames):
        found = _rdf(positions[r, blocks[r][k]], atoms)
        total[r, k] = found.total
        partial[r] += found.partials * frames[r, k] / frames[r].sum()
    weights = frames / frames.sum(1, keepdims=True)
    small = np.float32
    return {
        "rdf_r": reference.r.astype(small),
        "rdf": np.einsum("rk,rkb->rb", weights, np.nan_to_num(total)).astype(small),
        "rdf_reference": reference.total.astype(small),
        "rdf_partial": partial.astype(small),
        "rdf_partial_reference": reference.partials.astype(small),
        "pairs": np.array(reference.pairs),
        "rdf_blocks": total.astype(small),
        "block_frames": frames,
    }


def _species_curves(trajectory, blocks, atoms):
    """Temperature of every element, mean over the frames of every block."""
    empty = np.full(trajectory.temperature_species.shape[-1], np.nan)
    means = [
        [values[block].mean(0) if block.stop > block.start else empty for block in replica]
        for values, replica in zip(trajectory.temperature_species, blocks, strict=True)
    ]
    species = np.array([chemical_symbols[z] for z in np.unique(atoms.numbers)])
    return {"temperature_species": np.array(means, dtype=np.float32), "species": species}


def _last_frames(trajectory):
    """Positions and energies up to the last sound frame of the replicas that broke."""
    broken = [r for r, reason in enumerate(trajectory.reasons) if reason]
    if not broken:
        return {}
    last = np.array([trajectory.frames(r) for r in broken])
    index = np.maximum(last[:, None] - np.arange(LAST_FRAMES, 0, -1), 0)
    rows = np.array(broken)[:, None]
    return {
        "broken": np.array(broken),
        "last_positions": trajectory.positions[rows, index],
        "last_energy": trajectory.energy[rows, index],
    }


def _rdf(positions, atoms):
    r_max = structure.as_coded_r_max(atoms)
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    return structure.radial_distributions(positions, atoms.numbers, r_max=r_max, **box)


def _sound(trajectory):
    """Sound frames of all replicas, one after another, shape ``(F, N, 3)``, Å."""
    replicas = range(len(trajectory.energy))
    return np.concatenate([trajectory.positions[r, : trajectory.frames(r)] for r in replicas])


def _thin(curve, name=""):
    """At most :data:`MOST_FRAMES` frames of a curve; float32 is enough for all but energies."""
    thinned = curve[..., :: -(-curve.shape[-1] // MOST_FRAMES)]
    return thinned if name.startswith("energy") else thinned.astype(np.float32)


def _costs(trajectory):
    """Time of a step of all replicas (median, without the first ones) and throughput."""
    times = trajectory.step_times
    settled = times[3:] if len(times) > 3 else times
    total = times.sum()
    return [
        Metric("ms_per_step", np.median(settled) * 1e3 if len(settled) else None, "ms"),
        Metric("replica_steps_per_second", trajectory.stable_step.sum() / total if total else None, "1/s"),
        Metric("steps", trajectory.step, "1"),
    ]
