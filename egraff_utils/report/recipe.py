"""Which size, optimiser and rate learn most in equal time? Short trainings are compared on validation sets.

The records are those of ``python -m benchmarks.search``, of kinds ``search_size_<rule>``, ``search_cost``,
``search_recipe`` and ``search_rate``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import cards, models
from egraff_utils.report import look
from egraff_utils.report.beside import MODELS, cell_place
from egraff_utils.report.comparison import order_models
from egraff_utils.report.titles import model_title
from egraff_utils.report.values import count
from egraff_utils.train import optimizers as optim

RULES = {"paper_narrow": "the paper's depth, narrow", "equal_dynamics": "equal cost of dynamics"}
"""Rule for choosing the sizes of a campaign -> its name for readers."""
OPTIMIZERS = {"muon": "Muon", "adam": "Adam", "soap": "SOAP"}
GAIN = 0.95
"""Largest ratio of errors, in the geometric mean, for which a change of the recipe is adopted."""
SHARE = 4
"""Ratio of the best rate of the short trainings to the rate of preset ``day``."""
DIVERGED = "diverged"
ALL = "geometric mean"


def candidates(found: Iterable, kind: str = "search_recipe") -> pd.DataFrame:
    """Trainings of a search, one row each.

    Parameters
    ----------
    found
        Records; those of other kinds are ignored.
    kind
        ``search_recipe`` or ``search_rate``.

    Returns
    -------
    DataFrame with ``dataset``, ``model``, ``label``, ``optimizer`` and ``rate`` (NaN for a change to the best
    recipe), ``force_mae`` (validation, meV/Å; NaN if the training diverged).
    """
    frames = [pd.DataFrame(columns=["dataset", "model", "label", "optimizer", "rate", "force_mae"])]
    for record in _in_order(r for r in found if r.kind == kind):
        labels = pd.Series(record.curves["label"].astype(str))
        name, rate = labels.str.extract(rf"^({'|'.join(OPTIMIZERS)}) (.*)$").T.to_numpy()
        frame = {"label": labels, "optimizer": name, "rate": rate.astype(float)}
        frame |= {"force_mae": record.curves["force_mae"]}
        frames.append(pd.DataFrame({"dataset": record.dataset, "model": record.model, **frame}))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def work(found: Iterable) -> pd.DataFrame:
    """Number of trainings of the short search, and how unequal their steps were.

    Returns
    -------
    DataFrame, a row a dataset and model: ``trainings``, and ``slowest over fastest step``, the largest ratio
    of mean times of a step among trainings with the same optimiser and size of batch.
    """
    rows = {}
    for record in _in_order(r for r in found if r.kind == "search_recipe"):
        labels = record.curves["label"].astype(str).tolist()
        groups = [label if label.startswith("batch") else label.partition(" ")[0] for label in labels]
        groups = [name if name in OPTIMIZERS or name in labels else "changed" for name in groups]
        times = pd.Series(record.curves["milliseconds"]).groupby(groups)
        rows[record.dataset, record.model] = {
            "trainings": len(labels),
            "slowest over fastest step": (times.max() / times.min()).max(),
        }
    return _table(rows).reindex(columns=["trainings", "slowest over fastest step"])


def muon_shares(preset: str = "day") -> str:
    """Share of the parameters that Muon moves, model by model, in words."""
    shares = []
    for name in MODELS:
        network = models.build(name, preset).network
        moved = sum(math.prod(shape) for blocks in optim.matrices(network).values() for _, shape in blocks)
        total = sum(p.numel() for p in network.parameters())
        shares.append(f"{100 * moved / total:.0f} % of {model_title(name)}")
    return ", ".join(shares)


def optimizers(found: Iterable) -> pd.DataFrame:
    """Lowest error of every optimiser over its rates, as text with that rate, by dataset and model.

    Columns are the names of the optimisers, meV/Å. A ``*`` marks a rate at the end of those that were tried.
    """
    return _table(
        {
            key: {
                f"{title} (meV/Å)": _least(tried[tried.optimizer == name])
                for name, title in OPTIMIZERS.items()
            }
            for key, tried in candidates(found).groupby(["dataset", "model"], sort=False)
        }
    )


def _least(tried):
    if tried.empty:
        return np.nan
    if tried.force_mae.isna().all():
        return DIVERGED
    best = tried.loc[tried.force_mae.idxmin()]
    end = "*" if best.rate in (tried.rate.min(), tried.rate.max()) else ""
    return f"{best.force_mae:.3g} at {best.rate:g}{end}"


def gains(found: Iterable, other: str = "adam") -> pd.Series:
    """Ratio of the lowest errors of another optimiser and Muon, by dataset and model, if both were tried."""
    frame = candidates(found)
    least = {
        name: of_one.groupby(["dataset", "model"], sort=False).force_mae.min().fillna(np.inf)
        for name, of_one in frame.groupby("optimizer")
    }
    return (
        (least[other] / least["muon"]).dropna() if {other, "muon"} <= set(least) else pd.Series(dtype=float)
    )


def changes(found: Iterable) -> pd.DataFrame:
    """Ratio of the error after one change to the best recipe to the error without it.

    Returns
    -------
    DataFrame with one row per dataset and model, and a row :data:`ALL`. Values are infinite if the training
    diverged, and NaN if the change was not tried.
    """
    rows = {}
    for key, of_model in candidates(found).groupby(["dataset", "model"], sort=False):
        known = of_model.optimizer.notna()
        changed = of_model[~known].set_index("label").force_mae.fillna(np.inf)
        if len(changed):
            rows[key] = changed / of_model[known].force_mae.min()
    table = _table(rows)
    if rows:
        table.loc[(ALL, ""), :] = np.exp(np.log(table).mean())
    return table


def taken_over(found: Iterable) -> list:
    """Changes that reduce the error to less than :data:`GAIN` of it."""
    table = changes(found)
    return [name for name, ratio in table.loc[(ALL, "")].items() if ratio < GAIN] if len(table) else []


def best_rates(found: Iterable) -> pd.Series:
    """Rate at which Muon reached its lowest error in the short trainings, by dataset and model."""
    frame = candidates(found)
    frame = frame[(frame.optimizer == "muon") & frame.force_mae.notna()]
    best = frame.groupby(["dataset", "model"], sort=False).force_mae.idxmin()
    return frame.rate[best].set_axis(best.index)


def rates(found: Iterable) -> pd.DataFrame:
    """Errors (meV/Å) of longer trainings at the best rate of the short ones, its half and its quarter.

    Returns
    -------
    DataFrame with one row per dataset and model: ``best rate of short trainings``, the errors at ``it``,
    ``its half`` and ``its quarter`` if they were tried, and ``rate of preset day``, from the card.
    """
    rows = {
        key: {
            "best rate of short trainings": f"{rate:g}",
            "rate of preset day": f"{cards.model(key[1]).training('day').learning_rate:g}",
        }
        for key, rate in best_rates(found).items()
    }
    for (dataset, model), tried in candidates(found, "search_rate").groupby(["dataset", "model"], sort=False):
        errors = tried.sort_values("rate", ascending=False).force_mae.map(
            lambda error: DIVERGED if np.isnan(error) else f"{error:.3g}"
        )
        heads = ("error at it (meV/Å)", "at its half (meV/Å)", "at its quarter (meV/Å)")
        rows[dataset, model] |= dict(zip(heads, errors, strict=False))
    return _table(rows)


def quarter_is_best(found: Iterable) -> str:
    """Number of longer searches of the rate whose lowest rate left the least error, among all, as text."""
    groups = candidates(found, "search_rate").groupby(["dataset", "model"], sort=False)
    return count([row.sort_values("force_mae").rate.iloc[0] == row.rate.min() for _, row in groups])


def sizes(found: Iterable) -> pd.DataFrame:
    """Validation force MAE (meV/Å) after equal times, with rows by dataset and model, and columns by rule."""
    rows = {}
    for record in _in_order(r for r in found if r.kind.startswith("search_size_")):
        title = RULES[record.kind.removeprefix("search_size_")]
        rows.setdefault((record.dataset, record.model), {})[title] = record["best_force_mae"]
    return _table(rows).reindex(columns=list(RULES.values()))


def costs(found: Iterable) -> pd.DataFrame:
    """Time of energies and forces of five frames with frozen weights (ms), in the form of `sizes`."""
    rows = {
        (record.dataset, record.model): {title: record[rule] for rule, title in RULES.items()}
        for record in _in_order(r for r in found if r.kind == "search_cost")
    }
    return _table(rows).reindex(columns=list(RULES.values()))


def _in_order(found):
    return sorted(found, key=lambda r: cell_place((r.dataset, r.model)))


def _table(rows):
    index = pd.MultiIndex.from_tuples(list(rows), names=["dataset", "model"])
    return pd.DataFrame(list(rows.values()), index=index)


def rate_grid(found: Iterable, dataset: str) -> Figure:
    """Validation error against learning rate, by model (panels) and optimiser (lines); crosses diverged."""
    frame = candidates(found)
    frame = frame[(frame.dataset == dataset) & frame.optimizer.notna()]
    models = order_models(set(frame.model))
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 4.6), sharex=True, sharey=True)
    for ax, model in zip(axes.flat, models, strict=False):
        for (name, title), line, marker in zip(OPTIMIZERS.items(), ("-", "--", ":"), "o^s", strict=True):
            tried = frame[(frame.model == model) & (frame.optimizer == name)].sort_values("rate")
            color = look.model_color(model) if name == "muon" else "0.4"
            ax.plot(tried.rate, tried.force_mae, line, marker=marker, color=color, label=title, markersize=4)
            lost = tried[tried.force_mae.isna()]
            ax.plot(lost.rate, [frame.force_mae.max()] * len(lost), "x", color=color)
        ax.set_title(model_title(model), fontsize="small", loc="left")
    for ax in axes.flat:
        ax.set_visible(bool(ax.get_title(loc="left")))
        for axis in "xy":
            look.set_log_scale(ax, axis)
    figure.supxlabel("Learning rate (dimensionless)", fontsize="medium")
    figure.supylabel("Validation force MAE (meV/Å)", fontsize="medium")
    if models:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
