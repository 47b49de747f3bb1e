"""What do the metrics cost, compared with ASE's analysis and with the rollout itself?

For radial distributions, `structure.radial_distributions` is compared with
`ase.geometry.analysis.Analysis.get_rdf`, with the same frames, range and bins; ours returns all partial
distributions in the same pass, ASE's only the total one. For the metrics of a rollout, the time for
reference, stability rule and all metrics of five replicas of 1000 steps is compared with that of the steps,
of the fastest model.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from benchmarks import Settings, measured
from benchmarks.compare import compare, same
from egraff_utils.records import Metric, Record

if TYPE_CHECKING:  # which load torch
    from egraff_utils.md.dynamics import Trajectory
    from egraff_utils.md.rollout import Scene

TITLE = "Metrics: radial distributions beside ASE's, and all metrics of a rollout beside its steps"
SYSTEMS = ("lips", "gete", "ethanol")
MODELS = ("nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net")
CAMPAIGN = "cpu"  # campaign whose weights are rolled out
WIDTH = 0.05  # Å, width of a bin
FRAMES = 1000
BLOCK = 100  # frames in a call, as many as a rollout passes at a time
REPLICAS, STEPS = 5, 1000
TIMED_STEPS = 9  # steps, of which the first third is warm-up


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_metrics``, model ``reference``, one per system.

    Metrics: ``ratio_rdf``, ``ours_rdf``, ``theirs_rdf`` (frames/s) and ``rdf_difference`` (relative to the
    largest g, checked to 1e-10 before anything is timed); ``metrics_time`` (s), ``rollout_time`` (s) of the
    fastest model and ``share_of_rollout``. Curves: ``models`` and ``milliseconds_per_step`` (ms).
    """
    for system in SYSTEMS[:1] if settings.quick else SYSTEMS:
        models = MODELS[3:4] if settings.quick else MODELS
        parameters = {"frames": FRAMES, "replicas": REPLICAS, "steps": STEPS, "models": list(models)}

        def measure(system=system, models=models):
            metrics, curves = _radial_distributions(system, settings)
            more, found = _share(system, models, settings)
            return metrics + more, curves | found

        yield measured(settings, "bench_metrics", system, "reference", parameters, measure)


def _radial_distributions(system, settings):
    from egraff_utils import structure

    frames, count = _frames(system), FRAMES // 20 if settings.quick else FRAMES
    size = count // 10
    chosen = [frames[t % len(frames)] for t in range(count)]
    blocks = [chosen[t : t + size] for t in range(0, count, size)]
    r_max = _range(frames[0])

    def ours(block):
        positions = np.stack([atoms.positions for atoms in block])
        box = {"cell": block[0].cell.array, "pbc": block[0].pbc}
        return structure.radial_distributions(positions, block[0].numbers, r_max=r_max, dr=WIDTH, **box).total

    def theirs(block):
        return ase_distribution(block, r_max)

    difference = same(ours(blocks[0]), theirs(blocks[0]), relative=1e-10)
    found = compare(
        _turns(ours, blocks),
        _turns(theirs, blocks),
        seconds=0.5 * settings.share("metrics"),
        least=3,
        most=10,
        warm_up=1,
        clock=settings.clock,
    )
    metrics = found.metrics("rdf", unit_per_call=size, unit="frames/s")
    return [*metrics, Metric("rdf_difference", difference, "1", n=size)], found.curves("rdf")


def _frames(system):
    """All available frames of a system that have the same composition and cell."""
    from egraff_utils import cards, data

    frames = [atoms for split in cards.dataset(system).splits for atoms in data.load(system, split)]
    return [
        atoms
        for atoms in frames
        if np.array_equal(atoms.numbers, frames[0].numbers) and np.allclose(atoms.cell, frames[0].cell)
    ]


def _range(atoms):
    """The published range, or the longest range of whole bins that ASE accepts, Å."""
    from egraff_utils import structure

    r_max = structure.as_coded_r_max(atoms)
    if atoms.pbc.any():
        heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
        r_max = min(r_max, WIDTH * np.floor(heights[atoms.pbc].min() / 2 / WIDTH))
    return r_max


