"""What would a perfect model score? Noise floors of the metrics are measured on the reference alone.

Two stretches of one reference trajectory differ by chance. Their difference is the score that a simulation
with the exact force field would receive, and a model at this floor cannot be distinguished from the exact
one.
"""

import time
from typing import NamedTuple

import numpy as np
from ase import units
from ase.geometry import find_mic

from egraff_utils import cards, data, metrics, records, statistics, structure
from egraff_utils.checks import audit
from egraff_utils.config import Key
from egraff_utils.md import analysis
from egraff_utils.quantities import FLOORED
from egraff_utils.records import Metric

DRAWS = 500
"""Number of hypothetical simulations that are drawn for an interval."""

STAYS = 1 / 3
"""Largest root mean square displacement of an atom that stays at its site, as a fraction of the distance to
its nearest neighbour. Melting begins near 0.15 (Lindemann); a rotating methyl group reaches 0.6."""

MODELS = ("reference", "frozen", "ideal_gas", "einstein")


def measure(dataset, *, campaign="demo", seed=0):
    """Sizes, ceilings and floors of a dataset.

    Parameters
    ----------
    dataset
        Name of a dataset.
    campaign
        Campaign under which the record is stored.
    seed
        Seed of the draw of pairs of frames.

    Returns
    -------
    Record
        Kind ``dataset``, model ``reference``. Metrics: the numbers of frames of the splits; for the test
        split ``zero_force_mae`` and ``force_rms`` (meV/Å), ``energy_std`` (meV) and, for molecules,
        ``virial_temperature`` (K); and those of :func:`noise_floors`, averaged over compositions. A stored
        record is returned if it was made from the same frames.
    """
    card = cards.dataset(dataset)
    names = [name for name in ("train", "val", "test") if name in card.splits]
    frames = data.checked(card, names)
    energies = _energies(frames["test"])
    compositions = [data.load(card, part) for part in card.parts("test")]
    forces = np.concatenate([atoms.get_forces() for atoms in frames["test"]])
    key = Key("dataset", campaign, card.name, "reference", seed)
    parameters = {"frames": records.digest(energies, forces), "version": 2}
    return records.stored_or_made(
        key,
        parameters,
        lambda: _sizes(frames, compositions, energies, forces, seed),
        frames=data.digest(card, names),
    )


def _sizes(frames, compositions, energies, forces, seed):
    spread = np.sqrt(np.mean([_energies(part).var() for part in compositions]))
    measured = [Metric.of(f"frames_{split}", len(atoms)) for split, atoms in frames.items()]
    measured += [
        Metric.of("zero_force_mae", 1000 * np.abs(forces).mean()),
        Metric.of("force_rms", 1000 * np.sqrt((forces**2).mean())),
        Metric.of("energy_std", 1000 * spread),
    ]
    if not frames["test"][0].pbc.any():
        virial = audit.virial_temperature(frames["test"])
        low, high = statistics.bootstrap_interval(virial)
        measured.append(Metric.of("virial_temperature", virial.mean(), low, high, len(virial)))
    found = [noise_floors(part, seed=seed) for part in compositions]
    for same in zip(*found, strict=True):
        measured.append(Metric.of(same[0].name, np.mean([m.value for m in same])))
    return records.Outcome(measured)


def noise_floors(frames, *, seed=0):
    """Floors of the structure and dynamics metrics, a list of :class:`~egraff_utils.records.Metric`.

    ``floor_wf`` (%), ``floor_jsd`` and ``floor_jsd_raw`` (nats) compare the first half of the frames with the
    second, over the range of the published evaluation. ``floor_ev_root`` and ``floor_fv`` are geometric means
    over pairs of frames drawn at random, the values that two trajectories reach once they are independent.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of one composition and one cell, with energy (eV) and forces (eV/Å).
    seed
        Seed of the draw.
    """
    first = frames[0]
    positions = np.stack([atoms.positions for atoms in frames])
    energies = _energies(frames)
    forces = np.stack([atoms.get_forces() for atoms in frames])
    box = {"cell": first.cell.array, "pbc": first.pbc, "r_max": structure.as_coded_r_max(first)}
    found = statistics.floor_rdf(positions, first.numbers, **box)
    found |= statistics.floor_ev_fv(energies, forces, seed=seed)
    return [Metric.of(f"floor_{name}", found[name]) for name in FLOORED if name in found]


