"""Is the data what its card claims? Checks of frames and labels that need nothing but the data.

Both the shipped files and the splits that a card makes of them are checked. A finding that applies to the
files but not to the splits is ``mended``. Symbols: T frames, N atoms.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from egraff_utils import cards, data, records
from egraff_utils.checks.audit.duplicates import check_copies, copies, place_of, same_files
from egraff_utils.checks.audit.labels import check_labels, check_outliers, work_and_change
from egraff_utils.checks.audit.motion import (
    check_interval,
    check_order,
    check_temperature,
    kinetic_temperatures,
    virial_temperature,
)
from egraff_utils.checks.audit.scales import check_atomic_energies, check_geometry, check_sample, check_units
from egraff_utils.checks.audit.series import CHECKS, CUTOFF, Finding, Series, newton_clock
from egraff_utils.config import Key
from egraff_utils.records import Metric

__all__ = [
    "CHECKS",
    "Finding",
    "Series",
    "audit",
    "copies",
    "find",
    "findings",
    "inspect",
    "newton_clock",
    "same_files",
    "virial_temperature",
]

VERSION = 3


def inspect(
    card: cards.DatasetCard,
    frames: Mapping[str, Sequence[Atoms]],
    *,
    raw: Mapping[str, np.ndarray] | None = None,
) -> tuple[list[Finding], list[Metric], dict[str, str]]:
    """Findings, metrics and summaries of all checks on the available frames.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard` with the claims.
    frames
        Source -> ``list[ase.Atoms]`` of the whole file, in its order.
    raw
        Source -> positions as stored in the file, if the reader changes them, Å.

    Returns
    -------
    findings, metrics, words
        ``list`` of :class:`Finding`, ``list`` of :class:`~egraff_utils.records.Metric`, ``{check: word}``.
    """
    series = [
        Series.of(part, name)
        for source in frames
        for name, part in _named(frames[source], source)
        if len(part[0]) > 1  # free atoms, given for their energies, have no geometry to be looked at
    ]
    splits = {
        name: _split_series(card, name, series) for name in card.splits if not card.split(name).subset_of
    }
    splits = {name: parts for name, parts in splits.items() if parts}
    claimed = {name: _claim(card, name, frames) for name in card.time_ordered}
    claims = {name: part for name, part in claimed.items() if part is not None}
    timed = {name: part for name, part in claims.items() if part.order.kind in ("even", "gaps")}
    found = {
        "copies": check_copies(card, series, splits),
        "order": check_order(card, series, claims),
        "interval": check_interval(card, series, timed),
        "temperature": check_temperature(card, series, splits, timed),
        "labels": check_labels(series, splits, timed),
        "outliers": check_outliers(series, splits),
        "atomic energies": check_atomic_energies(card, series, splits),
        "units": check_units(card, series),
        "geometry": check_geometry(card, series, splits, raw or {}),
        "sample": check_sample(splits),
    }
    findings = [finding for part, _, _ in found.values() for finding in part]
    metrics = [metric for _, part, _ in found.values() for metric in part]
    return findings, metrics, {check: word for check, (_, _, word) in found.items()}


def _named(frames: Sequence[Atoms], source: str) -> Iterator[tuple[str, list[Atoms]]]:
    """Yield the name and the frames of every system in a file; a single one has the name of the file."""
    groups = data.compositions(frames)
    used: Counter[str] = Counter()
    for group in groups:
        name = source if len(groups) == 1 else f"{source} {group[0].symbols}"
        used[name] += 1  # systems of the same atoms can differ in periodicity or masses
        yield (name if used[name] == 1 else f"{name} ({used[name]})"), group


def _split_series(card: cards.DatasetCard, name: str, series: Sequence[Series]) -> list[Series]:
    """Series of a split, one for each file, with the frames of the split that the file holds."""
    wanted: dict[str, list[cards.Part]] = {}
    for rule in card.split(name).parts:
        wanted.setdefault(rule.source, []).append(rule)
    found = []
    for part in series:
        source, total = part.keys[0][0], 1 + max(index for _, index in part.keys)
        keep = {i for rule in wanted.get(source, []) for i in rule.indices(total)}
        picked = [place for place, (_, index) in enumerate(part.keys) if index in keep]
        if picked:
            found.append(part[np.array(picked)])
    return found


def _claim(card: cards.DatasetCard, name: str, frames: Mapping[str, Sequence[Atoms]]) -> Series | None:
    """Series of a split that is claimed to be contiguous, starting with its first contiguous frame."""
    parts = card.split(name).parts
    if any(part.source not in frames for part in parts):
        return None
    joined = [frames[p.source][i] for p in parts for i in p.indices(len(frames[p.source]))]
    joined = joined[card.first_contiguous.get(name, 0) :]
    data.check_one_system(card, name, joined)
    return Series.of(joined, name)


def sources_at_hand(card: cards.DatasetCard) -> list[str]:
    """Names of the sources of a dataset whose files are available or are generated by this project."""
    sources = dict.fromkeys(part.source for split in card.splits.values() for part in split.parts)
    if card.generate:
        return list(sources)
    return [s for s in sources if all(place_of(card, card.files[key].path) for key in card.files_of(s))]


def audit(dataset: str | Path, *, campaign: str = "demo", seed: int = 0) -> records.Record:
    """Run all checks of a dataset.

    Parameters
    ----------
    dataset
        Name of a dataset or path of a card.
    campaign
        Campaign under which the record is stored.
    seed
        Seed in the key of the record.

    Returns
    -------
    Record
        Kind ``audit``, model ``reference``. Parameters: ``words`` (the summaries that a table shows, by
        check) and ``findings`` (mappings of the fields of :class:`Finding`). Curves: ``energy_<source>`` (T,)
        eV, ``work_<set>`` and ``change_<set>`` (n,) eV, ``time_<source>`` fs and ``kelvin_<source>`` K. A
        stored record is returned if files and card are the same.

    Raises
    ------
    FileNotFoundError
        If no file of the dataset is available.
    """
    started = time.time()
    card = cards.dataset(dataset)
    sources = sources_at_hand(card)
    if not sources:
        raise FileNotFoundError(f"{card.name}: none of its files is available")
    emptied = ("time_ordered", "first_contiguous", "temperatures", "timesteps")
    changes: dict[str, Any] = {name: {} for name in emptied}
    splits = {source: cards.Split([cards.Part(source)]) for source in sources}
    whole = dataclasses.replace(card, splits=splits, **changes)
    asked = {"data": _digest(card, whole), "cutoff": CUTOFF, "version": VERSION}
    if stored := find(card.name, campaign=campaign, seed=seed, asked=asked):
        return stored
    frames = data.checked(whole, sources, forces=False, across=False)
    findings, metrics, words = inspect(card, frames, raw=_raw(card, sources))
    left = sum(not finding.mended for finding in findings)
    metrics += [Metric("findings", len(findings), "1"), Metric("findings_left", left, "1")]
    parameters = asked | {"words": words, "findings": [finding._asdict() for finding in findings]}
    record = records.Record(
        "audit",
        campaign,
        card.name,
        "reference",
        seed,
        parameters,
        metrics,
        message="; ".join(finding.text for finding in findings),
        provenance=records.provenance(started, data=asked["data"]),
    )
    records.write(record, _curves(card, frames))
    return record


def find(
    dataset: str, *, campaign: str, seed: int = 0, asked: Mapping | None = None
) -> records.Record | None:
    """The stored audit of a dataset, or None; its parameters must include those in ``asked``."""
    record = records.stored(Key("audit", campaign, dataset, "reference", seed).path)
    wanted = (asked or {}).items()
    return record if record and all(record.parameters.get(key) == value for key, value in wanted) else None


def findings(record: records.Record) -> list[Finding]:
    """Findings of a stored audit, a list of :class:`Finding`."""
    return [Finding(**finding) for finding in record.parameters["findings"]]


def _digest(card: cards.DatasetCard, whole: cards.DatasetCard) -> str:
    """Digest of the files and of the content of the card."""
    files = [data.fetch(whole, source) for source in whole.splits]
    hashes = {key: data.file_hash(path) for part in files for key, path in sorted(part.items())}
    skipped = ("files", "folder", "notes", "title", "citation", "licence", "origin")
    said = {name: value for name, value in dataclasses.asdict(card).items() if name not in skipped}
    return records.digest(json.dumps([hashes, said], sort_keys=True, default=str))


def _raw(card: cards.DatasetCard, sources: Sequence[str]) -> dict[str, np.ndarray]:
    """Positions as stored in the files, for sources whose reader centres them, Å."""
    if card.reader != "rmd17":
        return {}
    found = {}
    for source in sources:
        with np.load(data.fetch(card)[source], allow_pickle=False) as stored:
            found[source] = stored["coords"]
    return found


def _curves(card: cards.DatasetCard, frames: Mapping[str, Sequence[Atoms]]) -> dict[str, np.ndarray]:
    """Curves for the page: energies, work and energy changes, temperatures over time."""
    curves = {}
    claims = {name: _claim(card, name, frames) for name in card.time_ordered}
    for source, atoms in frames.items():
        part = Series.of(atoms, source) if len(data.compositions(atoms)) == 1 else None
        if part is None or part.forces is None:
            continue
        curves[f"energy_{source}"] = part.energy.astype(np.float32)
        curves[f"step_{source}"] = part.sizes.astype(np.float32)
        if part.order.kind == "gaps":
            claims[source] = part
            interval = newton_clock(part).interval
            first, kelvin = kinetic_temperatures(part, interval)
            times = np.concatenate([[0], np.cumsum(part.order.gaps)]) * interval
            curves[f"time_{source}"], curves[f"kelvin_{source}"] = times[first], kelvin.astype(np.float32)
    for name, part in claims.items():
        if part is not None and part.forces is not None:
            found = work_and_change(part)
            curves[f"work_{name}"] = found.work.astype(np.float32)
            curves[f"change_{name}"] = found.change.astype(np.float32)
    return curves
