"""What did a run measure? Each run leaves one small JSON record, with its curves in an ``.npz`` beside it.

The record is the interface: expensive notebooks write records, and report notebooks read nothing else.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from egraff_utils import paths, quantities
from egraff_utils.breaks import Break
from egraff_utils.config import Key

SIGNIFICANT_BITS = 12
EXACT_STEP = 2.0**-20
"""Step to which energies and positions are rounded in curves, eV or Å: 1e-6, far below the error of any
model."""
SCHEMA = 1
STATUSES = ("complete", "unstable", "failed")
ENDINGS = (".npz", ".safetensors", ".build.json", ".json")
"""Endings of the files of a record. The JSON file comes last, so that it never exists without the others."""
COLUMNS = [
    "kind",
    "dataset",
    "model",
    "seed",
    "metric",
    "value",
    "unit",
    "low",
    "high",
    "n",
    "status",
    "path",
]
PACKAGES = [
    "torch",
    "e3nn",
    "nequip",
    "nequip-allegro",
    "mace-torch",
    "torchmd-net",
    "lightning",
    "ase",
    "matscipy",
    "numpy",
]


@dataclass
class Metric:
    """One number with its unit and, where known, its 95 % interval and the number of values behind it."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def of(cls, name, value, low=None, high=None, n=None):
        """Metric whose unit is the one listed in `quantities`.

        >>> Metric.of("wf", 2.5).unit
        '%'
        """
        return cls(name, value, quantities.of(name).unit, low, high, n)

    def __post_init__(self):
        self.value, self.low, self.high = (_number(v) for v in (self.value, self.low, self.high))


