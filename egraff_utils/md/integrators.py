"""How does one step go? Langevin and Newtonian dynamics of replicas in one batch, and their random numbers.

Every replica has its own noise and its own centre of mass, so a replica in a batch follows the same
trajectory as the replica alone. Symbols: R replicas, N atoms of one replica.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from egraff_utils.breaks import FARTHEST_MOVE


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

    def __init__(self, seed: int, replicas: Iterable[int]) -> None:
        self.generators = {int(r): np.random.default_rng([seed, int(r), 1]) for r in replicas}

    def standard_normal(self, size: tuple[int, int]) -> np.ndarray:
        """Array of shape ``(R*N, 3)``."""
        atoms = size[0] // len(self.generators)
        return np.concatenate([g.standard_normal((atoms, 3)) for g in self.generators.values()])

    def keep(self, replicas: Iterable[int]) -> None:
        """Discard the generators of all replicas but these."""
        self.generators = {r: self.generators[r] for r in replicas}

    @property
    def state(self) -> str:
        """State of all generators as JSON, which can also be set."""
        return json.dumps({r: g.bit_generator.state for r, g in self.generators.items()})

    @state.setter
    def state(self, text: str) -> None:
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

    def __init__(
        self, atoms: Atoms, timestep: float, *, replicas: int, center_of_mass: str = "exact", **keywords: Any
    ) -> None:
        super().__init__(atoms, timestep, fixcm=False, **keywords)
        self.replicas, self.center_of_mass = replicas, center_of_mass
        self.escaped = np.full(replicas, -1)
        """Atom of each replica that moved farther than :data:`~egraff_utils.breaks.FARTHEST_MOVE`, or -1.
        Such replicas are held."""

    def step(self, forces: np.ndarray | None = None) -> np.ndarray:
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

    def _centre(self, noise: np.ndarray, *, mass_weighted: bool = False) -> np.ndarray:
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

    def _guard(self, move: np.ndarray) -> np.ndarray:
        move, self.escaped = hold_escaped(move, self.replicas)
        return move


def hold_escaped(move: np.ndarray, replicas: int) -> tuple[np.ndarray, np.ndarray]:
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
        Displacements, shape ``(R*N, 3)``, Å, and the atom of each replica that would move farthest, or -1 if
        the replica is not held, shape ``(R,)``.

    Examples
    --------
    >>> hold_escaped(np.array([[0.1, 0, 0], [2.0, 0, 0]]), 2)
    (array([[0.1, 0. , 0. ],
           [0. , 0. , 0. ]]), array([-1,  0]))
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.nan_to_num(np.square(move).sum(1), nan=np.inf).reshape(replicas, -1)
    held = (squares >= FARTHEST_MOVE**2).any(1)
    escaped = np.where(held, squares.argmax(1), -1)
    return np.where(np.repeat(held, squares.shape[1])[:, None], 0.0, move), escaped


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

    def __init__(
        self, atoms: Atoms, timestep: float, *, replicas: int, friction: np.ndarray | None = None
    ) -> None:
        super().__init__(atoms, timestep)
        self.replicas = replicas
        self.friction = np.zeros((replicas, 0)) if friction is None else np.asarray(friction)
        self.masses = atoms.get_masses()[:, None]
        self.done = 0
        self.escaped = np.full(replicas, -1)
        """Atom that escaped from each replica, as in :class:`ReplicaLangevin`."""

    def step(self, forces: np.ndarray | None = None) -> np.ndarray:
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

    def _zeta(self) -> float | np.ndarray:
        """Friction of every atom at the current step, shape ``(R*N, 1)``, or a plain zero."""
        if self.done >= self.friction.shape[1]:
            return 0.0
        return np.repeat(self.friction[:, self.done], len(self.atoms) // self.replicas)[:, None]
