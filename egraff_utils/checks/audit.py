"""Is the data what its card claims? Checks of frames and labels that need nothing but the data.

Both the shipped files and the splits that a card makes of them are checked. A finding that applies to the
files but not to the splits is ``mended``. Symbols: T frames, N atoms.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from ase import units
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from scipy import ndimage
from scipy.spatial import cKDTree

from egraff_utils import cards, data, paper, paths, records, statistics
from egraff_utils.config import Key
from egraff_utils.records import Metric

VERSION = 1
CUTOFF = 5.0
"""Cutoff of the models, Å."""
RESOLVED = 0.85
"""Smallest correlation of accelerations with forces over masses for an interval that resolves the motion."""
ROLES = ("train", "val", "test")
"""Folders by which shipped files are distinguished."""
SAME = 1e-4
"""Largest difference of the sorted interatomic distances of structures that count as equal, Å."""

CHECKS = {
    "copies": "Copies",
    "order": "Order in time",
    "interval": "Interval (fs)",
    "temperature": "Temperature (K)",
    "labels": "Forces and energies",
    "outliers": "Outliers (z)",
    "atomic energies": "Atomic energies",
    "units": "Units and digits",
    "geometry": "Geometry",
    "sample": "Independent test frames",
}
"""Name of a check -> head of its column in a table."""


class Finding(NamedTuple):
    """A defect of the data."""

    check: str
    """One of :data:`CHECKS`."""
    text: str
    """Description of the defect, with its number."""
    consequence: str
    """Effect of the defect on the numbers of a benchmark."""
    mended: bool = False
    """Whether the defect is only in the shipped files, not in the splits of the card."""


@dataclass
class Series:
    """Frames of one composition as arrays, in the order of their file."""

    name: str
    numbers: np.ndarray
    """Atomic numbers, shape ``(N,)``."""
    positions: np.ndarray
    """Positions, shape ``(T, N, 3)``, Å."""
    energy: np.ndarray
    """Energies, shape ``(T,)``, eV."""
    forces: np.ndarray | None
    """Forces, shape ``(T, N, 3)``, eV/Å; None if there are none."""
    cell: np.ndarray
    """Cell vectors of the first frame, shape ``(3, 3)``, Å."""
    pbc: bool
    keys: list
    """Source and index of every frame."""

    @classmethod
    def of(cls, frames, name=""):
        """Series of a ``list[ase.Atoms]`` of one composition."""
        labelled = all("forces" in atoms.calc.results for atoms in frames)
        return cls(
            name,
            frames[0].numbers,
            np.array([atoms.positions for atoms in frames]),
            np.array([atoms.get_potential_energy() for atoms in frames]),
            np.array([atoms.get_forces() for atoms in frames]) if labelled else None,
            frames[0].cell.array,
            bool(frames[0].pbc.any()),
            [(atoms.info.get("source", name), atoms.info.get("frame", i)) for i, atoms in enumerate(frames)],
        )

    def __len__(self):
        return len(self.energy)

    def __getitem__(self, index):
        """The frames of a slice or of an array of indices."""
        picked = np.arange(len(self))[index]
        forces = None if self.forces is None else self.forces[picked]
        keys = [self.keys[i] for i in picked]
        changed = {"positions": self.positions[picked], "energy": self.energy[picked]}
        return dataclasses.replace(self, **changed, forces=forces, keys=keys)

    @property
    def masses(self):
        """Masses, shape ``(N, 1)``, atomic mass units."""
        return atomic_masses[self.numbers][:, None]

    @property
    def freedom(self):
        """Number of internal degrees of freedom."""
        return 3 * len(self.numbers) - (3 if self.pbc else 6)

    def shortest(self, vectors):
        """Vectors by minimum image, of the same shape, Å."""
        if not self.pbc:
            return vectors
        fractions = vectors @ np.linalg.inv(self.cell)
        return (fractions - np.rint(fractions)) @ self.cell

    @cached_property
    def steps(self):
        """Displacements from frame to frame, shape ``(T - 1, N, 3)``, Å."""
        return self.shortest(np.diff(self.positions, axis=0))

    @cached_property
    def sizes(self):
        """Root mean square displacement from frame to frame, shape ``(T - 1,)``, Å."""
        return np.sqrt((self.steps**2).mean((1, 2)))

    @cached_property
    def distances(self):
        """Sorted interatomic distances of every frame, shape ``(T, N(N - 1)/2)``, Å, single precision.

        They do not change when a frame is translated, rotated, mirrored or wrapped, or its atoms are
        renumbered.
        """
        return self._pairs[0]

    @property
    def contacts(self):
        """Shortest distance over the sum of the two covalent radii, shape ``(T,)``; about 1."""
        return self._pairs[1]

    @cached_property
    def _pairs(self):
        first, second = np.triu_indices(len(self.numbers), 1)
        radii = covalent_radii[self.numbers]
        lengths, contacts = np.empty((len(self), len(first)), np.float32), np.empty(len(self))
        block = max(1, 300_000 // max(1, len(first)))
        for start in range(0, len(self), block):
            x = self.positions[start : start + block]
            found = np.linalg.norm(self.shortest(x[:, first] - x[:, second]), axis=-1)
            contacts[start : start + block] = (found / (radii[first] + radii[second])).min(1)
            lengths[start : start + block] = np.sort(found, axis=1)
        return lengths, contacts

    @cached_property
    def order(self):
        """:class:`Order` of the frames."""
        return order_in_time(self)


# -- copies ---------------------------------------------------------------------------------------------


def copies(series, *, tolerance=SAME):
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


def _by_composition(series):
    groups = {}
    for part in series:
        groups.setdefault(tuple(sorted(part.numbers)), []).append(part)
    return groups


def same_files(card):
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
    there = {name: path for name in sorted(names) if (path := _place(card, name))}
    for first, path in there.items():
        for second, other in there.items():
            alike = first < second and path.stat().st_size == other.stat().st_size
            if alike and data.file_hash(path) == data.file_hash(other):
                found.append((_role(first), _role(second)))
    return found


def _place(card, name):
    folders = ([card.folder] if card.folder else []) + paths.data()
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _role(name):
    return next(role for role in ROLES if f"/{role}/" in name)


def check_copies(card, series, splits):
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


# -- order, interval ------------------------------------------------------------------------------------


class Order(NamedTuple):
    """Order of frames in time."""

    kind: str
    """``even`` (equal intervals), ``gaps`` (in order, with unequal but resolved intervals), ``loose`` (in
    order, but too far apart to determine the intervals), ``shuffled`` or ``short``."""
    jumps: list
    """Frames after which an even series jumps."""
    gaps: np.ndarray
    """Intervals between frames in units of the shortest, shape ``(T - 1,)``; all 1 in an even series."""

    @property
    def longest(self):
        """First and last frame of the longest stretch without a jump."""
        edges = [-1, *self.jumps, len(self.gaps)]
        place = int(np.argmax(np.diff(edges)))
        return edges[place] + 1, edges[place + 1]


def order_in_time(series):
    """Order of frames in time, from the displacements of atoms between neighbouring frames of a file.

    Frames are shuffled if the distance of neighbours exceeds half of that of frames drawn at random. They are
    even if 90 % of the steps agree within a factor of 2.5, apart from single jumps (three times the running
    median of 41). Otherwise they have gaps, if Newton's law holds where neighbours are closest.

    Returns
    -------
    Order
    """
    sizes = series.sizes
    if len(sizes) < 10:
        return Order("short", [], np.ones(len(sizes), int))
    first, second = np.random.default_rng(0).integers(len(series), size=(2, 200))
    apart = series.shortest(series.positions[first] - series.positions[second])[first != second]
    if np.median(sizes) > 0.5 * np.sqrt((apart**2).mean()):
        return Order("shuffled", [], np.ones(len(sizes), int))
    relative = sizes / ndimage.median_filter(sizes, 41, mode="nearest")
    low, high = np.quantile(relative, [0.05, 0.95])
    if high < 2.5 * low:
        jumps = np.flatnonzero(relative > 3)
        return Order("even", [int(jump) for jump in jumps], np.ones(len(sizes), int))
    gaps = np.maximum(np.rint(sizes / ndimage.minimum_filter1d(sizes, 41)).astype(int), 1)
    resolved = newton_clock(series, Order("gaps", [], gaps)).correlation > RESOLVED
    return Order("gaps", [], gaps) if resolved else Order("loose", [], np.ones(len(sizes), int))


class Clock(NamedTuple):
    """Interval of frames, determined by Newton's law."""

    interval: float
    """Interval of the shortest steps, fs; nan if no three frames are consecutive."""
    correlation: float
    """Correlation of accelerations with forces over masses; near one if the interval resolves the motion."""


