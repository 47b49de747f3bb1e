"""Where do metrics saturate? Scores of independent trajectories, measured on the reference alone.

Two stretches of one reference trajectory differ by chance. Their difference is the saturation level, the
score of a simulation with the exact force field that shares nothing with the reference but the ensemble. It
is not the perfect level, the score of the exact force field under the very protocol of a rollout, which
shares the start and is lower for a while; that one takes the rollout of an oracle. Records of the saturation
level have the kind ``floor``, those of models without physics, which give ceilings, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units

from egraff_utils import cards, data, quantities, records, statistics, structure
from egraff_utils.checks import audit
from egraff_utils.checks.floors.levels import (
    displacement_floor,
    independent,
    order_shows,
    separation,
    structure_floor,
    violation_floor,
)
from egraff_utils.checks.floors.nulls import (
    displacements,
    einstein,
    frozen,
    ideal_gas,
    ideal_gas_rdf,
    recalled_errors,
)
from egraff_utils.checks.floors.sample import Extent, Sample, energies_of
from egraff_utils.config import Key
from egraff_utils.md import averages
from egraff_utils.quantities import SATURATING
from egraff_utils.records import Metric

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.md.rollout import RolloutConfig

__all__ = [
    "Extent",
    "Sample",
    "displacement_floor",
    "displacements",
    "ideal_gas_rdf",
    "measure",
    "noise_floors",
    "of_rollout",
    "recalled_errors",
    "separation",
    "structure_floor",
    "violation_floor",
]


MODELS = ("reference", "frozen", "ideal_gas", "einstein")
FEWEST = 2
"""Frames of one system without which it has no floor: one for each half."""


def measure(dataset: str | Path, *, campaign: str = "demo", seed: int = 0) -> records.Record:
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
    energies = energies_of(frames["test"])
    systems = [group for part in card.parts("test") for group in data.compositions(data.load(card, part))]
    forces = np.concatenate([atoms.get_forces() for atoms in frames["test"]])
    key = Key("dataset", campaign, card.name, "reference", seed)
    parameters = {"frames": records.digest(energies, forces), "version": 2}
    if any(_one_cell(group).ndim > 2 for group in systems):
        parameters["cells"] = "of every frame"  # records of version 2 once took the first cell for all
    return records.stored_or_made(
        key,
        parameters,
        lambda: _sizes(frames, systems, energies, forces, seed),
        frames=data.digest(card, names),
    )


def _sizes(
    frames: Mapping[str, Sequence[Atoms]],
    systems: Sequence[Sequence[Atoms]],
    energies: np.ndarray,
    forces: np.ndarray,
    seed: int,
) -> records.Outcome:
    large = [group for group in systems if len(group) >= FEWEST]
    spread = np.sqrt(np.mean([energies_of(group).var() for group in large])) if large else None
    measured = [Metric.of(f"frames_{split}", len(atoms)) for split, atoms in frames.items()]
    measured += [
        Metric.of("zero_force_mae", 1000 * np.abs(forces).mean()),
        Metric.of("force_rms", 1000 * np.sqrt((forces**2).mean())),
        Metric.of("energy_std", None if spread is None else 1000 * spread),
    ]
    if not any(atoms.pbc.any() or len(atoms) < 2 for atoms in frames["test"]):
        virial = audit.virial_temperature(frames["test"])
        low, high = statistics.bootstrap_interval(virial)
        measured.append(Metric.of("virial_temperature", virial.mean(), low, high, len(virial)))
    found = [noise_floors(group, seed=seed) for group in large]
    for name in dict.fromkeys(metric.name for part in found for metric in part):
        values: list = [m.value for part in found for m in part if m.name == name]
        measured.append(Metric.of(name, float(np.mean(values))))
    return records.Outcome(measured, message=_left_out(systems, found))


def _left_out(systems: Sequence[Sequence[Atoms]], found: Sequence[Sequence[Metric]]) -> str:
    """Message of the record: which systems of a test split have no floors, or none of g(r)."""
    large = [group for group in systems if len(group) >= FEWEST]
    few = len(systems) - len(large)
    texts = [f"systems in test with one frame, which have no floor: {few} of {len(systems)}"] if few else []
    for group, metrics in zip(large, found, strict=True):
        if not any(metric.name == "floor_wf" for metric in metrics):
            texts.append(
                f"{group[0].get_chemical_formula()} has no floor of g(r), as no two atoms are within "
                f"{_reach(group):g} Å, up to which cells of this size are compared; repeat the cell"
            )
    return "; ".join(texts)


def noise_floors(frames: Sequence[Atoms], *, seed: int = 0) -> list[Metric]:
    """Floors of the structure and dynamics metrics, a list of :class:`~egraff_utils.records.Metric`.

    ``floor_wf`` (%), ``floor_jsd`` and ``floor_jsd_raw`` (nats) compare the first half of the frames with the
    second, over the range of the published evaluation, and for molecules with bonds ``floor_bond_jsd`` and
    ``floor_angle_jsd`` (nats). Those of g(r) are left out if no two atoms are within that range, as in a
    small cell. ``floor_ev_root`` and ``floor_fv`` are geometric means
    over pairs of frames drawn at random, the values that two trajectories reach once they are independent.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of one system, see :func:`egraff_utils.data.compositions`, each in its own cell,
        with energy (eV) and forces (eV/Å).
    seed
        Seed of the draw.
    """
    first = frames[0]
    positions = np.stack([atoms.positions for atoms in frames])
    energies = energies_of(frames)
    forces = np.stack([atoms.get_forces() for atoms in frames])
    box = {"cell": _one_cell(frames), "pbc": first.pbc, "r_max": _reach(frames)}
    found = statistics.floor_rdf(positions, first.numbers, **box)
    bonded = structure.bonded_distributions(positions, first.numbers, structure.intact_bonds(frames))
    for name, distribution in bonded.items():
        compared = averages.STRUCTURE[name].items()
        found |= {metric: statistics.floor(distribution, compare) for metric, compare in compared}
    found |= statistics.floor_ev_fv(energies, forces, seed=seed)
    return [Metric.of(f"floor_{name}", found[name]) for name in SATURATING if name in found]


def _one_cell(frames: Sequence[Atoms]) -> np.ndarray:
    """Cell of all frames, shape (3, 3), or of every frame, shape (T, 3, 3), if they differ, Å."""
    cells = np.stack([atoms.cell.array for atoms in frames])
    return cells[0] if (cells == cells[0]).all() else cells


def _reach(frames: Sequence[Atoms]) -> float:
    """Range of g(r) that all frames have, Å."""
    return min(structure.as_coded_r_max(atoms) for atoms in frames)


# -- of one rollout -------------------------------------------------------------------------------------


def of_rollout(config: RolloutConfig) -> list[records.Record]:
    r"""Saturation level and ceilings of a rollout: scores of independent trajectories and without physics.

    **Saturation** (model ``reference``). A simulation with the exact force field would still differ from the
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

    If frames have no order in time, blocks are random draws without replacement. Such frames are independent,
    whereas those of a rollout are not: for structure it cannot reach this level, and its values scatter more
    than the range says. For EV and FV, stretches with the energies of a thermostatted simulation are drawn
    (``energy_path`` in ``levels``). There is no RMSD. If the halves of the set as
    stored differ more than random halves do (``order_shows``), the set has an unknown order in time; the
    blocks for structure are then taken in that order, half of the set each, and the score is not extrapolated
    to other lengths.

    **Ceilings.** In ``frozen``, a frame of the reference, with its energy and forces, does not move. In
    ``ideal_gas``, atoms are anywhere in the cell, forces are zero, the energy is the mean one, and g(r) is
    exact. In ``einstein``, used where atoms stay at their sites (``STAYS``), every atom is in a harmonic
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
        ``wf`` (%), ``jsd``, ``jsd_raw`` and, of molecules, ``bond_jsd``, ``angle_jsd`` (nats), ``ev_root``,
        ``fv``, ``rmsd`` (Å), each the mean and the 95 % range of the value of one rollout. Curves:
        ``draws_<metric>`` (D,), the values that the range is taken from; for the floor of structure also
        ``exponent_<metric>`` and ``scale_<metric>``, the measured p and the factor that it gives, and
        ``rdf_spread`` (2, B), the scatter of g(r). Stored records are returned if parameters and frames are
        the same. For a split of several compositions, records of each are written, and those over all
        replicas are returned.

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
    found: dict[str, Mapping[str, np.ndarray | float]] = {
        "reference": independent(sample, extent),
        "frozen": frozen(sample, extent),
    }
    found["ideal_gas"] = ideal_gas(sample, extent)
    temperature = parameters["temperature"]
    if (moved := displacements(frames)) is not None:
        found["einstein"] = einstein(sample, extent, frames[0], *moved, temperature)
    messages = {"reference": _message(sample, extent, found["reference"])}
    return [
        _record(config, parameters, name, v, messages.get(name, ""), started, digest)
        for name, v in found.items()
    ]


