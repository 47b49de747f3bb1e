"""Which simulations break, when and why? Survival of replicas, and the last frames of those that broke.

A replica is *censored* if it was valid to its end, because its steps were done or the time limit was reached.
Symbols: R replicas, L last frames, N atoms.
"""

from __future__ import annotations

import itertools
import warnings
from functools import lru_cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase.geometry import find_mic
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy import stats

from egraff_utils import cards, data, records, statistics, structure
from egraff_utils.breaks import Break, Cause
from egraff_utils.config import Kind
from egraff_utils.md.stability import distances, heat_rule, stray_atoms, worst_bond
from egraff_utils.md.temperature import stationary_ratio
from egraff_utils.report import catalogue, plots, shifts
from egraff_utils.report.beside import MODELS, model_title, short_title
from egraff_utils.report.comparison import order_datasets, order_models

HOME, AS_CODED = "like the training set", "as coded"
SETTINGS = {
    "temperature": "hotter",
    "lips20_crystals": "other crystals",
    "lips20_compositions": "other compositions",
    "benzene": "another molecule",
}
"""Task out of distribution -> what is new to the model."""

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
MOVED_ON = "H now nearer to another"
"""Note on a bond whose hydrogen has changed its partner, which is a reaction rather than a defect."""

AROUND = 4.5
"""Radius around a failure in which the atoms of a periodic system are drawn, Å."""


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
    rows = [row for kind, record in runs(found) for row in _rows(kind, record)]
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
    if record.kind == "failure":
        return str(record.parameters.get("notebook", "")).startswith(("rollout/", "ood/"))
    return Kind.parse(record.kind).act == "rollout"


def _rows(kind, record):
    asked = record.parameters.get("steps") or 0
    same = {"kind": kind, "dataset": record.dataset, "setting": setting(kind, record.dataset)}
    same |= {"model": record.model, "seed": record.seed, "asked": asked, "path": str(record.path)}
    ends = {end.replica: end for end in breaks_of(record)}
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


def breaks_of(record) -> list[Break]:
    """Breaks of a rollout, one at most for each replica.

    In version 1 a replica that heats was not taken as broken. Its break is found from the stored
    temperatures, where the frames of the dataset are available and tell the number of atoms. Pooled records
    are left as they are.
    """
    known = {end.replica: end for end in record.breaks}
    frames = reference_frames(record) if record.parameters.get("version", 1) == 1 else None
    if frames is None or "composition" in record.curves or "temperature" not in record.curves:
        return record.breaks
    for end in _heated(record, frames[0]):
        if end.step < known.get(end.replica, end).step or end.replica not in known:
            known[end.replica] = end
    return [known[replica] for replica in sorted(known)]


def _heated(record, atoms):
    """Breaks by heat of a rollout whose curves are not thinned."""
    target, timestep = conditions(record)
    every = record.parameters.get("record_every", 1)
    if Kind.parse(record.kind).protocol:
        target *= stationary_ratio(atoms.get_masses())
    for replica, curve in enumerate(np.asarray(record.curves["temperature"], float)):
        curve = curve[np.isfinite(curve)]
        new = np.broadcast_to(atoms.positions, (len(curve), *atoms.positions.shape))
        verdict = heat_rule(new, curve, temperature=target, interval=timestep * every) if len(curve) else None
        if verdict is not None:
            step = max(verdict.frame - 1, 0) * every
            yield Break(replica, step, step * timestep, verdict.cause)


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


