"""Is float32 enough? Forces, energy drift and speed of the same weights are compared in float32 and float64.

On a GPU, TF32 is compared too, in which matrix products keep ten bits of a number. To see whether
optimisation for speed changes the forces, the same weights are compared with networks that are evaluated as
in the upstream packages.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks import Settings, measured
from benchmarks.compare import compare
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record
from egraff_utils.statistics import replica_interval
from egraff_utils.units import EV_TO_MEV

TITLE = "Precision: float32 beside float64, fast networks beside plain ones"
MODELS = ("mace", "nequip", "allegro", "botnet", "torchmd_net", "equiformer")
SYSTEMS = {"ethanol": (5, 200), "lips": (1, 100)}
"""Dataset -> number of simultaneous runs at constant energy, and their steps."""
CAMPAIGN = "cpu"  # campaign whose weights are used
FRAMES = 10  # frames whose forces are compared
PAIRS = 5  # pairs of timed steps


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_precision``, one per system and model.

    Metrics for every precision P, ``float32`` and on a GPU ``tf32``: ``force_difference_P`` (mean absolute
    difference of a force component from float64, meV/Å), ``force_difference_over_error_P`` (the same divided
    by ``force_error``, 1), ``speed_P`` (ratio of the times of a step in float64 and in P, 1), ``drift_P``
    (meV/atom/ps) at constant energy and ``drift_difference_P`` (from float64 with the same start); also
    ``drift_float64`` and ``force_error``, the mean absolute error of the model on the same frames (meV/Å).
    ``plain_difference_float64`` is the largest difference of a force component between fast and plain
    networks divided by the largest component, ``plain_difference_over_error_float32`` is their mean absolute
    difference divided by ``force_error`` (1). Curves: ``time`` (T,), fs, and ``energy_P`` (R, T), total
    energy relative to the start, meV/atom.
    """
    began = time.monotonic()
    for dataset in ["ethanol"] if settings.quick else SYSTEMS:
        for model in MODELS[:1] if settings.quick else MODELS:
            if not settings.quick and time.monotonic() - began > settings.share("precision"):
                print(f"no time left for {model} on {dataset}")
                continue
            yield _cell(settings, dataset, model)


def _cell(settings, dataset, model):
    from egraff_utils import weights

    replicas, steps = SYSTEMS[dataset]
    steps = 20 if settings.quick else steps
    parameters = {"preset": "small", "replicas": replicas, "steps": steps, "weights": CAMPAIGN}
    hashes = {"weights": weights.digest(Key("training", CAMPAIGN, dataset, model))}

    def measure():
        return _measure(settings, dataset, model, replicas, steps)

    return measured(settings, "bench_precision", dataset, model, parameters, measure, **hashes)