def _extent(config: RolloutConfig, card: cards.DatasetCard, total: int) -> Extent:
    """:class:`Extent` of a rollout against ``total`` frames."""
    from egraff_utils.md import rollout

    interval = card.time_ordered.get(config.split)
    steps = np.arange(0, config.steps + 1, config.record_every)
    _, timestep = card.conditions(config.split)
    timestep = config.timestep or timestep
    frames = len(steps) if interval is None else round(steps[-1] * timestep / interval) + 1
    memory = 1 / (config.friction * units.fs) / (timestep * config.record_every)
    after = (len(steps) - 1,) * config.replicas  # the start is given, not simulated
    corrected = config.protocol == "corrected"
    if corrected and card.oracle is not None:
        return Extent(config.replicas, frames, config.replicas * frames, after, memory)
    first = rollout.start_frames(config, total, ordered=interval is not None)
    if corrected and interval is not None:
        index = rollout.match_frames(first, steps, timestep, interval=interval, total=total)
        after = tuple((index[:, 1:] >= 0).sum(1).tolist())
    return Extent(config.replicas, frames, total, after, memory)


def _parameters(config: RolloutConfig, card: cards.DatasetCard, frames: Sequence[Atoms]) -> dict:
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
        "friction": config.friction,
        "frames": records.digest(energies_of(frames), np.stack([atoms.positions for atoms in frames])),
        "version": 3,
    }