def kaplan_meier(steps, broke, *, level: float = 0.95):
    r"""Kaplan-Meier curve of the fraction of valid replicas, with its interval.

    .. math:: S(t) = \prod_{t_i \le t} \Big(1 - \frac{d_i}{n_i}\Big), \qquad
       \log(-\log S) \pm \frac{z}{|\log S|} \sqrt{\sum_{t_i \le t} \frac{d_i}{n_i (n_i - d_i)}}

    with :math:`d_i` failures among :math:`n_i` replicas at risk, and Greenwood's variance on the log-log
    scale (Kalbfleisch and Prentice 1980). This interval has no width where S is 1 or 0. There the exact
    interval is used (Clopper and Pearson 1934), of no failure among the replicas at risk, or of failures only
    among all replicas.

    Parameters
    ----------
    steps
        Last valid step of each replica, or its time, in any unit, shape ``(R,)``. The curve falls after it.
    broke
        Whether the replica broke there, shape ``(R,)``; the others are censored.
    level
        Nominal coverage, between 0 and 1.

    Returns
    -------
    steps, fraction, low, high : ndarray
        Zero and every distinct end, and values that hold from there to the next end, shape ``(E,)``.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> t, fraction, low, high = kaplan_meier([2, 3, 4, 5], [True, False, True, False])
    >>> fraction
    array([1.   , 0.75 , 0.75 , 0.375, 0.375])
    """
    ends, at_risk, _ = _risk(steps, broke)
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    survival = stats.ecdf(stats.CensoredData(uncensored=steps[broke], right=steps[~broke])).sf
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # on ends without a width, which are replaced below
        interval = survival.confidence_interval(level, method="log-log")
    fraction, low, high = (curve.evaluate(ends) for curve in (survival, interval.low, interval.high))
    rare = (1 - level) / 2
    remaining = np.maximum(at_risk, 1)
    low = np.where(fraction == 1, rare ** (1 / remaining), np.where(fraction == 0, 0.0, low))
    high = np.where(fraction == 1, 1.0, np.where(fraction == 0, 1 - rare ** (1 / max(len(steps), 1)), high))
    return ends, fraction, low, high


def _risk(steps, broke):
    """Distinct ends and zero, with the replicas at risk and the failures; failures precede censorings."""
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    if steps.shape != broke.shape:
        raise ValueError(f"{steps.shape=} but {broke.shape=}")
    ends = np.unique(np.append(0.0, steps))
    at_risk = (steps >= ends[:, None]).sum(1)
    failures = ((steps == ends[:, None]) & broke).sum(1)
    return ends, at_risk, failures


def restricted_mean(steps, broke, limit: float):
    r"""Mean length of a valid run up to a limit, :math:`\int_0^L S(t)\,\mathrm dt`, with bounds.

    The bounds are the integrals of the ends of the pointwise interval, so they are wider than a 95 % interval
    of the mean, and they have a finite width even if nothing broke.

    Parameters
    ----------
    steps, broke
        As in `kaplan_meier`.
    limit
        Limit L, in the unit of ``steps``.

    Returns
    -------
    mean, low, high : float
        Mean and bounds in the unit of ``steps``.

    Raises
    ------
    ValueError
        If the last replica at risk was censored before the limit, after which nothing is known.

    Examples
    --------
    >>> restricted_mean([2, 4], [True, False], 4)[0]
    3.0
    """
    ends, fraction, low, high = kaplan_meier(steps, broke)
    if ends[-1] < limit and fraction[-1] > 0:
        raise ValueError(f"{limit=} lies after the last replica at risk, which ended at {ends[-1]:g}")
    widths = np.diff(np.append(np.minimum(ends, limit), limit))
    return tuple(float(widths @ heights) for heights in (fraction, low, high))


def log_rank_scores(steps, broke):
    r"""Log-rank score of every replica: one if it broke, minus the failures expected in its time at risk.

    .. math:: u_r = \delta_r - \sum_{t_i \le t_r} d_i / n_i

    The sum of the scores of a group is its number of observed minus expected failures; over all replicas it
    is zero.

    Examples
    --------
    >>> log_rank_scores([1, 2], [True, True])
    array([ 0.5, -0.5])
    """
    ends, at_risk, failures = _risk(steps, broke)
    hazard = np.cumsum(failures / np.maximum(at_risk, 1))
    return np.asarray(broke, dtype=float) - hazard[np.searchsorted(ends, np.asarray(steps, dtype=float))]


class LogRank(NamedTuple):
    """Comparison of groups of replicas."""

    table: pd.DataFrame
    """Counts by group: ``replicas``, ``broke`` and ``expected`` (the number if all groups were alike)."""
    p: float
    """Fraction of relabellings at least as uneven as the data; 1 if nothing broke."""


