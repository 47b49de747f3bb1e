"""Which simulations break, when and why? Survival of replicas, and the last frames of those that broke.

A replica is *censored* if it was valid to its end, because its steps were done or the time limit was reached.
Symbols: R replicas, L last frames, N atoms.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egraff_utils import cards, data, statistics
from egraff_utils.config import Kind
from egraff_utils.report import catalogue, lifetimes, look, shifts
from egraff_utils.report.beside import MODELS
from egraff_utils.report.comparison import order_datasets, order_models
from egraff_utils.report.lifetimes import LogRank, kaplan_meier, log_rank, restricted_mean
from egraff_utils.report.titles import model_title, short_title
from egraff_utils.report.values import listed

HOME, AS_CODED = "like the training set", "as coded"
SETTINGS = {
    "temperature": "hotter",
    "lips20_crystals": "other crystals",
    "lips20_compositions": "other compositions",
    "benzene": "another molecule",
}
"""Task out of distribution -> what is new to the model."""
ORDER = (HOME, *SETTINGS.values(), AS_CODED)
"""All settings in the order of tables."""

COLUMNS = (
    "kind",
    "dataset",
    "composition",
    "setting",
    "model",
    "seed",
    "replica",
    "step",
    "time",
    "asked",
    "temperature",
    "broke",
    "cause",
    "end",
    "path",
)


# -- the runs -------------------------------------------------------------------------------------------


def replicas(found) -> pd.DataFrame:
    """Ends of all replicas of a campaign.

    A pooled record is replaced by those of its compositions if these exist, and each composition counts once.
    A run that failed altogether simulated nothing and has no rows, see `failed_runs`.

    Parameters
    ----------
    found
        Records of any kind, as returned by `records.read_all`.

    Returns
    -------
    DataFrame with one row per replica: ``kind`` (of the pooled record for a composition), ``dataset``,
    ``composition``, ``setting`` (see `setting`), ``model``, ``seed``, ``replica``, ``step`` (the last valid
    one), ``time`` (of that step, fs), ``asked`` (steps), ``temperature`` (target, K), ``broke``, ``cause`` (a
    :class:`~egraff_utils.breaks.Cause`, or empty), ``end`` (``"broke"``, ``"steps done"`` or ``"time up"``)
    and ``path`` (of the record). No value is NaN.
    """
    rows = [row for kind, record in runs(found) for row in rows_of(kind, record)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"step": int, "time": float, "asked": int, "broke": bool})


def runs(found) -> list:
    """Rollouts of models as pairs of a kind and a record, with each simulation listed once.

    For a record of a composition, the kind is that of the pooled record.
    """
    found = [r for r in found if r.model != "reference" and _is_rollout(r) and "stable_step" in r.curves]
    known = {r.key: r for r in found}
    pairs, parts = [], set()
    for record in found:
        names = dict.fromkeys(map(str, record.curves.get("composition", ())))
        keys = [record.key.of(shift=name) for name in names]
        if keys and all(key in known for key in keys):
            pairs += [(record.kind, known[key]) for key in keys]
        else:
            pairs.append((record.kind, record))
        parts |= set(keys)
    return [(kind, r) for kind, r in pairs if kind != r.kind or r.key not in parts]


def failed_runs(found) -> pd.DataFrame:
    """Rollouts without a trajectory, for instance because of missing data: dataset, model and message."""
    rows = [
        {"Dataset": short_title(r.dataset), "Model": model_title(r.model), "Message": r.message}
        for r in found
        if r.status == "failed" and _is_rollout(r)
    ]
    return pd.DataFrame(rows, columns=["Dataset", "Model", "Message"])


def _is_rollout(record):
    """Whether a record is a rollout, or the failure of one."""
    if Kind.parse(record.kind).act == "failure":
        return str(record.parameters.get("notebook", "")).startswith(("rollout/", "yours/", "ood/"))
    return Kind.parse(record.kind).act == "rollout"


def rows_of(kind, record):
    asked = record.parameters.get("steps") or 0
    same = {"kind": kind, "dataset": record.dataset, "setting": setting(kind, record.dataset)}
    same |= {"model": record.model, "seed": record.seed, "asked": asked, "path": str(record.path)}
    ends = {end.replica: end for end in record.breaks}
    split = record.parameters.get("split", "test")
    stable = record.curves["stable_step"]
    names = record.curves.get("composition", ["" if split.startswith("test") else split] * len(stable))
    rows = []
    for place, (step, name) in enumerate(zip(stable, names, strict=True)):
        temperature, timestep = conditions(record, str(name))
        broke = place in ends
        step = ends[place].step if broke else int(step)
        end = "broke" if broke else "steps done" if step >= asked else "time up"
        row = {"composition": str(name), "replica": place, "step": step, "time": float(step * timestep)}
        row |= {"temperature": temperature, "broke": broke, "end": end}
        row["cause"] = ends[place].cause if broke else ""
        rows.append(same | row)
    return rows


@lru_cache(maxsize=64)
def _frames(dataset, split):
    return data.load(dataset, split) if catalogue.at_hand(dataset, split) else None


def reference_frames(record):
    """Frames of the split that a rollout started from, a list of ``ase.Atoms``; None if not available."""
    dataset, split = record.parameters.get("target") or record.dataset, record.parameters.get("split", "test")
    return _frames(dataset, split) if dataset in cards.datasets() else None


def conditions(record, composition=""):
    """Target temperature (K) and timestep (fs) of a rollout, or of a composition of a pooled rollout."""
    asked = record.parameters.get("temperature"), record.parameters.get("timestep")
    card = record.parameters.get("target") or record.dataset
    if None in asked and card in cards.datasets():
        split = composition or record.parameters.get("split", "test")
        default = cards.dataset(card).conditions(split)
        asked = tuple(d if a is None else a for a, d in zip(asked, default, strict=True))
    return tuple(float(a or 0) for a in asked)


def setting(kind: str, dataset: str) -> str:
    """Setting of a rollout, which is :data:`HOME`, a shift in :data:`SETTINGS`, or :data:`AS_CODED`.

    Examples
    --------
    >>> setting("rollout", "ethanol"), setting("rollout", "3bpa"), setting("rollout_300K", "3bpa")
    ('like the training set', 'hotter', 'like the training set')
    """
    if Kind.parse(kind).protocol:
        return AS_CODED
    for task, title in SETTINGS.items():
        for shift in shifts.TASKS[task]:
            if shift.dataset == dataset and kind in (*shift.kinds(shifts.OUT, rollout=True), *_parts(shift)):
                return title
    return HOME


def _parts(shift):
    """Kinds of the compositions of a shifted set."""
    card = cards.dataset(shift.target or shift.dataset)
    return [str(Kind("rollout", shift=part)) for part in card.parts(shift.away) if part != shift.away]


# -- survival -------------------------------------------------------------------------------------------


def most_broken(table: pd.DataFrame) -> str:
    """The two trainings, datasets and settings with the most broken replicas and their numbers, as text.

    Parameters
    ----------
    table
        Rows of `replicas`.
    """
    groups = table.groupby(["model", "seed", "dataset", "setting"]).broke
    broken, sizes = groups.sum().sort_values(ascending=False, kind="stable")[:2], groups.size()
    words = [
        f"{model_title(model)} on {place_name(*where)}, seed {seed} ({n} of {sizes[model, seed, *where]})"
        for (model, seed, *where), n in broken[broken > 0].items()
    ]
    return " and ".join(words) or "none"


def place_name(dataset: str, setting: str) -> str:
    """Dataset that a model was trained on, and what else it was simulated on, if it was.

    Examples
    --------
    >>> place_name("ethanol", "another molecule"), place_name("lips", HOME)
    ('Ethanol → another molecule', 'LiPS')
    """
    return short_title(dataset) + (f" → {setting}" if setting in SETTINGS.values() else "")


def compare_settings(table: pd.DataFrame) -> tuple[dict, dict]:
    """`compare_models` of every setting: setting -> its overall test, and setting -> its pairs."""
    found = {name: compare_models(table[table.setting == name]) for name in settings(table)}
    tests, pairs = ({name: each[place] for name, each in found.items()} for place in (0, 1))
    return tests, pairs


def adjusted(tests: dict) -> dict[str, float]:
    """Setting -> p value of its overall test, corrected for the number of settings (Holm 1979)."""
    return dict(zip(tests, map(float, statistics.holm([test.p for test in tests.values()])), strict=True))


def differ(tests: dict, compared: dict) -> str:
    """In which settings the models differ at 5 %, as a sentence without its full stop.

    Parameters
    ----------
    tests, compared
        Both parts of `compare_settings`.
    """
    found = {name: p for name, p in adjusted(tests).items() if p < 0.05}
    start = "After Holm's correction over the settings the models"
    if not found:
        return f"{start} are told to differ on none of them"
    blind = all((compared[name].p >= 0.05).all() for name in found)
    words = listed([f"{name} (p = {p:.2g})" for name, p in found.items()])
    return f"{start} differ on {words}" + (
        "; which pairs differ these few replicas do not tell" if blind else ""
    )


def told_apart(compared: dict) -> str:
    """Pairs of models that differ at 5 %, as text.

    Parameters
    ----------
    compared
        Setting -> pairs of `compare_models`, as `compare_settings` gives them.
    """
    words = [
        f"{model_title(row.first)} and {model_title(row.second)} ({name}, p = {row.p:.3f})"
        for name, pairs in compared.items()
        for row in pairs[pairs.p < 0.05].itertuples(index=False)
    ]
    return "; ".join(words) or "none"


def could_be_told(table: pd.DataFrame, compared: dict) -> str:
    """What `told_apart` would have found in 80 % of cases, by setting, as text.

    Only replicas that are relabelled one by one count, which leaves out datasets with several trainings.

    Parameters
    ----------
    table
        Rows of `replicas`.
    compared
        As in `told_apart`.
    """
    words = []
    for name, pairs in compared.items():
        here = table[table.setting == name]
        alone = here[~units(here).duplicated(keep=False)]
        count = int(alone.groupby("model").size().median()) if len(alone) else 0
        share = lifetimes.detectable_share(count, max(len(pairs), 1))
        found = f"from {share:.0%} on" if np.isfinite(share) else "never"
        words.append(f"{name} {found}, of {count} replicas")
    return "; ".join(words) or "none"


def units(table: pd.DataFrame) -> pd.Series:
    """What a comparison of models relabels as a whole, one name per replica.

    It is the training on a dataset on which some model was trained more than once, as replicas of a training
    are alike, and else the replica itself.
    """
    trained = table.groupby(["dataset", "model"]).seed.transform("nunique")
    several = trained.groupby(table.dataset).transform("max") > 1
    training = table.dataset + "/" + table.model + "/" + table.seed.astype(str)
    return training.where(several, table.index.astype(str))


def compare_models(table: pd.DataFrame, **options) -> tuple[LogRank, pd.DataFrame]:
    """Comparison of models within simulations of the same kind, dataset and composition.

    The p value of a pair is corrected for the number of pairs (Holm 1979). Where each model was trained once,
    it applies to these trainings, not to the architectures, as the model of another training may break
    elsewhere; where models were trained several times, whole trainings are relabelled (`units`).

    Returns
    -------
    overall : LogRank
    pairs : DataFrame
        Columns ``first``, ``second``, ``p``; the most different pair comes first.
    """
    strata, unit = table.kind + "/" + table.dataset + "/" + table.composition, units(table)
    columns = (table.step, table.broke, table.model, strata, unit)
    overall = log_rank(*columns, **options)
    rows = []
    for pair in itertools.combinations(order_models(set(table.model)), 2):
        here = table.model.isin(pair)
        both = here & strata.isin(set(strata[table.model == pair[0]]) & set(strata[table.model == pair[1]]))
        rows.append((*pair, log_rank(*(column[both] for column in columns), **options).p))
    pairs = pd.DataFrame(rows, columns=["first", "second", "p"]).sort_values(
        "p", ignore_index=True, kind="stable"
    )
    pairs["p"] = statistics.holm(pairs.p)
    return overall, pairs


# -- tables ---------------------------------------------------------------------------------------------


def survivors(table: pd.DataFrame) -> pd.DataFrame:
    """Number of valid replicas, as ``4 of 5``, by setting and dataset (rows) and model (columns).

    A cell without replicas has ``not run``.
    """
    grouped = table.groupby(["setting", "dataset", "model"]).broke
    text = (grouped.size() - grouped.sum()).astype(str) + " of " + grouped.size().astype(str)
    order = [(s, d) for s in settings(table) for d in order_datasets(set(table.dataset[table.setting == s]))]
    wide = text.unstack("model").reindex(pd.MultiIndex.from_tuples(order, names=["setting", "dataset"]))
    return wide.reindex(columns=order_models({*MODELS, *table.model})).fillna("not run")


def settings(table: pd.DataFrame) -> list[str]:
    """Settings that occur in a table, in a fixed order."""
    return [name for name in ORDER if (table.setting == name).any()]


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Restricted mean length of a valid run, by setting and model, as a fraction of the requested steps.

    Steps are counted in units of the requested ones. The limit is where the first model of the setting has no
    more valid runs, so that all models are compared up to the same time.

    Returns
    -------
    DataFrame with the index (setting, model): ``replicas``, ``broke`` (counts), ``valid`` (valid fraction at
    the limit by Kaplan and Meier), ``low``, ``high`` (its 95 % interval), ``mean``, ``mean low``, ``mean
    high`` (restricted mean) and ``limit`` (all in units of the requested steps).
    """
    rows = {}
    for name in settings(table):
        here = table[table.setting == name]
        part = here.step / here.asked.clip(lower=1)
        models = {model: here.model == model for model in order_models(set(here.model))}
        limit = min(_follow_up(part[own], here.broke[own]) for own in models.values())
        for model, own in models.items():
            curve = kaplan_meier(part[own], here.broke[own])
            at = np.searchsorted(curve[0], limit, side="right") - 1
            mean = restricted_mean(part[own], here.broke[own], limit)
            counts = (int(own.sum()), int(here.broke[own].sum()))
            rows[name, model] = (*counts, *(float(line[at]) for line in curve[1:]), *mean, limit)
    columns = ["replicas", "broke", "valid", "low", "high", "mean", "mean low", "mean high", "limit"]
    index = pd.MultiIndex.from_tuples(rows, names=["setting", "model"])
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def _follow_up(steps, broke):
    """Time up to which a curve is known: its last end, or no limit (1) if all replicas broke."""
    return 1.0 if broke.all() else float(steps.max())


