"""How do replicas move? As copies in one batch, with or without a thermostat, each until it breaks.

A run that was killed continues from its last checkpoint. Symbols: R replicas, T recorded frames, N atoms of
one replica.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm.auto import tqdm

from egraff_utils import paths
from egraff_utils.breaks import Break, Cause
from egraff_utils.md.calculator import join_replicas
from egraff_utils.md.integrators import Noise, ReplicaLangevin, ReplicaVerlet
from egraff_utils.md.stability import Rule
from egraff_utils.md.temperature import kinetic_temperature, species_temperatures

PER_FRAME = ("positions", "forces", "energy", "temperature", "temperature_species")
"""Names of the arrays of a :class:`Trajectory` that have an entry for every frame."""

Fault = tuple[int, Cause, Sequence[int] | np.ndarray]
"""Last valid step of a replica, why it cannot continue, and at which atoms."""


@dataclass
class Trajectory:
    """Recorded frames of R replicas; entries after the last valid frame of a replica are NaN."""

    steps: np.ndarray
    """Step of each frame, shape ``(T,)``."""
    positions: np.ndarray
    """Unwrapped positions, shape ``(R, T, N, 3)``, Å, float32."""
    forces: np.ndarray
    """Forces, shape ``(R, T, N, 3)``, eV/Å, float32."""
    energy: np.ndarray
    """Potential energy, shape ``(R, T)``, eV."""
    temperature: np.ndarray
    """Kinetic temperature over 3N - 3 degrees of freedom, shape ``(R, T)``, K."""
    temperature_species: np.ndarray
    """Kinetic temperature of the atoms of each of S elements, in the order of their atomic numbers, shape
    ``(R, T, S)``, K."""
    stable_step: np.ndarray
    """Last valid step of each replica, shape ``(R,)``."""
    causes: list[str]
    """:class:`~egraff_utils.breaks.Cause` of each replica's break; empty for those that did not break."""
    step_times: np.ndarray
    """Time that every step took, s."""
    where: np.ndarray = None  # type: ignore[assignment]  # set in __post_init__
    """Indices of the one or two atoms at which each replica broke, or -1, shape ``(R, 2)``; by default -1."""

    def __post_init__(self) -> None:
        if self.where is None:
            self.where = np.full((len(self.stable_step), 2), -1)

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.step_times)

    def frames(self, replica: int) -> int:
        """Number of valid frames of a replica, at least one."""
        return int(np.searchsorted(self.steps, self.stable_step[replica], side="right"))

    def until(self, frames: int) -> "Trajectory":
        """The trajectory cut to its first ``frames`` frames."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        cut["steps"] = self.steps[:frames]
        for name in PER_FRAME:
            cut[name] = cut[name][:, :frames]
        return Trajectory(**cut)

    def save(self, path: Path, **more: np.ndarray | float | str) -> None:
        """Write the trajectory and further arrays to an ``.npz`` file, atomically."""
        with paths.written(path) as temporary:
            own = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
            np.savez(temporary, **own, **more)  # type: ignore[arg-type]  # arrays, by name

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """The trajectory in a file written by :meth:`save`."""
        with np.load(path, allow_pickle=False) as stored:
            values = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        return cls(**values | {"causes": [str(cause) for cause in values["causes"]]})

    def write(self, folder: Path, start: Atoms, timestep: float, ending: str) -> None:
        """Write the valid frames of every replica to a file that ASE reads, ``replica-<r>.<ending>``.

        Parameters
        ----------
        folder
            Folder of the files.
        start
            A starting structure, ``ase.Atoms``, which gives elements, cell, periodicity and masses.
        timestep
            Timestep, fs.
        ending
            ``xyz`` (extended xyz) or ``traj`` (ASE's own format). Frames have energies (eV) and forces
            (eV/Å), and in ``info`` their ``step`` and ``time`` (fs). Positions are unwrapped.
        """
        for replica in range(len(self.stable_step)):
            images = [self._image(start, replica, frame, timestep) for frame in range(self.frames(replica))]
            with paths.written(folder / f"replica-{replica}.{ending}") as temporary:
                ase.io.write(temporary, images, format={"xyz": "extxyz"}.get(ending, ending))

    def _image(self, start: Atoms, replica: int, frame: int, timestep: float) -> Atoms:
        masses = start.get_masses()
        image = Atoms(
            start.numbers, self.positions[replica, frame], cell=start.cell, pbc=start.pbc, masses=masses
        )
        step = int(self.steps[frame])
        image.info |= {"step": step, "time": step * timestep}
        found = {
            "energy": float(self.energy[replica, frame]),
            "forces": self.forces[replica, frame].astype(float),
        }
        image.calc = SinglePointCalculator(image, **found)
        return image

    def breaks(self, timestep: float) -> list[Break]:
        """Breaks of the replicas, a list of :class:`~egraff_utils.breaks.Break`; the timestep is in fs."""
        ends = zip(self.stable_step.tolist(), self.causes, self.where, strict=True)
        return [
            Break(r, step, step * timestep, Cause(cause), atoms[atoms >= 0])
            for r, (step, cause, atoms) in enumerate(ends)
            if cause
        ]


@dataclass(frozen=True)
class Thermostat:
    """Langevin dynamics, as used in rollouts."""

    temperature: float
    """Temperature, K."""
    timestep: float
    """Timestep, fs."""
    friction: float = 5e-3
    """Friction, inverse ASE time units; 5e-3 is 0.491 per ps."""
    center_of_mass: str = "exact"
    """Treatment of the centre of mass, see :class:`~egraff_utils.md.integrators.ReplicaLangevin`."""
    seed: int = 0
    """Seed of the noise."""

    def integrator(self, atoms: Atoms, noise: Noise, step: int = 0) -> ReplicaLangevin:
        """:class:`ReplicaLangevin` for these atoms."""
        keywords = {k: v for k, v in asdict(self).items() if k in ("friction", "center_of_mass")}
        return ReplicaLangevin(
            atoms,
            self.timestep * units.fs,
            temperature_K=self.temperature,
            rng=noise,
            replicas=len(noise.generators),
            **keywords,
        )


@dataclass(frozen=True)
class Newtonian:
    """Newtonian dynamics at constant energy or with a given friction; it can take a thermostat's place."""

    timestep: float
    """Timestep, fs."""
    friction: np.ndarray | None = None
    """Friction of every replica at every step, shape ``(R, steps + 1)``, 1/fs; see
    :class:`~egraff_utils.md.integrators.ReplicaVerlet`."""
    seed: int = 0
    """Not used; it is here because a :class:`Thermostat` has a seed."""

    def integrator(self, atoms: Atoms, noise: Noise, step: int = 0) -> ReplicaVerlet:
        """:class:`ReplicaVerlet` for these atoms, starting at a step."""
        replicas = list(noise.generators)
        friction = None if self.friction is None else self.friction[replicas, step:] / units.fs
        return ReplicaVerlet(atoms, self.timestep * units.fs, replicas=len(replicas), friction=friction)


def simulate(
    starts: Sequence[Atoms],
    make_calculator: Callable[[int], Calculator],
    *,
    thermostat: "Thermostat | Newtonian",
    steps: int,
    **options: Any,
) -> Trajectory:
    """Simulate replicas and return their trajectory.

    Parameters
    ----------
    starts
        Starting structures with momenta, R ``ase.Atoms`` that are copies of one system.
    make_calculator
        Function that returns a calculator for n replicas with ``results["energies_of_replicas"]``. It is
        called at the start, at every checkpoint and when a replica leaves the batch.
    thermostat
        :class:`Thermostat` or :class:`Newtonian`.
    steps
        Number of steps.
    record_every
        Steps between recorded frames.
    rule
        ``rule(positions, temperatures)`` returns the :class:`~egraff_utils.breaks.Verdict` on the first frame
        in which a replica counts as broken, or ``None``. It is applied at checkpoints and at the end, to the
        positions (T, N, 3), Å, recorded since the last time, and to all temperatures up to them, K.
    replicas
        Indices of the replicas, which determine their noise; by default 0 to R - 1.
    checkpoint
        File from which the run continues if it exists, and to which its state is saved; the caller has to
        remove its folder.
    checkpoint_every
        Steps between checkpoints.
    max_seconds
        Time after which the run ends early, summed over restarts, s.
    clock
        Function that returns the time in seconds.
    progress
        Label of the progress bar, or ``None`` for no bar.

    Returns
    -------
    Trajectory
        Trajectory of all replicas, which ends early if no replica is left or the time limit is reached.
    """
    return _Run(starts, make_calculator, thermostat, steps, **options).run()


class _Run:
    """State of a simulation; ``active`` lists the replicas (0 to R - 1) still in ``atoms``, in order."""

    def __init__(
        self,
        starts: Sequence[Atoms],
        make_calculator: Callable[[int], Calculator],
        thermostat: "Thermostat | Newtonian",
        steps: int,
        *,
        record_every: int = 1,
        rule: Rule | None = None,
        replicas: Sequence[int] | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: int = 100,
        max_seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        progress: str | None = None,
    ) -> None:
        self.make_calculator, self.thermostat, self.steps = make_calculator, thermostat, steps
        self.record_every, self.rule, self.progress = record_every, rule, progress
        self.checkpoint, self.checkpoint_every, self.max_seconds = checkpoint, checkpoint_every, max_seconds
        self.clock = clock
        self.names = list(range(len(starts))) if replicas is None else list(replicas)
        self.active = list(range(len(starts)))
        self.size = len(starts[0])
        self.atoms = join_replicas(starts)
        self.noise = Noise(thermostat.seed, self.names)
        self.data = _empty(starts, np.arange(0, steps + 1, record_every))
        self.step = self.judged = 0
        self.times: list[float] = []
        self.elapsed = 0.0
        resumed = checkpoint is not None and paths.readable(checkpoint)
        if resumed:
            self._restore()
        self._refresh()
        if not resumed:
            self._record()
            self._drop(self._faults())

    def run(self) -> Trajectory:
        label = self.progress or ""
        with tqdm(
            total=self.steps,
            initial=self.step,
            desc=label,
            unit="step",
            leave=False,
            disable=self.progress is None,
        ) as bar:
            while self.step < self.steps and self.active and not self._late():
                self._advance()
                bar.update()
        self._judge()
        self.data.stable_step[self.active] = self.step
        self.data.step_times = np.array(self.times)
        return self.data.until(self.step // self.record_every + 1)

    def _advance(self) -> None:
        began = self.clock()
        self.integrator.step()
        self.step += 1
        self.times.append(self.clock() - began)
        self.elapsed += self.times[-1]
        self._drop(self._faults())
        if self.step % self.record_every == 0:
            self._record()
        if self.step % self.checkpoint_every == 0:
            self._judge()
            self._refresh()
            self._save()

    def _late(self) -> bool:
        return self.max_seconds is not None and self.elapsed > self.max_seconds

    def _faults(self) -> dict[int, Fault]:
        """Last valid step, cause and atoms of the replicas that cannot continue, by replica."""
        results, last = self.atoms.calc.results, max(self.step - 1, 0)
        finite = np.isfinite(results["forces"]).all(1).reshape(len(self.active), -1)
        sound = np.isfinite(results["energies_of_replicas"]) & finite.all(1)
        faults: dict[int, Fault] = {}
        for place, (replica, escaped) in enumerate(zip(self.active, self.integrator.escaped, strict=True)):
            if escaped >= 0:
                faults[replica] = last, Cause.MOVE, [escaped]
            elif not sound[place]:
                faults[replica] = last, Cause.NOT_FINITE, np.flatnonzero(~finite[place])[:2]
        return faults

    def _drop(self, faults: Mapping[int, Fault]) -> None:
        """Remove replicas from the batch."""
        if not faults:
            return
        for replica, (stable, cause, atoms) in faults.items():
            self.data.stable_step[replica] = stable
            self.data.causes[replica] = str(cause)
            self.data.where[replica, : len(atoms)] = atoms
            self._blank(replica, stable // self.record_every + 1)
        kept = [index for index, replica in enumerate(self.active) if replica not in faults]
        others = [self.atoms[i * self.size : (i + 1) * self.size] for i in kept]
        self.active = [self.active[i] for i in kept]
        self.noise.keep([self.names[r] for r in self.active])
        if self.active:
            self.atoms = join_replicas(others)
            self._refresh()

    def _blank(self, replica: int, frame: int) -> None:
        for name in PER_FRAME:
            getattr(self.data, name)[replica, frame:] = np.nan

    def _refresh(self) -> None:
        """Replace calculator and integrator by new ones at the current positions, as after a restart."""
        if not self.active:
            return
        self.atoms.calc = self.make_calculator(len(self.active))
        self.integrator = self.thermostat.integrator(self.atoms, self.noise, self.step)
        self.atoms.get_forces()

    def _record(self) -> None:
        if not self.active:
            return
        frame, shape = self.step // self.record_every, (len(self.active), self.size, 3)
        results = self.atoms.calc.results
        self.data.positions[self.active, frame] = self.atoms.positions.reshape(shape)
        self.data.forces[self.active, frame] = results["forces"].reshape(shape)
        self.data.energy[self.active, frame] = results["energies_of_replicas"]
        momenta, masses = self.atoms.get_momenta().reshape(shape), self.atoms.get_masses()[: self.size]
        self.data.temperature[self.active, frame] = kinetic_temperature(momenta, masses)
        numbers = self.atoms.numbers[: self.size]
        self.data.temperature_species[self.active, frame] = species_temperatures(momenta, masses, numbers)

    def _judge(self) -> None:
        """Apply the rule to the new frames of every replica that is still running."""
        if self.rule is None:
            return
        frames = self.step // self.record_every + 1
        faults: dict[int, Fault] = {}
        for replica in self.active if frames > self.judged else ():
            new = self.data.positions[replica, self.judged : frames]
            if verdict := self.rule(new, self.data.temperature[replica, :frames]):
                last = max(self.judged + verdict.frame - 1, 0) * self.record_every
                faults[replica] = last, verdict.cause, verdict.atoms
        self.judged = frames
        self._drop(faults)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self.data.step_times = np.array(self.times)
        self.data.save(
            self.checkpoint,
            step=self.step,
            active=np.array(self.active, dtype=int),
            noise=self.noise.state,
            now=self.atoms.positions,
            momenta=self.atoms.get_momenta(),
        )

    def _restore(self) -> None:
        checkpoint: Path = self.checkpoint  # type: ignore[assignment]  # there is one to restore from
        self.data = Trajectory.load(checkpoint)
        with np.load(checkpoint, allow_pickle=False) as stored:
            self.step, self.active = int(stored["step"]), [int(r) for r in stored["active"]]
            self.judged = self.step // self.record_every + 1
            self.noise.state = str(stored["noise"])
            if self.active:
                self.atoms = self.atoms[: len(self.active) * self.size]
                self.atoms.positions = stored["now"]
                self.atoms.set_momenta(stored["momenta"])
        self.times = list(self.data.step_times)
        self.elapsed = sum(self.times)


def _empty(starts: Sequence[Atoms], steps: np.ndarray) -> Trajectory:
    atoms, species = len(starts[0]), len(np.unique(starts[0].numbers))
    shape = (len(starts), len(steps))
    return Trajectory(
        steps=steps,
        positions=np.full((*shape, atoms, 3), np.nan, np.float32),
        forces=np.full((*shape, atoms, 3), np.nan, np.float32),
        energy=np.full(shape, np.nan),
        temperature=np.full(shape, np.nan),
        temperature_species=np.full((*shape, species), np.nan),
        stable_step=np.zeros(len(starts), dtype=int),
        causes=[""] * len(starts),
        step_times=np.zeros(0),
    )