def log_rank(steps, broke, groups, strata=None, *, permutations: int = 10_000, seed: int = 0) -> LogRank:
    r"""Stratified log-rank comparison of groups with a permutation test (Peto and Peto 1972).

    Groups are relabelled within strata, so the test does not assume large numbers. The statistic is
    :math:`\sum_g U_g^2 / R_g`, with the summed scores :math:`U_g` of the :math:`R_g` replicas of a group.

    Parameters
    ----------
    steps, broke
        As in `kaplan_meier`.
    groups
        Group of every replica, such as its model, shape ``(R,)``.
    strata
        Stratum of every replica, such as its dataset, shape ``(R,)``. Strata may differ from each other.
    permutations, seed
        Number of permutations and seed of their draw.
    """
    steps, broke = np.asarray(steps, dtype=float), np.asarray(broke, dtype=bool)
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    strata = (
        np.zeros(len(steps)) if strata is None else np.unique(np.asarray(strata, str), return_inverse=True)[1]
    )
    rng, scores = np.random.default_rng(seed), np.zeros(len(steps))
    relabelled = np.tile(group, (permutations + 1, 1))
    for stratum in np.unique(strata):
        here = np.flatnonzero(strata == stratum)
        scores[here] = log_rank_scores(steps[here], broke[here])
        if broke[here].any():
            relabelled[1:, here] = rng.permuted(relabelled[1:, here], axis=1)
    sizes = np.bincount(group, minlength=len(names))
    sums = np.zeros((len(relabelled), len(names)))
    for g in range(len(names)):
        sums[:, g] = (relabelled == g) @ scores
    uneven = (sums**2 / np.maximum(sizes, 1)).sum(1)
    failed = np.bincount(group, weights=broke, minlength=len(names))
    table = pd.DataFrame(
        {"replicas": sizes, "broke": failed.astype(int), "expected": failed - sums[0]}, index=names
    )
    return LogRank(table, float((uneven >= uneven[0] - 1e-9).mean()) if broke.any() else 1.0)


def compare_models(table: pd.DataFrame, **options) -> tuple[LogRank, pd.DataFrame]:
    """Comparison of models within simulations of the same kind, dataset and composition.

    The p value of a pair is corrected for the number of pairs (Holm 1979). It applies to the trained weights,
    not to the architectures, as the model of another training may break elsewhere.

    Returns
    -------
    overall : LogRank
    pairs : DataFrame
        Columns ``first``, ``second``, ``p``; the most different pair comes first.
    """
    strata = table.kind + "/" + table.dataset + "/" + table.composition
    overall = log_rank(table.step, table.broke, table.model, strata, **options)
    rows = []
    for pair in itertools.combinations(order_models(set(table.model)), 2):
        here = table.model.isin(pair)
        both = here & strata.isin(set(strata[table.model == pair[0]]) & set(strata[table.model == pair[1]]))
        rows.append(
            (
                *pair,
                log_rank(table.step[both], table.broke[both], table.model[both], strata[both], **options).p,
            )
        )
    pairs = pd.DataFrame(rows, columns=["first", "second", "p"]).sort_values(
        "p", ignore_index=True, kind="stable"
    )
    pairs["p"] = statistics.holm(pairs.p)
    return overall, pairs


# -- tables ---------------------------------------------------------------------------------------------


