"""How do replicas move? As copies in one batch, with or without a thermostat, each until it breaks.

Every replica has its own noise and its own centre of mass, so a replica in a batch follows the same
trajectory as the replica alone. A run that was killed continues from its last checkpoint. Symbols: R
replicas, T recorded frames, N atoms of one replica.
"""

import json
import time
from dataclasses import asdict, dataclass, fields

import numpy as np
from ase import units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from tqdm.auto import tqdm

from egraff_utils import paths
from egraff_utils.breaks import FARTHEST_MOVE, Break, Cause
from egraff_utils.md.calculator import join_replicas

PER_FRAME = ("positions", "forces", "energy", "temperature", "temperature_species")
"""Names of the arrays of a :class:`Trajectory` that have an entry for every frame."""


class Noise:
    """Standard normal numbers for R replicas, each from its own generator.

    It replaces the random number generator that ASE expects. The numbers of a replica depend only on the seed
    and on its index, not on the other replicas or on the model.

    Examples
    --------
    >>> both, alone = Noise(0, [0, 1]), Noise(0, [1])
    >>> bool((both.standard_normal((4, 3))[2:] == alone.standard_normal((2, 3))).all())
    True
    """

    def __init__(self, seed, replicas):
        self.generators = {int(r): np.random.default_rng([seed, int(r), 1]) for r in replicas}

    def standard_normal(self, size):
        """Array of shape ``(R*N, 3)``."""
        atoms = size[0] // len(self.generators)
        return np.concatenate([g.standard_normal((atoms, 3)) for g in self.generators.values()])

    def keep(self, replicas):
        """Discard the generators of all replicas but these."""
        self.generators = {r: self.generators[r] for r in replicas}

    @property
    def state(self):
        """State of all generators as JSON, which can also be set."""
        return json.dumps({r: g.bit_generator.state for r, g in self.generators.items()})

    @state.setter
    def state(self, text):
        states = json.loads(text)
        self.keep([int(r) for r in states])
        for replica, generator in self.generators.items():
            generator.bit_generator.state = states[str(replica)]


class ReplicaLangevin(Langevin):
    r"""ASE's Langevin integrator for replicas, each with its own centre of mass.

    As in ASE, the scheme is Eq. 23 of Vanden-Eijnden and Ciccotti (Chem. Phys. Lett. 429, 310, 2006). ASE
    subtracts the noise of the centre of mass over all atoms, which would couple the replicas; here it is
    subtracted for each replica separately.

    Parameters
    ----------
    atoms
        R*N atoms, see :func:`~egraff_utils.md.calculator.join_replicas`.
    timestep
        Timestep, ASE time units.
    replicas
        Number of replicas, R.
    center_of_mass
        With ``"ase"``, as with ASE's ``fixcm=True`` for a single system, the noise of the positions is
        centred without masses and all noise is scaled by :math:`\sqrt{N/(N-1)}`. With ``"exact"``, the noise
        is projected onto the motions that leave the centre of mass at rest, which samples the canonical
        ensemble of the other 3N - 3 degrees of freedom.
    temperature_K, friction, rng
        Arguments of ASE: temperature, K; friction, inverse ASE time units; :class:`Noise`.
    """

    def __init__(self, atoms, timestep, *, replicas, center_of_mass="exact", **keywords):
        super().__init__(atoms, timestep, fixcm=False, **keywords)
        self.replicas, self.center_of_mass = replicas, center_of_mass
        self.escaped = np.zeros(replicas, dtype=bool)
        """Whether an atom of a replica moved farther than :data:`FARTHEST_MOVE`; such replicas are held."""

    def step(self, forces=None):
        """One step; the forces at the new positions, shape ``(R*N, 3)``, eV/Å."""
        atoms, masses = self.atoms, self.masses
        forces = atoms.get_forces(md=True) if forces is None else forces
        v = atoms.get_velocities()
        xi = self.rng.standard_normal(size=v.shape)
        eta = self.rng.standard_normal(size=v.shape)
        shift = self._centre(self.c5 * eta)
        kick = self._centre(self.c3 * xi - self.c4 * eta, mass_weighted=True)
        v = v + self.c1 * forces / masses - self.c2 * v + kick
        atoms.set_positions(atoms.get_positions() + self._guard(self.dt * v + shift))
        forces = atoms.get_forces(md=True)
        v = v + self.c1 * forces / masses - self.c2 * v + kick
        atoms.set_momenta(v * masses)
        return forces

    def _centre(self, noise, *, mass_weighted=False):
        """Noise without the motion of each replica's centre of mass."""
        noise = noise.reshape(self.replicas, -1, 3)
        masses = self.masses.reshape(self.replicas, -1, 1)
        count = noise.shape[1]
        if count == 1:
            return noise.reshape(-1, 3)
        if self.center_of_mass == "exact":
            noise = noise - (masses * noise).sum(1, keepdims=True) / masses.sum(1, keepdims=True)
        elif mass_weighted:
            noise = noise - (masses * noise).sum(1, keepdims=True) / (masses * count)
        else:
            noise = noise - noise.mean(1, keepdims=True)
        factor = np.sqrt(count / (count - 1)) if self.center_of_mass == "ase" else 1.0
        return factor * noise.reshape(-1, 3)

    def _guard(self, move):
        move, self.escaped = hold_escaped(move, self.replicas)
        return move


