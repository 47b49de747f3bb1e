"""What did a run measure? Each run leaves one small JSON record, with its curves in an ``.npz`` beside it.

The record is the interface: expensive notebooks write records, and report notebooks read nothing else.
"""

import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from egraff_utils import cards, paths, quantities
from egraff_utils.breaks import Break
from egraff_utils.config import Config, Key
from egraff_utils.provenance import check_device, clock, digest, plain, provenance  # noqa: F401
from egraff_utils.quantities import Metric, interval_text, shown

SIGNIFICANT_BITS = 12
EXACT_STEP = 2.0**-20
"""Step to which energies and positions are rounded in curves, eV or Å: 1e-6, far below the error of any
model."""
SCHEMA = 1
STATUSES = ("complete", "unstable", "failed")
NOTES = "EGRAFF_USED_RECORDS"
"""Variable of the environment with the path of a file to which a process adds the records that it uses."""
REPLACED = "replaced"
"""Folder in ``runs/<campaign>/`` of records that gave way to others of the same key."""
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


class DamagedError(ValueError):
    """A file holds no record, or a record of another run, or its files are not those it was written with."""


@dataclass
class Record:
    """Record of a run: its parameters, its results (metrics, curves) and its provenance."""

    kind: str
    campaign: str
    dataset: str
    model: str
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    status: str = "complete"
    message: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    breaks: list[Break] = field(default_factory=list)
    """Replicas of a simulation that broke."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"{self.status=} is none of {', '.join(STATUSES)}")
        self.metrics = [Metric(**m) if isinstance(m, dict) else m for m in self.metrics]
        self.breaks = [Break(**b) if isinstance(b, dict) else b for b in self.breaks]

    @property
    def key(self) -> Key:
        """:class:`~egraff_utils.config.Key` of the record."""
        return Key(self.kind, self.campaign, self.dataset, self.model, self.seed)

    @property
    def path(self) -> Path:
        """Path of the JSON file."""
        return self.key.path

    @property
    def files(self) -> dict[str, str]:
        """Digests of the files beside the JSON file by ending; those of a training include its weights."""
        weights = self.provenance.get("weights") if self.kind == "training" else None
        return ({".safetensors": weights} if weights else {}) | self.provenance.get("files", {})

    @cached_property
    def curves(self) -> dict[str, np.ndarray]:
        """Arrays by name, read from the ``.npz`` beside the record on first access.

        Raises
        ------
        DamagedError
            If the file is missing, or is not the one that was written with the record.
        """
        file = self.path.with_suffix(".npz")
        _check_curves(self, file)
        if ".npz" not in self.files:
            return {}
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def metric(self, name: str) -> Metric:
        """The :class:`Metric` of this name; raises ``KeyError``, which lists the names in the record."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"no metric '{name}'; the record holds {', '.join(m.name for m in self.metrics)}")

    def __getitem__(self, name: str) -> float | None:
        return self.metric(name).value

    def __repr__(self) -> str:
        head = f"Record({self.kind} {self.campaign}/{self.dataset}-{self.model}-s{self.seed}, {self.status})"
        lines = [f"  {m.name:24s} {shown(m.value)} {m.unit}" for m in self.metrics]
        return "\n".join([head, *([f"  {self.message}"] if self.message else []), *lines])

    def _repr_html_(self):
        rows = "".join(
            f"<tr><td>{escape(quantities.of(m.name).name)}</td><td>{shown(m.value)}</td>"
            f"<td>{interval_text(m)}</td><td>{escape(unit_text(m))}</td></tr>"
            for m in self.metrics
        )
        title = f"{self.kind}: {self.dataset}, {self.model}, seed {self.seed} ({self.status})"
        note = f"<br>{escape(self.message)}" if self.message else ""
        head = "<tr><th>metric</th><th>value</th><th>95 % interval</th><th>unit</th></tr>"
        return f"<table class='dataframe'><caption>{escape(title)}{note}</caption>{head}{rows}</table>"


def unit_text(metric: Metric) -> str:
    """Unit of a metric in a table of a record, which is empty for a count.

    >>> [unit_text(Metric(name, 2.0, unit)) for name, unit in (("steps", "1"), ("fv", "1"), ("wf", "%"))]
    ['', 'dimensionless', '%']
    """
    known = quantities.of(metric.name)
    return "" if known.count else replace(known, unit=metric.unit or "1").unit_text


@dataclass
class Outcome:
    """Result of a run: the part of a record that the run itself knows."""

    metrics: list[Metric]
    curves: Mapping[str, ArrayLike] = field(default_factory=dict)
    status: str = "complete"
    """Status of the record; it becomes ``unstable`` if there are breaks."""
    message: str = ""
    breaks: list[Break] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    """Entries in addition to those of :func:`provenance`."""
    save: Callable[[Path], dict[str, str]] | None = None
    """Function of the path of the record that writes further files beside it, before the record is written,
    and returns their digests by name."""
    checkpoint: Path | None = None
    """File or folder that is removed once the record is written."""


