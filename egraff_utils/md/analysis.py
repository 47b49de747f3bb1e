"""What does a trajectory say about its model? Metrics and curves that compare a rollout with its reference.

Symbols: R replicas, T recorded frames, F reference frames, N atoms, B bins, P pairs of elements, S elements,
K blocks of equal time. Curves are NaN after the last valid frame of a replica and where the reference has no
frame.
"""

from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols

from egraff_utils import metrics, quantities, records, statistics, structure
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV

MOST_FRAMES = 1001
"""Largest number of frames in a stored curve; longer curves are thinned after the metrics are computed."""

BLOCKS = 10
"""Number of blocks of equal time that a rollout is cut into; intervals are obtained by resampling them."""

LAST_FRAMES = 10
"""Number of last valid frames that are stored for a replica that broke."""

STRUCTURE = {"wf": metrics.wright_factor, "jsd": metrics.jsd, "jsd_raw": metrics.jsd_raw}


@dataclass(frozen=True)
class Reference:
    """Reference that a rollout is compared with, frame by frame and on average."""

    energy: np.ndarray
    """Potential energy, shape ``(R, T)``, eV."""
    forces: np.ndarray
    """Forces, shape ``(R, T, N, 3)``, eV/Å."""
    rdf: structure.RadialDistributions
    """Radial distributions over all reference frames, with the published range and bins."""
    contiguous: bool
    """Whether frame t of the reference continues from the rollout's own start. If not, EV and FV are at their
    floor by construction."""
    moved: np.ndarray | None = None
    """Displacement of every atom of the reference from its start, shape ``(R, T, N, 3)``, Å; only if
    contiguous."""

    @classmethod
    def from_frames(cls, frames, index, *, contiguous):
        """Reference from stored frames; ``index`` (R, T) gives the frame of each step, or -1 for none."""
        missing = index < 0
        stored = [atoms.calc.results for atoms in frames]  # ASE's getters are slow: they compare all atoms
        energy = np.array([results["energy"] for results in stored])[index]
        forces = np.stack([results["forces"] for results in stored]).astype(np.float32)[index]
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
        """Reference from a trajectory of the oracle that has the same starts as the rollout."""
        moved = trajectory.positions - trajectory.positions[:, :1]
        return cls(trajectory.energy, trajectory.forces, _rdf(_sound(trajectory), atoms), True, moved)


