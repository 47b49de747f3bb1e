"""Does a frame occur twice? Structures that are equal within a file, across files and across splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from egraff_utils import data, paths
from egraff_utils.cards import DatasetCard
from egraff_utils.checks.audit.series import ROLES, SAME, Checked, Finding, Series
from egraff_utils.records import Metric

Frame = tuple[str, int]
"""Source and index of a frame."""


def copies(series: Sequence[Series], *, tolerance: float = SAME) -> list[tuple[Frame, Frame]]:
    """Pairs of frames that hold the same structure, up to rigid motion, wrapping and renumbering.

    Parameters
    ----------
    series
        ``list`` of :class:`Series`; only series of the same composition are compared.
    tolerance
        Largest difference of the sorted distances, Å.

    Returns
    -------
    list of (first, second)
        Pairs, each frame given as ``(source, index)``.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> from egraff_utils.checks.audit import Series
    >>> frames = [Atoms("OH", [[0, 0, 0], [0, 0, 1]]), Atoms("HO", [[5, 1, 0], [5, 0, 0]]), Atoms("OH")]
    >>> for atoms in frames:
    ...     atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    >>> copies([Series.of(frames, "file")])
    [(('file', 0), ('file', 1))]
    """
    found = []
    for group in _by_composition(series).values():
        distances = np.concatenate([part.distances for part in group])
        keys = [key for part in group for key in part.keys]
        picks = np.unique(np.linspace(0, distances.shape[1] - 1, 32).astype(int))
        pairs = cKDTree(distances[:, picks]).query_pairs(tolerance, p=np.inf, output_type="ndarray")
        same = [np.abs(distances[i] - distances[j]).max() < tolerance for i, j in pairs]
        found += [(keys[i], keys[j]) for i, j in pairs[np.array(same, dtype=bool)]]
    return sorted(found)


def _by_composition(series: Sequence[Series]) -> dict[tuple[int, ...], list[Series]]:
    groups: dict[tuple[int, ...], list[Series]] = {}
    for part in series:
        groups.setdefault(tuple(sorted(part.numbers)), []).append(part)
    return groups


def same_files(card: DatasetCard) -> list[tuple[str, str]]:
    """Pairs of roles whose shipped files are identical byte for byte.

    The files of all roles (``train``, ``val``, ``test``) next to those named in the card are compared,
    whether the card uses them or not.

    Returns
    -------
    list of (role, role)
    """
    found, names = [], set()
    for path in (file.path for file in card.files.values()):
        for role in ROLES:
            if f"/{role}/" in path:
                names |= {path.replace(f"/{role}/", f"/{other}/") for other in ROLES}
    there = {name: place for name in sorted(names) if (place := place_of(card, name))}
    for first, one in there.items():
        for second, other in there.items():
            alike = first < second and one.stat().st_size == other.stat().st_size
            if alike and data.file_hash(one) == data.file_hash(other):
                found.append((_role(first), _role(second)))
    return found


def place_of(card: DatasetCard, name: str) -> Path | None:
    folders = ([card.folder] if card.folder else []) + paths.data()
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _role(name: str) -> str:
    return next(role for role in ROLES if f"/{role}/" in name)


def check_copies(
    card: DatasetCard, series: Sequence[Series], splits: Mapping[str, Sequence[Series]]
) -> Checked:
    """Findings, metrics and summary on copies within and across files and splits."""
    pairs = copies(series)
    home = {key: name for name, parts in splits.items() for part in parts for key in part.keys}
    across = [(a, b) for a, b in pairs if a[0] != b[0]]
    within = [(a, b) for a, b in pairs if a[0] == b[0]]
    kept = [(a, b) for a, b in pairs if a in home and b in home]
    leaked = sum(home[a] != home[b] for a, b in kept)
    findings = []
    tests = "A model is tested on what it has seen, so test errors are too low."
    for where, found, effect in (
        ("across files", across, tests),
        ("within a file", within, "They weigh twice and are no independent samples."),
    ):
        if found:
            names = sorted({" and ".join(dict.fromkeys((a[0], b[0]))) for a, b in found})
            text = f"{len(found)} pairs of equal frames {where} ({', '.join(names)})"
            left = [(a, b) for a, b in kept if (a[0] != b[0]) == (where == "across files")]
            findings.append(Finding("copies", text, effect, mended=not left))
    if leaked and not across:
        findings.append(Finding("copies", f"{leaked} pairs of equal frames across splits", tests))
    for first, second in same_files(card):
        text = f"the shipped {first} file is the {second} file, byte for byte"
        used = {file.path for file in card.files.values()}
        mended = not all(any(f"/{role}/" in path for path in used) for role in (first, second))
        effect = "A model chosen on such a validation set is chosen on the test set."
        findings.append(Finding("copies", text, effect, mended))
    metrics = [
        Metric("copies_across", len(across), "1"),
        Metric("copies_within", len(within), "1"),
        Metric("copies_left", len(kept), "1"),
    ]
    return findings, metrics, str(len(pairs)) if pairs else "none"
