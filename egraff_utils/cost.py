"""What does one MD step cost? Time and memory of energy and forces against the number of atoms.

``python -m egraff_utils.cost CAMPAIGN`` measures every trained model of a campaign; nothing else may run
meanwhile, or the times are those of a shared machine.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from egraff_utils import campaign as campaigns
from egraff_utils import cards, records, tables
from egraff_utils.records import Metric

WORKING_FIELDS = ("campaign", "dataset", "model", "seed", "device", "threads")
WARM_UP = 2  # evaluations before the first that counts: compilation and caches
FRAGMENT = 8  # atoms evaluated before memory is counted, so that libraries are loaded
STARTING = 120  # s allowed for loading a model


@dataclass(frozen=True)
class CostConfig:
    """One trained model and the supercells it is timed on."""

    model: str
    campaign: str = "demo"
    dataset: str = "lips"
    """A periodic dataset that the model was trained on; its first test frame is repeated."""
    seed: int = 0
    """Of the training."""
    cells: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 4))
    """Copies of the frame along the cell vectors, smallest first."""
    evaluations: int = 5
    """In the median."""
    max_seconds: float = 20
    """Wall time of one size; a size that would take longer ends the measurement."""
    max_memory: float = 8000
    """MB, likewise."""
    device: str = "cpu"
    threads: int = 1

    def parameters(self):
        """What determines the result, as stored in the record."""
        return {key: value for key, value in asdict(self).items() if key not in WORKING_FIELDS}

    @property
    def key(self):
        """Kind (``cost``), campaign, dataset, model and seed."""
        return "cost", self.campaign, cards.dataset(self.dataset).name, self.model, self.seed


def measure(config):
    """Time and memory of one energy and force evaluation, neighbour list included, by number of atoms.

    Every size runs in a process of its own, so that its peak memory is not that of a larger one before.

    Parameters
    ----------
    config
        :class:`CostConfig`.

    Returns
    -------
    Record
        Kind ``cost``. Metrics: ``time_exponent`` (b of time = a * atoms**b, over all sizes),
        ``largest_size`` (atoms), ``ms_per_atom`` (ms, at the largest size), ``memory_per_atom`` (MB, slope).
        Curves of S sizes: ``atoms``, ``edges``, ``milliseconds`` (median, ms), ``milliseconds_neighbours``
        (its part for the neighbour list, ms), ``memory`` (peak above that of the loaded model, MB). The
        stored one if parameters and weights are the same. The message tells what ended the measurement.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; names the command that trains.
    ValueError
        If the dataset is not periodic.
    """
    from egraff_utils import train

    card = cards.dataset(config.dataset)
    if card.system == "molecule":
        raise ValueError(f"{card.name} is a molecule; supercells need a periodic dataset, such as lips")
    started = time.time()
    weights = train.fingerprint(config)
    stored = records.find(*config.key, config.parameters())
    if stored and weights in (None, stored.provenance.get("weights")):
        return stored
    if weights is None:
        train.trained(config.campaign, card.name, config.model, config.seed)  # says what is missing
    rows, message = _sizes(config)
    made = records.provenance(started, device="cpu", threads=config.threads, weights=weights)
    made["device"] = config.device
    curves = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    status = "complete" if rows else "failed"
    record = records.Record(*config.key, config.parameters(), _metrics(curves), status, message, made)
    record.provenance["hardware"] = rows[0]["hardware"] if rows else made["hardware"]
    curves.pop("hardware", None)
    records.write(record, curves)
    return record


def evaluate(config, copies):
    """Time and memory of one size in this process; `measure` calls it in a fresh one.

    Parameters
    ----------
    config
        :class:`CostConfig`.
    copies
        Of the frame along the cell vectors, three numbers.

    Returns
    -------
    dict
        ``atoms``, ``edges``, ``milliseconds``, ``milliseconds_neighbours`` (ms), ``memory`` (MB) and
        ``hardware``.
    """
    import torch

    from egraff_utils import data, train

    torch.set_num_threads(config.threads)
    frame = data.load(config.dataset, "test")[0]
    force_field = train.trained(config.campaign, config.dataset, config.model, config.seed)
    force_field.to(config.device).requires_grad_(False).eval()
    _evaluate(force_field, frame[:FRAGMENT], config.device)
    before = _memory(config.device, reset=True)
    atoms = frame.repeat(copies)
    runs = [_evaluate(force_field, atoms, config.device) for _ in range(WARM_UP + config.evaluations)]
    neighbours, total, edges = (np.array(column) for column in zip(*runs[WARM_UP:], strict=True))
    return {
        "atoms": len(atoms),
        "edges": int(edges[0]),
        "milliseconds": 1e3 * float(np.median(total)),
        "milliseconds_neighbours": 1e3 * float(np.median(neighbours)),
        "memory": _memory(config.device) - before,
        "hardware": records.provenance(time.time(), device=config.device)["hardware"],
    }


def exponent(atoms, values):
    """Slope of ``log(values)`` against ``log(atoms)`` by least squares; NaN for fewer than two sizes.

    Examples
    --------
    >>> round(exponent([10, 20, 40], [1.0, 4.0, 16.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(atoms), np.log(values), 1)[0]) if len(atoms) > 1 else math.nan


def summary(found):
    """Table of cost records: a row for every model, heads with units; empty without records.

    Parameters
    ----------
    found
        Records of kind ``cost``; others are passed over.
    """
    heads = {
        "time_exponent": "Exponent of time (dimensionless)",
        "largest_size": "Largest size (atoms)",
        "ms_per_atom": "Time per atom there (ms)",
        "memory_per_atom": "Memory per atom (MB)",
    }
    rows = {
        tables.model_title(record.model): {head: record[name] for name, head in heads.items()}
        for record in found
        if record.kind == "cost" and record.metrics
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(heads.values()))
    return table.astype({heads["largest_size"]: int})


def measure_campaign(name, *, dataset=None):
    """Cost records of all models of a campaign, a list; a model without weights is reported and left out.

    Parameters
    ----------
    name
        Campaign.
    dataset
        Periodic dataset; by default ``lips``, or the campaign's first periodic one where it has no ``lips``.
    """
    settings = campaigns.load(name)
    periodic = [d for d in settings.datasets if cards.dataset(d).system != "molecule"]
    dataset = dataset or ("lips" if "lips" in periodic else next(iter(periodic), None))
    if dataset is None:
        raise ValueError(f"campaign {name} has no periodic dataset")
    found = []
    for model in settings.models:
        options = {"seed": settings.seeds[0], "device": settings.device, "threads": settings.threads}
        try:
            found.append(measure(CostConfig(model, settings.name, dataset, **options)))
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
    return found


def _sizes(config):
    """Rows of all sizes that the limits allow, and what ended the measurement."""
    rows = []
    for copies in config.cells:
        reason = _too_much(config, rows, copies)
        if reason:
            return rows, reason
        try:
            rows.append(_in_a_process(config, copies))
        except subprocess.TimeoutExpired:
            return rows, f"ended at {_name(copies)} copies: longer than {config.max_seconds:g} s"
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
            return rows, f"ended at {_name(copies)} copies: {last[0]}"
    return rows, ""


def _too_much(config, rows, copies):
    """Why the next size is not begun; time and memory are taken to grow in proportion to the atoms."""
    if not rows:
        return ""
    growth = math.prod(copies) / math.prod(config.cells[len(rows) - 1])
    seconds = growth * rows[-1]["milliseconds"] / 1e3 * (WARM_UP + config.evaluations)
    memory = growth * rows[-1]["memory"]
    if seconds > config.max_seconds:
        return f"ended before {_name(copies)} copies: some {seconds:.0f} s of {config.max_seconds:g} s"
    if memory > config.max_memory:
        return f"ended before {_name(copies)} copies: some {memory:.0f} MB of {config.max_memory:g} MB"
    return ""


def _name(copies):
    return "x".join(map(str, copies))


def _in_a_process(config, copies):
    order = json.dumps({"config": asdict(config), "copies": copies})
    threads = {f"{name}_NUM_THREADS": str(config.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [sys.executable, "-m", "egraff_utils.cost", "--size", order],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=True,
        timeout=STARTING + config.max_seconds,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _evaluate(force_field, atoms, device):
    """Seconds of the neighbour list, of everything, and the number of edges."""
    from egraff_utils.graph import build_graph

    began = time.perf_counter()
    graph = build_graph(atoms, force_field.cutoff).to(device)
    listed = time.perf_counter()
    force_field(graph).forces.cpu()
    return listed - began, time.perf_counter() - began, graph.edge_index.shape[1]


def _memory(device, *, reset=False):
    """Peak so far, MB: of the process, or of the tensors on a GPU, from a reset on."""
    if str(device).startswith("cuda"):
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:  # Linux: a high-water mark that can be set back to the present
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _metrics(curves):
    if not curves:
        return []
    atoms, times = curves["atoms"], curves["milliseconds"]
    slope = np.polyfit(atoms, curves["memory"], 1)[0] if len(atoms) > 1 else math.nan
    return [
        Metric("time_exponent", exponent(atoms, times), "1", n=len(atoms)),
        Metric("largest_size", atoms[-1], "1"),
        Metric("ms_per_atom", times[-1] / atoms[-1], "ms"),
        Metric("memory_per_atom", slope, "MB"),
    ]


def main(arguments=None):
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m egraff_utils.cost", description=measure.__doc__[:88])
    parser.add_argument("campaign", nargs="?", help="measure every trained model of this campaign")
    parser.add_argument("--dataset", help="periodic dataset; lips by default")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.size:
        order = json.loads(chosen.size)
        cells = tuple(tuple(copies) for copies in order["config"].pop("cells"))
        print(json.dumps(evaluate(CostConfig(**order["config"], cells=cells), order["copies"])))
    elif chosen.campaign:
        for record in measure_campaign(chosen.campaign, dataset=chosen.dataset):
            print(record)
    else:
        parser.error("which campaign?")


if __name__ == "__main__":
    main()