def unwrap(frames):
    """Unwrapped positions of consecutive frames, without jumps through the cell, shape ``(F, N, 3)``, Å.

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


CURVES = []
"""Functions that :func:`measure` calls for curves over time, see :func:`over_time`."""


def over_time(function):
    """Decorator that adds a function of (trajectory, atoms, reference) to those that :func:`measure` calls.

    The function returns a dict of curves, each of shape ``(R, T)`` and NaN after the last valid frame of a
    replica. A curve with the name of a metric gives the values of that metric, averaged as `quantities` says.
    """
    CURVES.append(function)
    return function


def measure(trajectory, atoms, reference, *, timestep, steps):
    """Metrics and curves of a rollout.

    Parameters
    ----------
    trajectory
        :class:`~egraff_utils.md.dynamics.Trajectory`.
    atoms
        A starting structure, ``ase.Atoms``, which gives elements and cell.
    reference
        :class:`Reference`.
    timestep
        Timestep, fs.
    steps
        Number of steps that were requested.

    Returns
    -------
    metrics : list of Metric
        Means over replicas with the intervals of :func:`summary`; for EV and FV, means of the geometric means
        over time. Then ``ms_per_step``, ``replica_steps_per_second``, ``steps``, ``reference_contiguous``.
    curves : dict
        ``time`` (T,) fs; ``energy``, ``temperature``, ``ev_root``, ``fv``, ``rmsd``, (R, T);
        ``energy_reference``; where the reference is contiguous ``rmsd_reference`` and ``deviation`` (R, T),
        Å: displacement of the reference, and distance between the two trajectories; ``rdf_r`` (B,), ``rdf``
        (R, B), ``rdf_reference`` (B,), ``pairs`` (P,), ``rdf_partial`` (R, P, B),
        ``rdf_partial_reference`` (P, B); ``stable_step`` (R,). For :data:`BLOCKS` blocks of the requested
        time: ``block_frames`` (R, K), ``rdf_blocks`` (R, K, B), ``temperature_species`` (R, K, S) K, of the
        elements ``species`` (S,). For L replicas that broke, with indices ``broken`` (L,): ``last_positions``
        (L, :data:`LAST_FRAMES`, N, 3) Å, and ``last_energy`` (L, :data:`LAST_FRAMES`) eV, up to the last
        valid frame.
    """
    time = trajectory.steps * timestep
    curves = {}
    for function in CURVES:
        curves |= function(trajectory, atoms, reference)
    blocks = _blocks(trajectory, asked=steps // _every(trajectory, steps) + 1)
    structures = _rdf_curves(trajectory.positions, blocks, atoms, reference.rdf)
    structures |= _species_curves(trajectory, blocks, atoms) | _last_frames(trajectory)
    structures["stable_step"] = trajectory.stable_step
    values = block_values(curves | structures)
    values["stable_fraction"] = [
        stable / steps if cause else 1.0
        for stable, cause in zip(trajectory.stable_step, trajectory.causes, strict=True)
    ]
    values["energy_drift"] = [_drift(time, energy) / len(atoms) for energy in curves["energy"]]
    curves = {name: _thin(curve, name) for name, curve in curves.items()} | {"time": _thin(time)}
    ordered = [summary(name, values.get(name, [])) for name in quantities.averaged()]
    contiguous = Metric.of("reference_contiguous", reference.contiguous)
    return ordered + _costs(trajectory) + [contiguous], curves | structures


def replica_values(curves):
    """One value per replica of every metric that the curves of a rollout determine.

    Parameters
    ----------
    curves
        Curves as returned by :func:`measure`.

    Returns
    -------
    dict of ndarray
        Shape ``(R,)``: geometric means over time, without the start, of ``ev``, ``ev_root``, ``fv``; means
        over the last tenth of the time of ``rmsd`` and ``deviation`` (Å); mean ``temperature`` (K); ``wf``
        (%), ``jsd`` and ``jsd_raw`` (nats); ``stable_steps``. NaN where a replica has no value.
    """
    return {name: _row_means(values) for name, values in block_values(curves).items()}


def _row_means(values):
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(1) / present.sum(1)


def block_values(curves):
    r"""Contribution of each block to a metric of its replica; the mean over blocks is the replica's value.

    A metric :math:`\theta` of a mean over time (of g(r) or of a logarithm) has no meaningful value for a
    single block: Wright's factor of a short stretch is mostly noise, whose variance adds to the metric. A
    block is therefore assigned the jackknife's pseudo-value, without its bias correction,

    .. math:: \theta_k = \theta + (K - 1)\Big(\frac1K \sum_l \theta_{-l} - \theta_{-k}\Big)

    Intervals and resamples of these values describe the metric of runs of this length, whose own noise is
    part of the value. Drawing blocks and recomputing the metric would describe runs that are twice as noisy.

    Parameters
    ----------
    curves
        Curves as returned by :func:`measure` or :func:`pool`. Without ``rdf_blocks`` (older records) a
        replica is one block for the metrics of structure.

    Returns
    -------
    dict of ndarray
        Shape ``(R, K)``, NaN where a replica has no frames; ``rmsd``, ``deviation`` and ``stable_steps``,
        which refer to the end of a run, have shape ``(R, 1)``. Names and units are those of
        :func:`replica_values`.
    """
    found = {}
    for name, average in quantities.averaged().items():
        if f"{name}_blocks" in curves:
            found[name] = np.asarray(curves[f"{name}_blocks"], dtype=float)
        elif average in AVERAGES and name in curves:
            found[name] = AVERAGES[average](curves[name])
        elif name in STRUCTURE and "rdf" in curves:
            found[name] = _structure_values(curves, STRUCTURE[name])
    if "ev_root" in curves:
        sums = _block_sums(_simulated(curves["ev_root"]), np.log)
        found["ev"] = _pseudo_values(*sums, lambda logs: np.exp(2 * logs[..., 0]))
    return found | {"stable_steps": np.asarray(curves["stable_step"], dtype=float)[:, None]}


def _structure_values(curves, compare):
    """Pseudo-values of a metric of g(r); values of whole replicas where blocks are not stored."""
    reference = np.asarray(curves["rdf_reference"], dtype=float)
    if "rdf_blocks" in curves:
        frames = np.asarray(curves["block_frames"], dtype=float)
        g = np.nan_to_num(np.asarray(curves["rdf_blocks"], dtype=float))
    else:
        g = np.asarray(curves["rdf"], dtype=float)[:, None]
        frames = g.any(-1).astype(float)

    def score(means):
        return np.apply_along_axis(lambda g: compare(g, reference) if g.any() else np.nan, -1, means)

    return _pseudo_values(g * frames[..., None], frames, score)


def _geometric(curve):
    return _pseudo_values(*_block_sums(_simulated(curve), np.log), lambda logs: np.exp(logs[..., 0]))


def _simulated(curve):
    """The curve (R, T) without its first frame, unless there is no other.

    That frame is the start, which a model shares with its reference. Its violation is the error of the model
    on one given frame, up to a hundred times smaller than the others, and moves the mean of logarithms of a
    run of 1000 frames by more than the width of many floors.
    """
    curve = np.asarray(curve)
    return curve[:, 1:] if curve.shape[1] > 1 else curve


def _arithmetic(curve):
    return _pseudo_values(*_block_sums(curve), lambda means: means[..., 0])


def _late(curve):
    return np.array([[_late_mean(values)] for values in curve])


AVERAGES = {"geometric": _geometric, "arithmetic": _arithmetic, "late": _late}
"""Functions that give values of blocks from a curve (R, T), by
:attr:`~egraff_utils.quantities.Quantity.average`."""


def _block_sums(curve, transform=lambda values: values):
    """Sums (R, K, 1) and counts (R, K) of the finite transformed values of a curve, in blocks.

    A zero, which has no logarithm, is left out. Where all values of a replica are zero, its sums are minus
    infinity.
    """
    bounds = np.linspace(0, curve.shape[1], BLOCKS + 1).astype(int)
    with np.errstate(divide="ignore"):
        values = transform(np.asarray(curve, dtype=float))
    some = np.isfinite(values).any(1, keepdims=True)
    present = np.where(some, np.isfinite(values), ~np.isnan(values))
    values = np.where(present, values, 0)
    cut = [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]
    sums = np.stack([values[:, block].sum(1) for block in cut], axis=1)
    return sums[..., None], np.stack([present[:, block].sum(1) for block in cut], axis=1).astype(float)


def _pseudo_values(sums, counts, score):
    """Pseudo-values (R, K) of a score of means, from the sums (R, K, D) and counts (R, K) of blocks."""
    blocks = (counts > 0).sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = score(sums.sum(1) / counts.sum(1)[:, None])[:, None]
        left = score((sums.sum(1, keepdims=True) - sums) / (counts.sum(1, keepdims=True) - counts)[..., None])
    usable = (counts > 0) & (blocks > 1) & np.isfinite(left)
    mean = _row_means(np.where(usable, left, np.nan))[:, None]
    moved = np.where(usable, (blocks - 1) * (mean - left), 0.0)
    return np.where(counts > 0, whole + moved, np.nan)


def resamples(curves, metric, resamples=1000):
    """Resampled means over replicas of a metric, paired between models with the same number of replicas.

    Parameters
    ----------
    curves
        Curves of the record of a rollout.
    metric
        Name of a metric in :func:`block_values`.
    resamples
        Number of resamples.

    Returns
    -------
    ndarray
        Means by :func:`~egraff_utils.statistics.replica_resamples`, shape ``(resamples,)``, in the unit of
        the metric.

    Raises
    ------
    KeyError
        If the curves do not hold the metric; the message lists those that they hold.
    """
    values = block_values(curves)
    if metric not in values:
        raise KeyError(f"no curves of '{metric}'; there are those of {', '.join(values)}")
    options = {"positive": quantities.of(metric).interval == "log", "resamples": resamples}
    return statistics.replica_resamples(values[metric], groups=curves.get("composition"), **options)


def pool(parts):
    """Metrics and curves over all replicas of one model's rollouts of several compositions.

    Parameters
    ----------
    parts
        ``{composition: Record}`` of rollouts.

    Returns
    -------
    metrics : list of Metric
        Metrics as in :func:`measure`; costs are means over the parts.
    curves : dict
        Curves over time, NaN after the end of a shorter part, and ``composition`` (R,).
    """
    found = [record.curves for record in parts.values()]
    time = max((curves["time"] for curves in found), key=len)
    curves = {"time": time}
    for name in ("ev_root", "fv", "rmsd", "temperature"):
        curves[name] = np.concatenate([_pad(c[name], len(time)) for c in found])
    for name in ("stable_step", "start_temperature"):
        if all(name in c for c in found):
            curves[name] = np.concatenate([c[name] for c in found])
    replicas = [len(c["stable_step"]) for c in found]
    curves["composition"] = np.repeat(list(parts), replicas)
    each = [block_values(c) for c in found]
    values = {name: stacked([v[name] for v in each]) for name in each[0] if all(name in v for v in each)}
    curves |= {f"{name}_blocks": values[name].astype(np.float32) for name in STRUCTURE if name in values}
    values["stable_fraction"] = np.concatenate([stable_fractions(r) for r in parts.values()])
    ordered = [
        summary(name, values[name], groups=curves["composition"])
        for name in quantities.averaged()
        if name in values
    ]
    for name in ("ms_per_step", "replica_steps_per_second", "steps", "reference_contiguous"):
        ordered.append(Metric.of(name, np.mean([record[name] for record in parts.values()])))
    return ordered, curves


def stable_fractions(record):
    """Stable fraction of every replica of a rollout, shape ``(R,)``, dimensionless.

    A replica that reached the end of the simulation is stable, even if the simulation ended early.
    """
    stable = record.curves["stable_step"]
    return np.where(stable < record["steps"], stable / record.parameters["steps"], 1.0)


def stacked(parts):
    """Values (R, K) of several records, concatenated along R; NaN where a record has fewer blocks."""
    return np.concatenate([_pad(part, max(p.shape[1] for p in parts)) for part in parts])


def _pad(curve, length):
    """A curve (R, T), padded with NaN to ``length`` frames."""
    return np.pad(curve, [(0, 0), (0, length - curve.shape[1])], constant_values=np.nan)


def summary(name, values, *, groups=None):
    """Mean over replicas with its 95 % interval, a :class:`~egraff_utils.records.Metric`.

    :attr:`~egraff_utils.quantities.Quantity.interval` decides whether the interval is that of
    :func:`~egraff_utils.statistics.replica_interval`, on a linear or a logarithmic scale, that of
    :func:`~egraff_utils.statistics.fraction_interval`, or absent. The interval covers the mean over many
    replicas of this length from such starts, including the noise of that length; it does not cover the
    variation between trainings.

    Parameters
    ----------
    name
        Name of the metric.
    values
        One value per replica, shape ``(R,)``, or one per block, ``(R, K)``, as from :func:`block_values`. A
        replica without a value is left out.
    groups
        Name of the group of each replica, shape ``(R,)``, if replicas differ by design.
    """
    values = np.asarray(values, dtype=float)
    values = values if values.ndim == 2 else values[:, None]
    means = _row_means(values)
    count = int(np.isfinite(means).sum())
    if not count:
        return Metric.of(name, None, n=0)
    scale, bounds = quantities.of(name).interval, (None, None)
    if scale == "fraction":
        bounds = statistics.fraction_interval(means)
    elif scale:
        bounds = statistics.replica_interval(values, groups=groups, positive=scale == "log")
    return Metric.of(name, np.nanmean(means), *bounds, count)


def reinterval(record):
    """A rollout's record with intervals, and geometric means over time, recomputed from its curves.

    This updates stored records without a simulation; other values stay as they are. For a record over several
    compositions, the records of the compositions are read and the curves of :func:`pool` are added.

    Returns
    -------
    Record
        The new record, which is not written; use ``records.write(found, found.curves)``.
    """
    curves = dict(record.curves)
    if "composition" in curves:
        names = dict.fromkeys(map(str, curves["composition"]))
        parts = {name: records.load(_part_path(record, name)) for name in names}
        measured, curves = pool(parts)
        fresh = {metric.name: metric for metric in measured}
    else:
        values = block_values(curves) | {"stable_fraction": stable_fractions(record)}
        if "energy" in curves:
            values["energy_drift"] = _drifts(record)
        fresh = {name: summary(name, found) for name, found in values.items()}
    kept = [
        _renewed(metric, fresh[metric.name]) if metric.name in fresh else metric for metric in record.metrics
    ]
    found = replace(record, metrics=kept)
    found.__dict__["curves"] = curves
    return found


def _renewed(metric, new):
    """A metric with a new interval, and a new value if it is a geometric mean over time."""
    value = new.value if metric.name in ("ev", "ev_root", "fv") else metric.value
    return replace(metric, value=value, low=new.low, high=new.high, n=new.n)


def _part_path(record, composition):
    return record.key.of(shift=composition).path


def _drifts(record):
    """Slope of the potential energy of every replica, scaled to the mean in the record, meV/atom/ps."""
    time, energy = record.curves["time"], record.curves["energy"]
    drifts = np.array([_drift(time, values) for values in energy])
    stored, mean = record["energy_drift"], np.nanmean(drifts) if np.isfinite(drifts).any() else np.nan
    return drifts * stored / mean if stored is not None and mean else np.full(len(drifts), np.nan)


@over_time
def _violations(trajectory, atoms, reference):
    energy, forces = (values[:, : len(trajectory.steps)] for values in (reference.energy, reference.forces))
    root = metrics.energy_violation_root(trajectory.energy, energy)
    force = [metrics.force_violation(f, g) for f, g in zip(trajectory.forces, forces, strict=True)]
    return {"ev_root": root, "fv": np.stack(force)}


@over_time
def _energies(trajectory, atoms, reference):
    stored = {"energy": trajectory.energy, "temperature": trajectory.temperature}
    return stored | {"energy_reference": reference.energy[:, : len(trajectory.steps)]}


@over_time
def _displacements(trajectory, atoms, reference):
    """RMSD of the model and of the reference from the start, and of the model from the reference."""
    moved = trajectory.positions - trajectory.positions[:, :1]
    curves = {"rmsd": _over_atoms(moved)}
    if reference.moved is not None:
        there = reference.moved[:, : moved.shape[1]]
        curves |= {"rmsd_reference": _over_atoms(there), "deviation": _over_atoms(moved - there)}
    return curves


def _over_atoms(moved):
    return np.sqrt(np.square(moved).sum(-1).mean(-1))


def _late_mean(curve):
    """Mean over the last tenth of the frames that have a value."""
    values = curve[np.isfinite(curve)]
    return values[-max(1, len(values) // 10) :].mean() if len(values) else np.nan


def _drift(time, energy):
    """Slope of the potential energy, meV/ps; time in fs, energy in eV, NaN after the end."""
    sound = np.isfinite(energy)
    if sound.sum() < 10:
        return np.nan
    return np.polyfit(time[sound] / 1000, energy[sound] - energy[0], 1)[0] * EV_TO_MEV


def _every(trajectory, steps):
    """Steps between recorded frames."""
    return int(trajectory.steps[1]) if len(trajectory.steps) > 1 else steps


def _blocks(trajectory, *, asked):
    """Valid frames of every block of equal time, slices ``[replica][block]``; empty after a break."""
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
    """Temperature of every element, averaged over the frames of every block."""
    empty = np.full(trajectory.temperature_species.shape[-1], np.nan)
    means = [
        [values[block].mean(0) if block.stop > block.start else empty for block in replica]
        for values, replica in zip(trajectory.temperature_species, blocks, strict=True)
    ]
    species = np.array([chemical_symbols[z] for z in np.unique(atoms.numbers)])
    return {"temperature_species": np.array(means, dtype=np.float32), "species": species}


def _last_frames(trajectory):
    """Positions and energies of the replicas that broke, up to their last valid frame."""
    broken = [r for r, cause in enumerate(trajectory.causes) if cause]
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
    """Positions in the valid frames of all replicas, concatenated, shape ``(F, N, 3)``, Å."""
    replicas = range(len(trajectory.energy))
    return np.concatenate([trajectory.positions[r, : trajectory.frames(r)] for r in replicas])


def _thin(curve, name=""):
    """At most :data:`MOST_FRAMES` frames of a curve; float32 is enough for all but energies."""
    thinned = curve[..., :: -(-curve.shape[-1] // MOST_FRAMES)]
    return thinned if name.startswith("energy") else thinned.astype(np.float32)


def _costs(trajectory):
    """Median time of a step of all replicas, without the first steps, and throughput."""
    times = trajectory.step_times
    settled = times[3:] if len(times) > 3 else times
    total = times.sum()
    return [
        Metric.of("ms_per_step", np.median(settled) * 1e3 if len(settled) else None),
        Metric.of("replica_steps_per_second", trajectory.stable_step.sum() / total if total else None),
        Metric.of("steps", trajectory.step),
    ]
