"""At which wavenumbers do atoms move? Vibrational spectra of simulations beside those of their references."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import metrics
from egraff_utils.cards import REFERENCE
from egraff_utils.report import look, plots
from egraff_utils.report.beside import dataset_place, model_place
from egraff_utils.report.look import REFERENCE_COLOR
from egraff_utils.report.panels import by_model, dataset_names, grid, label_axes, mean_distribution, select
from egraff_utils.report.values import count, say, span

SHOWN = 0.002
"""Share of the highest bin at which the axis of a panel ends."""


def simulated(records: Iterable) -> list:
    """Rollouts of a campaign that have a spectrum."""
    return [record for record in records if record.kind == "rollout" and "spectrum" in record.curves]


def spectrum_grid(records: Iterable) -> Figure:
    """Vibrational spectra, with one panel per dataset, one line per model and the reference in black.

    A line is the mean over the replicas that did not break within the first window.

    Parameters
    ----------
    records
        Records of one campaign or more, as returned by `records.read_all`.
    """
    records = simulated(records)

    def draw(ax, dataset):
        found = by_model(select(records, "rollout", dataset))
        nu, reference = (
            plots.read_curve(next(iter(found.values()))[0], f"spectrum_{name}")
            for name in ("wavenumbers", "reference")
        )
        ax.plot(nu, reference, color=REFERENCE_COLOR, linewidth=2.6, alpha=0.85)
        for model, runs in found.items():
            ax.plot(nu, mean_distribution(runs, "spectrum"), **look.model_line(model), linewidth=1.1)
        last = np.flatnonzero(reference > SHOWN * reference.max())[-1]
        ax.set(xlim=(0, nu[min(last + 1, len(nu) - 1)]), ylim=(0, None))
        return list(found)

    figure = grid(dataset_names(records, "rollout"), draw, reference=True, height=2.2)
    return label_axes(figure, "Wavenumber (1/cm)", "Share of the kinetic energy (dimensionless)")


STIFF = 2000.0
"""Wavenumber above which only bonds to hydrogen, and triple bonds, vibrate, 1/cm."""
JSD, LOW, HIGH = "JSD (nats)", "from", "to"
PERFECT, SATURATION = "perfect (nats)", "saturation (nats)"
BAND, EXPECTED, BIN = "band (1/cm)", "reference (1/cm)", "bin (1/cm)"


def table(records: Iterable) -> pd.DataFrame:
    """Divergences of spectra from those of the references, and where the bands of stiff bonds lie.

    Returns
    -------
    DataFrame with the index (dataset, model), the reference with noise of its own after the models, and the
    columns ``JSD (nats)`` with its 95 % interval ``from``, ``to``, the levels of the dataset,
    ``perfect (nats)`` and ``saturation (nats)`` (:func:`scatter`, :func:`independent`), :func:`bands` of both
    spectra in ``band (1/cm)`` and ``reference (1/cm)``, and the width of a bin, ``bin (1/cm)``; means over
    seeds.
    """
    rows, levels = [], {}
    for record in simulated(records):
        if record.model == REFERENCE:
            spectra = record.curves["spectrum"]
            levels[record.dataset] = scatter(spectra), independent(spectra)
        metric, nu = record.metric("spectrum_jsd"), record.curves["spectrum_wavenumbers"]
        own = mean_distribution([record], "spectrum")
        both = bands(nu, own, record.curves["spectrum_reference"])
        rows.append([record.dataset, record.model, metric.value, metric.low, metric.high, *both, nu[1]])
    columns = ["dataset", "model", JSD, LOW, HIGH, BAND, EXPECTED, BIN]
    found = pd.DataFrame(rows, columns=columns).groupby(["dataset", "model"]).mean()
    known = pd.DataFrame.from_dict(levels, orient="index", columns=[PERFECT, SATURATION], dtype=float)
    found = found.join(known.rename_axis("dataset"))[
        [JSD, LOW, HIGH, PERFECT, SATURATION, BAND, EXPECTED, BIN]
    ]

    def order(cell):
        return dataset_place(cell[0]), cell[1] == REFERENCE, model_place(cell[1])

    return found.reindex(sorted(found.index, key=order))


def scatter(spectra: np.ndarray) -> float:
    """Divergence of a replica from the mean of all, itself included, nats: that of a perfect model.

    A model that is the reference and shares its starts and noise has the replicas of the reference, each of
    which is compared with their mean. NaN without a replica that has a spectrum.

    Parameters
    ----------
    spectra
        Shape ``(R, B)``; zero throughout for a replica that has none.

    Examples
    --------
    >>> round(scatter(np.eye(2)), 3), scatter(np.eye(2)[[0, 0]])
    (0.216, 0.0)
    """
    found = spectra[spectra.any(1)]
    return float(np.mean([metrics.jsd(p, found.mean(0)) for p in found])) if len(found) else np.nan


def independent(spectra: np.ndarray) -> float:
    """Divergence of a replica from the mean of the others, nats: that of unrelated runs of one method.

    Replicas have starts and noise of their own. The others are one fewer than a model is compared with, so
    that the level is a little too high. NaN for fewer than two replicas with a spectrum.

    Parameters
    ----------
    spectra
        Shape ``(R, B)``; zero throughout for a replica that has none.

    Examples
    --------
    >>> round(independent(np.eye(2)), 3), independent(np.eye(2)[[0, 0]])  # ln 2
    (0.693, 0.0)
    """
    found = spectra[spectra.any(1)]
    if len(found) < 2:
        return np.nan
    return float(np.mean([metrics.jsd(p, np.delete(found, r, 0).mean(0)) for r, p in enumerate(found)]))


def bands(nu: np.ndarray, spectrum: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean wavenumbers of two spectra about the highest bin of the reference above 2000 / cm.

    In a molecule these are the stretches of bonds to hydrogen, of C-H where bins are narrow. Two bins to
    either side count, so that a shift by more is understated. NaN if the reference has less than a hundredth
    of its spectrum there.

    Examples
    --------
    >>> nu = np.arange(0.0, 4000.0, 100.0)
    >>> mine, theirs = (np.isin(nu, [1000.0, line]) / 2 for line in (3100.0, 3000.0))
    >>> bands(nu, mine, theirs)
    (3100.0, 3000.0)
    """
    highest = np.where(nu > STIFF, reference, -1.0).argmax()
    near = slice(max(highest - 2, 0), highest + 3)
    if nu[highest] <= STIFF or reference[near].sum() < 0.01 * reference.sum():
        return np.nan, np.nan
    ours, theirs = (float(s[near] @ nu[near] / s[near].sum()) for s in (spectrum, reference))
    return ours, theirs


