"""Which model follows its reference longest? Tables and figures show the horizons of a campaign.

The argument ``found`` always holds the records of a campaign. Symbols: S starts, T frames, M models.
"""

from __future__ import annotations

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import ndtri

from egraff_utils import quantities, statistics
from egraff_utils.checks.horizon import divergence
from egraff_utils.report import look, panels, plots, titles
from egraff_utils.report.beside import cell_place, short_title
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.ranks import rank_correlation
from egraff_utils.report.values import listed, value

TITLES = {
    "driven": "reference's friction",
    "nve": "no thermostat",
    "langevin": "Langevin",
    "noise": "Langevin against none",
    "friction": "reference's friction against none",
    "control": "moved by a constant vector",
}
"""Names of the dynamics in tables; the last three compare a model with itself."""

MOST_EXCHANGED = 12
"""Number of starts up to which every exchange of two models is tried."""

LINES = {"driven": "-", "nve": "--", "langevin": ":"}


def following(found: list, *, seeds: bool = False) -> list:
    """Records of kind ``horizon``, in the book's order of datasets and models.

    Of several seeds of a model on a dataset the first is taken, so that a model is one set of weights and a
    dataset has as many pairs as models allow; with ``seeds`` all are.
    """
    kept = sorted(
        (r for r in found if r.kind == "horizon"), key=lambda r: cell_place((r.dataset, r.model, r.seed))
    )
    first = {(r.campaign, r.dataset, r.model): r for r in reversed(kept)}
    return kept if seeds else [r for r in kept if first[r.campaign, r.dataset, r.model] is r]


