"""Are units, digits and cells right? Atomic energies, geometry, and the size of the test set."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ase import units
from ase.data import chemical_symbols
from scipy import ndimage

from egraff_utils import paper, statistics
from egraff_utils.cards import DatasetCard
from egraff_utils.checks.audit.motion import published_temperatures, split_of
from egraff_utils.checks.audit.series import CUTOFF, Checked, Finding, Series
from egraff_utils.records import Metric


def published_atomic_energies() -> dict[int, float]:
    """Energies of atoms in Table 13, ``{atomic number: eV}``."""
    rows = paper.table(13).set_index("parameter").value
    pairs = rows[next(name for name in rows.index if name.startswith("E_0"))].strip("{} ").split(",")
    known = [pair.split(":") for pair in pairs if ":" in pair]
    return {int(number): float(energy) for number, energy in known}


def binding_energy(series: Series, atomic: Mapping[int, float]) -> float:
    """Mean energy per atom relative to free atoms, eV; nan if the energy of one of them is unknown.

    For consistent energies it lies between about -10 and 0 eV.
    """
    if any(int(z) not in atomic for z in series.numbers):
        return float("nan")
    free = sum(atomic[int(z)] for z in series.numbers)
    return float((series.energy.mean() - free) / len(series.numbers))


def check_atomic_energies(
    card: DatasetCard, series: Sequence[Series], splits: Mapping[str, Sequence[Series]]
) -> Checked:
    """Findings, metrics and summary on published atomic energies, and on the residual of fitted ones."""
    findings, words = [], []
    atomic = published_atomic_energies() if published_temperatures(card) else card.reference_energies
    bound = {part.name: binding_energy(part, atomic) for part in series}
    bad = {name: value for name, value in bound.items() if np.isfinite(value) and not -15 < value < 1}
    known = [value for value in bound.values() if np.isfinite(value)]
    extreme = max(known, key=abs) if known else float("nan")
    metrics = [Metric("binding_energy", extreme, "eV/atom")]
    if bad:
        name, value = max(bad.items(), key=lambda item: abs(item[1]))
        part = next(part for part in series if part.name == name)
        free = part.energy.mean() - value * len(part.numbers)
        table = " of Table 13" if published_temperatures(card) else ""
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


def fit_residual(series: Sequence[Series]) -> float:
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


def resolution(values: np.ndarray) -> tuple[str, float]:
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


def check_units(card: DatasetCard, series: Sequence[Series]) -> Checked:
    """Findings, metrics and summary on scales and digits, which reveal kcal/mol, Bohr or coarse rounding.

    Three quantities have about the same value in all matter: the spread of the energies over
    :math:`k_B T \\sqrt{f / 2}` (f degrees of freedom; about 1), the thermal length :math:`k_B T / F` (about
    0.1 Å), and the shortest distance over the sum of the covalent radii (about 1).
    """
    findings, metrics, words = [], [], []
    rows = [(part, part.forces) for part in series if part.forces is not None and len(part) >= 20]
    effect = "Errors and temperatures are off by the factor."
    ratios, lengths = {}, {}
    for part, forces in rows:
        heat = units.kB * card.conditions(split_of(card, part.keys[0][0]))[0]
        calm = part.energy - ndimage.median_filter(part.energy, 201, mode="nearest")
        spread = np.std(calm if part.order.kind == "gaps" else part.energy)
        ratios[part.name] = spread / (heat * np.sqrt(part.freedom / 2))
        lengths[part.name] = heat / np.sqrt((forces**2).mean())
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
        digits = [resolution(part.energy) for part, _ in rows], [resolution(forces) for _, forces in rows]
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


def cell_width(series: Series) -> float:
    """Smallest height of the cells in a periodic direction, Å; infinite for a molecule."""
    if not series.periodic:
        return float("inf")
    return float((1 / np.linalg.norm(np.linalg.inv(series.filled), axis=1))[:, series.pbc].min())


def check_geometry(
    card: DatasetCard,
    series: Sequence[Series],
    splits: Mapping[str, Sequence[Series]],
    raw: Mapping[str, np.ndarray],
) -> Checked:
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
    widths = {part.name: cell_width(part) for part in series if part.periodic}
    narrow = {name: width for name, width in widths.items() if width < 2 * CUTOFF}
    if widths:
        metrics.append(Metric("cell_width", min(widths.values()), "Å"))
        words.append(f"cell {min(widths.values()):.1f} Å")
    if narrow:
        text = f"{len(narrow)} of {len(widths)} cells are narrower than twice the cutoff of {CUTOFF:g} Å: "
        text += ", ".join(f"{name} {width:.2f} Å" for name, width in narrow.items())
        effect = "A list of nearest images loses edges; one that counts every image, as here, does not."
        findings.append(Finding("geometry", text, effect, mended=True))
    wander = {part.name: _wander(raw.get(part.name, part.positions)) for part in series if not part.periodic}
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


def _wander(positions: np.ndarray) -> float:
    """Standard deviation of the centroid over frames, Å, in the direction in which it is largest."""
    return float(positions.mean(1).std(0).max())


def _unseen(splits: Mapping[str, Sequence[Series]]) -> Iterator[Finding]:
    """Findings on elements that occur in a split but not in the training set."""
    elements = {name: {int(z) for part in parts for z in part.numbers} for name, parts in splits.items()}
    seen = elements.get("train")
    for name, asked in elements.items():
        if seen is not None and asked - seen:
            missing = ", ".join(chemical_symbols[z] for z in sorted(asked - seen))
            text, effect = f"{name} holds {missing}, train does not", "No model can know them."
            yield Finding("geometry", text, effect)


def check_sample(splits: Mapping[str, Sequence[Series]]) -> Checked:
    """Metrics and summary on the number of independent test frames, by the energy's autocorrelation."""
    number, effective = 0, 0.0
    for part in splits.get("test", []):
        time = statistics.autocorrelation_time(part.energy) if part.order.kind in ("even", "gaps") else 1.0
        number += len(part)
        effective += len(part) / max(1.0, time if np.isfinite(time) else 1.0)
    metrics = [Metric("effective_frames", effective, "1", n=number)]
    return [], metrics, f"{effective:.0f} of {number}" if number else "no test set"