def _energies(frames):
    return np.array([atoms.get_potential_energy() for atoms in frames])


# -- of one rollout -------------------------------------------------------------------------------------


def of_rollout(config):
    r"""Floor and ceilings of a rollout: the scores of a perfect model, and those of models without physics.

    **Floor** (model ``reference``). A simulation with the exact force field would still differ from the
    reference, since both are finite. In a time-ordered split, a block of the reference as long as the rollout
    (in time; half of the reference if that is shorter) is scored against all frames outside it, for every
    position of the block. A block that is too short scores too high. For blocks of n and m frames without
    correlation

    .. math:: \mathrm{WF} \propto \frac1n + \frac1m,

    and with correlation it decreases more slowly. The power p of the right-hand side is therefore measured on
    blocks of a half, a quarter and an eighth of the reference and restricted to between 0 and 1, and the
    score is extrapolated with it to the lengths of rollout and reference. The 95 % range is that of the mean
    over R replicas: at 500 places the reference is cut into R blocks and a rest, in proportion to the real
    lengths, and the relative scatter of their mean score is used, multiplied by the scatter of the level
    itself, which a reference of few blocks does not determine exactly. For EV and FV, pairs of stretches are
    a random lag apart that exceeds the correlation time. For the RMSD, the reference's own displacement over
    the last tenth of the time is used.

    If frames have no order in time, blocks are random draws without replacement and pairs are random pairs.
    Such frames are independent, whereas those of a rollout are not: it cannot reach this floor, and its
    values scatter more than the range says. There is no RMSD. If the halves of the set as stored differ more
    than random halves do (:func:`order_shows`), the set has an unknown order in time; the blocks for
    structure are then taken in that order, half of the set each, and the score is not extrapolated to other
    lengths.

    **Ceilings.** In ``frozen``, a frame of the reference, with its energy and forces, does not move. In
    ``ideal_gas``, atoms are anywhere in the cell, forces are zero, the energy is the mean one, and g(r) is
    exact. In ``einstein``, used where atoms stay at their sites (:data:`STAYS`), every atom is in a harmonic
    well at its mean position (after superposition of molecules), as wide as the displacement in the
    reference, with the forces and the energy of that well. Ranges are over starts and draws.

    Parameters
    ----------
    config
        :class:`~egraff_utils.md.rollout.RolloutConfig`; its model, its time limit and its seed do not matter.

    Returns
    -------
    list of Record
        Kind ``floor`` or ``floor_<shift>``, seed 0, with that of the model ``reference`` first. Metrics
        ``wf`` (%), ``jsd``, ``jsd_raw`` (nats), ``ev_root``, ``fv``, ``rmsd`` (Å), each the mean and the 95 %
        range of the value of one rollout. Curves: ``draws_<metric>`` (D,), the values that the range is taken
        from; for the floor of structure also ``exponent_<metric>`` and ``scale_<metric>``, the measured p and
        the factor that it gives, and ``rdf_spread`` (2, B), see :func:`rdf_spread`. Stored records are
        returned if parameters and frames are the same. For a split of several compositions, records of each
        are written, and those over all replicas are returned.

    Raises
    ------
    ValueError
        If there are fewer frames than replicas, or a name is unknown.
    """
    from egraff_utils.md import rollout  # imported here, as the floors of a dataset do not need torch

    if len(several := rollout.parts(config)) > 1:
        return _pooled(config, [of_rollout(part) for part in several])
    started = time.time()
    card = cards.dataset(config.target or config.dataset)
    frames = rollout.reference_of(card, split=config.split)
    parameters, digest = _parameters(config, card, frames), data.scene_digest(card, config.split)
    if stored := _stored(config, parameters, digest):
        return stored
    sample, extent = (
        Sample.of(frames, card.time_ordered.get(config.split)),
        _extent(config, card, len(frames)),
    )
    found = {"reference": _perfect(sample, extent), "frozen": _frozen(sample, extent)}
    found["ideal_gas"] = _ideal_gas(sample, extent)
    temperature = parameters["temperature"]
    if (moved := displacements(frames)) is not None:
        found["einstein"] = _einstein(sample, extent, frames[0], *moved, temperature)
    messages = {"reference": _message(sample, extent, found["reference"])}
    return [
        _record(config, parameters, name, v, messages.get(name, ""), started, digest)
        for name, v in found.items()
    ]