# -- figures --------------------------------------------------------------------------------------------


def survival_grid(table: pd.DataFrame, by: str = "setting", *, x: str = "step") -> Figure:
    """Kaplan-Meier curves with their intervals, and markers where replicas were censored.

    There is one panel per setting, or per dataset of a setting in which a replica broke.

    Parameters
    ----------
    table
        DataFrame of `replicas`.
    by
        ``"setting"`` or ``"dataset"``.
    x
        ``"step"``, in units of the requested steps, or ``"time"``, fs.
    """
    group = table.setting if by == "setting" else table.dataset.map(short_title) + ", " + table.setting
    keys = settings(table) if by == "setting" else list(dict.fromkeys(group[table.broke]))
    columns = min(3, max(len(keys), 1))
    rows = -(-max(len(keys), 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.5, 0.8 + 2.1 * rows), squeeze=False, sharey=True)
    models = {}
    for ax, key in zip(axes.flat, keys, strict=False):
        here = table[group == key]
        spot = here.time if x == "time" else here.step / here.asked.clip(lower=1)
        for place, model in enumerate(order_models(set(here.model))):
            own = here.model == model
            models[model] = _draw_curve(ax, spot[own], here.broke[own], model, place)
        ax.set_title(key.replace(f", {HOME}", ""), fontsize="small", loc="left")
        ax.set(ylim=(-0.05, 1.05), xlim=(0, None))
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    if not keys:
        axes[0, 0].text(0.5, 0.5, "no replica broke", ha="center", va="center", color="0.4")
    figure.supxlabel(
        "Time (fs)" if x == "time" else "Steps over those asked for (dimensionless)", fontsize="medium"
    )
    figure.supylabel("Valid replicas (fraction)", fontsize="medium")
    if models:
        names = order_models(models)
        handles = [models[name] for name in names]
        figure.legend(handles, [model_title(name) for name in names], loc="outside upper center", ncols=6)
    return figure


def _draw_curve(ax, steps, broke, model, place):
    """Draw the curve of one model, slightly shifted so that equal curves can be distinguished."""
    ends, fraction, low, high = kaplan_meier(steps, broke)
    lift, own = 0.006 * (place - 2.5), look.model_line(model)
    color = own["color"]
    if np.any(broke):
        ax.fill_between(ends, low, high, step="post", color=color, alpha=0.12, linewidth=0)
    (line,) = ax.step(ends, fraction + lift, where="post", **own, linewidth=1.8)
    censored = np.asarray(steps)[~np.asarray(broke)]
    if len(censored):  # the layout fails on an empty artist that is not clipped, as it has no extent
        style = {"color": color, "markersize": 3.5, "clip_on": False}
        ax.plot(censored, fraction[np.searchsorted(ends, censored)] + lift, look.model_marker(model), **style)
    return line
