"""Which path should a model follow? Starts are taken from the reference, along with what comes after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from egraff_utils import paths, records, reference
from egraff_utils.cards import DatasetCard
from egraff_utils.checks.horizon.following import DYNAMICS, run
from egraff_utils.checks.horizon.friction import forces_of, friction
from egraff_utils.md import analysis
from egraff_utils.md.calculator import ReplicaCalculator
from egraff_utils.md.dynamics import Newtonian, Thermostat, Trajectory

if TYPE_CHECKING:
    from egraff_utils.checks.horizon import HorizonConfig

EXPLAINED = 0.01
"""Largest fraction of the length of the forces that a single friction for all atoms may leave unexplained,
for the friction to count as measured."""


class Course(NamedTuple):
    """Starts, and the continuation of the reference under every dynamics, each with its own T frames."""

    starts: list[Atoms]
    """Starting structures with the momenta of the reference, S ``ase.Atoms``."""
    first: np.ndarray
    """Index of the frame of each start, shape ``(S,)``."""
    interval: float
    """Time between two frames, which is also the timestep of the simulations, fs."""
    moved: dict[str, np.ndarray]
    """Dynamics -> displacement of the reference from the start, shape ``(S, T, N, 3)``, Å."""
    forces: dict[str, np.ndarray]
    """Dynamics -> forces of the reference, shape ``(S, T, N, 3)``, eV/Å."""
    friction: np.ndarray | None = None
    """Friction of the reference at every frame, shape ``(S, T)``, 1/fs; ``None`` if it was not measured."""

    def steps(self, name: str) -> int:
        """Number of steps of the simulations under a dynamics, T - 1."""
        return self.forces[name].shape[1] - 1


def stored_course(
    frames: Sequence[Atoms], interval: float, *, starts: int, steps: int, short: int | None = None
) -> Course:
    """:class:`Course` along stored frames, with equally spaced starts that enough frames follow.

    Parameters
    ----------
    frames
        Consecutive frames with forces, a list of ``ase.Atoms``.
    interval
        Time between two frames, fs.
    starts, steps
        Number S of starts, and number T - 1 of steps.
    short
        Steps under the dynamics that leave the reference, all but ``driven``; by default ``steps``.

    Raises
    ------
    ValueError
        If there are too few frames.
    """
    spare = len(frames) - 2 - steps  # the first and the last frame have no central-difference velocity
    if spare < starts:
        raise ValueError(f"{len(frames)} frames are too few for {starts=} of {steps} steps each")
    first = 1 + np.arange(starts) * (spare - 1) // max(starts - 1, 1)
    index = first[:, None] + np.arange(steps + 1)
    path = analysis.unwrap(frames)
    zeta, rest, _ = friction(frames, interval)
    names = DYNAMICS if np.median(rest) < EXPLAINED else DYNAMICS[:2]
    cut = {name: steps + 1 if name == "driven" or short is None else short + 1 for name in names}
    moved = (path[index] - path[first][:, None]).astype(np.float32)
    forces = forces_of(frames).astype(np.float32)[index]
    return Course(
        starts=[_start(frames, i, interval) for i in first.tolist()],
        first=first,
        interval=interval,
        moved={name: moved[:, :end] for name, end in cut.items()},
        forces={name: forces[:, :end] for name, end in cut.items()},
        friction=zeta[index - 1] if "driven" in names else None,
    )


def live_course(
    card: DatasetCard,
    frames: Sequence[Atoms],
    interval: float,
    config: HorizonConfig,
    thermostat: Thermostat,
    steps: int,
) -> Course:
    """:class:`Course` simulated by the oracle of the dataset, which is cached for all models."""
    count: int = config.starts  # type: ignore[assignment]  # settled
    first = np.linspace(1, len(frames) - 2, count).astype(int)
    starts = [_start(frames, i, interval) for i in first.tolist()]
    runs = {}
    for name, dynamics in (("langevin", thermostat), ("nve", Newtonian(interval))):
        what = [asdict(thermostat) if name == "langevin" else interval, steps, first]
        mark = records.digest(card.oracle, name, *what, *[a.positions for a in starts])
        path = paths.generated() / "trajectories" / f"{card.name}-{name}-{mark}.npz"
        label = f"reference of {card.name}" if config.progress else None
        make = partial(run, starts, partial(_oracles, card), dynamics, steps, label)
        reference.made_once(path, lambda temporary, make=make: make().save(temporary))  # type: ignore[misc]
        runs[name] = Trajectory.load(path)
    moved = {name: found.positions - found.positions[:, :1] for name, found in runs.items()}
    return Course(starts, first, interval, moved, {name: found.forces for name, found in runs.items()})


def _oracles(card: DatasetCard, replicas: int) -> ReplicaCalculator:
    return ReplicaCalculator([reference.calculator(card) for _ in range(replicas)])


def _start(frames: Sequence[Atoms], index: int, interval: float) -> Atoms:
    atoms = frames[index].copy()
    atoms.set_velocities(reference.velocities(frames, index, interval))
    return atoms
