"""What does one MD step cost? Time and memory are measured as functions of the number of atoms.

``egraff cost CAMPAIGN`` measures every trained model of a campaign. Nothing else may
run at the same time, or the times are those of a shared machine.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from egraff_utils import allocator, cards, records, weights
from egraff_utils import campaign as campaigns
from egraff_utils.config import Config
from egraff_utils.records import Metric, Record
from egraff_utils.report import titles

if TYPE_CHECKING:
    from ase import Atoms

    from egraff_utils.md.integrators import ReplicaLangevin
    from egraff_utils.models import ForceField

WARM_UP = 2  # untimed steps, which include compilation and fill caches
SETTLED = 0.5  # s, least time that is measured, as short steps vary more than long ones
FRAGMENT = 8  # atoms evaluated before memory is counted, so that libraries are loaded
STARTING = 120  # s allowed for loading a model
LARGE = 250  # atoms, above which the constant cost of a step is negligible


@dataclass(frozen=True)
class CostConfig(Config):
    """One trained model and the supercells on which it is timed."""

    kind = "cost"

    model: str
    campaign: str = "demo"
    dataset: str = "lips"
    """A periodic dataset that the model was trained on; its first test frame is repeated."""
    seed: int = 0
    """Seed of the training."""
    cells: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 4))
    """Copies of the frame along the cell vectors, smallest first."""
    steps: int = 5
    """Smallest number of steps over which the median is taken."""
    max_seconds: float = 20
    """Limit of the wall time of one size, s; a size that would take longer ends the measurement."""
    max_memory: float = 8000
    """Limit of the memory, MB; a size that would need more ends the measurement."""
    device: str = "cpu"
    threads: int = 1


def measure(config: CostConfig) -> Record:
    """Time and memory of one MD step by number of atoms.

    Parameters
    ----------
    config
        :class:`CostConfig`.

    Returns
    -------
    Record
        Kind ``cost``, with the metrics and curves of :func:`grow`. A stored record is returned if parameters
        and weights are the same. The message says what ended the measurement.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the dataset is not periodic.
    """

    def make():
        metrics, curves, message = grow(config)
        return records.Outcome(metrics, curves, "complete" if metrics else "failed", message)

    return records.run(config, make, weights=weights.digest(config))


def grow(config: CostConfig, *, runs: int = 1) -> tuple[list[Metric], dict[str, np.ndarray], str]:
    """Time and memory of one MD step by number of atoms, measured in a separate process.

    The step is that of a rollout: Langevin dynamics with neighbour lists that are kept between steps.

    Parameters
    ----------
    config
        :class:`CostConfig`.
    runs
        Number of runs, the fastest of which counts for each size, since other work of a machine only adds
        time.

    Returns
    -------
    metrics
        List of :class:`~egraff_utils.records.Metric`, empty if not even the smallest size could be measured:
        ``time_exponent`` (b of time = a * atoms**b, over all sizes), ``time_exponent_large`` (for 250 atoms
        or more), ``constant`` (ms, of a step without atoms, from the line with the smallest relative
        residuals), ``largest_size`` (atoms), ``ms_per_atom`` (ms, at the largest size), ``memory_per_atom``
        (MB, slope), ``atoms_in_memory`` (number of atoms that would fill the memory of the machine, by that
        slope).
    curves
        Arrays over the S sizes: ``atoms``, ``edges``, ``milliseconds`` (median, ms),
        ``milliseconds_neighbours`` (ms, the part of the neighbour list), ``memory`` (MB, peak above that of
        the loaded model).
    message
        Reason why the measurement ended; empty if all sizes were measured.

    Raises
    ------
    FileNotFoundError, ValueError
        As in :func:`measure`.
    """
    card = config.card
    if card.system == "molecule":
        raise ValueError(f"{card.name} is a molecule; supercells need a periodic dataset, such as lips")
    if cards.is_calculator(config.model):
        raise ValueError(f"{config.model} is a calculator; the cost of supercells is that of networks")
    if weights.digest(config) is None:
        weights.load(config)  # raises an error that says what is missing
    found, messages = zip(*[_in_a_process(config) for _ in range(runs)], strict=True)
    rows = [min(same, key=lambda row: row["milliseconds"]) for same in zip(*found, strict=False)]
    message = next(filter(None, messages), "")
    names = ("atoms", "edges", "milliseconds", "milliseconds_neighbours", "memory")
    curves = {name: np.array([row[name] for row in rows]) for name in names if rows}
    return _metrics(curves, rows[0]["machine_memory"]) if rows else [], curves, message


def evaluate(config: CostConfig) -> Iterator[dict[str, Any]]:
    """Time and memory of one size after another in this process; `grow` calls it in a new process.

    Yields
    ------
    dict
        ``atoms``, ``edges``, ``milliseconds``, ``milliseconds_neighbours`` (ms), ``memory`` and
        ``machine_memory`` (MB); the last one has only ``message`` if a limit ended the measurement.
    """
    import torch

    from egraff_utils import data, models

    torch.set_num_threads(config.threads)
    frame = data.load(config.dataset, "test")[0]
    force_field = weights.load(config)
    assert isinstance(force_field, models.ForceField)  # grow rejects calculators
    stepper(force_field, frame[:FRAGMENT], device=config.device)()
    before = _memory(config.device, reset=True)
    row: dict[str, Any] = {}
    for copies in config.cells:
        if message := _too_much(config, row, math.prod(copies) * len(frame)):
            yield {"message": message}
            return
        row = _one_size(config, force_field, frame.repeat(copies))
        row |= {"memory": _memory(config.device) - before, "machine_memory": _machine_memory(config.device)}
        yield row


@dataclass(frozen=True)
class Step:
    """Function without arguments that makes one step of a simulation."""

    dynamics: ReplicaLangevin
    """The integrator."""

    def __call__(self) -> None:
        self.dynamics.step()


def stepper(
    force_field: ForceField,
    atoms: Atoms,
    *,
    replicas: int = 1,
    device: str = "cpu",
    temperature: float = 300.0,
    timestep: float = 1.0,
    seed: int = 0,
) -> Step:
    """:class:`Step` of a rollout, Langevin dynamics of R replicas of a frame.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField`.
    atoms
        Frame, ``ase.Atoms``; each replica is given its own thermal velocities.
    replicas
        Number of replicas, R.
    device
        Device on which the force field runs.
    temperature
        Temperature, K.
    timestep
        Timestep, fs.
    seed
        Seed of the velocities and of the noise.
    """
    from egraff_utils.md.calculator import ForceFieldCalculator, join_replicas
    from egraff_utils.md.dynamics import Thermostat
    from egraff_utils.md.integrators import Noise
    from egraff_utils.md.temperature import draw_velocities

    rng = np.random.default_rng(seed)
    joined = join_replicas([draw_velocities(atoms.copy(), temperature, rng) for _ in range(replicas)])
    joined.calc = ForceFieldCalculator(force_field, device, replicas=replicas)
    thermostat = Thermostat(temperature, timestep, seed=seed)
    dynamics = thermostat.integrator(joined, Noise(seed, range(replicas)))

    return Step(dynamics)


def exponent(atoms: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> float:
    """Slope of ``log(values)`` against ``log(atoms)`` by least squares; NaN for fewer than two sizes.

    Examples
    --------
    >>> round(exponent([10, 20, 40], [1.0, 4.0, 16.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(atoms), np.log(values), 1)[0]) if len(atoms) > 1 else math.nan


def summary(found: Iterable[Record]) -> pd.DataFrame:
    """Table of cost records with one row per model and units in its head; empty without records.

    Parameters
    ----------
    found
        Records of kind ``cost``; others are ignored.
    """
    heads = {
        "time_exponent": "Exponent of time (dimensionless)",
        "largest_size": "Largest size (atoms)",
        "ms_per_atom": "Time per atom there (ms)",
        "memory_per_atom": "Memory per atom (MB)",
    }
    rows = {
        titles.model_title(record.model): {head: record[name] for name, head in heads.items()}
        for record in found
        if record.kind == "cost" and record.metrics
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(heads.values()))
    return table.astype({heads["largest_size"]: int})


def measure_campaign(name: str | Path, *, dataset: str | None = None) -> list[Record]:
    """Cost records of all networks of a campaign, a list; one without weights is reported and left out.

    Parameters
    ----------
    name
        Name of the campaign.
    dataset
        Periodic dataset; by default ``lips``, or the first periodic one of a campaign without ``lips``.

    Raises
    ------
    ValueError
        If the campaign has no periodic dataset.
    """
    settings = campaigns.load(name)
    periodic = [d for d in settings.datasets if cards.dataset(d).system != "molecule"]
    dataset = dataset or ("lips" if "lips" in periodic else next(iter(periodic), None))
    if dataset is None:
        raise ValueError(f"campaign {name} has no periodic dataset")
    found = []
    for model in (name for name in settings.models if not cards.is_calculator(name)):
        seed, device, threads = settings.seeds[0], settings.device, settings.threads
        config = CostConfig(model, settings.name, dataset, seed, device=device, threads=threads)
        try:
            found.append(measure(config))
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
    return found


def _in_a_process(config):
    """Rows of all sizes that the limits and the machine allow, and the reason why the measurement ended."""
    threads = {f"{name}_NUM_THREADS": str(config.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    call = [sys.executable, "-m", "egraff_utils", "cost", "--sizes", json.dumps(asdict(config))]
    limit = STARTING + config.max_seconds * len(config.cells)
    try:
        done = subprocess.run(call, env=os.environ | threads, capture_output=True, text=True, timeout=limit)
        output, errors = done.stdout, done.stderr.strip().splitlines()
        reason = "" if done.returncode == 0 else (errors or [f"exit status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as error:
        output, reason = (error.stdout or b"").decode(), f"longer than {limit:g} s in all"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    message = rows.pop()["message"] if rows and "message" in rows[-1] else ""
    if reason:
        message = f"ended at {_name(config.cells[len(rows)])} copies: {reason}"
    return rows, message


def _one_size(config, force_field, atoms):
    """Median times of a step and of its neighbour list; numbers of atoms and edges."""
    from egraff_utils.graph import SkinList

    step = stepper(force_field, atoms, device=config.device)
    lists = SkinList(atoms, force_field.cutoff, dtype=force_field.dtype, device=config.device)
    positions = step.dynamics.atoms.get_positions()
    return {
        "atoms": len(atoms),
        "edges": lists.update(positions).edge_index.shape[1],
        "milliseconds": _median(step, config),
        "milliseconds_neighbours": _median(lambda: lists.update(positions), config),
    }


def _median(call, config):
    """Median time of a call, ms; with one CPU thread, processor time, which other programs do not affect."""
    alone = config.device == "cpu" and config.threads == 1
    clock = time.process_time if alone else time.perf_counter
    for _ in range(WARM_UP):
        call()
    times = []
    while len(times) < config.steps or sum(times) < SETTLED:
        began = clock()
        call()
        times.append(clock() - began)
    return 1e3 * float(np.median(times))


def _too_much(config, row, atoms):
    """Reason why the next size is not begun, assuming time and memory proportional to the number of atoms."""
    if not row:
        return ""
    growth = atoms / row["atoms"]
    seconds = growth * row["milliseconds"] / 1e3 * (WARM_UP + config.steps)
    memory = growth * row["memory"]
    if seconds > config.max_seconds:
        return f"ended before {atoms} atoms: some {seconds:.0f} s of {config.max_seconds:g} s"
    if memory > config.max_memory:
        return f"ended before {atoms} atoms: some {memory:.0f} MB of {config.max_memory:g} MB"
    return ""


def _name(copies):
    return "x".join(map(str, copies))


def _memory(device, *, reset=False):
    """Peak memory since the last reset, MB, of the process or of the tensors on a GPU."""
    if reset:
        allocator.release()
    if str(device).startswith("cuda"):
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:  # Linux keeps a high-water mark that can be reset to the current memory
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _machine_memory(device):
    """Memory of the machine, or of the GPU, MB."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory / 1e6
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def _metrics(curves, machine_memory):
    atoms, times, memory = (curves[name] for name in ("atoms", "milliseconds", "memory"))
    large = atoms >= LARGE
    several = len(atoms) > 1
    constant = np.polyfit(atoms, times, 1, w=1 / times)[1] if several else math.nan
    slope = np.polyfit(atoms, memory, 1)[0] if several else math.nan
    return [
        Metric("time_exponent", exponent(atoms, times), "1", n=len(atoms)),
        Metric("time_exponent_large", exponent(atoms[large], times[large]), "1", n=int(large.sum())),
        Metric("constant", constant, "ms"),
        Metric("largest_size", atoms[-1], "1"),
        Metric("ms_per_atom", times[-1] / atoms[-1], "ms"),
        Metric("memory_per_atom", slope, "MB"),
        Metric("atoms_in_memory", machine_memory / slope if slope > 0 else math.nan, "1"),
    ]