def newton_clock(series, order=None):
    r"""Interval between frames from the data alone, and the correlation of the motion with the forces.

    .. math:: \Delta t^2 = \frac{\sum a \cdot (x_{t+1} - 2 x_t + x_{t-1})}{\sum a \cdot a},
        \qquad a = F / m

    where the sums run over all frames with a neighbour one shortest interval away on both sides. No
    information about time is needed.

    Parameters
    ----------
    series
        :class:`Series`.
    order
        :class:`Order`; by default that of the series.

    Returns
    -------
    Clock
    """
    order = order or series.order
    near = order.gaps == 1
    near[order.jumps] = False
    middle = np.flatnonzero(near[1:] & near[:-1])
    if not len(middle) or series.forces is None or order.kind in ("shuffled", "short"):
        return Clock(float("nan"), float("nan"))
    bend = series.steps[middle + 1] - series.steps[middle]
    pull = series.forces[middle + 1] / series.masses
    both, square = (pull * bend).sum(), (pull**2).sum()
    correlation = both / np.sqrt(square * (bend**2).sum())
    return Clock(float(np.sqrt(abs(both) / square) / units.fs), float(correlation))


def kinetic_temperatures(series, interval):
    r"""Kinetic temperature between neighbouring frames that are one interval apart.

    .. math:: T = \frac{\sum_i m_i\, |\Delta x_i / \Delta t|^2}{(3N - 3)\, k_B}

    without the motion of the centre of mass.

    Parameters
    ----------
    series
        :class:`Series`.
    interval
        Interval of the shortest steps, fs.

    Returns
    -------
    frames, temperatures
        Index of the first frame of each pair, and its temperature, K, both with shape ``(n,)``.
    """
    kept = series.order.gaps == 1
    kept[series.order.jumps] = False
    v = series.steps[kept] / (interval * units.fs)
    v = v - (series.masses * v).sum(1, keepdims=True) / series.masses.sum()
    twice = (series.masses * v**2).sum((1, 2))
    return np.flatnonzero(kept), twice / ((3 * len(series.numbers) - 3) * units.kB)