class Sample(NamedTuple):
    """Arrays of the reference that floors are computed from: F frames, N atoms, B bins."""

    rdf: np.ndarray
    """g(r) of every frame, shape ``(F, B)``."""
    energies: np.ndarray
    """Potential energies, shape ``(F,)``, eV."""
    forces: np.ndarray
    """Forces, shape ``(F, N, 3)``, eV/Å."""
    path: np.ndarray
    """Unwrapped positions, shape ``(F, N, 3)``, Å; meaningful only for time-ordered frames."""
    interval: float | None
    """Time between two frames, fs; None if they have no order in time."""
    atoms: object
    """First frame, which gives cell and elements."""

    @classmethod
    def of(cls, frames, interval):
        """Sample of a ``list[ase.Atoms]`` of one composition and one cell, with energies and forces."""
        first = frames[0]
        box = {"cell": first.cell.array, "pbc": first.pbc, "r_max": structure.as_coded_r_max(first)}
        rdf = [structure.radial_distributions(a.positions[None], a.numbers, **box).total for a in frames]
        forces = np.stack([atoms.get_forces() for atoms in frames])
        return cls(np.stack(rdf), _energies(frames), forces, analysis.unwrap(frames), interval, first)

    @property
    def ordered(self):
        """Whether the frames are ordered in time."""
        return self.interval is not None


class Extent(NamedTuple):
    """Lengths of a rollout and of its comparison, in frames of the reference."""

    replicas: int
    """Number of replicas, R."""
    frames: int
    """Number of reference frames in the time of a replica."""
    reference: int
    """Number of frames in the radial distribution that it is compared with."""
    compared: tuple
    """Number of frames of every replica that are compared with a frame of the reference."""


def _extent(config, card, total):
    """:class:`Extent` of a rollout against ``total`` frames."""
    from egraff_utils.md import rollout

    interval = card.time_ordered.get(config.split)
    steps = np.arange(0, config.steps + 1, config.record_every)
    _, timestep = card.conditions(config.split)
    timestep = config.timestep or timestep
    frames = len(steps) if interval is None else round(steps[-1] * timestep / interval) + 1
    corrected = config.protocol == "corrected"
    if corrected and card.oracle is not None:
        return Extent(config.replicas, frames, config.replicas * frames, (len(steps),) * config.replicas)
    first = rollout.start_frames(config, total, ordered=interval is not None)
    if corrected and interval is not None:
        index = rollout.match_frames(first, steps, timestep, interval=interval, total=total)
        return Extent(config.replicas, frames, total, tuple((index >= 0).sum(1).tolist()))
    return Extent(config.replicas, frames, total, (len(steps),) * config.replicas)


# -- the floor ------------------------------------------------------------------------------------------