def values(tables: Iterable[pd.DataFrame]) -> dict:
    """What a page says of the :func:`table` of every campaign, each of which counts by itself.

    ``rerun`` and ``rerun_shift`` are ranges over the references with noise of their own. ``perfect`` and
    ``saturation`` are ranges of these levels; ``beyond`` is the number of models whose interval lies above
    the first, ``saturated`` that of models whose interval does not lie above the second. ``shift`` and
    ``median`` are of band less that of the reference, 1/cm.
    """
    found = pd.concat(dict(enumerate(tables)), names=["campaign"])
    shift, name = found[BAND] - found[EXPECTED], found.index.get_level_values("model")
    models, rerun = found[name != REFERENCE], found[name == REFERENCE]
    level = models[PERFECT].to_numpy(dtype=float)
    off = shift[name != REFERENCE]
    saturation = models[SATURATION].to_numpy(dtype=float)
    return {
        "count": str(models[JSD].notna().sum()),
        "datasets": str(len(models.index.unique("dataset"))),
        "span": span(models[JSD], ".2g"),
        "rerun": span(rerun[JSD], ".2g"),
        "rerun_shift": span(shift[name == REFERENCE], ".0f"),
        "perfect": span(found[PERFECT], ".2g"),
        "beyond": count((models[LOW].to_numpy(dtype=float) > level)[np.isfinite(level)]),
        "saturation": span(found[SATURATION], ".2g"),
        "saturated": count((models[LOW] <= saturation)[np.isfinite(saturation)]),
        "shift": span(off, ".0f"),
        "median": say(off.median(), ".0f"),
        "bin": span(models[BIN], ".0f"),
    }