def check_order(card, series, claims):
    """Findings, metrics and summary on the order of frames; ``claims`` has the splits claimed contiguous."""
    findings, words, jumps = [], [], 0
    named = {part.source for name in card.time_ordered for part in card.split(name).parts}
    left = [name for name, part in claims.items() if part.order.jumps]
    for part in series:
        words.append(_order_word(part.order))
        if part.name in named and part.order.jumps:
            jumps += len(part.order.jumps)
            far = max(part.sizes[jump] for jump in part.order.jumps) / np.median(part.sizes)
            frames = ", ".join(map(str, part.order.jumps))
            text = f"{part.name} jumps behind frame {frames}: {far:.1f} times the usual displacement"
            effect = "Velocities by differences and comparisons frame by frame are wrong across it."
            findings.append(Finding("order", text, effect, mended=not left))
    for name, part in claims.items():
        if part.order.kind in ("shuffled", "gaps", "loose"):
            text = f"{name} is said to be contiguous, but is {_order_word(part.order)}"
            effect = "Velocities by differences and comparisons frame by frame mean nothing."
            findings.append(Finding("order", text, effect))
    uneven = [part for part in series if part.order.kind == "gaps" and part.name not in named]
    if uneven:
        longest = max(part.order.gaps.max() for part in uneven)
        text = f"frames in order of time with gaps of 1 to {longest} steps in {len(uneven)} files"
        effect = "A comparison frame by frame, as published, compares different times."
        findings.append(Finding("order", text, effect, mended=True))
    return findings, [Metric("jumps", jumps, "1")], "; ".join(dict.fromkeys(words)) or "none"


def _order_word(order):
    if order.kind in ("gaps", "loose"):
        return {"gaps": "in order, with gaps", "loose": "in order, far apart"}[order.kind]
    if order.kind == "even":
        return f"even, {len(order.jumps) + 1} pieces" if order.jumps else "even"
    return order.kind


def check_interval(card, series, claims):
    """Findings, metrics and summary on the time between frames, as claimed and as Newton's law gives it."""
    findings, words, metrics, weak = [], [], [], {}
    for name, part in claims.items():
        claimed, clock = card.time_ordered[name], newton_clock(part)
        if not np.isfinite(clock.interval):
            continue
        words.append(f"{clock.interval:.2f} ({claimed:g})")
        metrics.append(Metric(f"interval_{name}", clock.interval, "fs"))
        metrics.append(Metric(f"newton_correlation_{name}", clock.correlation, "1"))
        if clock.correlation > RESOLVED and abs(clock.interval / claimed - 1) > 0.05:
            text = f"{name} is said to be {claimed:g} fs apart; Newton's law gives {clock.interval:.3g} fs"
            effect = "Velocities are wrong by the ratio, temperatures by its square."
            findings.append(Finding("interval", text, effect))
        if clock.correlation < RESOLVED:
            weak[name] = clock.correlation
    if weak:
        worst = min(weak.values())
        text = f"forces explain only {worst**2:.0%} of the variance of the accelerations in {', '.join(weak)}"
        effect = "Something else moves the atoms, other labels or a thermostat's noise: even a perfect model"
        effect += " would leave the reference at once."
        findings.append(Finding("interval", text, effect))
    free = {part.name: newton_clock(part).interval for part in series if part.order.kind == "gaps"}
    if free:
        interval = float(np.median(list(free.values())))
        metrics.append(Metric("interval", interval, "fs"))
        words.append(f"{interval:.2f}, 1 to {max(part.order.gaps.max() for part in series)} steps")
    return findings, metrics, "; ".join(dict.fromkeys(words)) or "unknown"


# -- temperature ----------------------------------------------------------------------------------------


def virial_temperature(frames):
    r"""Temperature at which frames of a molecule would be in equilibrium with their own forces.

    .. math:: T_v = -\frac{1}{(3N - 3)\, k_B} \sum_i \mathbf F_i \cdot (\mathbf r_i - \bar{\mathbf r})

    Its mean over frames is the temperature of the thermostat if the frames were sampled with the potential
    that labels them (equipartition, in the form of the virial theorem). If bonds are systematically too short
    for their labels, it is far too low and may be negative; if they are too long, it is far too high.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of a molecule, with forces (eV/Å).

    Returns
    -------
    ndarray
        Temperature of every frame, shape ``(T,)``, K; single values scatter by thousands of kelvin.

    Raises
    ------
    ValueError
        If the frames are periodic, as the sum has no meaning across a boundary.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> pulled = Atoms("H2", [[0, 0, 0], [1, 0, 0]])
    >>> pulled.calc = SinglePointCalculator(pulled, forces=[[0.2, 0, 0], [-0.2, 0, 0]])
    >>> virial_temperature([pulled]).round()
    array([774.])
    """
    if frames[0].pbc.any():
        raise ValueError("the virial temperature needs a molecule, not a periodic system")
    virial = [-np.sum(a.get_forces() * (a.positions - a.positions.mean(axis=0))) for a in frames]
    return np.array(virial) / ((3 * len(frames[0]) - 3) * units.kB)


def _virial(series):
    x = series.positions - series.positions.mean(1, keepdims=True)
    return -(series.forces * x).sum((1, 2)) / ((3 * len(series.numbers) - 3) * units.kB)


def standard_error(values):
    """Standard error of the mean of a correlated series, from its autocorrelation time."""
    time = statistics.autocorrelation_time(values)
    return float(np.std(values) * np.sqrt(max(1.0, time) / len(values))) if np.isfinite(time) else 0.0


