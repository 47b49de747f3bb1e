"""What would a perfect model score? Noise floors of the metrics, from the reference alone.

Two stretches of one reference trajectory differ by chance, so their difference is what a simulation with
the exact force field would be given; a model at the floor cannot be told from it.
"""

import time

import numpy as np

from egraff_utils import audit, cards, data, records, statistics, structure
from egraff_utils.records import Metric


def measure(dataset, *, campaign="demo", seed=0):
    """Sizes, ceilings and floors of a dataset; the stored record if the frames are the same.

    Parameters
    ----------
    dataset
        Name of a dataset.
    campaign
        Where the record is filed.
    seed
        Of the pairs of frames that are drawn.

    Returns
    -------
    Record
        Kind ``dataset``, model ``reference``. Metrics: frames of the splits, ``zero_force_mae`` and
        ``force_rms`` (meV/Å), ``energy_std`` (meV), for molecules ``virial_temperature`` (K), all of the test
        split, and those of :func:`noise_floors`; of several compositions their means.
    """
    started = time.time()
    card = cards.dataset(dataset)
    frames = {name: data.load(dataset, name) for name in ("train", "val", "test") if name in card.splits}
    energies = _energies(frames["test"])
    compositions = [data.load(dataset, part) for part in card.parts("test")]
    forces = np.concatenate([atoms.get_forces() for atoms in frames["test"]])
    key = ("dataset", campaign, dataset, "reference", seed)
    parameters = {"frames": records.digest(energies, forces), "version": 2}
    if stored := records.find(*key, parameters):
        return stored
    spread = np.sqrt(np.mean([_energies(part).var() for part in compositions]))
    measured = [Metric(f"frames_{split}", len(atoms), "1") for split, atoms in frames.items()]
    measured += [
        Metric("zero_force_mae", 1000 * np.abs(forces).mean(), "meV/Å"),
        Metric("force_rms", 1000 * np.sqrt((forces**2).mean()), "meV/Å"),
        Metric("energy_std", 1000 * spread, "meV"),
    ]
    if not frames["test"][0].pbc.any():
        virial = audit.virial_temperature(frames["test"])
        low, high = statistics.bootstrap_interval(virial)
        measured.append(Metric("virial_temperature", virial.mean(), "K", low, high, len(virial)))
    found = [noise_floors(part, seed=seed) for part in compositions]
    for same in zip(*found, strict=True):
        measured.append(Metric(same[0].name, np.mean([m.value for m in same]), same[0].unit))
    record = records.Record(*key, parameters, measured, provenance=records.provenance(started))
    records.write(record)
    return record


def noise_floors(frames, *, seed=0):
    """Floors of the structure and dynamics metrics, a list of :class:`~egraff_utils.records.Metric`.

    ``floor_wf`` (%), ``floor_jsd`` and ``floor_jsd_raw`` (nats): first half of the frames against the
    second, at the range of the published evaluation. ``floor_ev_root`` and ``floor_fv``: geometric means
    over pairs of frames drawn at random, which is where two trajectories end that have become independent.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of one composition and one cell, with energy (eV) and forces (eV/Å).
    seed
        Of the draw.
    """
    first = frames[0]
    positions = np.stack([atoms.positions for atoms in frames])
    energies = _energies(frames)
    forces = np.stack([atoms.get_forces() for atoms in frames])
    box = {"cell": first.cell.array, "pbc": first.pbc, "r_max": structure.as_coded_r_max(first)}
    found = statistics.floor_rdf(positions, first.numbers, **box)
    found |= statistics.floor_ev_fv(energies, forces, seed=seed)
    units = {"wf": "%", "jsd": "nats", "jsd_raw": "nats", "ev_root": "1", "fv": "1"}
    return [Metric(f"floor_{name}", found[name], unit) for name, unit in units.items()]


def _energies(frames):
    return np.array([atoms.get_potential_energy() for atoms in frames])