def curve(record, quantity: str, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Time (t,) fs, and geometric mean over the starts (t,) of ``fv`` or ``deviation`` under a dynamics.

    For a reference that was simulated by the oracle, ``driven`` is ``nve``. ``None`` if there is no such
    curve.
    """
    if (
        name == "driven"
        and f"{quantity}_driven" not in record.curves
        and np.isfinite(value(record, "horizon_driven"))
    ):
        name = "nve"
    values = record.curves.get(f"{quantity}_{name}")
    if values is None:
        return None
    values = np.where(values > 0, values, np.nan)
    return record.curves["time"][: values.shape[1]], plots.replica_mean(values, geometric=True)


def text(record, name: str) -> str:
    """Text of a horizon with its 95 % interval, fs; with ``>`` if the simulations ended before it.

    An open end of the interval is that of the runs.

    Examples
    --------
    >>> from egraff_utils.records import Metric, Record
    >>> found = [Metric("horizon_nve", 40.0, "fs", 30.0, None), Metric("horizon_nve_reached", 0.0, "1")]
    >>> text(Record("horizon", "demo", "ethanol", "mace", 0, {}, found), "nve")
    '> 40 (from 30)'
    """
    metrics = {m.name: m for m in record.metrics}
    here = metrics.get(f"horizon_{name}")
    if here is None or here.value is None:
        return ""
    if not value(record, f"horizon_{name}_reached"):
        return f"> {here.value:.0f}" + (
            f" (from {here.low:.0f})" if (here.low or here.value) < here.value else ""
        )
    end = record.parameters.get("duration" if name == "driven" else "short", np.nan)
    high = f"over {end:.0f}" if here.high is None else f"{here.high:.0f}"
    return f"{here.value:.0f} ({here.low:.0f} to {high})"


def table(found: list, apart: dict) -> pd.DataFrame:
    """Horizons with intervals, fs, and `letters`, one row per dataset and dynamics, one column per model.

    Parameters
    ----------
    found
        Records of a campaign.
    apart
        Name of a dynamics -> its pairs (`told_apart`).
    """
    rows, marks = {}, {name: letters(found, pairs, name) for name, pairs in apart.items()}
    for record in following(found):
        for name in apart:
            if shown := text(record, name):
                mark = marks[name].get((record.dataset, record.model, record.seed), "")
                row = rows.setdefault((short_title(record.dataset), TITLES[name]), {})
                row[record.model] = f"{shown} {mark}".strip()
    return _frame(rows, ["Dataset", "Dynamics"])


def _frame(rows, levels):
    index = pd.MultiIndex.from_tuples(rows, names=levels)
    models = order_models({model for row in rows.values() for model in row})
    made = pd.DataFrame(
        [list(map(row.get, models)) for row in rows.values()], index=index, columns=models, dtype=object
    )
    return made.rename_axis(columns="model")


def own_costs(found: list) -> pd.DataFrame:
    """FV of a model compared with itself at the end of the shorter runs, and of its forces at the start.

    Values are medians over models, dimensionless.
    """
    rows = {}
    for record in following(found):
        for name in ("start", "noise", "friction", "control"):
            rows.setdefault(record.dataset, {}).setdefault(name, []).append(value(record, f"fv_{name}"))
    heads = {"start": "single prediction"} | TITLES
    made = {d: {heads[n]: _median(v) for n, v in row.items()} for d, row in rows.items()}
    return pd.DataFrame.from_dict(made, orient="index").rename_axis("dataset").dropna(axis=1, how="all")


def reference_checks(found: list) -> pd.DataFrame:
    """Properties of the references from their frames alone, those of ``check_reference``."""
    heads = {
        "reference_temperature": "Temperature over 3N, as MD17 counts (K)",
        "reference_friction": "Friction (1/fs)",
        "reference_residual": "Unexplained (%)",
        "reference_residual_friction": "Unexplained with friction (%)",
        "reference_step_error": "One step (10⁻⁶ Å)",
        "reference_step_error_friction": "One step with friction (10⁻⁶ Å)",
    }
    scale = {"reference_residual": 100, "reference_residual_friction": 100}
    scale |= {"reference_step_error": 1e6, "reference_step_error_friction": 1e6}
    first = {record.dataset: record for record in reversed(following(found))}
    rows = {
        d: {h: value(first[d], n) * scale.get(n, 1) for n, h in heads.items()} for d in order_datasets(first)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(heads.values())).rename_axis("dataset")


def _median(values):
    values = [v for v in values if np.isfinite(v)]
    return float(np.median(values)) if values else np.nan


def told_apart(found: list, name: str = "driven") -> dict[str, dict]:
    """Which pairs of models on one dataset have different horizons, dataset -> pair -> whether it differs.

    Two models that follow the same starts are compared by exact permutation: under the hypothesis that they
    are alike, the curves of any start may be exchanged, and p is the share of exchanges after which the
    horizons are at least as far apart as they are. A horizon that was not reached counts as the length of the
    runs. Pairs differ at 5 % after correction for the number of all pairs (Holm 1979).

    Parameters
    ----------
    found
        Records of a campaign.
    name
        Name of a dynamics.

    Returns
    -------
    Dataset -> (record, record), as places among the records of the dataset -> whether they differ.
    """
    p = {}
    for dataset, group in _grouped(found):
        known = [(place, r) for place, r in enumerate(group) if _violations(r, name) is not None]
        for (one, first), (other, second) in combinations(known, 2):
            p[dataset, one, other] = chance_of_difference(first, second, name)
    made = {dataset: {} for dataset, _ in _grouped(found)}
    for (dataset, *pair), adjusted in zip(p, statistics.holm(list(p.values())), strict=True):
        made[dataset][tuple(pair)] = bool(adjusted < 0.05)
    return made


def chance_of_difference(first, second, name: str = "driven") -> float:
    """Chance of horizons at least as far apart if the two models were alike, see `told_apart`.

    All exchanges are tried for up to ``MOST_EXCHANGED`` starts, else as many random ones.
    """
    one, other = (_violations(r, name) for r in (first, second))
    starts, frames = np.minimum(one.shape, other.shape)
    one, other = one[:starts, :frames], other[:starts, :frames]
    time, floor = first.curves["time"][:frames], value(first, "floor_fv")
    if starts <= MOST_EXCHANGED:
        exchanged = np.arange(2 ** (starts - 1))[:, None] >> np.arange(starts) & 1
    else:
        exchanged = np.random.default_rng(0).integers(2, size=(2 ** (MOST_EXCHANGED - 1), starts))
        exchanged[0] = 0
    apart = divergence.exchanged_differences(time, one, other, floor, exchanged.astype(bool))
    return float(np.mean(abs(apart) >= abs(apart[0]) - 1e-9))


def pairs_apart(apart: dict[str, dict]) -> tuple[int, int]:
    """Number of pairs of models on one dataset whose horizons differ (`told_apart`), and of all pairs."""
    pairs = [different for group in apart.values() for different in group.values()]
    return sum(pairs), len(pairs)


def longest(found: list, apart: dict[str, dict], name: str = "driven") -> str:
    """Which models follow their reference longer than each of the others on a dataset, as a sentence.

    On a dataset they are the fewest models each of which differs from all that are not among them; they may
    differ from each other. ``apart`` holds the pairs of the dynamics (`told_apart`).
    """
    words = []
    compared = [(dataset, group) for dataset, group in _grouped(found) if apart[dataset]]
    for dataset, group in compared:
        differ = apart[dataset]
        order = _ranked(differ, group, name)
        for count in range(1, len(order)):
            first, rest = order[:count], order[count:]
            if all(differ[min(a, b), max(a, b)] for a in first for b in rest):
                ahead, behind = (_each([group[p].model for p in places]) for places in (first, rest))
                words.append(f"on {short_title(dataset)} {ahead} is told to follow it longer than {behind}")
                break
    if not words:
        return "On none of the datasets are some weights told to follow it longer than each of the others"
    if len(words) < len(compared):
        words.append("on the others no such group exists")
    return "; ".join(words).replace("on", "On", 1)


def _ranked(pairs, group, name):
    """Places of the records of pairs, that with the longest horizon first."""
    return sorted({p for pair in pairs for p in pair}, key=lambda p: -value(group[p], f"horizon_{name}"))


def _each(models):
    names = [titles.model_title(model) for model in models]
    return ("each of " if len(names) > 1 else "") + listed(names)


def letters(found: list, apart: dict[str, dict], name: str = "driven") -> dict[tuple, str]:
    """Letters of horizons, (dataset, model, seed) -> letters; ``a`` is in the group of the longest.

    Two models on a dataset that share a letter are not told apart; ``apart`` holds the pairs of the dynamics
    (`told_apart`).
    """
    made = {}
    for dataset, group in _grouped(found):
        pairs = apart[dataset]
        differ = [pair for pair, different in pairs.items() if different]
        for place, text in statistics.compact_letters(_ranked(pairs, group, name), differ).items():
            made[dataset, group[place].model, group[place].seed] = text
    return made


def detectable(found: list, name: str = "driven") -> float:
    """Difference of two horizons that would be found in 80 % of cases, fs, as median over pairs.

    It is a multiple of the standard deviation of the difference over resamples of the starts, 2.8 for one
    pair and more with the correction for the number of all pairs (Bonferroni's, the most cautious step of
    Holm's). Pairs with a censored end are left out, and the result is nan without a pair.
    """
    drawn = [[draw for r in group if (draw := _draws(r, name)) is not None] for _, group in _grouped(found)]
    pairs = [pair for draws in drawn for pair in combinations(draws, 2)]
    widths = [np.std(one - other, ddof=1) for one, other in pairs if np.isfinite([one, other]).all()]
    factor = ndtri(1 - 0.025 / max(len(pairs), 1)) + ndtri(0.8)
    return float(factor * np.median(widths)) if widths else float("nan")


def _violations(record, name):
    """FV of every start under a dynamics, shape (S, t), or None; a live reference has its own dynamics."""
    if name == "driven" and "fv_driven" not in record.curves and np.isfinite(value(record, "horizon_driven")):
        name = "nve"
    return record.curves.get(f"fv_{name}")


def _draws(record, name):
    fv = _violations(record, name)
    if fv is None:
        return None
    return divergence.resamples(record.curves["time"][: fv.shape[1]], fv, value(record, "floor_fv"))


def _grouped(found):
    groups = {}
    for record in following(found):
        groups.setdefault(record.dataset, []).append(record)
    return groups.items()


def cells(found: list, frame: pd.DataFrame, name: str = "driven") -> pd.DataFrame:
    """Force MAE (meV/Å), horizon (fs) and whether it was reached, one row per dataset, model and seed."""
    errors = frame[(frame.kind == "training") & (frame.metric == "force_mae")]
    errors = errors.set_index(["dataset", "model", "seed"]).value
    rows = [
        (r.dataset, r.model, errors.get((r.dataset, r.model, r.seed), np.nan), value(r, f"horizon_{name}"),
         value(r, f"horizon_{name}_reached"))
        for r in following(found, seeds=True)
    ]  # fmt: skip
    made = pd.DataFrame(rows, columns=["dataset", "model", "force_mae", "horizon", "reached"])
    return made.dropna(subset=["force_mae", "horizon"])


def within(pairs: pd.DataFrame) -> tuple[float, int]:
    """Mean over datasets of the rank correlation of force MAE and horizon, and the number of datasets.

    Several seeds of a model are averaged.
    """
    means = pairs.groupby(["dataset", "model"])[["force_mae", "horizon"]].mean()
    found = [rank_correlation(g.force_mae, g.horizon) for _, g in means.groupby(level="dataset")]
    found = [r for r in found if np.isfinite(r)]
    return (float(np.mean(found)) if found else np.nan), len(found)


def following_grid(found: list, quantity: str = "fv", *, names=("driven",), datasets=None) -> Figure:
    """FV or deviation of all models along the reference, with one panel per dataset and the floor of FV.

    Parameters
    ----------
    found
        Records of a campaign.
    quantity
        ``"fv"`` or ``"deviation"``.
    names
        Names of the dynamics, each of which has a line style.
    datasets
        Panels that are shown; by default all with records.
    """
    groups = {d: g for d, g in _grouped(found) if datasets is None or d in datasets}
    columns = min(2, max(len(groups), 1))
    rows = max(-(-len(groups) // columns), 1)
    size = (7.4 if columns > 1 else 5.2, 2.4 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    panels = list(axes.flat)
    for ax, (dataset, group) in zip(panels, groups.items(), strict=False):
        _draw(ax, group, quantity, names)
        ax.set_title(short_title(dataset), fontsize="small", loc="left")
    for ax in panels[len(groups) :]:
        ax.set_axis_off()
    if not groups:
        panels[0].text(0.5, 0.5, "not run", transform=panels[0].transAxes, ha="center", color="0.4")
    figure.supxlabel("Time (fs)", fontsize="medium")
    figure.supylabel(quantities.of(quantity).written_out, fontsize="medium")
    models = order_models({r.model for group in groups.values() for r in group})
    handles = look.model_handles(models, dashes=len(names) == 1, linewidth=1.6)
    if len(names) > 1:
        handles += [Line2D([], [], color="0.3", linestyle=LINES[n], label=TITLES[n]) for n in names]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    return figure


def _draw(ax, group, quantity, names):
    for record in group:
        for name in names:
            if (line := curve(record, quantity, name)) is not None:
                own = look.model_line(record.model) | ({"linestyle": LINES[name]} if len(names) > 1 else {})
                ax.plot(*line, **own, linewidth=1.2)
    floor = _median([value(record, "floor_fv") for record in group])
    if quantity == "fv" and np.isfinite(floor):
        plots.plot_floor(ax, floor)
        ax.axhline(floor / 2, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    if ax.lines:
        look.set_log_scale(ax, "y")


def plot_errors(pairs: pd.DataFrame) -> Figure:
    """Horizon against force MAE, with a marker per dataset, hollow and with an arrow if censored."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    names = order_datasets(pairs.dataset.unique())
    for row in pairs.itertuples():
        marker, color = look.MARKERS[names.index(row.dataset)], look.model_color(row.model)
        face = color if row.reached else "none"
        ax.plot(
            row.force_mae, row.horizon, marker=marker, color=color, markerfacecolor=face, linestyle="none"
        )
        if not row.reached:
            ax.annotate("", (row.force_mae, row.horizon * 1.15), (row.force_mae, row.horizon),
                        arrowprops={"arrowstyle": "->", "color": color})  # fmt: skip
    ax.set(xlabel=quantities.of("force_mae").head, ylabel=quantities.of("horizon_driven").head)
    for axis in "xy" if len(pairs) else "":
        look.set_log_scale(ax, axis)
    models = order_models(pairs.model.unique())
    handles = look.model_handles(models, linewidth=2.2)
    handles += panels.dataset_handles(dict(zip(names, look.MARKERS, strict=False)))
    if handles:
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color="0.4")
    return figure