def check_temperature(card, series, splits, claims):
    """Findings, metrics and summary on temperatures: kinetic, virial, and from the energies of splits."""
    found = [_kinetic(card, series, splits, claims), _virials(card, series), _drift(card, splits)]
    findings, metrics, words = (sum(parts, []) for parts in zip(*found, strict=True))
    return findings, metrics, "; ".join(words) or "unknown"


def _kinetic(card, series, splits, claims):
    """Kinetic temperatures of contiguous splits, and of files with gaps at the interval by Newton's law.

    Files with gaps and fewer than 20 atoms are left out, as their displacements scatter too much to
    distinguish one step from two.
    """
    rows = [(name, part, card.time_ordered[name], card.conditions(name)[0]) for name, part in claims.items()]
    claimed = {source for part in claims.values() for source, _ in part.keys}
    for part in series:
        if part.order.kind == "gaps" and part.keys[0][0] not in claimed and len(part.numbers) >= 20:
            target = card.conditions(_split_of(card, part.keys[0][0]))[0]
            rows.append((part.name, part, newton_clock(part).interval, target))
    published, effect = _published_temperatures(card), "Simulated at the temperature stated, a perfect model"
    effect += " would differ from these frames in structure, and be blamed for it."
    findings, metrics, seen, off = [], [], {}, {}
    for name, part, interval, target in rows:
        frames, kelvin = kinetic_temperatures(part, interval)
        settled = kelvin[frames >= frames[-1] / 2] if part.order.kind == "gaps" else kelvin
        mean, error = float(settled.mean()), standard_error(settled)
        metrics.append(
            Metric(f"temperature_{name}", mean, "K", mean - 1.96 * error, mean + 1.96 * error, len(settled))
        )
        seen[name] = mean
        if _off(mean, target, error):
            findings.append(Finding("temperature", f"{name} is at {mean:.0f} K, not {target:g} K", effect))
        stated = min(published, key=lambda known: abs(known - mean), default=target)
        if stated != target and _off(mean, stated, error):
            off[name] = mean, stated
    if off:
        known = ", ".join(f"{name} {mean:.0f}" for name, (mean, _) in off.items())
        stated = next(iter(off.values()))[1]
        text = f"{len(off)} of {len(seen)} sets are not at the published {stated:g} K: {known}"
        findings.append(Finding("temperature", text, effect, mended=True))
    words = [f"kinetic {_span(seen.values())}"] if seen else []
    return findings, metrics, words


def _off(mean, target, error):
    return abs(mean - target) > max(0.12 * target, 4 * error)


def _span(values):
    low, high = min(values), max(values)
    return f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"


def _split_of(card, source):
    """A split that holds frames of a source, preferably one that holds no others."""
    holding = [name for name, split in card.splits.items() if source in {part.source for part in split.parts}]
    return min(holding, key=lambda name: len(card.split(name).parts))


def _published_temperatures(card):
    """Temperatures in Table 10 for a dataset of the paper, K; empty for other datasets."""
    rows = paper.table(10)
    key = "md17" if "MD17" in card.title else card.name
    return rows.temperature_k[rows.dataset == key].tolist()


def _virials(card, series):
    """Virial temperatures of molecules, at which frames would be in equilibrium with their labels."""
    findings, metrics, seen, off = [], [], {}, []
    for part in series:
        if part.pbc or part.forces is None or len(part) < 100:
            continue
        values, target = _virial(part), card.conditions(_split_of(card, part.keys[0][0]))[0]
        mean, error = float(values.mean()), standard_error(values)
        metrics.append(
            Metric(f"virial_{part.name}", mean, "K", mean - 1.96 * error, mean + 1.96 * error, len(part))
        )
        seen[part.name] = mean
        if abs(mean - target) > max(5 * error, 0.5 * target):
            off.append(f"{mean:.0f} ± {error:.0f} K in {part.name}, not {target:g} K")
    if off:
        effect = "The frames were not sampled at this temperature with the potential that labels them: a"
        effect += " perfect model would not reproduce their structure."
        findings.append(Finding("temperature", f"the virial temperature is {'; '.join(off)}", effect))
    return findings, metrics, [f"virial {_span(seen.values())}"] if seen else []


def _drift(card, splits):
    """Temperature differences of splits, twice those of mean energies over the degrees of freedom."""
    findings, metrics, seen, off = [], [], {}, []
    train = {tuple(sorted(part.numbers)): part for part in splits.get("train", [])}
    for name, parts in splits.items():
        for part in parts:
            base = train.get(tuple(sorted(part.numbers)))
            if name == "train" or base is None or part.forces is None or len(part) < 20:
                continue
            kelvin = 2 / (part.freedom * units.kB)
            rise = kelvin * (part.energy.mean() - base.energy.mean())
            error = kelvin * np.hypot(standard_error(part.energy), standard_error(base.energy))
            expected = card.conditions(name)[0] - card.conditions("train")[0]
            where = name if len(parts) == 1 else f"{name} {part.name}"
            seen[where] = rise
            metrics.append(Metric(f"rise_{where}".replace(" ", "_"), rise, "K", n=len(part)))
            if abs(rise - expected) > max(4 * error, 0.12 * card.conditions("train")[0]):
                off.append(f"{where} by {rise:+.0f} K (stated {expected:+.0f} K)")
    if off:
        text = f"by their energies these sets are warmer or colder than train: {', '.join(off)}"
        effect = "Test errors are those of extrapolation in temperature, not of the training ensemble."
        findings.append(Finding("temperature", text, effect))
    words = [f"test {seen['test']:+.0f}"] if "test" in seen else []
    return findings, metrics, words


