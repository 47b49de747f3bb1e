"""What does a trajectory say about its model? Metrics and curves that compare a rollout with its reference.

Symbols: R replicas, T recorded frames, F reference frames, N atoms, B bins, P pairs of elements, S elements,
K blocks of equal time. Curves are NaN after the last valid frame of a replica and where the reference has no
frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from egraff_utils import metrics, quantities, structure
from egraff_utils.md.averages import BLOCKS, STRUCTURE, block_values, summary
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.md.dynamics import Trajectory

MOST_FRAMES = 1001
"""Largest number of frames in a stored curve; longer curves are thinned after the metrics are computed."""
SHORTEST_WINDOW = 100.0
"""Time that a window of a spectrum covers at least, fs; its bins are 334 / cm wide."""
LAST_FRAMES = 10
"""Number of last valid frames that are stored for a replica that broke."""


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
    bonds: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=int))
    """Bonds of a molecule (:func:`~egraff_utils.structure.intact_bonds`), shape ``(P, 2)``."""
    bonded: dict[str, np.ndarray] = field(default_factory=dict)
    """Distributions of bond lengths and angles over all reference frames, ``{name: (B,)}``."""
    paths: Sequence[np.ndarray] = ()
    """Unwrapped positions of uninterrupted stretches of the reference, each ``(F, N, 3)``, Å."""
    stride: int = 1
    """Recorded frames of a rollout from one frame of ``paths`` to the next."""

    @classmethod
    def from_frames(cls, frames: Sequence[Atoms], index: np.ndarray, *, contiguous: bool) -> Reference:
        """Reference from stored frames; ``index`` (R, T) gives the frame of each step, or -1 for none."""
        missing = index < 0
        stored = [atoms.calc.results for atoms in frames]  # ASE's getters are slow: they compare all atoms
        energy = np.array([results["energy"] for results in stored])[index]
        forces = np.stack([results["forces"] for results in stored]).astype(np.float32)[index]
        energy[missing], forces[missing] = np.nan, np.nan
        path = unwrap(frames)
        moved: np.ndarray | None = None
        paths: Sequence[np.ndarray] = ()
        stride = 1
        if contiguous:
            paths, stride = (path,), int(np.argmax(index[0, 1:] >= 0)) + 1
            moved = (path[index] - path[index[:, :1]]).astype(np.float32)
            moved[missing] = np.nan
        positions, bonds = np.stack([atoms.positions for atoms in frames]), structure.intact_bonds(frames)
        rdf, bonded = _rdf(positions, frames[0]), _bonded(positions, frames[0], bonds)
        return cls(energy, forces, rdf, contiguous, moved, bonds, bonded, paths, stride)

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory, frames: Sequence[Atoms]) -> Reference:
        """Reference from a trajectory of the oracle that has the same starts as the rollout.

        ``frames`` are those of the split, which say what is bonded.
        """
        moved = trajectory.positions - trajectory.positions[:, :1]
        paths, bonds = _valid_positions(trajectory), structure.intact_bonds(frames)
        positions = np.concatenate(paths)
        rdf, bonded = _rdf(positions, frames[0]), _bonded(positions, frames[0], bonds)
        return cls(trajectory.energy, trajectory.forces, rdf, True, moved, bonds, bonded, paths)


def unwrap(frames: Sequence[Atoms]) -> np.ndarray:
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


_Curves = TypeVar("_Curves", bound=Callable[..., dict[str, np.ndarray]])
CURVES: list[Callable[..., dict[str, np.ndarray]]] = []
"""Functions that :func:`measure` calls for curves over time, see :func:`over_time`."""


def over_time(function: _Curves) -> _Curves:
    """Decorator that adds a function of (trajectory, atoms, reference) to those that :func:`measure` calls.

    The function returns a dict of curves, each of shape ``(R, T)`` or ``(R, S, T)`` and NaN after the last
    valid frame of a replica. A curve with the name of a metric gives the values of that metric, averaged as
    `quantities` says.
    """
    CURVES.append(function)
    return function


def measure(
    trajectory: Trajectory, atoms: Atoms, reference: Reference, *, timestep: float, steps: int
) -> tuple[list[Metric], dict[str, np.ndarray]]:
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
        Means over replicas with the intervals of :func:`~egraff_utils.md.averages.summary`; for EV and FV,
        means of the geometric means over time. Then ``ms_per_step``, ``replica_steps_per_second``, ``steps``,
        ``reference_contiguous``.
    curves : dict
        ``time`` (T,) fs; ``energy``, ``temperature``, ``ev_root``, ``fv``, ``rmsd``, (R, T);
        ``energy_reference``; where the reference is contiguous ``rmsd_reference`` and ``deviation`` (R, T),
        Å: displacement of the reference, and distance between the two trajectories; ``msd_species`` (R, S,
        T), Å^2, mean square displacement of every element from the start, and likewise
        ``msd_species_reference``; ``rdf_r`` (B,), ``rdf`` (R, B), ``rdf_reference`` (B,), ``pairs`` (P,),
        ``rdf_partial`` (R, P, B), ``rdf_partial_reference`` (P, B); ``stable_step`` (R,). For the K blocks
        of the requested time: ``block_frames`` (R, K), ``rdf_blocks`` (R, K, B), ``temperature_species``
        (R, K, S) K, of the elements ``species`` (S,). For a molecule with bonds ``bonds_blocks`` (R, K, B),
        ``bonds_reference`` (B,) and ``bonds_kinds`` (S,), and likewise for ``angles``, the distributions
        and kinds of :func:`~egraff_utils.structure.bonded_distributions`. Where the reference continues in
        time ``spectrum`` (R, B), ``spectrum_reference`` (B,) and ``spectrum_wavenumbers`` (B,), 1/cm
        (:func:`~egraff_utils.structure.vibrational_spectrum`). For L replicas that broke, with indices
        ``broken`` (L,): ``last_positions`` (L, :data:`LAST_FRAMES`, N, 3) Å, and ``last_energy`` (L,
        :data:`LAST_FRAMES`) eV, up to the last valid frame.
    """
    time = trajectory.steps * timestep
    curves: dict[str, np.ndarray] = {}
    for function in CURVES:
        curves |= function(trajectory, atoms, reference)
    blocks = _blocks(trajectory, asked=steps // _every(trajectory, steps) + 1)
    structures = _rdf_curves(trajectory.positions, blocks, atoms, reference.rdf)
    structures |= _bonded_curves(trajectory.positions, blocks, atoms, reference)
    structures |= _spectrum_curves(trajectory, atoms, reference, timestep=timestep, steps=steps)
    structures |= _species_curves(trajectory, blocks, atoms) | _last_frames(trajectory)
    structures["stable_step"] = trajectory.stable_step
    values: dict[str, ArrayLike] = {**block_values(curves | structures)}
    values["stable_fraction"] = [
        stable / steps if cause else 1.0
        for stable, cause in zip(trajectory.stable_step, trajectory.causes, strict=True)
    ]
    values["energy_drift"] = [_drift(time, energy) / len(atoms) for energy in curves["energy"]]
    curves = {name: _thin(curve, name) for name, curve in curves.items()} | {"time": _thin(time)}
    names = [
        name
        for name, average in quantities.averaged().items()
        if average not in STRUCTURE or f"{average}_reference" in structures  # a solid has no bonds
    ]
    ordered = [summary(name, values.get(name, [])) for name in names]
    contiguous = Metric.of("reference_contiguous", reference.contiguous)
    return ordered + _costs(trajectory) + [contiguous], curves | structures


@over_time
def _violations(trajectory: Trajectory, atoms: Atoms, reference: Reference) -> dict[str, np.ndarray]:
    energy, forces = (values[:, : len(trajectory.steps)] for values in (reference.energy, reference.forces))
    root = metrics.energy_violation_root(trajectory.energy, energy)
    force = [metrics.force_violation(f, g) for f, g in zip(trajectory.forces, forces, strict=True)]
    return {"ev_root": root, "fv": np.stack(force)}


@over_time
def _energies(trajectory: Trajectory, atoms: Atoms, reference: Reference) -> dict[str, np.ndarray]:
    stored = {"energy": trajectory.energy, "temperature": trajectory.temperature}
    return stored | {"energy_reference": reference.energy[:, : len(trajectory.steps)]}


@over_time
def _displacements(trajectory: Trajectory, atoms: Atoms, reference: Reference) -> dict[str, np.ndarray]:
    """RMSD of the model and of the reference from the start, of each element too, and between the two."""
    moved = trajectory.positions - trajectory.positions[:, :1]
    curves = {"rmsd": _over_atoms(moved), "msd_species": _of_elements(moved, atoms)}
    if reference.moved is not None:
        there = reference.moved[:, : moved.shape[1]]
        curves |= {"rmsd_reference": _over_atoms(there), "deviation": _over_atoms(moved - there)}
        curves["msd_species_reference"] = _of_elements(there, atoms)
    return curves


def _of_elements(moved: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Mean square displacement of every element, shape ``(R, S, T)``, Å^2."""
    squares = np.square(moved).sum(-1)
    return np.stack([squares[..., atoms.numbers == z].mean(-1) for z in np.unique(atoms.numbers)], axis=1)


def _over_atoms(moved: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(moved).sum(-1).mean(-1))


def _drift(time: np.ndarray, energy: np.ndarray) -> float:
    """Slope of the potential energy, meV/ps; time in fs, energy in eV, NaN after the end."""
    valid = np.isfinite(energy)
    if valid.sum() < 10:
        return np.nan
    return np.polyfit(time[valid] / 1000, energy[valid] - energy[0], 1)[0] * EV_TO_MEV


def _every(trajectory: Trajectory, steps: int) -> int:
    """Steps between recorded frames."""
    return int(trajectory.steps[1]) if len(trajectory.steps) > 1 else steps


def _blocks(trajectory: Trajectory, *, asked: int) -> list[list[slice]]:
    """Valid frames of every block of equal time, slices ``[replica][block]``; empty after a break."""
    bounds = np.linspace(0, asked, BLOCKS + 1).astype(int)
    return [
        [slice(*np.minimum(ends, trajectory.frames(r))) for ends in zip(bounds, bounds[1:], strict=False)]
        for r in range(len(trajectory.energy))
    ]


def _rdf_curves(
    positions: np.ndarray, blocks: list[list[slice]], atoms: Atoms, reference: structure.RadialDistributions
) -> dict[str, np.ndarray]:
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


def _bonded_curves(
    positions: np.ndarray, blocks: list[list[slice]], atoms: Atoms, reference: Reference
) -> dict[str, np.ndarray]:
    """Distributions of bond lengths and angles of every block, where the reference has them."""
    kinds, curves = structure.bonded_kinds(atoms.numbers, reference.bonds), {}
    for name, expected in reference.bonded.items():
        curves[f"{name}_reference"] = expected.astype(np.float32)
        curves[f"{name}_blocks"] = np.full((len(blocks), BLOCKS, len(expected)), np.nan, np.float32)
        curves[f"{name}_kinds"] = np.array(kinds[name])
    for r, replica in enumerate(blocks):
        for k, block in enumerate(replica):
            if reference.bonded and block.stop > block.start:
                for name, mean in _bonded(positions[r, block], atoms, reference.bonds).items():
                    curves[f"{name}_blocks"][r, k] = mean
    return curves


def _spectrum_curves(
    trajectory: Trajectory, atoms: Atoms, reference: Reference, *, timestep: float, steps: int
) -> dict[str, np.ndarray]:
    """Vibrational spectra of replicas and reference, with windows of half the requested time.

    A run of which half is too short, or whose reference does not continue in time, has none.
    """
    stride = _every(trajectory, steps) * reference.stride  # steps
    interval, window = stride * timestep, steps // stride // 2
    if not len(reference.paths) or window * interval < SHORTEST_WINDOW:
        return {}
    options: dict[str, Any] = {"masses": atoms.get_masses(), "interval": interval, "window": window}
    own = [path[:: reference.stride] for path in _valid_positions(trajectory)]
    found, expected = (
        np.stack([structure.vibrational_spectrum(path, **options) for path in paths])
        for paths in (own, reference.paths)
    )
    if not (whole := expected[expected.any(1)]).size:
        return {}
    return {
        "spectrum_wavenumbers": structure.wavenumbers(window, interval).astype(np.float32),
        "spectrum": found.astype(np.float32),
        "spectrum_reference": whole.mean(0).astype(np.float32),
    }


def _species_curves(trajectory: Trajectory, blocks: list[list[slice]], atoms: Atoms) -> dict[str, np.ndarray]:
    """Temperature of every element, averaged over the frames of every block."""
    empty = np.full(trajectory.temperature_species.shape[-1], np.nan)
    means = [
        [values[block].mean(0) if block.stop > block.start else empty for block in replica]
        for values, replica in zip(trajectory.temperature_species, blocks, strict=True)
    ]
    species = np.array([chemical_symbols[z] for z in np.unique(atoms.numbers)])
    return {"temperature_species": np.array(means, dtype=np.float32), "species": species}


def _last_frames(trajectory: Trajectory) -> dict[str, np.ndarray]:
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


def _rdf(positions: np.ndarray, atoms: Atoms) -> structure.RadialDistributions:
    r_max = structure.as_coded_r_max(atoms)
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    return structure.radial_distributions(positions, atoms.numbers, r_max=r_max, **box)


def _bonded(positions: np.ndarray, atoms: Atoms, bonds: np.ndarray) -> dict[str, np.ndarray]:
    """Distributions of bond lengths and angles, averaged over frames."""
    found = structure.bonded_distributions(positions, atoms.numbers, bonds)
    return {name: frames.mean(0) for name, frames in found.items()}


def _valid_positions(trajectory: Trajectory) -> list[np.ndarray]:
    """Positions in the valid frames of every replica, each ``(F, N, 3)``, Å."""
    return [trajectory.positions[r, : trajectory.frames(r)] for r in range(len(trajectory.energy))]


def _thin(curve: np.ndarray, name: str = "") -> np.ndarray:
    """At most :data:`MOST_FRAMES` frames of a curve; float32 is enough for all but energies."""
    thinned = curve[..., :: -(-curve.shape[-1] // MOST_FRAMES)]
    return thinned if name.startswith("energy") else thinned.astype(np.float32)


def _costs(trajectory: Trajectory) -> list[Metric]:
    """Median time of a step of all replicas, without the first steps, and throughput."""
    times = trajectory.step_times
    settled = times[3:] if len(times) > 3 else times
    total = times.sum()
    return [
        Metric.of("ms_per_step", np.median(settled) * 1e3 if len(settled) else None),
        Metric.of("replica_steps_per_second", trajectory.stable_step.sum() / total if total else None),
        Metric.of("steps", trajectory.step),
    ]
