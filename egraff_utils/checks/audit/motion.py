"""How far apart in time are the frames, and how hot are they? Intervals and temperatures, stated and seen."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ase import Atoms, units

from egraff_utils import paper, statistics
from egraff_utils.cards import DatasetCard
from egraff_utils.checks.audit.series import RESOLVED, Checked, Finding, Order, Series, newton_clock
from egraff_utils.md.temperature import degrees_of_freedom, kinetic_temperature
from egraff_utils.records import Metric


def kinetic_temperatures(series: Series, interval: float) -> tuple[np.ndarray, np.ndarray]:
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
    return np.flatnonzero(kept), kinetic_temperature(series.masses * v, series.masses.ravel())


def check_order(card: DatasetCard, series: Sequence[Series], claims: Mapping[str, Series]) -> Checked:
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


def _order_word(order: Order) -> str:
    if order.kind in ("gaps", "loose"):
        return {"gaps": "in order, with gaps", "loose": "in order, far apart"}[order.kind]
    if order.kind == "even":
        return f"even, {len(order.jumps) + 1} pieces" if order.jumps else "even"
    return order.kind


def check_interval(card: DatasetCard, series: Sequence[Series], claims: Mapping[str, Series]) -> Checked:
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


def virial_temperature(frames: Sequence[Atoms]) -> np.ndarray:
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
    if any(atoms.pbc.any() for atoms in frames):
        raise ValueError("the virial temperature needs a molecule, not a periodic system")
    virial = [-np.sum(a.get_forces() * (a.positions - a.positions.mean(axis=0))) for a in frames]
    freedom = np.array([degrees_of_freedom(len(atoms)) for atoms in frames])
    return np.array(virial) / (freedom * units.kB)


def _virial(series: Series) -> np.ndarray:
    x = series.positions - series.positions.mean(1, keepdims=True)
    return -(series.forces * x).sum((1, 2)) / (degrees_of_freedom(len(series.numbers)) * units.kB)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of a correlated series, from its autocorrelation time."""
    time = statistics.autocorrelation_time(values)
    return float(np.std(values) * np.sqrt(max(1.0, time) / len(values))) if np.isfinite(time) else 0.0


def check_temperature(
    card: DatasetCard,
    series: Sequence[Series],
    splits: Mapping[str, Sequence[Series]],
    claims: Mapping[str, Series],
) -> Checked:
    """Findings, metrics and summary on temperatures: kinetic, virial, and from the energies of splits."""
    found = [_kinetic(card, series, splits, claims), _virials(card, series), _drift(card, splits)]
    findings = [finding for part, _, _ in found for finding in part]
    metrics = [metric for _, part, _ in found for metric in part]
    words = [word for _, _, part in found for word in part]
    return findings, metrics, "; ".join(words) or "unknown"


def _kinetic(
    card: DatasetCard,
    series: Sequence[Series],
    splits: Mapping[str, Sequence[Series]],
    claims: Mapping[str, Series],
) -> tuple[list[Finding], list[Metric], list[str]]:
    """Kinetic temperatures of contiguous splits, and of files with gaps at the interval by Newton's law.

    Files with gaps and fewer than 20 atoms are left out, as their displacements scatter too much to
    distinguish one step from two.
    """
    rows = [(name, part, card.time_ordered[name], card.conditions(name)[0]) for name, part in claims.items()]
    claimed = {source for part in claims.values() for source, _ in part.keys}
    for part in series:
        if part.order.kind == "gaps" and part.keys[0][0] not in claimed and len(part.numbers) >= 20:
            target = card.conditions(split_of(card, part.keys[0][0]))[0]
            rows.append((part.name, part, newton_clock(part).interval, target))
    published, effect = published_temperatures(card), "Simulated at the temperature stated, a perfect model"
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


def _off(mean: float, target: float, error: float) -> bool:
    return abs(mean - target) > max(0.12 * target, 4 * error)


def _span(values: Collection[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"


def split_of(card: DatasetCard, source: str) -> str:
    """A split that holds frames of a source, preferably one that holds no others."""
    holding = [name for name, split in card.splits.items() if source in {part.source for part in split.parts}]
    return min(holding, key=lambda name: len(card.split(name).parts))


def published_temperatures(card: DatasetCard) -> list[float]:
    """Temperatures in Table 10 for a dataset of the paper, K; empty for other datasets."""
    rows = paper.table(10)
    key = "md17" if "MD17" in card.title else card.name
    return rows.temperature_k[rows.dataset == key].tolist()


def _virials(card: DatasetCard, series: Sequence[Series]) -> tuple[list[Finding], list[Metric], list[str]]:
    """Virial temperatures of molecules, at which frames would be in equilibrium with their labels."""
    findings, metrics, seen, off = [], [], {}, []
    for part in series:
        if part.periodic or part.forces is None or len(part) < 100:
            continue
        values, target = _virial(part), card.conditions(split_of(card, part.keys[0][0]))[0]
        mean, error = float(values.mean()), standard_error(values)
        metrics.append(
            Metric(f"virial_{part.name}", mean, "K", mean - 1.96 * error, mean + 1.96 * error, len(part))
        )
        seen[part.name] = mean
        if abs(mean - target) > max(4 * error, 0.2 * target):
            off.append(f"{mean:.0f} ± {error:.0f} K in {part.name}, not {target:g} K")
    if off:
        effect = "The frames were not sampled at this temperature with the potential that labels them: a"
        effect += " perfect model would not reproduce their structure."
        findings.append(Finding("temperature", f"the virial temperature is {'; '.join(off)}", effect))
    return findings, metrics, [f"virial {_span(seen.values())}"] if seen else []


def _drift(
    card: DatasetCard, splits: Mapping[str, Sequence[Series]]
) -> tuple[list[Finding], list[Metric], list[str]]:
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