# -- labels ---------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Energy changes between neighbouring frames, and the work of the forces."""

    work: np.ndarray
    """Work by the trapezium rule, shape ``(n,)``, eV."""
    change: np.ndarray
    """Change of the energy, shape ``(n,)``, eV."""

    @property
    def correlation(self):
        """Pearson correlation of work and change; one for consistent labels."""
        return float(np.corrcoef(self.work, self.change)[0, 1])

    @property
    def slope(self):
        """Slope of change on work, through zero; 23.06 for energies in kcal/mol with forces in eV/Å."""
        return float(self.work @ self.change / (self.work @ self.work))


def work_and_change(series):
    r"""Energy changes from frame to frame, and the work of the forces that should equal them.

    .. math:: W_t = -\tfrac12 \sum_i (\mathbf F_i(t) + \mathbf F_i(t+1)) \cdot
        (\mathbf r_i(t+1) - \mathbf r_i(t))

    for pairs of frames one shortest interval apart; jumps are left out.

    Returns
    -------
    Work

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> frames = [Atoms("H", [[0.1 * t, 0, 0]]) for t in range(3)]
    >>> for t, atoms in enumerate(frames):  # energy x^2, force -2x
    ...     atoms.calc = SinglePointCalculator(atoms, energy=0.01 * t**2, forces=[[-0.2 * t, 0, 0]])
    >>> found = work_and_change(Series.of(frames))
    >>> found.work.round(3), found.change.round(3), round(found.slope, 6)
    (array([0.01, 0.03]), array([0.01, 0.03]), 1.0)
    """
    kept = series.order.gaps == 1
    kept[series.order.jumps] = False
    mean_force = 0.5 * (series.forces[1:] + series.forces[:-1])
    work = -(mean_force * series.steps).sum((1, 2))
    return Work(work[kept], np.diff(series.energy)[kept])


def net_forces(series):
    r"""Size of the net force of every frame, :math:`|\sum_i \mathbf F_i|`, shape ``(T,)``, eV/Å."""
    return np.linalg.norm(series.forces.sum(1), axis=-1)


def net_torques(series):
    r"""Size of the net torque about the centroid of every frame of a molecule, shape ``(T,)``, eV."""
    x = series.positions - series.positions.mean(1, keepdims=True)
    return np.linalg.norm(np.cross(x, series.forces).sum(1), axis=-1)


def check_labels(series, splits, claims):
    """Findings, metrics and summary on the consistency of forces and energies."""
    findings, metrics, words, bad = [], [], [], []
    kept = {key for parts in splits.values() for part in parts for key in part.keys}
    timed = {**claims, **{part.name: part for part in series if part.order.kind == "gaps"}}
    effect = "No conservative model can fit both labels: errors have a floor that is not the model's."
    found = {name: work_and_change(part) for name, part in timed.items() if part.forces is not None}
    for name, pair in found.items():
        metrics.append(Metric(f"work_correlation_{name}", pair.correlation, "1", n=len(pair.work)))
        metrics.append(Metric(f"work_slope_{name}", pair.slope, "1", n=len(pair.work)))
        if pair.correlation < 0.97 or abs(pair.slope - 1) > 0.05:
            bad.append(f"{pair.correlation:.2f} and {pair.slope:.2f} in {name}")
    if bad:
        text = f"the energy follows the work of the forces with a correlation and a slope of {', '.join(bad)}"
        findings.append(Finding("labels", text, effect))
    if found:
        words.append(f"work {min(pair.correlation for pair in found.values()):.3f}")
    worst = 0.0
    for part in series:
        if part.forces is None:
            continue
        sizes = {"force": (net_forces(part), "eV/Å", 1.0)}
        if not part.pbc:
            radius = np.sqrt(part.positions.var(1).sum(-1).mean())
            sizes["torque"] = net_torques(part), "eV", radius
        scale = np.sqrt((part.forces**2).sum((1, 2)).mean())
        for kind, (values, unit, arm) in sizes.items():
            relative, zero = values / (scale * arm), f"net {kind}"
            if kind == "force":
                worst = max(worst, values.max())
            odd = np.flatnonzero((robust_z(values) > 10) & (relative > 0.005))
            if np.median(relative) > 0.01:
                text = f"{part.name} has a {zero} of {np.median(values):.2f} {unit} (median),"
                text += f" at most {values.max():.2f}"
                findings.append(Finding("labels", text, effect))
            elif len(odd):
                frames = ", ".join(map(str, odd[:5])) + (" and others" if len(odd) > 5 else "")
                text = f"{part.name} has a {zero} of up to {values[odd].max():.2f} {unit} in frame {frames}"
                text += f", {np.median(values):.3f} elsewhere"
                mended = not kept & {part.keys[i] for i in odd}
                findings.append(Finding("labels", text, "These frames are labelled otherwise.", mended))
    metrics.append(Metric("net_force", worst, "eV/Å"))
    words.append(f"net force {worst:.2g} eV/Å")
    return findings, metrics, "; ".join(words)


# -- outliers -------------------------------------------------------------------------------------------


def robust_z(values):
    r"""Distance from the median in robust standard deviations, 1.4826 times the median absolute deviation.

    It is zero for a constant series.

    >>> robust_z(np.array([0.0, 1.0, 2.0, 3.0, 100.0])).round(1)
    array([ 1.3,  0.7,  0. ,  0.7, 66.1])
    """
    away = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(away)
    return away / spread if spread else np.zeros(len(values))


