"""Is the total energy conserved without a thermostat? Its slope is measured in runs at constant energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from egraff_utils.graph import AtomicGraph, SkinList
from egraff_utils.md.calculator import ReplicaCalculator
from egraff_utils.md.dynamics import Thermostat, Trajectory, simulate
from egraff_utils.md.temperature import degrees_of_freedom
from egraff_utils.records import Metric
from egraff_utils.statistics import replica_interval
from egraff_utils.units import EV_TO_MEV

if TYPE_CHECKING:
    from egraff_utils.checks.gate import Subject


def nve(
    starts: Sequence[Atoms], calculators: Callable[[int], Calculator], *, timestep: float, steps: int
) -> Trajectory:
    """Trajectory of replicas at constant energy (velocity Verlet).

    Parameters
    ----------
    starts
        Starting structures with momenta, R ``ase.Atoms``.
    calculators
        Function that returns a calculator for n replicas.
    timestep
        Timestep, fs.
    steps
        Number of steps.
    """
    free = Thermostat(temperature=0.0, timestep=timestep, friction=0.0)  # Langevin without friction
    return simulate(starts, calculators, thermostat=free, steps=steps)


def total_energy(trajectory: Trajectory, atoms: Atoms) -> np.ndarray:
    """Kinetic plus potential energy along a trajectory, shape ``(R, T)``, eV."""
    freedom = degrees_of_freedom(len(atoms))
    return trajectory.energy + 0.5 * freedom * units.kB * trajectory.temperature


def slopes(times: np.ndarray, energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares slope of the energy of each run, and the scatter about it.

    Parameters
    ----------
    times
        Times, shape ``(T,)``.
    energy
        Energies, shape ``(R, T)``; a run that broke is not finite at its end.

    Returns
    -------
    tuple of ndarray
        Slopes, shape ``(R,)``, and standard deviations about the lines, shape ``(R,)``; nan where a run
        broke.

    Examples
    --------
    >>> slopes(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 3.0, 5.0], [0.0, 1.0, 0.0]]))[0]
    array([2., 0.])
    """
    centred = times - times.mean()
    slope = energy @ centred / np.sum(centred**2)
    rest = energy - energy.mean(1, keepdims=True) - slope[:, None] * centred
    return slope, rest.std(1)


def drift(
    subject: Subject, starts: Sequence[Atoms], *, timestep: float, steps: int
) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    """Metrics, by name, and curves of the NVE runs."""
    atoms = starts[0]
    settings: dict[str, Any] = {"timestep": timestep, "steps": steps}
    if subject.replicas is not None:
        parts = [nve(starts, subject.replicas, **settings)]
    else:
        parts = [nve([a], lambda n: ReplicaCalculator([subject.calculator]), **settings) for a in starts]
    times = timestep * np.arange(steps + 1)
    energy = np.full((len(starts), len(times)), np.nan)
    for run, row in enumerate(row for part in parts for row in total_energy(part, atoms)):
        energy[run, : len(row)] = EV_TO_MEV * row / len(atoms)
    energy = energy - energy[:, :1]
    slope, scatter = slopes(times / 1000, energy)
    metrics = [
        Metric("drift", slope.mean(), "meV/atom/ps", *replica_interval(slope[:, None]), len(slope)),
        Metric("fluctuation", scatter.mean(), "meV/atom", n=len(slope)),
    ]
    if subject.cutoff is not None:
        crossed = np.mean([_crossings(atoms, part, subject.cutoff) for part in parts])
        metrics.append(Metric("crossings", 1000 * crossed / (len(atoms) * times[-1]), "1/atom/ps"))
    return {metric.name: metric for metric in metrics}, {"time": times, "energy_total": energy}


def _crossings(atoms: Atoms, trajectory: Trajectory, cutoff: float) -> float:
    """Number of times that a pair crossed the cutoff in a run, averaged over runs."""
    total = 0
    for positions in trajectory.positions:
        neighbors, before = SkinList(atoms, cutoff), None
        for frame in positions[np.isfinite(positions).all((1, 2))]:
            graph = neighbors.update(frame.astype(float))
            now = _pair_keys(graph, np.asarray(atoms.cell))
            total += 0 if before is None else len(np.setxor1d(now, before, assume_unique=True))
            before = now
    return total / 2 / len(trajectory.positions)


def _pair_keys(graph: AtomicGraph, cell: np.ndarray) -> np.ndarray:
    """One integer for each edge: centre, neighbour and image."""
    centre, neighbour = graph.edge_index.numpy()
    key = centre * len(graph.positions) + neighbour
    if not cell.any():
        return key
    images = np.rint(graph.shifts.numpy() @ np.linalg.pinv(cell)).astype(np.int64) + 50
    return key * 10**6 + images @ [10**4, 100, 1]
