"""Do forces and energies belong together? Work, net forces and torques, and frames far from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.stats import linregress

from egraff_utils.checks.audit.series import Checked, Finding, Series
from egraff_utils.records import Metric


class Work(NamedTuple):
    """Energy changes between neighbouring frames, and the work of the forces."""

    work: np.ndarray
    """Work by the trapezium rule, shape ``(n,)``, eV."""
    change: np.ndarray
    """Change of the energy, shape ``(n,)``, eV."""

    @property
    def correlation(self) -> float:
        """Pearson correlation of work and change; one for consistent labels."""
        return float(np.corrcoef(self.work, self.change)[0, 1])

    @property
    def line(self) -> Line:
        """The :class:`Line` of change on work."""
        # A line through the origin would turn a constant loss into a wrong slope.
        fit = linregress(self.work, self.change)
        rest = self.change - fit.slope * self.work - fit.intercept
        echo = np.corrcoef(rest[1:], rest[:-1])[0, 1] if len(rest) > 3 and np.ptp(rest) > 0 else 0.0
        return Line(*map(float, (fit.slope, fit.stderr, fit.intercept, fit.intercept_stderr, echo)))

    @property
    def consistent(self) -> bool:
        """Whether the change is the work: correlation above 0.97, slope one, and no constant beside it."""
        line = self.line
        straight = abs(line.slope - 1) <= max(0.05, 2 * line.slope_error)
        tight = abs(line.leak) <= max(0.1 * self.change.std(), 4 * line.leak_error)
        return self.correlation >= 0.97 and straight and tight


class Line(NamedTuple):
    """Least-squares line, with an intercept, of the energy change on the work, and what remains."""

    slope: float
    """Slope; one for consistent labels, 23.06 for energies in kcal/mol with forces in eV/Å."""
    slope_error: float
    """Standard error of the slope."""
    leak: float
    """Intercept: the energy that appears in every interval without work, eV; zero for consistent labels."""
    leak_error: float
    """Standard error of the intercept, eV."""
    echo: float
    """Autocorrelation of the residual at a lag of one interval; near zero for noise of the labels."""


def work_and_change(series: Series) -> Work:
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
    >>> from egraff_utils.checks.audit import Series
    >>> frames = [Atoms("H", [[0.1 * t, 0, 0]]) for t in range(3)]
    >>> for t, atoms in enumerate(frames):  # energy x^2, force -2x
    ...     atoms.calc = SinglePointCalculator(atoms, energy=0.01 * t**2, forces=[[-0.2 * t, 0, 0]])
    >>> found = work_and_change(Series.of(frames))
    >>> found.work.round(3), found.change.round(3), round(found.line.slope, 6)
    (array([0.01, 0.03]), array([0.01, 0.03]), 1.0)
    """
    kept = series.order.gaps == 1
    kept[series.order.jumps] = False
    forces = _forces(series)
    mean_force = 0.5 * (forces[1:] + forces[:-1])
    work = -(mean_force * series.steps).sum((1, 2))
    return Work(work[kept], np.diff(series.energy)[kept])


def net_forces(series: Series) -> np.ndarray:
    r"""Size of the net force of every frame, :math:`|\sum_i \mathbf F_i|`, shape ``(T,)``, eV/Å."""
    return np.linalg.norm(_forces(series).sum(1), axis=-1)


def net_torques(series: Series) -> np.ndarray:
    r"""Size of the net torque about the centroid of every frame of a molecule, shape ``(T,)``, eV."""
    x = series.positions - series.positions.mean(1, keepdims=True)
    return np.linalg.norm(np.cross(x, _forces(series)).sum(1), axis=-1)


def _forces(series: Series) -> np.ndarray:
    assert series.forces is not None  # the callers leave out series without
    return series.forces


def check_labels(
    series: Sequence[Series], splits: Mapping[str, Sequence[Series]], claims: Mapping[str, Series]
) -> Checked:
    """Findings, metrics and summary on the consistency of forces and energies."""
    findings, metrics, words, bad = [], [], [], []
    kept = {key for parts in splits.values() for part in parts for key in part.keys}
    timed = {**claims, **{part.name: part for part in series if part.order.kind == "gaps"}}
    effect = "No conservative model can fit both labels: errors have a floor that is not the model's."
    found = {name: work_and_change(part) for name, part in timed.items() if part.forces is not None}
    for name, pair in found.items():
        metrics += _fit_metrics(name, pair)
        if not pair.consistent:
            bad.append(_fit_text(name, pair))
    if bad:
        text = f"between neighbouring frames the energy changes by {'; '.join(bad)}"
        findings.append(Finding("labels", text, effect))
    if found:
        words.append(f"work {min(pair.correlation for pair in found.values()):.3f}")
    worst = 0.0
    for part in series:
        if part.forces is None:
            continue
        sizes = {"force": (net_forces(part), "eV/Å", 1.0)}
        if not part.periodic:
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


def robust_z(values: np.ndarray) -> np.ndarray:
    r"""Distance from the median in robust standard deviations, 1.4826 times the median absolute deviation.

    It is zero for a constant series.

    >>> robust_z(np.array([0.0, 1.0, 2.0, 3.0, 100.0])).round(1)
    array([ 1.3,  0.7,  0. ,  0.7, 66.1])
    """
    away = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(away)
    return away / spread if spread else np.zeros(len(values))


def outlyingness(values: np.ndarray, *, ordered: bool) -> np.ndarray:
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


def _fit_metrics(name: str, pair: Work) -> list[Metric]:
    """Metrics of the line of one set."""
    line, count = pair.line, len(pair.work)
    low, high = (line.slope + sign * 1.96 * line.slope_error for sign in (-1, 1))
    least, most = (1000 * (line.leak + sign * 1.96 * line.leak_error) for sign in (-1, 1))
    return [
        Metric(f"work_correlation_{name}", pair.correlation, "1", n=count),
        Metric(f"work_slope_{name}", line.slope, "1", low, high, count),
        Metric(f"work_leak_{name}", 1000 * line.leak, "meV", least, most, count),
        Metric(f"work_echo_{name}", line.echo, "1", n=count),
    ]


def _fit_text(name: str, pair: Work) -> str:
    """Text of the line of one set, which goes on from "the energy changes by"."""
    line = pair.line
    text = f"{line.slope:.2f} ± {line.slope_error:.2f} of the work of the forces"
    if abs(line.leak) > 3 * line.leak_error:
        text += f" and a constant {1000 * line.leak:+.0f} ± {1000 * line.leak_error:.0f} meV"
    return text + f" in {name} (correlation {pair.correlation:.2f}, of successive residuals {line.echo:.2f})"


def check_outliers(
    series: Sequence[Series], splits: Mapping[str, Sequence[Series]], *, bound: float = 8.0
) -> Checked:
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