def outlyingness(values, *, ordered):
    """Robust z of every value, shape ``(T,)``; in an ordered series, that of distances from neighbours.

    An outlier of a series is far from the running median of 41 and from both neighbours, in units of the
    usual distance, so that a melt that warms up has no outliers.

    >>> warming = np.arange(200.0) + np.random.default_rng(0).normal(size=200)
    >>> warming[77] += 50
    >>> z = outlyingness(warming, ordered=True)
    >>> int(z.argmax()), bool(z[77] > 8 > 4 > np.sort(z)[-2])
    (77, True)
    """
    if not ordered:
        return robust_z(values)
    away = robust_z(values - ndimage.median_filter(values, 41, mode="nearest"))
    moves = np.abs(np.diff(values))
    moves = np.minimum(np.append(moves, np.inf), np.insert(moves, 0, np.inf))
    usual = 1.4826 * np.median(np.abs(np.diff(values)))
    return np.minimum(away, moves / usual) if usual else np.zeros(len(values))


def check_outliers(series, splits, *, bound=8.0):
    """Findings, metrics and summary on frames far from the others in energy, force or largest force."""
    findings, worst = [], {"energy": 0.0, "force": 0.0}
    kept = {key for parts in splits.values() for part in parts for key in part.keys}
    for part in series:
        if len(part) < 20:
            continue
        ordered = part.order.kind in ("even", "gaps")
        rows = {"energy": outlyingness(part.energy, ordered=ordered)}
        if part.forces is not None:
            norms = np.linalg.norm(part.forces, axis=-1)
            logs = np.log(np.stack([np.sqrt((norms**2).mean(1)), norms.max(1)]) + 1e-12)
            rows["force"] = np.max([outlyingness(x, ordered=ordered) for x in logs], axis=0)
        for kind, z in rows.items():
            worst[kind] = max(worst[kind], float(z.max()))
            odd = np.flatnonzero(z > bound)
            if len(odd):
                frames = ", ".join(map(str, odd[:5])) + (" and others" if len(odd) > 5 else "")
                text = f"{len(odd)} outliers of {kind} in {part.name} (frame {frames}), "
                text += f"up to {z.max():.0f} robust deviations"
                effect = "They dominate squared losses and mean errors."
                mended = not kept & {part.keys[i] for i in odd}
                findings.append(Finding("outliers", text, effect, mended))
    metrics = [Metric(f"{kind}_z", value, "1") for kind, value in worst.items()]
    return findings, metrics, f"E {worst['energy']:.1f}, F {worst['force']:.1f}"


# -- atomic energies, units -----------------------------------------------------------------------------


def published_atomic_energies():
    """Energies of atoms in Table 13, ``{atomic number: eV}``."""
    rows = paper.table(13).set_index("parameter").value
    pairs = rows[next(name for name in rows.index if name.startswith("E_0"))].strip("{} ").split(",")
    known = [pair.split(":") for pair in pairs if ":" in pair]
    return {int(number): float(energy) for number, energy in known}


def binding_energy(series, atomic):
    """Mean energy per atom relative to free atoms, eV; nan if the energy of one of them is unknown.

    For consistent energies it lies between about -10 and 0 eV.
    """
    if any(int(z) not in atomic for z in series.numbers):
        return float("nan")
    free = sum(atomic[int(z)] for z in series.numbers)
    return float((series.energy.mean() - free) / len(series.numbers))


def check_atomic_energies(card, series, splits):
    """Findings, metrics and summary on published atomic energies, and on the residual of fitted ones."""
    findings, words = [], []
    atomic = published_atomic_energies() if _published_temperatures(card) else card.reference_energies
    bound = {part.name: binding_energy(part, atomic) for part in series}
    bad = {name: value for name, value in bound.items() if np.isfinite(value) and not -15 < value < 1}
    known = [value for value in bound.values() if np.isfinite(value)]
    extreme = max(known, key=abs) if known else float("nan")
    metrics = [Metric("binding_energy", extreme, "eV/atom")]
    if bad:
        name, value = max(bad.items(), key=lambda item: abs(item[1]))
        part = next(part for part in series if part.name == name)
        free = part.energy.mean() - value * len(part.numbers)
        table = " of Table 13" if _published_temperatures(card) else ""
        text = f"the atomic energies{table} sum to {free:,.0f} eV, "
        text += f"the frames of {name} are at {part.energy.mean():,.0f} eV"
        effect = "A model that subtracts them must learn the difference; single precision cannot hold it."
        findings.append(Finding("atomic energies", text, effect, mended=not card.reference_energies))
    if np.isfinite(extreme):
        words.append(f"{extreme:+.3g} eV/atom")
    if train := splits.get("train"):
        residual = fit_residual(train)
        metrics.append(Metric("fit_residual", 1000 * residual, "meV/atom"))
        words.append(f"fit {1000 * residual:.0f} meV/atom")
    return findings, metrics, "; ".join(words) or "not published"


def fit_residual(series):
    """Root mean square energy per atom that remains after a fit of atomic energies, eV.

    Parameters
    ----------
    series
        ``list`` of :class:`Series`, the training set.
    """
    elements = sorted({int(z) for part in series for z in part.numbers})
    rows = [[np.mean(part.numbers == z) for z in elements] for part in series for _ in part.energy]
    energy = np.concatenate([part.energy / len(part.numbers) for part in series])
    rest = energy - np.array(rows) @ np.linalg.lstsq(np.array(rows), energy, rcond=None)[0]
    return float(np.sqrt(np.mean(rest**2)))