def ase_distribution(frames: Sequence[Atoms], r_max: float) -> np.ndarray:
    """Mean over frames of ``Analysis.get_rdf``, shape ``(B,)``."""
    from ase.geometry.analysis import Analysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return np.mean(Analysis(frames).get_rdf(r_max, round(r_max / WIDTH)), axis=0)


def _turns(call, blocks):
    """A callable that calls ``call`` with the next block each time."""
    turns = itertools.cycle(blocks)
    return lambda: call(next(turns))


def _share(system, models, settings):
    """Metrics and curves on the time of the metrics of a rollout and of its steps."""
    from egraff_utils import cards
    from egraff_utils.md import rollout

    card = cards.dataset(system)
    config = rollout.RolloutConfig(models[0], system, CAMPAIGN, replicas=REPLICAS, steps=STEPS)
    config = rollout._settled(replace(config, device=settings.device, progress=False), card)
    scene = rollout._scene(config, card)
    per_step = [_step_time(replace(config, model=model), card, scene, settings.clock) for model in models]
    rounds = range(1 if settings.quick else 3)
    taken = np.median([_metrics_time(config, card, scene, settings.clock) for _ in rounds])
    total = STEPS * min(per_step)
    metrics = [
        Metric("metrics_time", taken, "s"),
        Metric("rollout_time", total, "s"),
        Metric("share_of_rollout", taken / total, "1"),
    ]
    return metrics, {"models": np.array(models), "milliseconds_per_step": 1e3 * np.array(per_step)}


def _step_time(config, card, scene, clock):
    """Median time of a step of all replicas, s."""
    from egraff_utils.md import rollout
    from egraff_utils.md.dynamics import simulate

    dynamics = rollout._dynamics(config) | {"steps": TIMED_STEPS, "clock": clock}
    trajectory = simulate(scene.starts, rollout._calculators(config, card, None), **dynamics)
    return float(np.median(trajectory.step_times[TIMED_STEPS // 3 :]))


def _metrics_time(config, card, scene, clock):
    """Time of everything in a rollout apart from its steps and the loading of starts, s."""
    from egraff_utils.md import analysis, rollout

    trajectory = walk(scene, STEPS + 1)
    begun = clock()
    reference = rollout._stored(config, card, scene.frames, scene.first)
    rule = rollout._rule(config, card, scene.frames)
    for replica, start in itertools.product(range(REPLICAS), range(0, STEPS, config.checkpoint_every)):
        end = start + config.checkpoint_every
        rule(trajectory.positions[replica, start:end], trajectory.temperature[replica, :end])
    analysis.measure(trajectory, scene.starts[0], reference, timestep=config.timestep, steps=STEPS)
    return clock() - begun


def walk(scene: "Scene", frames: int) -> "Trajectory":
    """A :class:`~egraff_utils.md.dynamics.Trajectory` like that of a stable rollout, of reference frames.

    Parameters
    ----------
    scene
        :class:`~egraff_utils.md.rollout.Scene`.
    frames
        Number of frames, T.
    """
    from egraff_utils.md.dynamics import Trajectory

    replicas, elements = len(scene.starts), len(np.unique(scene.starts[0].numbers))
    index = (np.array(scene.first)[:, None] + np.arange(frames)) % len(scene.frames)
    results = [atoms.calc.results for atoms in scene.frames]
    rng = np.random.default_rng(0)
    forces = np.stack([found["forces"] for found in results]).astype(np.float32)[index]
    energy = np.array([found["energy"] for found in results])[index]
    return Trajectory(
        steps=np.arange(frames),
        positions=np.stack([atoms.positions for atoms in scene.frames]).astype(np.float32)[index],
        forces=forces + rng.normal(scale=0.1, size=forces.shape).astype(np.float32),
        energy=energy + rng.normal(scale=0.1, size=energy.shape),
        temperature=rng.normal(300, 10, size=(replicas, frames)),
        temperature_species=rng.normal(300, 10, size=(replicas, frames, elements)),
        stable_step=np.full(replicas, frames - 1),
        causes=[""] * replicas,
        step_times=np.full(frames - 1, 0.01),
    )
