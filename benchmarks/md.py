"""How many replica-steps per second does molecular dynamics run, compared with upstream ASE calculators?

Ours runs all replicas in one batch, with `ReplicaLangevin` and `ForceFieldCalculator`, as in a rollout.
Theirs runs one `ase.Atoms` per replica with its own calculator (see `benchmarks.upstream`) and ASE's
Langevin, one replica after another, in a separate process that waits while ours runs. Both have the same
weights, starts, temperature, timestep and number of steps, and continue from call to call; a replica whose
temperature diverges restarts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from benchmarks import Settings, measured
from benchmarks.compare import compare, same
from benchmarks.elsewhere import Elsewhere
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.models import ForceField

TITLE = "Molecular dynamics: replica-steps per second beside the upstream ASE calculators"
MODELS = ("nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net")
REPLICAS = (1, 5, 20)
FULL = (
    ("small", "ethanol", REPLICAS),
    ("small", "lips", REPLICAS),
    ("paper", "ethanol", (1, 5)),
    ("paper", "lips", (1, 5)),
    ("small", "3bpa", REPLICAS),
    ("small", "gete", REPLICAS),
)
"""Preset, system and numbers of replicas, the most informative first, as cells without time left are left
out. On a GPU the paper's size also runs with twenty replicas."""
QUICK = (("small", "ethanol", (1, 5)),)
CAMPAIGN = "cpu"  # campaign whose weights are used for the preset small
COLD = {"scale": 1e-3, "temperature": 10.0}  # eV, K; untrained weights would break a molecule otherwise
DIFFERENCE = {"small": 1e-5, "paper": 1e-4}
"""Largest relative difference of forces. With untrained weights of the paper's size, both sides of Equiformer
differ by 5e-5 from float64."""
SECONDS, BRIEF = 4.0, 1.0  # s of a comparison; BRIEF in a quick run and on a GPU, whose times vary little
CALL_SECONDS = 0.2  # s of a call of the slower side, as closely as whole steps allow
MOST_STEPS = 10  # largest number of steps in a call
REST = 0.02  # s before a call, as threads of the other side spin for about 8 ms after its last operator
FIRST_STEPS = 2  # steps in which code is compiled and lists are built


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_md`` (preset small) and ``bench_md_paper``, one per system and model.

    Metrics for every number R of replicas: ``ratio_R``, ``ours_R``, ``theirs_R`` (replica-steps/s) and
    ``start_ours_R``, ``start_theirs_R`` (s, until two steps are done, the time that a compiler must pay
    back); and ``force_difference``, the largest one relative to the largest force, which is checked before
    anything is timed.
    """
    began, theirs = time.monotonic(), Elsewhere(settings)
    try:
        for preset, system, replicas in QUICK if settings.quick else FULL:
            for model in MODELS:
                if time.monotonic() - began > settings.share("md"):
                    print(f"no time left for {model} on {system}, preset {preset}")
                else:
                    counts = REPLICAS if settings.on_gpu and not settings.quick else replicas
                    yield _cell(settings, theirs, preset, system, model, counts)
    finally:
        theirs.stop()


def _cell(settings, theirs, preset: str, system: str, model: str, replicas):
    from egraff_utils import weights

    trained = preset == "small"
    kind = "bench_md" if trained else f"bench_md_{preset}"
    parameters = {"preset": preset, "replicas": list(replicas), "weights": CAMPAIGN if trained else "fresh"}
    run = Key("training", CAMPAIGN, system, model)
    hashes: dict[str, Any] = {"weights": weights.digest(run)} if trained else {}

    def measure():
        return compared(settings, theirs, Theirs, replicas, preset, system, model)

    return measured(settings, kind, system, model, parameters, measure, **hashes)


def compared(
    settings: Settings,
    theirs: Elsewhere,
    their_side: Callable[..., "Theirs"],
    replicas: Sequence[int],
    *cell: str,
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Metrics and curves of a cell, which is given by preset, system and model.

    Parameters
    ----------
    settings
        :class:`~benchmarks.Settings`.
    theirs
        :class:`~benchmarks.elsewhere.Elsewhere`.
    their_side
        :class:`Theirs` or a subclass of it.
    replicas
        Numbers of replicas.
    """
    metrics: list[Metric] = []
    curves: dict[str, np.ndarray] = {}
    differences = []
    for count in replicas:
        ours, here = _begun(Ours, *cell, count, settings)  # type: ignore[arg-type, call-arg]
        there = theirs.make(_begun, their_side, *cell, count, settings)
        differences.append(same(here.forces, there.forces, DIFFERENCE[cell[0]]))
        steps = int(np.clip(CALL_SECONDS / max(here.step, there.step), 1, MOST_STEPS))
        found = compare(
            partial(ours.run, steps),
            partial(theirs.run, steps),
            seconds=BRIEF if settings.quick or settings.on_gpu else SECONDS,
            least=3,
            most=30,
            warm_up=0,  # both sides have run already
            rest=REST if settings.threads > 1 else 0.0,
            synchronize=settings.synchronize,
            clock=theirs.clock,
        )
        metrics += found.metrics(count, unit_per_call=count * steps, unit="replica-steps/s")
        starts = (("ours", here.start), ("theirs", there.start))
        metrics += [Metric(f"start_{side}_{count}", seconds, "s") for side, seconds in starts]
        curves |= found.curves(count)
    metrics.append(Metric("force_difference", max(differences), "1", n=len(differences)))
    return metrics, curves