def resolution(values):
    """Resolution with which values were written: a description, and the step between values (eV, or eV/Å).

    The function tries up to eight decimal places, in eV and in kcal/mol, and then single precision.

    Examples
    --------
    >>> resolution(np.array([1.25, -3.5]))
    ('2 digits of eV', 0.01)
    >>> word, step = resolution(0.04336 * np.array([1.25, -3.5]))
    >>> word, round(step, 7)
    ('2 digits of kcal/mol', 0.0004336)
    """
    values = np.ravel(values)[:3000]
    for digits in range(9):
        for factor, unit in ((1.0, "eV"), (0.04336, "kcal/mol"), (units.kcal / units.mol, "kcal/mol")):
            scaled = values / factor * 10.0**digits
            error = 1e-3 + 4 * np.finfo(float).eps * np.abs(scaled).max()
            if error < 0.1 and np.abs(scaled - np.rint(scaled)).max() < error:
                return f"{digits} digits of {unit}", factor * 10.0**-digits
    if (values == values.astype(np.float32)).all():
        return "single precision", float(np.spacing(np.abs(values).max().astype(np.float32)))
    return "full digits", 0.0


def check_units(card, series):
    """Findings, metrics and summary on scales and digits, which reveal kcal/mol, Bohr or coarse rounding.

    Three quantities have about the same value in all matter: the spread of the energies over
    :math:`k_B T \\sqrt{f / 2}` (f degrees of freedom; about 1), the thermal length :math:`k_B T / F` (about
    0.1 Å), and the shortest distance over the sum of the covalent radii (about 1).
    """
    findings, metrics, words = [], [], []
    rows = [part for part in series if part.forces is not None and len(part) >= 20]
    effect = "Errors and temperatures are off by the factor."
    ratios, lengths = {}, {}
    for part in rows:
        heat = units.kB * card.conditions(_split_of(card, part.keys[0][0]))[0]
        calm = part.energy - ndimage.median_filter(part.energy, 201, mode="nearest")
        spread = np.std(calm if part.order.kind == "gaps" else part.energy)
        ratios[part.name] = spread / (heat * np.sqrt(part.freedom / 2))
        lengths[part.name] = heat / np.sqrt((part.forces**2).mean())
    for name, ratio in ratios.items():
        if not 0.1 < ratio < 8:
            text = f"energies of {name} spread {ratio:.2g} times as much as equipartition has it"
            findings.append(Finding("units", text, effect))
        if not 0.01 < lengths[name] < 0.7:
            text = f"k_B T over the force of {name} is {lengths[name]:.2g} Å, about 0.1 Å in matter"
            findings.append(Finding("units", text, effect))
    if rows:
        largest = max(ratios.values(), key=lambda ratio: abs(np.log(ratio)))
        metrics.append(Metric("energy_scale", largest, "1"))
        metrics.append(Metric("thermal_length", min(lengths.values()), "Å"))
        digits = [resolution(part.energy) for part in rows], [resolution(part.forces) for part in rows]
        for kind, found, unit in zip(("energies", "forces"), digits, ("meV", "meV/Å"), strict=True):
            coarse = 1000 * max(step for _, step in found)
            metrics.append(Metric(f"step_{kind}", coarse, unit))
            if coarse >= 2:
                text = f"{kind} are rounded to {coarse:.2g} {unit}"
                findings.append(Finding("units", text, "No error below that can be told."))
        coarsest = [max(found, key=lambda pair: pair[1])[0] for found in digits]
        words.append("E {}, F {}".format(*coarsest))
    return findings, metrics, "; ".join(words) or "unknown"


# -- geometry, sample -----------------------------------------------------------------------------------


def cell_width(series):
    """Smallest height of the periodic cell, Å; infinite for a molecule."""
    if not series.pbc:
        return float("inf")
    return float((1 / np.linalg.norm(np.linalg.inv(series.cell), axis=0)).min())


def check_geometry(card, series, splits, raw):
    """Findings, metrics and summary on close contacts, narrow cells, unseen elements and drifting molecules.

    Parameters
    ----------
    card, series, splits
        The card, its files and its splits.
    raw
        Positions as stored in the files, by source, if the reader changes them, Å.
    """
    findings, words = [], []
    near = {part.name: float(part.contacts.min()) for part in series if len(part.numbers) > 1}
    for name, value in near.items():
        if not 0.45 < value < 1.5:
            text = f"the shortest distance in {name} is {value:.2f} times the sum of the covalent radii"
            findings.append(Finding("geometry", text, "Two atoms overlap, or lengths are in another unit."))
    metrics = [Metric("contact", min(near.values(), default=float("nan")), "1")]
    widths = {part.name: cell_width(part) for part in series if part.pbc}
    narrow = {name: width for name, width in widths.items() if width < 2 * CUTOFF}
    if widths:
        metrics.append(Metric("cell_width", min(widths.values()), "Å"))
        words.append(f"cell {min(widths.values()):.1f} Å")
    if narrow:
        text = f"{len(narrow)} of {len(widths)} cells are narrower than twice the cutoff of {CUTOFF:g} Å: "
        text += ", ".join(f"{name} {width:.2f} Å" for name, width in narrow.items())
        effect = "A list of nearest images loses edges; one that counts every image, as here, does not."
        findings.append(Finding("geometry", text, effect, mended=True))
    wander = {part.name: _wander(raw.get(part.name, part.positions)) for part in series if not part.pbc}
    if wander:
        metrics.append(Metric("drift", max(wander.values()), "Å"))
        words.append(f"drift {max(wander.values()):.1f} Å")
    for part in series:
        if wander.get(part.name, 0) > 5:
            text = f"the molecule of {part.name} drifts: its centre spreads over {wander[part.name]:.0f} Å"
            effect = "Displacements measure the drift, and models on absolute positions lose digits."
            findings.append(Finding("geometry", text, effect, mended=_wander(part.positions) < 5))
    findings += _unseen(splits)
    words.append(f"contact {metrics[0].value:.2f}" if near else "one atom")
    return findings, metrics, "; ".join(words)