@dataclass
class Record:
    """Record of a run: its parameters, its results (metrics, curves) and its provenance."""

    kind: str
    campaign: str
    dataset: str
    model: str
    seed: int
    parameters: dict = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    status: str = "complete"
    message: str = ""
    provenance: dict = field(default_factory=dict)
    schema: int = SCHEMA
    breaks: list[Break] = field(default_factory=list)
    """Replicas of a simulation that broke."""

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"{self.status=} is none of {', '.join(STATUSES)}")
        self.metrics = [Metric(**m) if isinstance(m, dict) else m for m in self.metrics]
        self.breaks = [Break(**b) if isinstance(b, dict) else b for b in self.breaks]

    @property
    def key(self):
        """:class:`~egraff_utils.config.Key` of the record."""
        return Key(self.kind, self.campaign, self.dataset, self.model, self.seed)

    @property
    def path(self):
        """Path of the JSON file."""
        return self.key.path

    @cached_property
    def curves(self):
        """Arrays by name, read from the ``.npz`` beside the record on first access."""
        file = self.path.with_suffix(".npz")
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def metric(self, name):
        """The :class:`Metric` of this name; raises ``KeyError``, which lists the names in the record."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"no metric '{name}'; the record holds {', '.join(m.name for m in self.metrics)}")

    def __getitem__(self, name):
        return self.metric(name).value

    def __repr__(self):
        head = f"Record({self.kind} {self.campaign}/{self.dataset}-{self.model}-s{self.seed}, {self.status})"
        lines = [f"  {m.name:24s} {_shown(m.value)} {m.unit}" for m in self.metrics]
        return "\n".join([head, *([f"  {self.message}"] if self.message else []), *lines])

    def _repr_html_(self):
        rows = "".join(
            f"<tr><td>{escape(m.name)}</td><td>{_shown(m.value)}</td><td>{interval_text(m)}</td>"
            f"<td>{escape(m.unit)}</td></tr>"
            for m in self.metrics
        )
        title = f"{self.kind}: {self.dataset}, {self.model}, seed {self.seed} ({self.status})"
        note = f"<br>{escape(self.message)}" if self.message else ""
        head = "<tr><th>metric</th><th>value</th><th>95 % interval</th><th>unit</th></tr>"
        return f"<table><caption>{escape(title)}{note}</caption>{head}{rows}</table>"


@dataclass
class Outcome:
    """Result of a run: the part of a record that the run itself knows."""

    metrics: list[Metric]
    curves: dict = field(default_factory=dict)
    status: str = "complete"
    """Status of the record; it becomes ``unstable`` if there are breaks."""
    message: str = ""
    breaks: list[Break] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)
    """Entries in addition to those of :func:`provenance`."""
    save: Callable | None = None
    """Function of the path of the record that writes further files beside it, before the record is written,
    and returns their digests by name."""
    checkpoint: Path | None = None
    """File or folder that is removed once the record is written."""


def stored_or_made(key, parameters, make, *, device="cpu", threads=1, **digests):
    """The stored record of a run or, if there is none, a new one.

    An existing record with other parameters is moved aside rather than overwritten, and is moved back when it
    is requested (:func:`put_aside`).

    Parameters
    ----------
    key
        :class:`~egraff_utils.config.Key`.
    parameters
        Everything that determines the result.
    make
        Function without arguments that performs the run and returns an :class:`Outcome`.
    device, threads
        Device and number of threads, for the provenance.
    digests
        Digests of the inputs by name, such as ``weights``. A stored record is used only if its digests agree;
        ``None`` means unknown and is not compared.

    Returns
    -------
    Record
    """
    if record := find(key, parameters, **digests) or bring_back(key, parameters, **digests):
        return record
    started = time.time()
    outcome = make()
    if record := find(key, parameters, **digests):  # another process was faster, and its files may be in use
        return record
    status = "unstable" if outcome.breaks else outcome.status
    record = Record(*key, parameters, outcome.metrics, status, outcome.message, breaks=outcome.breaks)
    if _with_parameters(record.path, parameters) is None:
        put_aside(record.path)
    saved = outcome.save(record.path) if outcome.save else {}
    made = {"device": device, "threads": threads, **digests, **saved, **outcome.provenance}
    record.provenance = provenance(started, **made)
    write(record, outcome.curves)
    if outcome.checkpoint and outcome.checkpoint.is_dir():
        shutil.rmtree(outcome.checkpoint, ignore_errors=True)
    elif outcome.checkpoint:
        outcome.checkpoint.unlink(missing_ok=True)
    return record


def run(config, make, **digests):
    """The stored or new record of a :class:`~egraff_utils.config.Config`, see :func:`stored_or_made`."""
    place = {"device": config.device, "threads": config.threads}
    return stored_or_made(config.key, config.parameters(), make, **place, **digests)


def write(record, curves=None):
    """Write a record and its curves atomically; returns the path.

    The curves are written first, so a record on disk always has them. They are rounded (:func:`rounded`),
    which halves the size of the files.
    """
    path = record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = path.with_suffix(".npz")
    if curves:
        curves = {name: rounded(name, np.asarray(value)) for name, value in curves.items()}
        _replace(arrays, lambda file: np.savez_compressed(file, **curves))
        record.__dict__["curves"] = curves
    else:
        arrays.unlink(missing_ok=True)
    text = json.dumps(asdict(record), indent=1, allow_nan=False, default=_plain) + "\n"
    _replace(path, lambda file: file.write(text.encode()))
    return path


def rounded(name, values):
    """Values rounded to their meaningful digits, as they are stored in curves.

    Arrays over replicas (two or more dimensions) keep twelve significant bits, a relative error of 1e-4. The
    remaining bits are noise, which does not compress. Energies and the last frames of a broken replica, whose
    differences matter, keep steps of 1e-6 whatever their size. In rollouts of version 1, energies have twelve
    bits of their range and last energies and positions twelve bits of their size (:func:`resolution`).

    Examples
    --------
    >>> rounded("fv", np.array([[0.123456789, 1234.56789]]))
    array([[1.234436e-01, 1.234500e+03]], dtype=float32)
    >>> rounded("energy", np.array([[-17660.12345678, -17660.0]]))
    array([[-17660.12345695, -17660.        ]])
    """
    if values.ndim < 2 or values.dtype.kind != "f":
        return values
    if name.startswith(("energy", "last_")):
        return np.round(values.astype(float) / EXACT_STEP) * EXACT_STEP
    mantissa, exponent = np.frexp(values)
    kept = np.round(np.ldexp(mantissa, SIGNIFICANT_BITS))
    return np.ldexp(kept, exponent - SIGNIFICANT_BITS).astype(np.float32)


def resolution(record):
    """Step of the stored energies of a rollout, eV, see :func:`rounded`.

    >>> old = Record("rollout", "demo", "ethanol", "mace", 0)
    >>> old.__dict__["curves"] = {"energy": np.array([[-4210.0, -4206.5]])}
    >>> float(resolution(old) * 2**12)
    4.0
    """
    if record.parameters.get("version", 1) > 1:
        return EXACT_STEP
    energy = record.curves["energy"]
    reach = np.ptp(energy[np.isfinite(energy)])
    return 2.0 ** (np.ceil(np.log2(reach)) - SIGNIFICANT_BITS) if reach else EXACT_STEP


def load(path):
    """The record in a JSON file.

    Raises
    ------
    ValueError
        If the file has another schema version or is truncated.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} holds no record ({error}); delete it to make it anew") from error
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')}, but this version reads {SCHEMA}")
    return Record(**content)


def find(key, parameters, **digests):
    """The stored record of a run, or ``None``.

    Parameters
    ----------
    key
        :class:`~egraff_utils.config.Key`.
    parameters
        Parameters that the record must have.
    digests
        Digests of the inputs by name, which must agree with those in the record; ``None`` is not compared.
    """
    return _fitting(key.path, parameters, digests)