def _key(config: RolloutConfig, model: str) -> Key:
    return config.key.of(act="floor", model=model, seed=0)


def _stored(config: RolloutConfig, parameters: dict, digest: str) -> list[records.Record] | None:
    """Stored records of these parameters, in order, or None if a needed one is missing."""
    found = {model: records.find(_key(config, model), parameters, frames=digest) for model in MODELS}
    if any(found[model] is None for model in MODELS[:3]):
        return None
    return [record for record in found.values() if record is not None]


def _record(
    config: RolloutConfig,
    parameters: dict,
    model: str,
    values: Mapping[str, np.ndarray | float],
    message: str,
    started: float,
    digest: str,
) -> records.Record:
    measured = []
    for name in SATURATING:
        if quantities.of(name).average in averages.STRUCTURE and f"draws_{name}" not in values:
            continue  # a system without bonds
        draws = np.asarray(values.get(f"draws_{name}", np.empty(0)))
        draws = draws[np.isfinite(draws)]
        low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (None, None)
        mean = draws.mean() if len(draws) else None
        measured.append(Metric.of(name, mean, low, high, config.replicas if len(draws) else 0))
    record = records.Record(*_key(config, model), parameters, measured, message=message)
    record.provenance = records.provenance(started, frames=digest)
    records.write(record, {name: np.asarray(value, dtype=np.float32) for name, value in values.items()})
    return record


def _message(sample: Sample, extent: Extent, found: Mapping[str, Any]) -> str:
    """Message of the record, which says how the floor was obtained."""
    power, scale, total = found["exponent_wf"], found["scale_wf"], len(sample.rdf)
    block = min(extent.frames, total // 2)
    if sample.interval is not None:
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


def _pooled(config: RolloutConfig, parts: Sequence[Sequence[records.Record]]) -> list[records.Record]:
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