class Beginning(NamedTuple):
    """Measurements of a side before the comparison."""

    forces: np.ndarray
    """Forces at the start, shape ``(R*N, 3)``, eV/Å."""
    start: float
    """Time until the first steps are done, s."""
    step: float
    """Time of the next step, s."""


def _begun(side, preset: str, system: str, model: str, count: int, settings):
    """A side after its first steps, and its :class:`Beginning`."""
    scene = Scene.of(preset, system, model, count)
    times = [settings.clock()]
    made = side(scene, settings.device)
    for steps in (FIRST_STEPS, 1):
        made.run(steps)
        if settings.synchronize:
            settings.synchronize()
        times.append(settings.clock())
    return made, Beginning(made.first_forces, *(float(t) for t in np.diff(times)))


class Scene:
    """System that both sides simulate, a force field and R replicas with momenta."""

    def __init__(
        self, force_field: "ForceField", starts: Sequence[Atoms], *, temperature: float, timestep: float
    ) -> None:
        self.force_field, self.starts = force_field, starts
        self.temperature, self.timestep = temperature, timestep

    @classmethod
    def of(cls, preset: str, system: str, model: str, count: int) -> "Scene":
        """Scene with test frames, and with trained weights for the preset small, new ones for others."""
        from egraff_utils import cards, weights
        from egraff_utils.md import rollout

        card = cards.dataset(system)
        temperature, timestep = card.conditions("test")
        frames = rollout.reference_of(card)
        if preset == "small":
            force_field: Any = weights.load(Key("training", CAMPAIGN, card.name, model))
        else:
            force_field, temperature = _fresh(model, preset, frames[0]), COLD["temperature"]
        starts = [_start(frames[i * len(frames) // count], temperature, i) for i in range(count)]
        return cls(force_field, starts, temperature=temperature, timestep=timestep)

    def thermostat(self) -> dict[str, Any]:
        """Arguments of a Langevin integrator that both sides share."""
        return {"temperature_K": self.temperature, "friction": 5e-3}


def _fresh(model: str, preset: str, atoms):
    import torch

    from egraff_utils import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        force_field = models.build(model, preset, set(atoms.numbers))
    force_field.set_reference({}, scale=COLD["scale"])
    return force_field.eval()


def _start(frame, temperature, seed):
    """Atoms of a frame with thermal momenta, in the orientation of the cell that TorchMD-Net requires."""
    from egraff_utils.md.temperature import draw_velocities

    atoms = frame.copy()
    atoms.info = {"charge": 0}
    if atoms.pbc.any():
        cell, _ = atoms.cell.standard_form()
        atoms.set_cell(cell.array.astype(np.float32), scale_atoms=True)
    atoms.positions = atoms.positions.astype(np.float32)  # upstream packages round positions and cell too
    return draw_velocities(atoms, temperature, np.random.default_rng(seed))


class Ours:
    """All replicas in one batch."""

    def __init__(self, scene: Scene, device: str) -> None:
        from ase import units

        from egraff_utils.md.calculator import ForceFieldCalculator, join_replicas
        from egraff_utils.md.integrators import Noise, ReplicaLangevin

        count = len(scene.starts)
        self.atoms, self.limit = join_replicas(scene.starts), 10 * scene.temperature
        self.start = self.atoms.copy()
        self.atoms.calc = ForceFieldCalculator(scene.force_field, device, replicas=count)
        self.first_forces = self.atoms.get_forces()
        options = scene.thermostat() | {"rng": Noise(0, range(count)), "replicas": count}
        self.integrator = ReplicaLangevin(self.atoms, scene.timestep * units.fs, **options)

    def run(self, steps: int) -> None:
        """Run a number of steps of all replicas."""
        _begin_again(self.atoms, self.start, self.limit)
        self.integrator.run(steps)


class Theirs:
    """One replica after another."""

    def __init__(self, scene: Scene, device: str) -> None:
        from ase import units
        from ase.md.langevin import Langevin

        self.limit, self.starts = 10 * scene.temperature, scene.starts
        self.replicas = [atoms.copy() for atoms in scene.starts]
        made = self._calculators(scene, device)
        for atoms, calculator in zip(self.replicas, made, strict=True):
            atoms.calc = calculator
        self.first_forces = np.concatenate([atoms.get_forces() for atoms in self.replicas])
        timestep, options = scene.timestep * units.fs, scene.thermostat() | {"fixcm": False}
        self.integrators = [
            Langevin(atoms, timestep, rng=np.random.default_rng(seed), **options)
            for seed, atoms in enumerate(self.replicas)
        ]

    def _calculators(self, scene, device):
        from benchmarks.upstream import calculators

        return calculators(scene.force_field, len(scene.starts), device=device)

    def run(self, steps: int) -> None:
        """Run a number of steps of every replica."""
        for atoms, start, integrator in zip(self.replicas, self.starts, self.integrators, strict=True):
            _begin_again(atoms, start, self.limit)
            integrator.run(steps)


def _begin_again(atoms, start, limit):
    """Move atoms back to the start if their temperature, K, is above the limit or not a number."""
    if not atoms.get_temperature() < limit:
        atoms.positions = start.positions
        atoms.set_momenta(start.get_momenta())