def _measure(settings, dataset, model, replicas, steps):
    from egraff_utils import cards, data, weights
    from egraff_utils.checks import gate
    from egraff_utils.models import frozen
    from egraff_utils.running import cost

    run = Key("training", CAMPAIGN, dataset, model)
    single = weights.load(run).to(settings.device)
    double = gate.in_double(single).to(settings.device)
    with frozen.plain():
        plain_single = weights.load(run)
        plain_double = gate.in_double(plain_single)
    plain_single, plain_double = (_plain(ff, settings.device) for ff in (plain_single, plain_double))
    frames = data.load(dataset, "test")[:FRAMES]
    temperature, timestep = cards.dataset(dataset).conditions("test")
    starts = [_start(frame, temperature, run) for run, frame in enumerate(frames[:replicas])]
    times = timestep * np.arange(steps + 1)

    def examine(force_field, *, tf32=False):
        with arithmetic(tf32):
            step = cost.stepper(force_field, frames[0], replicas=replicas, device=settings.device)
            return _forces(force_field, frames), _energy(force_field, starts, timestep, steps), step

    exact, energy, slow = examine(double)
    error = _mean_difference(exact, [frame.get_forces() for frame in frames])
    metrics, curves = [Metric("force_error", error, "meV/Å")], {"time": times, "energy_float64": energy}
    metrics.append(_slope("drift_float64", times, energy))
    plain = _forces(plain_double, frames)
    largest = max(np.abs(forces).max() for forces in plain)
    difference = max(np.abs(a - b).max() for a, b in zip(exact, plain, strict=True)) / largest
    metrics.append(Metric("plain_difference_float64", float(difference), "1", n=len(frames)))
    for name in ["float32", "tf32"] if settings.on_gpu else ["float32"]:
        forces, found, step = examine(single, tf32=name == "tf32")
        difference = _mean_difference(forces, exact)
        with arithmetic(name == "tf32"):
            ratio = _ratio(settings, step, slow)
        metrics += [
            Metric(f"force_difference_{name}", difference, "meV/Å", n=len(frames)),
            Metric(f"force_difference_over_error_{name}", difference / error, "1"),
            Metric(f"speed_{name}", ratio.ratio, "1", ratio.low, ratio.high, ratio.pairs),
            _slope(f"drift_{name}", times, found),
            _slope(f"drift_difference_{name}", times, found - energy),
        ]
        curves[f"energy_{name}"] = found
        if name == "float32":
            beside = _mean_difference(forces, _forces(plain_single, frames)) / error
            metrics.append(Metric("plain_difference_over_error_float32", beside, "1", n=len(frames)))
    return metrics, curves


def _plain(force_field, device):
    """The force field, with an Equiformer network replaced by e3nn's operators, which are its plain form."""
    from benchmarks.plain_equiformer import PlainEquiformer
    from egraff_utils import models
    from egraff_utils.models.equiformer import Equiformer

    if isinstance(force_field.network, Equiformer):
        with models.default_dtype(force_field.dtype):  # e3nn makes its constants in the default type
            force_field.network = PlainEquiformer(force_field.network)
    return force_field.to(device)


@contextmanager
def arithmetic(tf32: bool) -> Iterator[None]:
    """Context in which float32 matrix products on a GPU do, or do not, use TF32."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _start(frame, temperature, run):
    """A frame with thermal velocities and its centre of mass at rest."""
    from egraff_utils.md.temperature import draw_velocities

    return draw_velocities(frame.copy(), temperature, np.random.default_rng(run))


def _forces(force_field, frames):
    """Forces as a rollout evaluates them, list of ``(N, 3)``, eV/Å."""
    from egraff_utils.md.calculator import ForceFieldCalculator

    calculator = ForceFieldCalculator(force_field)
    return [calculator.get_forces(frame) for frame in frames]


def _mean_difference(forces, others):
    differences = [np.abs(a - b).ravel() for a, b in zip(forces, others, strict=True)]
    return EV_TO_MEV * float(np.concatenate(differences).mean())


def _energy(force_field, starts, timestep, steps):
    """Total energy of runs at constant energy, relative to the start, shape ``(R, T)``, meV/atom."""
    from egraff_utils.checks.gate import conservation
    from egraff_utils.md.calculator import ForceFieldCalculator

    def calculators(replicas):
        return ForceFieldCalculator(force_field, replicas=replicas)

    trajectory = conservation.nve(starts, calculators, timestep=timestep, steps=steps)
    energy = np.full((len(starts), steps + 1), np.nan)
    found = conservation.total_energy(trajectory, starts[0])
    energy[:, : found.shape[1]] = EV_TO_MEV * (found - found[:, :1]) / len(starts[0])
    return energy


def _slope(name, times, energy):
    """Metric with the mean slope of the runs and Student's interval."""
    from egraff_utils.checks.gate import conservation

    slopes, _ = conservation.slopes(times / 1000, energy)
    low, high = replica_interval(slopes[:, None])
    return Metric(name, slopes.mean(), "meV/atom/ps", low, high, len(slopes))


def _ratio(settings, step, slow):
    pairs = {"least": PAIRS, "most": PAIRS if settings.quick else 4 * PAIRS, "seconds": 2.0}
    return compare(step, slow, **pairs, synchronize=settings.synchronize, clock=settings.clock)