def _perfect(sample, extent):
    total = len(sample.rdf)
    hidden = not sample.ordered and order_shows(sample.rdf)
    lengths = extent._replace(frames=total // 2, reference=total - total // 2) if hidden else extent
    found = structure_floor(sample.rdf, lengths, ordered=sample.ordered or hidden)
    apart = separation(sample.energies, sample.forces) if sample.ordered else None
    found |= violation_floor(sample.energies, sample.forces, extent, apart=apart)
    if sample.ordered:
        found["draws_rmsd"] = displacement_floor(sample.path, extent)
    return found


def order_shows(rdf, *, draws=200, seed=0):
    """Whether the two halves of a set as stored differ more than 97.5 % of random halves, by Wright's factor.

    Parameters
    ----------
    rdf
        g(r) of every frame, shape ``(F, B)``, dimensionless.
    draws, seed
        Number of random halves, and seed of their draw.

    Examples
    --------
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(40, 20))
    >>> order_shows(rdf), order_shows(np.sort(rdf, axis=0))
    (False, True)
    """
    half = len(rdf) // 2
    if not half:
        return False
    stored = metrics.wright_factor(rdf[:half].mean(0), rdf[half:].mean(0))
    shuffled = _scores(rdf, 1, half, len(rdf) - half, False, draws, seed)["wf"]
    return bool(stored > np.quantile(shuffled, 0.975))


def structure_floor(rdf, extent, *, ordered, draws=DRAWS, seed=0):
    """Structure metrics of a perfect model, from g(r) of single frames.

    Parameters
    ----------
    rdf
        g(r) of every frame, shape ``(F, B)``, dimensionless.
    extent
        :class:`Extent` of the rollout.
    ordered
        Whether the frames are ordered in time; otherwise they count as independent.
    draws, seed
        Number of hypothetical rollouts, and seed of the places or draws of their blocks.

    Returns
    -------
    dict
        ``draws_<metric>`` (D,) in the unit of the metric (all nan if there are too few frames for R blocks),
        ``exponent_<metric>``, ``scale_<metric>``, and ``rdf_spread`` (2, B), see :func:`rdf_spread`.

    Examples
    --------
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(400, 50))
    >>> found = structure_floor(rdf, Extent(1, 100, 100, (100,)), ordered=False)
    >>> bool(0.017 < found["draws_wf"].mean() < 0.023)  # (1/100 + 1/100) of a variance of 1 over 10**2, in %
    True
    """
    total = len(rdf)
    block = min(extent.frames, total // 2)
    sizes = [size for size in dict.fromkeys((total // 2, total // 4, total // 8)) if size]
    fewer = -(-draws // 5)  # for means, which need no tails
    measured = {size: _scores(rdf, 1, size, total - size, ordered, fewer, seed) for size in {block, *sizes}}
    share = min(1.0, total / (extent.replicas * extent.frames + extent.reference))
    scaled = max(1, int(share * extent.frames))
    rest = min(total - extent.replicas * scaled, max(1, round(share * extent.reference)))
    several = _scores(rdf, extent.replicas, scaled, rest, ordered, draws, seed + 1) if rest > 0 else None
    found = {}
    for name in analysis.STRUCTURE:
        means = {size: scores[name].mean() for size, scores in measured.items()}
        power = _power([1 / size + 1 / (total - size) for size in sizes], [means[size] for size in sizes])
        wanted, had = 1 / extent.frames + 1 / extent.reference, 1 / block + 1 / (total - block)
        scale = (wanted / had) ** power
        relative = several[name] / several[name].mean() if several else np.full(draws, np.nan)
        if ordered:
            relative = relative * _level(measured[block][name], total // block - 1, draws, seed)
        found |= {f"draws_{name}": means[block] * scale * relative}
        found |= {f"exponent_{name}": power, f"scale_{name}": scale}
    power = found["exponent_wf"]
    if total >= 2:
        found["rdf_spread"] = rdf_spread(rdf, extent, block, power, ordered=ordered, draws=draws, seed=seed)
    return found


def rdf_spread(rdf, extent, block, power, *, ordered, draws=DRAWS, seed=0):
    """Half-width of the 95 % range of g(r) of a perfect model about that of the reference.

    Blocks of the reference are compared with the rest of it. The squares of the differences scale like
    Wright's factor, so its exponent is used to extrapolate them to the lengths of rollout and reference.

    Parameters
    ----------
    rdf
        g(r) of every frame, shape ``(F, B)``, dimensionless.
    extent
        :class:`Extent` of the rollout.
    block
        Number of frames in a block.
    power
        Exponent of Wright's factor, see :func:`of_rollout`.
    ordered, draws, seed
        As in :func:`structure_floor`.

    Returns
    -------
    ndarray
        Half-widths for a single replica and for the mean over all replicas, shape ``(2, B)``, dimensionless.

    Examples
    --------
    >>> rdf = 10 + np.random.default_rng(0).normal(size=(400, 50))
    >>> spread = rdf_spread(rdf, Extent(4, 100, 400, (100,)), 100, 1.0, ordered=False)
    >>> [round(float(x), 1) for x in spread.mean(1) * 10 / 1.96]  # roots of 1/100 + 1/400, 1/400 + 1/400
    [1.1, 0.7]
    """
    total, rng = len(rdf), np.random.default_rng(seed)
    apart = np.empty((draws, rdf.shape[1]))
    for draw in range(draws):
        order = _order(rng, total, ordered)
        apart[draw] = rdf[order[:block]].mean(0) - rdf[order[block:]].mean(0)
    had = 1 / block + 1 / (total - block)
    wanted = np.array([1 / extent.frames, 1 / (extent.replicas * extent.frames)]) + 1 / extent.reference
    return np.quantile(np.abs(apart), 0.95, axis=0) * (wanted[:, None] / had) ** (power / 2)


def _order(rng, total, ordered):
    """Indices of all frames from a random one onwards, cyclically; shuffled if they have no order in time."""
    return np.roll(np.arange(total), -rng.integers(total)) if ordered else rng.permutation(total)


def _scores(rdf, replicas, block, rest, ordered, draws, seed):
    """Mean scores of blocks against a separate rest, ``{metric: (draws,)}``."""
    rng, total = np.random.default_rng(seed), len(rdf)
    rows = np.empty((draws, len(analysis.STRUCTURE)))
    for draw in range(draws):
        order = _order(rng, total, ordered)
        inside, outside = order[: replicas * block], order[replicas * block :][:rest]
        blocks, reference = rdf[inside].reshape(replicas, block, -1).mean(1), rdf[outside].mean(0)
        rows[draw] = [np.mean([f(g, reference) for g in blocks]) for f in analysis.STRUCTURE.values()]
    return dict(zip(analysis.STRUCTURE, rows.T, strict=True))


def _level(scores, apart, draws, seed):
    """Relative scatter, shape (draws,), of a mean score that is determined from only a few blocks."""
    picks = np.random.default_rng(seed).integers(len(scores), size=(draws, max(1, apart)))
    return scores[picks].mean(1) / scores.mean()


def _power(lengths, scores):
    """Exponent p of scores ~ lengths**p, restricted to between 0 (no scaling) and 1 (no correlation)."""
    if len(scores) < 2 or min(scores) <= 0:
        return 0.0
    return float(np.clip(np.polyfit(np.log(lengths), np.log(scores), 1)[0], 0.0, 1.0))


def separation(energies, forces):
    """Number of frames after which a trajectory is uncorrelated with its past.

    It is the larger of the autocorrelation time of the energy and the first zero of the autocorrelation of
    the forces, but at most a quarter of the trajectory.

    Parameters
    ----------
    energies, forces
        Energies and forces in order of time, shapes ``(F,)``, eV, and ``(F, N, 3)``, eV/Å.
    """
    gram = _gram(forces)
    quarter = max(1, len(gram) // 4)
    decay = [np.trace(gram, lag) for lag in range(quarter + 1)]
    zero = next((lag for lag, value in enumerate(decay) if value <= 0), quarter)
    energy = statistics.autocorrelation_time(energies)
    return int(min(quarter, max(1, zero, np.ceil(energy) if np.isfinite(energy) else 1)))


def violation_floor(energies, forces, extent, *, apart=None, draws=DRAWS, seed=0):
    """EV and FV of a model that is perfect but independent of the reference.

    Parameters
    ----------
    energies, forces
        Energies and forces, shapes ``(F,)``, eV, and ``(F, N, 3)``, eV/Å.
    extent
        :class:`Extent` of the rollout.
    apart
        Number of frames after which the reference is uncorrelated. A stretch of it is compared with the
        stretch that follows after a random lag of at least this length (the end is joined to the beginning).
        With None, for frames without an order in time, as many random pairs are compared.
    draws, seed
        Number of hypothetical rollouts, and seed of their draws.

    Returns
    -------
    dict
        ``draws_ev_root`` and ``draws_fv``, geometric means over time averaged over replicas, shape ``(D,)``,
        dimensionless.
    """
    rng, total = np.random.default_rng(seed), len(energies)

    def pairs(count):
        if apart is None:
            first = rng.integers(total, size=(draws, count))
            return first, (first + rng.integers(1, total, size=first.shape)) % total
        first = rng.integers(total, size=(draws, 1)) + np.arange(count)
        return first % total, (first + rng.integers(apart, total - apart + 1, size=(draws, 1))) % total

    return _violations(energies, forces, [pairs(count) for count in extent.compared])


def _violations(energies, forces, pairs):
    """Means over replicas of geometric means over pairs of frames, which are (draws, count) per replica."""
    tables = {"ev_root": _log_energy(energies), "fv": _log_force(forces)}
    return {
        f"draws_{name}": np.mean([_geometric(table[pair]) for pair in pairs], axis=0)
        for name, table in tables.items()
    }


def _geometric(logs):
    """Geometric means, shape (draws,), over the pairs of frames that do not agree exactly."""
    with np.errstate(invalid="ignore"):
        return np.exp(np.nansum(logs, axis=1) / np.isfinite(logs).sum(1))


def _log_energy(energies):
    """Logarithm of the root of EV for all pairs of frames, shape (F, F); nan where they agree exactly."""
    apart = metrics.energy_violation_root(*np.broadcast_arrays(energies[:, None], energies))
    return np.log(np.where(apart > 0, apart, np.nan))


def _log_force(forces):
    """Logarithm of FV for all pairs of frames, shape (F, F); nan for a frame with itself."""
    gram = _gram(forces)
    norm = np.sqrt(np.diag(gram))
    squared = np.maximum(norm[:, None] ** 2 + norm**2 - 2 * gram, 1e-24)
    log = np.log(np.sqrt(squared) / (norm[:, None] + norm))
    np.fill_diagonal(log, np.nan)
    return log


def _gram(forces):
    flat = np.asarray(forces, dtype=float).reshape(len(forces), -1)
    return flat @ flat.T


def displacement_floor(path, extent, *, draws=DRAWS, seed=0):
    """RMSD of a perfect model, that of the reference itself in the last tenth of the rollout's time.

    The relative range is that of displacements over a time that fits R + 1 times into the reference.

    Parameters
    ----------
    path
        Unwrapped positions in order of time, shape ``(F, N, 3)``, Å.
    extent
        :class:`Extent` of the rollout.
    draws, seed
        Number of hypothetical rollouts, and seed of their draws.

    Returns
    -------
    ndarray
        RMSD of every draw, shape ``(D,)``, Å; nan if the reference is too short.
    """
    total, last = len(path), extent.frames - 1
    lags = np.arange(max(1, int(np.ceil(0.9 * last))), min(last, total - 1) + 1)
    if not len(lags):
        return np.full(draws, np.nan)
    mean = np.mean([_displaced(path, lag).mean() for lag in lags])
    short = _displaced(path, max(1, min(last, total // (extent.replicas + 1))))
    starts = np.random.default_rng(seed).integers(len(short), size=(draws, extent.replicas))
    return mean * short[starts].mean(1) / short.mean()


def _displaced(path, lag):
    """Root mean square displacement over a lag from every start, shape (F - lag,), Å."""
    return np.sqrt(np.square(path[lag:] - path[:-lag]).sum(-1).mean(-1))


# -- the ceilings ---------------------------------------------------------------------------------------


def _frozen(sample, extent, *, draws=DRAWS, seed=0):
    """Scores of a frame that does not move, for starts drawn at random."""
    rng, total = np.random.default_rng(seed), len(sample.energies)
    starts = rng.integers(total, size=(draws, extent.replicas))
    reference = sample.rdf.mean(0)
    found = {}
    for name, compare in analysis.STRUCTURE.items():
        found[f"draws_{name}"] = np.array([compare(g, reference) for g in sample.rdf])[starts].mean(1)

    def pairs(start, count):
        ahead = np.arange(count) if sample.ordered else rng.integers(1, total, size=(draws, count))
        return start[:, None], (start[:, None] + ahead) % total

    compared = [pairs(start, count) for start, count in zip(starts.T, extent.compared, strict=True)]
    found |= _violations(sample.energies, sample.forces, compared)
    return found | {"draws_rmsd": np.zeros(draws)}


def _ideal_gas(sample, extent, *, draws=DRAWS, seed=0):
    """Scores of atoms anywhere in the cell, with the mean energy, no forces, and g(r) without noise."""
    atoms = sample.atoms
    g, reference = ideal_gas_rdf(atoms, sample.rdf.shape[1]), sample.rdf.mean(0)
    found = {f"draws_{name}": np.full(draws, f(g, reference)) for name, f in analysis.STRUCTURE.items()}
    rng, energy = np.random.default_rng(seed), sample.energies
    log = np.log(
        np.maximum(metrics.energy_violation_root(np.full(len(energy), energy.mean()), energy), 1e-300)
    )
    of_replica = [np.exp(log[rng.integers(len(log), size=(draws, n))].mean(1)) for n in extent.compared]
    found |= {"draws_ev_root": np.mean(of_replica, axis=0), "draws_fv": np.ones(draws)}
    moved = np.diff(rng.random((2, draws, extent.replicas, len(atoms), 3)), axis=0)[0] @ atoms.cell.array
    return found | {"draws_rmsd": np.sqrt(np.square(moved).sum(-1).mean(-1)).mean(-1)}


def ideal_gas_rdf(atoms, bins, *, directions=4000):
    r"""g(r) of atoms without interaction, anywhere in the cell, with the normalisation of the package.

    It is :math:`(N - 1) / N` in a periodic cell. In a cell that is not periodic, two atoms whose distance
    vector has the fractional coordinates s leave only the fraction :math:`\prod_k (1 - |s_k|)` of the cell
    for the first of them.

    Parameters
    ----------
    atoms
        ``ase.Atoms`` that gives cell, periodicity and number of atoms.
    bins
        Number of bins up to the range of the published evaluation.
    directions
        Number of directions over which a vector of given length is averaged.

    Returns
    -------
    ndarray
        g(r), shape ``(B,)``, dimensionless.

    Examples
    --------
    >>> from ase import Atoms
    >>> ideal_gas_rdf(Atoms("Ar4", cell=[21, 21, 21], pbc=True), 2)
    array([0.75, 0.75])
    """
    pairs = (len(atoms) - 1) / len(atoms)
    if atoms.pbc.all():
        return np.full(bins, pairs)
    height = np.linspace(-1, 1, 2 * directions + 1)[1::2]
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(directions)
    flat = np.sqrt(1 - height**2)
    vectors = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    width = structure.as_coded_r_max(atoms) / bins
    r = (np.arange(bins) + 0.5) * width
    scaled = np.abs(vectors @ np.linalg.inv(atoms.cell.array)) * ~atoms.pbc
    room = np.maximum(1 - r[:, None, None] * scaled, 0).prod(-1)
    return pairs * room.mean(1)


def _einstein(sample, extent, atoms, sites, widths, temperature, *, draws=DRAWS, seed=0):
    """Scores of atoms in harmonic wells; ``widths`` (N,) are standard deviations along an axis, Å."""
    rng, size = np.random.default_rng(seed), len(atoms)
    frames = int(np.clip(4_000_000 // size**2, 50, extent.frames))
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc, "r_max": structure.as_coded_r_max(atoms)}
    reference, rows = sample.rdf.mean(0), []
    stiffness = (temperature * units.kB / widths**2)[:, None]
    for _ in range(2 * extent.replicas):
        moved = rng.normal(size=(frames, size, 3)) * widths[:, None]
        g = structure.radial_distributions(sites + moved, atoms.numbers, **box).total
        excess = 0.5 * (stiffness * moved**2).sum((1, 2)) - 1.5 * size * units.kB * temperature
        picks = rng.integers(len(sample.energies), size=frames)
        pair = metrics.energy_violation_root(sample.energies.mean() + excess, sample.energies[picks])
        force = metrics.force_violation(-stiffness * moved, sample.forces[picks])
        rmsd = np.sqrt(np.square(moved[1:] - moved[0]).sum(-1).mean(-1)).mean()
        scores = [compare(g, reference) for compare in analysis.STRUCTURE.values()]
        rows.append([*scores, metrics.geometric_mean(pair), metrics.geometric_mean(force), rmsd])
    picked = np.array(rows)[rng.integers(len(rows), size=(draws, extent.replicas))].mean(1)
    names = [*analysis.STRUCTURE, "ev_root", "fv", "rmsd"]
    return {f"draws_{name}": values for name, values in zip(names, picked.T, strict=True)}


def displacements(frames):
    """Sites of atoms and the widths of their distributions; None if an atom does not stay at its site.

    Frames of a molecule are superposed first (Kabsch 1976). For a periodic system, the motion of the centre
    is removed and displacements are taken by minimum image.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of one composition and cell.

    Returns
    -------
    sites : ndarray
        Mean positions, shape ``(N, 3)``, Å.
    widths : ndarray
        Standard deviation along an axis, shape ``(N,)``, Å.
    """
    first = frames[0]
    positions = np.stack([atoms.positions for atoms in frames])
    periodic, sites = first.pbc.any(), positions[0]
    for _ in range(3):
        moved = _strayed(positions, sites, first) if periodic else _superposed(positions, sites) - sites
        sites, moved = sites + moved.mean(0), moved - moved.mean(0)
    widths = np.sqrt(np.square(moved).mean((0, 2)))
    apart = first.get_all_distances(mic=bool(periodic)) + np.diag(np.full(len(first), np.inf))
    if not (widths > 0).all() or (np.sqrt(3) * widths > STAYS * apart.min(1)).any():
        return None
    return sites, widths


def _strayed(positions, sites, atoms):
    """Displacements from the sites by minimum image, shape (F, N, 3), without their mean over atoms."""
    moved = find_mic((positions - sites).reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(positions.shape)
    return moved - moved.mean(1, keepdims=True)


def _superposed(positions, onto):
    """Positions (F, N, 3) after translation and rotation onto one frame (N, 3)."""
    centred = positions - positions.mean(1, keepdims=True)
    target = onto - onto.mean(0)
    left, _, right = np.linalg.svd(centred.transpose(0, 2, 1) @ target)
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return centred @ left @ right + onto.mean(0)


# -- records --------------------------------------------------------------------------------------------


def _parameters(config, card, frames):
    temperature, timestep = card.conditions(config.split)
    return {
        "split": config.split,
        "target": config.target and card.name,
        "protocol": config.protocol,
        "replicas": config.replicas,
        "steps": config.steps,
        "record_every": config.record_every,
        "temperature": config.temperature or temperature,
        "timestep": config.timestep or timestep,
        "frames": records.digest(_energies(frames), np.stack([atoms.positions for atoms in frames])),
        "version": 2,
    }


def _key(config, model):
    return config.key.of(act="floor", model=model, seed=0)


def _stored(config, parameters, digest):
    """Stored records of these parameters, in order, or None if a needed one is missing."""
    found = {model: records.find(_key(config, model), parameters, frames=digest) for model in MODELS}
    if any(found[model] is None for model in MODELS[:3]):
        return None
    return [record for record in found.values() if record is not None]


def _record(config, parameters, model, values, message, started, digest):
    measured = []
    for name in FLOORED:
        draws = values.get(f"draws_{name}", np.empty(0))
        draws = draws[np.isfinite(draws)]
        bounds = np.quantile(draws, [0.025, 0.975]) if len(draws) else (None, None)
        mean = draws.mean() if len(draws) else None
        measured.append(Metric.of(name, mean, *bounds, config.replicas if len(draws) else 0))
    record = records.Record(*_key(config, model), parameters, measured, message=message)
    record.provenance = records.provenance(started, frames=digest)
    records.write(record, {name: np.asarray(value, dtype=np.float32) for name, value in values.items()})
    return record


def _message(sample, extent, found):
    """Message of the record, which says how the floor was obtained."""
    power, scale, total = found["exponent_wf"], found["scale_wf"], len(sample.rdf)
    block = min(extent.frames, total // 2)
    if sample.ordered:
        fs = [f"{count * sample.interval:.4g}" for count in (block, extent.frames, total - block)]
        return (
            f"blocks of {fs[0]} of the {fs[1]} fs of a replica against the other {fs[2]} fs of the frames; "
            f"Wright's factor times {scale:.2f} for the real lengths (exponent {power:.2f})"
        )
    if order_shows(sample.rdf):
        return (
            f"the halves of the {total} frames as stored differ more than random halves: blocks of "
            f"{total // 2} in that order for structure, whatever the length of a replica; random pairs"
        )
    return (
        f"random draws of {block} of {total} frames, taken as independent: lower than frames in time could "
        f"reach; Wright's factor times {scale:.2f} for {extent.frames} frames in a replica"
    )


def _pooled(config, parts):
    """Records over the replicas of all compositions, from the records of each composition."""
    started = time.time()
    frames = {record.parameters["split"]: record.parameters["frames"] for record, *_ in parts}
    parameters = parts[0][0].parameters | {"split": config.split, "frames": frames, "temperature": None}
    parameters["timestep"] = config.timestep
    digest = data.scene_digest(config.target or config.dataset, config.split)
    if stored := _stored(config, parameters, digest):
        return stored
    pooled = []
    for model in MODELS:
        of_parts = [record for found in parts for record in found if record.model == model]
        names = [name for name in of_parts[0].curves if name.startswith("draws_")] if of_parts else []
        if len(of_parts) < len(parts) or not names:
            continue
        values = {name: np.mean([record.curves[name] for record in of_parts], axis=0) for name in names}
        message = f"mean over {', '.join(frames)}"
        pooled.append(_record(config, parameters, model, values, message, started, digest))
    return pooled