def survivors(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Number of valid replicas, as ``4 of 5``, by setting and dataset (rows) and model (columns).

    A cell without replicas has ``not run``.
    """
    grouped = table.groupby(["setting", "dataset", "model"]).broke
    text = (grouped.size() - grouped.sum()).astype(str) + " of " + grouped.size().astype(str)
    wide = text.unstack("model") if len(text) else pd.DataFrame(index=_no_rows())
    order = [(s, d) for s in settings(table) for d in order_datasets(set(table.dataset[table.setting == s]))]
    wide = wide.reindex(
        pd.MultiIndex.from_tuples(order, names=["setting", "dataset"]) if order else _no_rows()
    )
    return wide.reindex(columns=order_models({*MODELS, *table.model})).fillna("not run")


def _no_rows():
    return pd.MultiIndex.from_arrays([[], []], names=["setting", "dataset"])


def settings(table: pd.DataFrame) -> list[str]:
    """Settings that occur in a table, in a fixed order."""
    return [name for name in (HOME, *SETTINGS.values(), AS_CODED) if (table.setting == name).any()]


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Restricted mean length of a valid run, by setting and model, as a fraction of the requested steps.

    Steps are counted in units of the requested ones. The limit is where the first model of the setting has no
    more valid runs, so that all models are compared up to the same time.

    Returns
    -------
    DataFrame with the index (setting, model): ``replicas``, ``broke`` (counts), ``sound`` (valid fraction at
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
    columns = ["replicas", "broke", "sound", "low", "high", "mean", "mean low", "mean high", "limit"]
    index = pd.MultiIndex.from_tuples(rows, names=["setting", "model"]) if rows else _no_rows()
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def _follow_up(steps, broke):
    """Time up to which a curve is known: its last end, or no limit (1) if all replicas broke."""
    return 1.0 if broke.all() else float(steps.max())


# -- why ------------------------------------------------------------------------------------------------


class Offender(NamedTuple):
    """Atom or pair of atoms at which a replica broke, as seen in its last valid frame."""

    atoms: tuple
    """Indices of the atom or of the pair."""
    name: str
    """Name for readers, such as ``O-H bond``."""
    length: float
    """Length in the last valid frame, Å, of the bond, the contact, the distance to the nearest atom, or the
    last move."""
    usual: float
    """Mean length of a bond over the reference, Å; NaN for other causes."""


class Failure(NamedTuple):
    """A replica that broke, with its last valid frames."""

    row: pd.Series
    """Row of `replicas`."""
    record: object
    positions: np.ndarray
    """Positions, shape ``(L, N, 3)``, Å."""
    energy: np.ndarray
    """Potential energies, shape ``(L,)``, eV."""
    rise: float
    """Last energy relative to the mean of the run before the last frames, in its standard deviations."""
    blur: float
    """Error of ``rise`` by the rounding of the stored energies, in the same standard deviations."""
    warmth: float
    """Ratio of the last temperature to the target."""


def failures(found) -> list[Failure]:
    """Replicas that broke and whose records hold their last frames, in the order of `replicas`."""
    kept = []
    for kind, record in runs(found):
        curves = record.curves if record.status == "unstable" else {}
        rows = pd.DataFrame(_rows(kind, record), columns=COLUMNS) if "last_positions" in curves else None
        for place, replica in enumerate(curves.get("broken", ()) if rows is not None else ()):
            before, last = _course(record, place, replica)
            spread = before.std() if len(before) > 1 and before.std() > 0 else np.nan
            rise, blur = (last[-1] - before.mean()) / spread, records.resolution(record) / 2 / spread
            warm = curves["temperature"][replica]
            warm = warm[np.isfinite(warm)]
            warmth = (
                warm[-1] / rows.temperature[replica] if len(warm) and rows.temperature[replica] else np.nan
            )
            row = rows.loc[replica]
            kept.append(
                Failure(row, record, curves["last_positions"][place], last, rise, blur, float(warmth))
            )
    return kept


def _course(record, place, replica):
    """Energies of a replica up to its last frames, and in its last frames, eV.

    The last energies of version 1 were rounded to 12 bits of their size, 1 to 4 eV, so that the end of the
    curve of all energies is used, which was rounded to 12 bits of its range.
    """
    energy, last = record.curves["energy"][replica], record.curves["last_energy"][place]
    energy = energy[np.isfinite(energy)]
    before = energy[: -len(last)]
    return before, last if record.parameters.get("version", 1) > 1 else energy[-len(last) :]


@lru_cache(maxsize=64)
def _frames(dataset, split):
    return data.load(dataset, split) if catalogue.at_hand(dataset, split) else None


def reference_frames(record):
    """Frames of the split that a rollout started from, a list of ``ase.Atoms``; None if not available."""
    dataset, split = record.parameters.get("target") or record.dataset, record.parameters.get("split", "test")
    return _frames(dataset, split) if dataset in cards.datasets() else None


def offender(positions, atoms, cause: Cause, reference=None, *, where=()) -> Offender | None:
    """Atoms that violated a stability rule, with their distance in the last valid frame.

    The frame in which a replica broke is not stored. Where the record does not name the atoms, the last two
    frames are extrapolated by one step, and the measure of the rule is evaluated there.

    Parameters
    ----------
    positions
        Last valid frames, shape ``(L, N, 3)``, Å.
    atoms
        ``ase.Atoms`` of the system, which gives elements and cell.
    cause
        Cause of the break.
    reference
        Positions of the reference, for the mean lengths of bonds, shape ``(F, N, 3)``, Å.
    where
        Indices of the atoms, if the record names them.

    Returns
    -------
    Offender, or None if the cause does not concern single atoms.
    """
    last = np.asarray(positions[-1], dtype=float)
    ahead = 2 * last - positions[-2] if len(positions) > 1 else last
    symbols = atoms.get_chemical_symbols()
    if cause in (Cause.MOVE, Cause.NOT_FINITE):
        moved = np.linalg.norm(ahead - last, axis=1)
        i = where[0] if where else int(moved.argmax())
        return Offender((i,), f"{symbols[i]} atom, last move", float(moved[i]), np.nan)
    if cause == Cause.BOND:
        pairs, usual = structure.reference_bonds(
            atoms, atoms.positions[None] if reference is None else reference
        )
        i, j = where or worst_bond(ahead, pairs, usual)
        usual = usual[(np.sort(pairs) == sorted((i, j))).all(1)]
        now = distances(last, atoms)
        name = f"{symbols[i]}-{symbols[j]} bond{_transfer(now, symbols, (i, j))}"
        return Offender((i, j), name, float(now[i, j]), float(usual.mean()) if len(usual) else np.nan)
    if cause not in (Cause.CONTACT, Cause.CONTACT_OR_ESCAPE):
        return None
    found = where or stray_atoms(ahead, atoms, escape=cause == Cause.CONTACT_OR_ESCAPE)
    now = distances(last, atoms)
    if len(found) == 1:
        (i,) = found
        return Offender(found, f"{symbols[i]} atom, to the nearest", float(now[i].min()), np.nan)
    i, j = found
    return Offender(found, f"{symbols[i]}-{symbols[j]} contact", float(now[i, j]), np.nan)


def _transfer(apart, symbols, pair):
    """Note for a stretched bond whose hydrogen is nearer to another atom than to its partner; else empty."""
    for h, partner in (pair, pair[::-1]):
        others = [k for k in range(len(symbols)) if k not in pair and symbols[k] != "H"]
        if symbols[h] == "H" and others:
            new = min(others, key=lambda k: apart[h, k])
            if apart[h, new] < apart[h, partner]:
                return f", {MOVED_ON} {symbols[new]}"
    return ""


def offender_of(failure: Failure) -> Offender | None:
    """`offender` of a failure; also None if its dataset is not available."""
    frames = reference_frames(failure.record)
    if frames is None or len(frames[0]) != failure.positions.shape[1]:
        return None
    reference = np.stack([a.positions for a in frames]) if failure.row.cause == Cause.BOND else None
    where = {end.replica: end.where for end in failure.record.breaks}.get(failure.row.replica, ())
    return offender(failure.positions, frames[0], failure.row.cause, reference, where=where)


def failure_table(table: pd.DataFrame, kept=()) -> pd.DataFrame:
    """Place, time and reason of every failure, as texts for readers; no value is NaN.

    Parameters
    ----------
    table
        DataFrame of `replicas`.
    kept
        List of `failures`.
    """
    known = {(f.row.path, f.row.replica): f for f in kept}
    rows = []
    for row in table[table.broke].itertuples():
        failure = known.get((row.path, row.replica))
        found = offender_of(failure) if failure else None
        place = f"{short_title(row.dataset)}{', ' + row.composition if row.composition else ''}"
        usual = f" (usually {found.usual:.2f})" if found and np.isfinite(found.usual) else ""
        rows.append(
            {
                "Setting": row.setting,
                "Dataset": place,
                "Model": model_title(row.model),
                "Replica": row.replica,
                "Step": row.step,
                "Time (fs)": round(row.time, 1),
                "Reason": row.cause.words,
                "Where": f"{found.name} {found.length:.2f} Å{usual}" if found else _elsewhere(row.cause),
                "Energy (σ)": _signed(failure.rise, failure.blur) if failure else "not kept",
                "T over target (×)": f"{failure.warmth:.2f}"
                if failure and np.isfinite(failure.warmth)
                else "not kept",
            }
        )
    heads = ["Setting", "Dataset", "Model", "Replica", "Step", "Time (fs)", "Reason", "Where", "Energy (σ)"]
    return pd.DataFrame(rows, columns=[*heads, "T over target (×)"])


def downhill(kept) -> tuple[str, str]:
    """How many replicas lost energy in their last frames, and which way that says they go, as texts.

    The second is a claim only if a sign test rejects equal chances at 5 %.

    Examples
    --------
    >>> downhill([])
    ('0 of 0', 'goes downhill as often as uphill')
    """
    fell = sum(failure.energy[-1] < failure.energy[0] for failure in kept)
    words = "goes downhill as often as uphill"
    if kept and stats.binomtest(fell, len(kept)).pvalue < 0.05:
        words = "usually goes uphill: it broke because it was hot"
        if fell > len(kept) / 2:
            words = "usually goes downhill: its surface has holes where it was given no data"
    return f"{fell} of {len(kept)}", words


def _elsewhere(cause):
    return "everywhere" if cause in (Cause.HEATED, Cause.STRUCTURE) else "not kept"


def _signed(value, blur):
    """A value with its sign, and with its error where that is not far below the last digit."""
    if not np.isfinite(value):
        return "no value"
    return f"{value:+.1f}" if blur < 0.05 else f"{value:+.1f} ± {blur:.1f}"


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
    figure.supylabel("Sound replicas (fraction)", fontsize="medium")
    if models:
        names = order_models(models)
        handles = [models[name] for name in names]
        figure.legend(handles, [model_title(name) for name in names], loc="outside upper center", ncols=6)
    return figure


def _draw_curve(ax, steps, broke, model, place):
    """Draw the curve of one model, slightly shifted so that equal curves can be distinguished."""
    ends, fraction, low, high = kaplan_meier(steps, broke)
    lift, color = 0.006 * (place - 2.5), plots.model_color(model)
    if np.any(broke):
        ax.fill_between(ends, low, high, step="post", color=color, alpha=0.12, linewidth=0)
    (line,) = ax.step(ends, fraction + lift, where="post", color=color, linewidth=1.8)
    censored = np.asarray(steps)[~np.asarray(broke)]
    if len(censored):  # the layout fails on an empty artist that is not clipped, as it has no extent
        style = {"color": color, "markersize": 3.5, "clip_on": False}
        ax.plot(
            censored, fraction[np.searchsorted(ends, censored)] + lift, plots.model_marker(model), **style
        )
    return line


def pick(kept, *, most: int = 4) -> list[Failure]:
    """A few failures to show, with as many different causes, datasets and models as possible."""
    chosen, left = [], [f for f in kept if reference_frames(f.record) is not None]
    while left and len(chosen) < most:
        seen = {name: {f.row[name] for f in chosen} for name in ("cause", "dataset", "model")}
        left.sort(key=lambda f: sum(f.row[name] in values for name, values in seen.items()))
        chosen.append(left.pop(0))
    return chosen


def plot_last_frame(failure: Failure, *, ax=None):
    """Last valid frame of a replica that broke, with rings around the offending atom or pair.

    For a periodic system, only the atoms within :data:`AROUND` of them are drawn.
    """
    ax = plots.take_axes(ax)
    atoms = reference_frames(failure.record)[0].copy()
    atoms.positions = failure.positions[-1]
    found = offender_of(failure)
    ring = list(found.atoms) if found else []
    if atoms.pbc.any():
        atoms, ring = _cut_out(atoms, ring or [0], wanted=ring)
    axes = _view(atoms.positions, ring)
    atoms.positions = (atoms.positions - atoms.positions.mean(0)) @ axes.T
    plots.plot_structure(atoms, rotation=(0.0, 0.0), ax=ax)
    points = atoms.positions - atoms.positions.mean(0)
    if len(ring) == 2:
        ax.plot(*points[ring, :2].T, color="#d1001f", linewidth=2.2, linestyle=":", zorder=9)
    for i in ring:
        ax.add_patch(Circle(points[i, :2], 0.55, fill=False, edgecolor="#d1001f", linewidth=1.8, zorder=9))
    place = failure.row.composition or short_title(failure.row.dataset)
    what = f"{found.name.split(',')[0]} {found.length:.2f} Å" if found else failure.row.cause.words
    text = f"{model_title(failure.row.model)}, {place}, step {failure.row.step}\n{what}"
    ax.set_title(text, fontsize="small", loc="left")
    return ax


def _cut_out(atoms, centre, *, wanted):
    """Cluster of the atoms around the first offending one, without a cell, and new indices of the wanted."""
    vectors, apart = find_mic(atoms.positions - atoms.positions[centre[0]], atoms.cell, atoms.pbc)
    near = np.flatnonzero(apart < AROUND)
    cluster = atoms[near]
    cluster.positions = vectors[near]
    cluster.pbc, cluster.cell = False, None
    places = {int(old): new for new, old in enumerate(near)}
    return cluster, [places[i] for i in wanted if i in places]


def _view(positions, ring):
    """Rotation with rows right, up and towards the reader; a pair is in the plane, a molecule lies flat."""
    centred = positions - positions.mean(0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]
    if len(ring) == 2:
        pair = positions[ring[1]] - positions[ring[0]]
        if abs(axes[2] @ pair) > 0.6 * np.linalg.norm(pair):
            axes = np.linalg.qr(np.column_stack([pair, axes[0], axes[1]]))[0].T
    return axes if np.linalg.det(axes) > 0 else axes * np.array([[1], [1], [-1]])


def failure_grid(kept, *, most: int = 4) -> Figure:
    """Last valid frames of a few failures, and below each the energy of its last frames against time.

    The energy is relative to the mean of the run before those frames, whose standard deviation is a band.
    """
    chosen = pick(kept, most=most)
    columns = max(len(chosen), 1)
    figure, axes = plt.subplots(2, columns, figsize=(7.5, 4.6), squeeze=False, height_ratios=[1.6, 1])
    for (top, bottom), failure in zip(axes.T, chosen, strict=False):
        plot_last_frame(failure, ax=top)
        top.set(xlabel="", ylabel="", xticks=[], yticks=[])
        if top.get_legend():
            top.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, columnspacing=0.8)
        _draw_energy(bottom, failure)
    axes[1, 0].set_ylabel("Energy above its mean (eV)" if chosen else "")
    for ax in axes[:, 0] if not chosen else ():
        ax.set_axis_off()
    if not chosen:
        axes[0, 0].text(0.5, 0.5, "no last frames kept", ha="center", va="center", color="0.4")
    return figure


def _draw_energy(ax, failure):
    place = list(failure.record.curves["broken"]).index(failure.row.replica)
    before, _ = _course(failure.record, place, failure.row.replica)
    mean, spread = (before.mean(), before.std()) if len(before) > 1 else (failure.energy[0], 0.0)
    timestep = conditions(failure.record, failure.row.composition)[1]
    time = (np.arange(len(failure.energy)) + 1 - len(failure.energy)) * timestep
    time *= failure.record.parameters.get("record_every", 1)
    ax.axhspan(-spread, spread, color="0.55", alpha=0.3, linewidth=0)
    ax.plot(time, failure.energy - mean, "o-", color=plots.model_color(failure.row.model), markersize=3.5)
    ax.set_xlabel("Time before the break (fs)", fontsize="small")