def hold_escaped(move, replicas):
    """Displacements, set to zero for replicas in which an atom would move farther than :data:`FARTHEST_MOVE`.

    Parameters
    ----------
    move
        Displacements of one step, shape ``(R*N, 3)``, Å.
    replicas
        Number of replicas, R.

    Returns
    -------
    move, escaped
        Displacements, shape ``(R*N, 3)``, Å, and whether each replica was held, shape ``(R,)``.

    Examples
    --------
    >>> hold_escaped(np.array([[0.1, 0, 0], [2.0, 0, 0]]), 2)
    (array([[0.1, 0. , 0. ],
           [0. , 0. , 0. ]]), array([False,  True]))
    """
    with np.errstate(over="ignore", invalid="ignore"):
        far = ~(np.square(move).sum(1) < FARTHEST_MOVE**2)
    escaped = far.reshape(replicas, -1).any(1)
    return np.where(np.repeat(escaped, len(far) // replicas)[:, None], 0.0, move), escaped


class ReplicaVerlet(VelocityVerlet):
    r"""Velocity Verlet integrator for replicas, with a friction that may vary in time and change sign.

    .. math::
        v_{n+1/2} &= v_n + \tfrac{h}{2} (F_n / m - \zeta_n v_n) \\
        x_{n+1} &= x_n + h\, v_{n+1/2} \\
        v_{n+1} &= (v_{n+1/2} + \tfrac{h}{2} F_{n+1} / m) \,/\, (1 + \tfrac{h}{2} \zeta_{n+1})

    Without friction this is ASE's integrator, which conserves the energy. With the friction of a Nosé-Hoover
    thermostat (Hoover, Phys. Rev. A 31, 1695, 1985) it is the position Verlet scheme with
    :math:`v_n = (x_{n+1} - x_{n-1}) / 2h`, so that it reproduces frames made by that scheme exactly.

    Parameters
    ----------
    atoms
        R*N atoms, see :func:`~egraff_utils.md.calculator.join_replicas`.
    timestep
        Timestep h, ASE time units.
    replicas
        Number of replicas, R.
    friction
        :math:`\zeta_n` of every replica, starting with the current step, shape ``(R, n)``, inverse ASE time
        units; zero by default and after its end.
    """

    def __init__(self, atoms, timestep, *, replicas, friction=None):
        super().__init__(atoms, timestep)
        self.replicas = replicas
        self.friction = np.zeros((replicas, 0)) if friction is None else np.asarray(friction)
        self.masses = atoms.get_masses()[:, None]
        self.done = 0
        self.escaped = np.zeros(replicas, dtype=bool)
        """Whether each replica was held, as in :class:`ReplicaLangevin`."""

    def step(self, forces=None):
        """One step; the forces at the new positions, shape ``(R*N, 3)``, eV/Å."""
        atoms, half = self.atoms, self.dt / 2
        forces = atoms.get_forces(md=True) if forces is None else forces
        v = atoms.get_velocities()
        v = v + half * (forces / self.masses - self._zeta() * v)
        move, self.escaped = hold_escaped(self.dt * v, self.replicas)
        atoms.set_positions(atoms.get_positions() + move)
        forces = atoms.get_forces(md=True)
        self.done += 1
        atoms.set_momenta(self.masses * (v + half * forces / self.masses) / (1 + half * self._zeta()))
        return forces

    def _zeta(self):
        """Friction of every atom at the current step, shape ``(R*N, 1)``, or a plain zero."""
        if self.done >= self.friction.shape[1]:
            return 0.0
        return np.repeat(self.friction[:, self.done], len(self.atoms) // self.replicas)[:, None]


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

    @property
    def step(self):
        """Number of steps done."""
        return len(self.step_times)

    def frames(self, replica):
        """Number of valid frames of a replica, at least one."""
        return int(np.searchsorted(self.steps, self.stable_step[replica], side="right"))

    def until(self, frames):
        """The trajectory cut to its first ``frames`` frames."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        cut["steps"] = self.steps[:frames]
        for name in PER_FRAME:
            cut[name] = cut[name][:, :frames]
        return Trajectory(**cut)

    def save(self, path, **more):
        """Write the trajectory and further arrays to an ``.npz`` file, atomically."""
        with paths.written(path) as temporary:
            np.savez(temporary, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}, **more)

    @classmethod
    def load(cls, path):
        """The trajectory in a file written by :meth:`save`."""
        with np.load(path, allow_pickle=False) as stored:
            values = {f.name: stored[f.name] for f in fields(cls)}
        return cls(**values | {"causes": [str(cause) for cause in values["causes"]]})

    def breaks(self, timestep):
        """Breaks of the replicas, a list of :class:`~egraff_utils.breaks.Break`; the timestep is in fs."""
        ends = zip(self.stable_step.tolist(), self.causes, strict=True)
        return [Break(r, step, step * timestep, cause) for r, (step, cause) in enumerate(ends) if cause]


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
    """Treatment of the centre of mass, see :class:`ReplicaLangevin`."""
    seed: int = 0
    """Seed of the noise."""

    def integrator(self, atoms, noise, step=0):
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
    """Friction of every replica at every step, shape ``(R, steps + 1)``, 1/fs; see :class:`ReplicaVerlet`."""
    seed: int = 0
    """Not used; it is here because a :class:`Thermostat` has a seed."""

    def integrator(self, atoms, noise, step=0):
        """:class:`ReplicaVerlet` for these atoms, starting at a step."""
        replicas = list(noise.generators)
        friction = None if self.friction is None else self.friction[replicas, step:] / units.fs
        return ReplicaVerlet(atoms, self.timestep * units.fs, replicas=len(replicas), friction=friction)


def simulate(starts, make_calculator, *, thermostat, steps, **options):
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
        ``rule(positions (T, N, 3)) -> (frame, cause) or None`` finds the first frame in which a replica
        counts as broken. It is applied at checkpoints and at the end, to the frames recorded since the last
        time.
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
        starts,
        make_calculator,
        thermostat,
        steps,
        *,
        record_every=1,
        rule=None,
        replicas=None,
        checkpoint=None,
        checkpoint_every=100,
        max_seconds=None,
        clock=time.perf_counter,
        progress=None,
    ):
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
        self.times, self.elapsed = [], 0.0
        resumed = checkpoint is not None and paths.readable(checkpoint)
        if resumed:
            self._restore()
        self._refresh()
        if not resumed:
            self._record()
            self._drop(self._faults())

    def run(self):
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

    def _advance(self):
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

    def _late(self):
        return self.max_seconds is not None and self.elapsed > self.max_seconds

    def _per_replica(self, array):
        return np.reshape(array, (len(self.active), -1))

    def _faults(self):
        """Causes of the breaks of replicas that cannot continue, by replica."""
        results = self.atoms.calc.results
        sound = np.isfinite(results["energies_of_replicas"])
        sound &= np.isfinite(self._per_replica(results["forces"])).all(1)
        faults = {}
        for replica, finite, escaped in zip(self.active, sound, self.integrator.escaped, strict=True):
            if escaped:
                faults[replica] = Cause.MOVE
            elif not finite:
                faults[replica] = Cause.NOT_FINITE
        return faults

    def _drop(self, faults, last=None):
        """Remove replicas from the batch; ``last`` is their last valid step, by default the previous one."""
        if not faults:
            return
        for replica, cause in faults.items():
            stable = max(self.step - 1, 0) if last is None else last[replica]
            self.data.stable_step[replica] = stable
            self.data.causes[replica] = str(cause)
            self._blank(replica, stable // self.record_every + 1)
        kept = [index for index, replica in enumerate(self.active) if replica not in faults]
        atoms = [self.atoms[i * self.size : (i + 1) * self.size] for i in kept]
        self.active = [self.active[i] for i in kept]
        self.noise.keep([self.names[r] for r in self.active])
        if self.active:
            self.atoms = join_replicas(atoms)
            self._refresh()

    def _blank(self, replica, frame):
        for name in PER_FRAME:
            getattr(self.data, name)[replica, frame:] = np.nan

    def _refresh(self):
        """Replace calculator and integrator by new ones at the current positions, as after a restart."""
        if not self.active:
            return
        self.atoms.calc = self.make_calculator(len(self.active))
        self.integrator = self.thermostat.integrator(self.atoms, self.noise, self.step)
        self.atoms.get_forces()

    def _record(self):
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

    def _judge(self):
        """Apply the rule to the new frames of every replica that is still running."""
        if self.rule is None:
            return
        frames = self.step // self.record_every + 1
        faults, last = {}, {}
        for replica in self.active if frames > self.judged else ():
            verdict = self.rule(self.data.positions[replica, self.judged : frames])
            if verdict is not None:
                frame, faults[replica] = verdict
                last[replica] = max(self.judged + frame - 1, 0) * self.record_every
        self.judged = frames
        self._drop(faults, last)

    def _save(self):
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

    def _restore(self):
        self.data = Trajectory.load(self.checkpoint)
        with np.load(self.checkpoint, allow_pickle=False) as stored:
            self.step, self.active = int(stored["step"]), [int(r) for r in stored["active"]]
            self.judged = self.step // self.record_every + 1
            self.noise.state = str(stored["noise"])
            if self.active:
                self.atoms = self.atoms[: len(self.active) * self.size]
                self.atoms.positions = stored["now"]
                self.atoms.set_momenta(stored["momenta"])
        self.times = list(self.data.step_times)
        self.elapsed = sum(self.times)


def kinetic_temperature(momenta, masses):
    """Kinetic temperature over 3N - 3 degrees of freedom, K, shape ``(...)``.

    Momenta have shape ``(..., N, 3)``, ASE units; masses have shape ``(N,)``, atomic mass units.

    Examples
    --------
    >>> float(kinetic_temperature(np.zeros((2, 3)), np.ones(2)))
    0.0
    """
    kinetic = (np.square(momenta).sum(-1) / (2 * masses)).sum(-1)
    return 2 * kinetic / (max(3 * len(masses) - 3, 3) * units.kB)


def species_temperatures(momenta, masses, numbers):
    r"""Kinetic temperature of the atoms of each element, K.

    .. math:: T_s = \frac{\sum_{i \in s} p_i^2 / m_i}{3 k_B \sum_{i \in s} (1 - m_i / M)}

    In the canonical ensemble with the centre of mass at rest (total mass M), the mean of each is T.

    Parameters
    ----------
    momenta
        Momenta, shape ``(..., N, 3)``, ASE units.
    masses, numbers
        Masses, atomic mass units, and atomic numbers, shape ``(N,)``.

    Returns
    -------
    ndarray
        Temperatures, shape ``(..., S)``, K, with elements in the order of their atomic numbers.

    Examples
    --------
    >>> species_temperatures(np.eye(3)[:2], np.array([1.0, 3.0]), np.array([8, 1])) * units.kB
    array([0.44444444, 0.44444444])
    """
    twice_kinetic = np.square(momenta).sum(-1) / masses
    freedom = 3 * (1 - masses / masses.sum())
    found = [
        twice_kinetic[..., numbers == z].sum(-1) / max(freedom[numbers == z].sum(), 1e-12)
        for z in np.unique(numbers)
    ]
    return np.stack(found, axis=-1) / units.kB


def _empty(starts, steps):
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