def stored_or_made(
    key: Key,
    parameters: dict[str, Any],
    make: Callable[[], Outcome],
    *,
    device: str = "cpu",
    threads: int = 1,
    **digests: str | None,
) -> Record:
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
        Digests of the inputs by name, such as ``weights``. A stored record is used only if its digests agree,
        and one that has no digest of this name does not; ``None`` means unknown and is not compared.

    Returns
    -------
    Record
    """
    _note(key)
    if record := find(key, parameters, **digests) or bring_back(key, parameters, **digests):
        return record
    check_device(device)
    key.path.parent.mkdir(parents=True, exist_ok=True)  # raises before the work if it cannot be written later
    started = time.time()
    outcome = make()
    if record := find(key, parameters, **digests):  # another process was faster, and its files may be in use
        return record
    status = "unstable" if outcome.breaks else outcome.status
    record = Record(*key, parameters, outcome.metrics, status, outcome.message, breaks=outcome.breaks)
    if _with_parameters(record.path, parameters) is None:
        put_aside(record.path)
    for ending in reversed(ENDINGS):  # what is left belongs to a run that was killed, or to other inputs
        record.path.with_suffix(ending).unlink(missing_ok=True)
    saved = outcome.save(record.path) if outcome.save else {}
    made = {"device": device, "threads": threads, **digests, **saved, **outcome.provenance}
    record.provenance = provenance(started, **made)
    write(record, outcome.curves)
    if outcome.checkpoint and outcome.checkpoint.is_dir():
        shutil.rmtree(outcome.checkpoint, ignore_errors=True)
    elif outcome.checkpoint:
        outcome.checkpoint.unlink(missing_ok=True)
    return record


def _note(key: Key) -> None:
    if file := os.environ.get(NOTES):
        with open(file, "a") as notes:
            notes.write(f"{key.path.relative_to(paths.results())}\n")


def run(config: Config, make: Callable[[], Outcome], **digests: str | None) -> Record:
    """The stored or new record of a :class:`~egraff_utils.config.Config`, see :func:`stored_or_made`."""
    key, parameters = config.key, config.parameters()
    return stored_or_made(key, parameters, make, device=config.device, threads=config.threads, **digests)


def write(record: Record, curves: Mapping[str, ArrayLike] | None = None) -> Path:
    """Write a record and its curves atomically; returns the path.

    The curves are written first, so a record on disk always has them. They are rounded (:func:`rounded`),
    which halves the size of the files. The record keeps digests of the files beside it, and the campaign the
    user's card of the dataset.
    """
    path = record.path
    _note(record.key)
    arrays = path.with_suffix(".npz")
    if curves:
        kept: dict[str, Any] = {name: rounded(name, np.asarray(value)) for name, value in curves.items()}
        with paths.written(arrays) as temporary:
            np.savez_compressed(temporary, **kept)
        record.__dict__["curves"] = kept
    else:
        arrays.unlink(missing_ok=True)
    beside = {ending: path.with_suffix(ending) for ending in ENDINGS[:-1]}
    files = {ending: digest(file) for ending, file in beside.items() if file.is_file()}
    record.provenance.pop("files", None)
    record.provenance |= {"files": files} if files else {}
    text = json.dumps(asdict(record), indent=1, allow_nan=False, default=plain) + "\n"
    with paths.written(path) as temporary:
        temporary.write_text(text)
    cards.keep(record.campaign, record.dataset)
    return path


def rounded(name: str, values: np.ndarray) -> np.ndarray:
    """Values rounded to their meaningful digits, as they are stored in curves.

    Arrays over replicas (two or more dimensions) keep twelve significant bits, a relative error of 1e-4. The
    remaining bits are noise, which does not compress. Energies and the last frames of a broken replica, whose
    differences matter, keep steps of 1e-6 whatever their size.

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


def load(path: str | Path) -> Record:
    """The record in a JSON file.

    Raises
    ------
    DamagedError
        If the file is truncated or holds no record.
    ValueError
        If the file has another schema version.
    """
    try:
        content = json.loads(Path(path).read_text())
        version = content["schema"]
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{path} holds no record ({error}); delete it to make it anew") from error
    if version != SCHEMA:
        raise ValueError(
            f"{path} has schema {version}, but this version reads {SCHEMA}; use the version of egraff-utils "
            "that wrote it, or delete it to make it anew"
        )
    try:
        return Record(**content)
    except TypeError as error:
        raise DamagedError(f"{path} holds no record ({error}); delete it to make it anew") from error