def put_aside(path):
    """Move the record at a path and its files, if any, out of the way of another record, and report the move.

    The files go to ``runs/<campaign>/replaced/<kind>/``, under a name with the digest of the parameters,
    where :func:`bring_back` finds them.
    """
    if not path.is_file():
        return
    parameters = load(path).parameters
    aside = _replaced(path) / f"{path.stem}-{digest(parameters)}.json"
    _move(path, aside)
    print(f"the record {path} of other parameters was moved to {aside}", file=sys.stderr)


def bring_back(key, parameters, **digests):
    """Move a record that was put aside back to its place, and return it.

    A record that is in its place is put aside in turn. Returns ``None`` if no record that was put aside has
    these parameters and digests.
    """
    path = key.path
    for aside in filter(_is_record, _replaced(path).glob(f"{path.stem}-*.json")):
        if _fitting(aside, parameters, digests):
            put_aside(path)
            _move(aside, path)
            return load(path)
    return None


def _fitting(path, parameters, digests):
    record = _with_parameters(path, parameters)
    known = {name: value for name, value in digests.items() if value is not None}
    fits = record and all(record.provenance.get(name) == value for name, value in known.items())
    return record if fits else None


def _with_parameters(path, parameters):
    record = load(path) if path.is_file() else None
    plain = json.loads(json.dumps(parameters, default=_plain))
    return record if record and record.parameters == plain else None


def _replaced(path):
    return paths.runs() / path.parent.parent.name / "replaced" / path.parent.name


def _move(path, target):
    """Move the files of a record; if interrupted, they are complete in at least one of the two places."""
    target.parent.mkdir(parents=True, exist_ok=True)
    moved = [(path.with_suffix(ending), target.with_suffix(ending)) for ending in ENDINGS]
    moved = [(old, new) for old, new in moved if old.is_file()]
    for old, new in moved:
        content = old.read_bytes()
        _replace(new, lambda file, content=content: file.write(content))
    for old, _ in reversed(moved):
        old.unlink()


def read_all(campaign):
    """All records of a campaign, a list sorted by path."""
    return [load(path) for path in sorted((paths.results() / campaign).glob("*/*.json")) if _is_record(path)]


def read(campaign):
    """All metrics of a campaign as a data frame with one row per metric.

    Columns: kind, dataset, model, seed, metric, value, unit, low, high, n, status and the path of the
    record relative to the results folder. A run without metrics has one row, with metric ``None``.
    """
    rows = []
    for record in read_all(campaign):
        key = {name: getattr(record, name) for name in ("kind", "dataset", "model", "seed", "status")}
        key["path"] = str(record.path.relative_to(paths.results()))
        empty = {"metric": None, "value": math.nan, "unit": None, "low": None, "high": None, "n": None}
        for metric in record.metrics:
            values = asdict(metric)
            rows.append({**key, "metric": values.pop("name"), **values})
        if not record.metrics:
            rows.append({**key, **empty})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({"value": float, "low": float, "high": float})


def clock(device):
    """Clock for budgets and costs, a function that returns seconds.

    On a CPU it is the processor time per thread, so that other programs do not count; on a GPU it is the wall
    time.
    """
    if str(device).startswith("cuda"):
        return time.perf_counter
    import torch

    return lambda: time.process_time() / torch.get_num_threads()


def provenance(started, *, device="cpu", threads=1, **hashes):
    """Provenance of a run: commit, package versions, hardware, times (s) and peak memory (MB).

    Parameters
    ----------
    started
        ``time.time()`` at the start of the run, from which the wall time is counted, s.
    device, threads
        Device and number of threads.
    hashes
        Names and hashes of the inputs (data, weights, parameters).
    """
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "hardware": _hardware(device),
        "device": str(device),
        "threads": threads,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "wall_time": round(time.time() - started, 1),
        "peak_memory": round(_peak_memory(device)),
        **hashes,
    }


def digest(*parts):
    """Short sha256 of arrays, files and plain values, which shows whether inputs have changed."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(part.read_bytes())
        elif isinstance(part, np.ndarray):
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return total.hexdigest()[:16]


def _replace(path, write_to):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        write_to(file)
    temporary.replace(path)


def _is_record(path):
    return not path.name.startswith(".") and not path.name.endswith(".build.json")


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _number(value):
    """The value as a float, or ``None`` for a missing or non-finite value, which JSON cannot hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def _shown(value):
    return "—" if value is None else f"{value:.4g}"


def interval_text(metric):
    """Interval of a metric as text; an unknown end, such as that of a censored time, is left open.

    >>> interval_text(Metric("horizon_nve", 100, "fs", low=80, high=None))
    '80 and up'
    """
    if metric.low is None:
        return "" if metric.high is None else f"up to {metric.high:.4g}"
    return f"{metric.low:.4g} " + ("and up" if metric.high is None else f"to {metric.high:.4g}")


def _commit():
    call = ["git", "-C", str(paths.ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _hardware(device):
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _peak_memory(device):
    """Peak memory in MB, of the device if it is a GPU, else of the process."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