def _wander(positions):
    """Standard deviation of the centroid over frames, Å, in the direction in which it is largest."""
    return float(positions.mean(1).std(0).max())


def _unseen(splits):
    """Findings on elements that occur in a split but not in the training set."""
    elements = {name: {int(z) for part in parts for z in part.numbers} for name, parts in splits.items()}
    seen = elements.get("train")
    for name, asked in elements.items():
        if seen is not None and asked - seen:
            missing = ", ".join(chemical_symbols[z] for z in sorted(asked - seen))
            text, effect = f"{name} holds {missing}, train does not", "No model can know them."
            yield Finding("geometry", text, effect)


def check_sample(splits):
    """Metrics and summary on the number of independent test frames, by the energy's autocorrelation."""
    number = effective = 0
    for part in splits.get("test", []):
        time = statistics.autocorrelation_time(part.energy) if part.order.kind in ("even", "gaps") else 1.0
        number += len(part)
        effective += len(part) / max(1.0, time if np.isfinite(time) else 1.0)
    metrics = [Metric("effective_frames", effective, "1", n=number)]
    return [], metrics, f"{effective:.0f} of {number}" if number else "no test set"


# -- all of it ------------------------------------------------------------------------------------------


def inspect(card, frames, *, raw=None):
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
        Series.of(part, name) for source in frames for name, part in _compositions(frames[source], source)
    ]
    splits = {
        name: _split_series(card, name, series) for name in card.splits if not card.split(name).subset_of
    }
    splits = {name: parts for name, parts in splits.items() if parts}
    claims = {name: _claim(card, name, frames) for name in card.time_ordered}
    claims = {name: part for name, part in claims.items() if part is not None}
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


def _compositions(frames, source):
    """Yield the name and the frames of every composition in a file; a single one has the name of the file."""
    groups = {}
    for atoms in frames:
        groups.setdefault(tuple(atoms.numbers), []).append(atoms)
    for group in groups.values():
        yield (source if len(groups) == 1 else f"{source} {group[0].symbols}"), group


def _split_series(card, name, series):
    """Series of a split, one for each file, with the frames of the split that the file holds."""
    wanted = {}
    for part in card.split(name).parts:
        wanted.setdefault(part.source, []).append(part)
    found = []
    for part in series:
        source, total = part.keys[0][0], 1 + max(index for _, index in part.keys)
        keep = {i for rule in wanted.get(source, []) for i in rule.indices(total)}
        picked = [place for place, (_, index) in enumerate(part.keys) if index in keep]
        if picked:
            found.append(part[np.array(picked)])
    return found


def _claim(card, name, frames):
    """Series of a split that is claimed to be contiguous, starting with its first contiguous frame."""
    parts = card.split(name).parts
    if any(part.source not in frames for part in parts):
        return None
    joined = [frames[p.source][i] for p in parts for i in p.indices(len(frames[p.source]))]
    return Series.of(joined[card.first_contiguous.get(name, 0) :], name)


def sources_at_hand(card):
    """Names of the sources of a dataset whose files are available or are generated by this project."""
    sources = dict.fromkeys(part.source for split in card.splits.values() for part in split.parts)
    if card.generate:
        return list(sources)
    return [s for s in sources if all(_place(card, card.files[key].path) for key in card.files_of(s))]


def audit(dataset, *, campaign="demo", seed=0):
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
    whole = dataclasses.replace(
        card,
        splits={source: cards.Split([cards.Part(source)]) for source in sources},
        **{name: {} for name in ("time_ordered", "first_contiguous", "temperatures", "timesteps")},
    )
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


def find(dataset, *, campaign, seed=0, asked=None):
    """The stored audit of a dataset, or None; its parameters must include those in ``asked``."""
    record = records.stored(Key("audit", campaign, dataset, "reference", seed).path)
    asked = (asked or {}).items()
    return record if record and all(record.parameters.get(key) == value for key, value in asked) else None


def findings(record):
    """Findings of a stored audit, a list of :class:`Finding`."""
    return [Finding(**finding) for finding in record.parameters["findings"]]


def _digest(card, whole):
    """Digest of the files and of the content of the card."""
    files = [data.fetch(whole, source) for source in whole.splits]
    hashes = {key: data.file_hash(path) for part in files for key, path in sorted(part.items())}
    skipped = ("files", "folder", "notes", "title", "citation", "licence", "origin")
    said = {name: value for name, value in dataclasses.asdict(card).items() if name not in skipped}
    return records.digest(json.dumps([hashes, said], sort_keys=True, default=str))


def _raw(card, sources):
    """Positions as stored in the files, for sources whose reader centres them, Å."""
    if card.reader != "rmd17":
        return {}
    found = {}
    for source in sources:
        with np.load(data.fetch(card)[source], allow_pickle=False) as stored:
            found[source] = stored["coords"]
    return found


def _curves(card, frames):
    """Curves for the page: energies, work and energy changes, temperatures over time."""
    curves = {}
    claims = {name: _claim(card, name, frames) for name in card.time_ordered}
    for source, atoms in frames.items():
        part = Series.of(atoms, source) if len({tuple(a.numbers) for a in atoms}) == 1 else None
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