def sound(path: Path) -> Record:
    """The record in a JSON file, as by :func:`load`, if it is at its place with the files of its run.

    Raises
    ------
    DamagedError
        If it is a stray copy, or its curves or weights are missing or those of another run.
    """
    record = load(path)
    place = f"{record.campaign}/{record.kind}/{record.path.name}"
    if place != "/".join(path.parts[-3:]) and path.parent.parent.name != REPLACED:
        raise DamagedError(f"{path} holds the record of {place}; it is a copy that belongs elsewhere")
    _check_curves(record, path.with_suffix(".npz"))
    for ending, expected in record.files.items():
        if ending != ".npz":
            check_file(path.with_suffix(ending), expected)
    return record


def _check_curves(record: Record, file: Path) -> None:
    """Raise :class:`DamagedError` unless a file of curves is that of its record, or neither has curves."""
    if expected := record.files.get(".npz"):
        check_file(file, expected)
    elif file.is_file():
        raise DamagedError(f"{file} belongs to no record, as the one beside it has no curves")


def check_file(path: Path, expected: str) -> None:
    """Raise :class:`DamagedError` if a file beside a record is missing, or has another digest."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing, which its record was written with")
    if expected != digest(path):
        raise DamagedError(f"{path} is not the file that its record was written with")


def find(key: Key, parameters: dict[str, Any], **digests: str | None) -> Record | None:
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


def put_aside(path: Path) -> None:
    """Move the record at a path and its files, if any, out of the way of another record, and report the move.

    The files go to ``runs/<campaign>/replaced/<kind>/``, under a name with the digest of the parameters,
    where :func:`bring_back` finds them.
    """
    record = stored(path)
    if record is None:
        return
    aside = _replaced(path) / f"{path.stem}-{digest(record.parameters)}.json"
    _move(path, aside)
    print(f"the record {path} of other parameters was moved to {aside}", file=sys.stderr)


def bring_back(key: Key, parameters: dict[str, Any], **digests: str | None) -> Record | None:
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


def _fitting(path: Path, parameters: dict[str, Any], digests: Mapping[str, str | None]) -> Record | None:
    record = _with_parameters(path, parameters)
    known = {name: value for name, value in digests.items() if value is not None}
    fits = record and all(record.provenance.get(name) == value for name, value in known.items())
    return record if fits else None


def _with_parameters(path: Path, parameters: dict[str, Any]) -> Record | None:
    record = stored(path)
    asked = json.loads(json.dumps(parameters, default=plain))
    return record if record and record.parameters == asked else None


def stored(path: Path) -> Record | None:
    """The record at a path; a damaged one is set aside with its files, so that it is made anew."""
    if not path.is_file():
        return None
    try:
        return sound(path)
    except DamagedError as error:
        paths.set_aside(path, error)
        for ending in ENDINGS[:-1]:
            if (file := path.with_suffix(ending)).is_file():
                paths.set_aside(file, "it belongs to this record")
        return None


def _replaced(path: Path) -> Path:
    return paths.runs() / path.parent.parent.name / REPLACED / path.parent.name


def _move(path: Path, target: Path) -> None:
    """Move the files of a record; if interrupted, they are complete in at least one of the two places."""
    target.parent.mkdir(parents=True, exist_ok=True)
    moved = [(path.with_suffix(ending), target.with_suffix(ending)) for ending in ENDINGS]
    moved = [(old, new) for old, new in moved if old.is_file()]
    for old, new in moved:
        with paths.written(new) as temporary:
            shutil.copyfile(old, temporary)
    for old, _ in reversed(moved):
        old.unlink()


def read_all(campaign: str) -> list[Record]:
    """Records of a campaign, sorted by path; those that are :func:`damaged` are left out with a warning."""
    found, bad = _read_all(campaign)
    for message in bad.values():
        warnings.warn(f"a record is left out: {message}", stacklevel=2)
    return found


def damaged(campaign: str) -> dict[Path, str]:
    """Files of a campaign that cannot be used as records, a dictionary of path and reason."""
    folder = paths.results() / campaign
    aside = {path: f"{path} was set aside" for path in sorted(folder.glob("*/*.json.unreadable"))}
    return _read_all(campaign)[1] | aside


def _read_all(campaign: str) -> tuple[list[Record], dict[Path, str]]:
    """Sound records of a campaign, and the reason why a file is not one by its path."""
    found, bad = [], {}
    for path in filter(_is_record, sorted((paths.results() / campaign).glob("*/*.json"))):
        try:
            found.append(sound(path))
        except FileNotFoundError:  # it was replaced, or moved, in between
            continue
        except ValueError as error:
            bad[path] = str(error)
    return found, bad


def read(campaign: str) -> pd.DataFrame:
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


def _is_record(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith(".build.json")
