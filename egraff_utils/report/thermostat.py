"""Is a simulation at its temperature? The temperatures that were reached are compared with expectations.

Replicas that broke are left out of every mean here, as an explosion is hot for other reasons (`survival`
counts them). Symbols: R replicas, T frames, K blocks of equal time, S elements.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase import units
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from egraff_utils import cards, data, quantities, statistics
from egraff_utils.breaks import Cause
from egraff_utils.md import temperature as md_temperature
from egraff_utils.report import catalogue, plots, survival
from egraff_utils.report.beside import short_title
from egraff_utils.report.comparison import order_datasets, order_models

AT_TARGET, TOO_COLD, TOO_HOT, NO_VERDICT = "at target", "too cold", "too hot", "no verdict"
CORRECTED, AS_CODED = "rollout", "rollout_as_coded"
PROTOCOLS = {AS_CODED: "as coded", CORRECTED: "corrected"}

MD17_ATOMS = {"ethanol": 9, "benzene": 12, "salicylic_acid": 16, "naphthalene": 18, "aspirin": 21}
"""Numbers of atoms of the molecules of MD17. Its trajectories have 500 K over 3N degrees of freedom although
their centre of mass is at rest, hence 500 K N / (N - 1) over the actual 3N - 3: 562.5 K for ethanol."""

LATEST_START = 0.5
"""Largest fraction of a run that may be cut as equilibration."""


# -- theory ---------------------------------------------------------------------------------------------


def expected_temperature(time, *, target, kinetic, potential, friction):
    r"""Mean kinetic temperature of a harmonic system under Langevin dynamics, for any start.

    .. math:: T(t) = T^* + \Big( \frac{T_\mathrm{kin} + T_\mathrm{pot}}{2} - T^* \Big) e^{-\gamma t}

    Vibrations distribute the energy of the start equally to kinetic and potential energy within about ten
    femtoseconds; the equation holds after that. The friction acts on velocities, hence on half of the energy,
    so the total relaxes with the rate gamma. Free particles relax with 2 gamma, and from rest would reach
    only :math:`1 - e^{-2 \gamma t}`.

    Parameters
    ----------
    time
        Times, shape ``(T,)``, fs.
    target
        Temperature of the thermostat, K.
    kinetic, potential
        Temperature of the velocities and of the positions at the start, K.
    friction
        Friction gamma, 1/fs.

    Returns
    -------
    ndarray
        Temperatures, shape ``(T,)``, K.

    Examples
    --------
    >>> cold = {"kinetic": 0.0, "potential": 500.0, "friction": 4.91e-4}  # a thermal frame set at rest
    >>> expected_temperature(np.array([0.0, 500.0]), target=500.0, **cold).round(1)
    array([250. , 304.4])
    """
    decay = np.exp(-friction * np.asarray(time, dtype=float))
    return target + ((kinetic + potential) / 2 - target) * decay


def stationary_ratio(record) -> float:
    """Ratio of the stationary temperature of a rollout's thermostat to its target; 1 but for as-coded noise.

    It is also 1 if the atoms of the dataset are not available.
    """
    scale = _scale_of(record)
    if record.parameters.get("protocol") != "as_coded" or scale is None:
        return 1.0
    return float(md_temperature.stationary_ratio(scale.masses))


def friction_rate(record) -> float:
    """Friction of a rollout, 1/fs; the published 5e-3 in ASE units is 0.491 per ps."""
    return record.parameters.get("friction", 5e-3) * units.fs


def sampled_temperature(dataset: str, target: float) -> float:
    """Temperature at which the frames of a dataset were sampled, K, the target but for MD17 (`MD17_ATOMS`).

    Examples
    --------
    >>> sampled_temperature("ethanol", 500.0), sampled_temperature("acac", 300.0)
    (562.5, 300.0)
    """
    atoms = MD17_ATOMS.get(dataset)
    return target if atoms is None else target * atoms / (atoms - 1)


def potential_temperature(energy, mean, *, temperature, freedom):
    r"""Temperature at which a harmonic system has a given potential energy on average.

    .. math:: T_\mathrm{pot} = T + \frac{2 (V - \langle V \rangle_T)}{f k_B}

    Parameters
    ----------
    energy
        Potential energy of one or more frames, eV.
    mean
        Mean potential energy of frames sampled at ``temperature`` (K), eV.
    freedom
        Degrees of freedom f.

    Examples
    --------
    >>> found = potential_temperature(-1.0, -1.0 + 1.5 * units.kB * 300, temperature=300, freedom=3)
    >>> abs(round(float(found), 6))
    0.0
    """
    return temperature + 2 * (np.asarray(energy, dtype=float) - mean) / (freedom * units.kB)


def start_temperatures(record, target: float) -> np.ndarray:
    """Potential temperature of the start of every replica, shape ``(R,)``, K.

    The mean energy is that of the split from which the rollout starts. For the MD17 molecules, whose test
    frames are the beginning of a trajectory that started at the minimum, it is that of the training set. If
    the frames are not available, all values are those of `sampled_temperature`.
    """
    temperature = sampled_temperature(record.parameters.get("target") or record.dataset, target)
    energies, scale = record.curves.get("energy_reference"), _scale_of(record)
    if energies is None or scale is None:
        return np.full(len(record.curves["stable_step"]), temperature)
    given = {"temperature": temperature, "freedom": scale.freedom}
    return potential_temperature(energies[:, 0], scale.energy, **given)


def velocity_temperatures(record) -> np.ndarray:
    """Temperature of the velocities at the start of every replica, shape ``(R,)``, K.

    It is that in the record or, in version 1, the first one of the curve.
    """
    return np.asarray(record.curves.get("start_temperature", record.curves["temperature"][:, 0]), float)


class Scale(NamedTuple):
    """Properties of a thermal sample of a dataset."""

    energy: float
    """Mean potential energy, eV."""
    freedom: int
    """Number of vibrational degrees of freedom."""
    masses: np.ndarray
    """Masses, shape ``(N,)``, atomic mass units."""


def _scale_of(record):
    dataset = record.parameters.get("target") or record.dataset
    return _scale(dataset, record.parameters.get("split", "test"))


@lru_cache(maxsize=64)
def _scale(dataset, split):
    """:class:`Scale` of the thermal sample that belongs to a split; None if it is not available."""
    if dataset not in cards.datasets():
        return None
    card = cards.dataset(dataset)
    split = "train" if dataset in MD17_ATOMS and split in card.time_ordered else split
    if card.generate or split not in card.splits or not catalogue.at_hand(dataset, split):
        return None
    frames = data.load(dataset, split)
    if len({len(atoms) for atoms in frames}) > 1:
        return None
    freedom = 3 * len(frames[0]) - (6 if card.system == "molecule" else 3)
    energy = float(np.mean([atoms.get_potential_energy() for atoms in frames]))
    return Scale(energy, freedom, frames[0].get_masses())


class Equilibration(NamedTuple):
    """Equilibrated part of a series."""

    start: int
    """First frame of the equilibrated part."""
    inefficiency: float
    """Statistical inefficiency of that part, frames."""
    effective: float
    """Number of independent samples in it."""


def equilibration(series, *, latest: float = LATEST_START, trials: int = 40) -> Equilibration:
    r"""Cut that leaves the most independent samples (Chodera, J. Chem. Theory Comput. 12, 1799, 2016).

    .. math:: t_0 = \arg\max_t \frac{T - t}{g(t)}

    where g is the statistical inefficiency of the series from t onwards.

    Parameters
    ----------
    series
        Values in any unit, shape ``(T,)``.
    latest
        Largest fraction of the series that may be cut.
    trials
        Number of equally spaced cuts that are tried.

    Raises
    ------
    ValueError
        If the series is not finite or has fewer than four frames.
    """
    series = np.asarray(series, dtype=float)
    if len(series) < 4 or not np.isfinite(series).all():
        raise ValueError(f"a series of four finite values or more is needed, not {len(series)} with gaps")
    best = Equilibration(0, float(len(series)), 1.0)
    for start in np.unique(np.linspace(0, latest * len(series), trials).astype(int)):
        time = statistics.autocorrelation_time(series[start:])
        time = time if np.isfinite(time) else len(series) - start
        if (len(series) - start) / time > best.effective:
            best = Equilibration(int(start), float(time), float((len(series) - start) / time))
    return best


# -- what was reached -----------------------------------------------------------------------------------


def temperatures(found) -> pd.DataFrame:
    """Temperature of every rollout after its equilibration cut, compared with target and expectation.

    Intervals are those of a mean over replicas (Student's t, `statistics.replica_interval`). Replicas are
    independent, whereas frames are not, since the relaxation time of the thermostat is longer than a run.
    Compositions of one set are pooled, each in units of its own target.

    Parameters
    ----------
    found
        Records of any kind, as returned by `records.read_all`.

    Returns
    -------
    DataFrame with the index (kind, dataset, model): ``replicas`` (valid ones) and ``broke``, counts; ``cut``
    (fs; the longest of several); ``ratio``, ``low``, ``high`` and ``expected``, in units of the target;
    ``verdict`` (`verdict` of the interval for 1); ``excess``, ``excess low``, ``excess high``, the reached
    minus the expected temperature, and its ``surprise`` (`verdict` of it for 0); ``start`` (mean of the
    temperatures of velocities and positions at the start, hence its energy), in units of the target. NaN if
    all replicas broke.
    """
    groups = {}
    for kind, record in survival.runs(found):
        if "temperature" in record.curves:
            groups.setdefault((kind, record.dataset, record.model), []).append(_replica_ratios(record))
    rows = [_reached(parts) for parts in groups.values()]
    names = ["kind", "dataset", "model"]
    index = pd.MultiIndex.from_tuples(groups, names=names) if groups else _no_rows(names)
    columns = ["replicas", "broke", "cut", "start", "ratio", "low", "high", "expected", "excess"]
    table = pd.DataFrame(rows, index=index, columns=[*columns, "excess low", "excess high"], dtype=float)
    table["verdict"] = [verdict(low, high, 1.0) for low, high in zip(table.low, table.high, strict=True)]
    pairs = zip(table["excess low"], table["excess high"], strict=True)
    table["surprise"] = [verdict(low, high, 0.0) for low, high in pairs]
    return table


def _no_rows(names):
    return pd.MultiIndex.from_arrays([[] for _ in names], names=names)


def _replica_ratios(record):
    """Reached and expected temperatures of valid replicas over the target; counts, cut (fs) and start."""
    curve, time = np.asarray(record.curves["temperature"], float), record.curves["time"]
    names = record.curves.get("composition", [""] * len(curve))
    targets = np.array([survival.conditions(record, str(name))[0] or np.nan for name in names])
    sound = np.ones(len(curve), bool)
    sound[[end.replica for end in record.breaks if end.cause != Cause.HEATED]] = False  # heat is the question
    start = start_temperatures(record, targets[0]) / targets[0]
    counts = {"broke": int((~sound).sum())}
    ratios = curve[sound] / targets[sound, None]
    ends = np.isfinite(ratios).all(0)
    if not sound.any() or ends.sum() < 4:
        return counts | {"cut": 0.0} | dict.fromkeys(("reached", "expected", "start"), np.empty(0))
    ratios, time = ratios[:, ends], time[ends]
    cut = equilibration(ratios.mean(0)).start
    given = {"target": stationary_ratio(record), "friction": friction_rate(record)}
    first = velocity_temperatures(record)[sound] / targets[sound]
    expected = [
        expected_temperature(time[cut:], kinetic=kinetic, potential=warm, **given).mean()
        for kinetic, warm in zip(first, start[sound], strict=True)
    ]
    reached = ratios[:, cut:].mean(1)
    energy = (first + start[sound]) / 2
    found = {"cut": float(time[cut]), "reached": reached, "expected": np.array(expected), "start": energy}
    return counts | found


def _reached(parts):
    """Row of `temperatures` from the parts of one or several records, whose compositions are groups."""
    reached, expected, start = (
        np.concatenate([p[name] for p in parts]) for name in ("reached", "expected", "start")
    )
    groups = np.repeat(np.arange(len(parts)), [len(p["reached"]) for p in parts])
    row = {"replicas": len(reached), "broke": sum(p["broke"] for p in parts)}
    row |= {"cut": max(p["cut"] for p in parts)}
    if not len(reached):
        return row
    row["start"] = start.mean()
    low, high = _interval(reached, groups)
    excess = reached - expected
    row |= {"ratio": reached.mean(), "low": low, "high": high, "expected": expected.mean()}
    low, high = _interval(excess, groups)
    return row | {"excess": excess.mean(), "excess low": low, "excess high": high}


def _interval(values, groups=None, **options):
    """Interval of a mean over replicas; nan for fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    several = None if groups is None or len(set(groups)) == 1 else groups
    return statistics.replica_interval(np.asarray(values, float)[:, None], groups=several, **options)


def verdict(low: float, high: float, target: float) -> str:
    """Verdict of an interval on a target: ``at target``, ``too cold``, ``too hot``, or ``no verdict``.

    Examples
    --------
    >>> verdict(0.9, 1.1, 1.0), verdict(0.5, 0.6, 1.0), verdict(1.1, 1.3, 1.0), verdict(np.nan, np.nan, 1.0)
    ('at target', 'too cold', 'too hot', 'no verdict')
    """
    if not np.isfinite([low, high]).all():
        return NO_VERDICT
    return TOO_COLD if high < target else TOO_HOT if low > target else AT_TARGET


def verdict_table(table: pd.DataFrame) -> pd.DataFrame:
    """Temperature of every rollout as text, the ratio to the target with its interval, and the verdict.

    Returns
    -------
    DataFrame of texts with rows (setting, dataset) and columns models; ``not run`` without a rollout.
    """
    texts = {}
    for (kind, dataset, model), row in table.iterrows():
        mark = {AT_TARGET: "", TOO_COLD: " ↓", TOO_HOT: " ↑", NO_VERDICT: ""}[row.verdict]
        text = "all broke" if not row.replicas else f"{row.ratio:.2f}{mark}"
        if np.isfinite(row.low):
            text += f" ({row.low:.2f} to {row.high:.2f})"
        texts.setdefault((survival.setting(kind, dataset), dataset), {})[model] = text
    settings = (survival.HOME, *survival.SETTINGS.values(), survival.AS_CODED)
    names = {name for _, name in texts}
    order = [(s, d) for s in settings for d in order_datasets(names) if (s, d) in texts]
    index = pd.MultiIndex.from_tuples(order, names=["setting", "dataset"]) if order else None
    columns = order_models({model for row in texts.values() for model in row})
    wide = pd.DataFrame([texts[key] for key in order], index=index, columns=columns)
    return wide.fillna("not run")


# -- equipartition --------------------------------------------------------------------------------------


def equipartition(found, *, level: float = 0.95) -> pd.DataFrame:
    r"""Ratio of the temperature of each element to that of all atoms, which is one by equipartition.

    .. math:: q_s = \frac{\langle T_s \rangle}{\langle T \rangle}

    The ratio is a mean over valid replicas, each over its whole run. The level of the interval is corrected
    for the number of elements (Bonferroni), so that by chance one rollout in twenty fails, not one element in
    twenty. A system of a single element is left out.

    Returns
    -------
    DataFrame with the index (kind, dataset, model, element): ``ratio``, ``low``, ``high`` (dimensionless),
    ``replicas`` (count) and ``equal``, whether the interval holds 1. Rollouts without the curve
    ``temperature_species`` are left out.
    """
    groups = {}
    for kind, record in survival.runs(found):
        if len(record.curves.get("species", ())) > 1:
            for symbol, ratios in _element_ratios(record).items():
                groups.setdefault((kind, record.dataset, record.model, symbol), []).append(ratios)
    elements = pd.Series([key[:3] for key in groups], dtype=object).value_counts()
    rows = []
    for key, parts in groups.items():
        ratios = np.concatenate(parts)
        which = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        low, high = _interval(ratios, which, level=1 - (1 - level) / elements[key[:3]])
        mean = ratios.mean() if len(ratios) else np.nan
        rows.append((mean, low, high, len(ratios), bool(low <= 1 <= high)))
    names = ["kind", "dataset", "model", "element"]
    index = pd.MultiIndex.from_tuples(groups, names=names) if groups else _no_rows(names)
    table = pd.DataFrame(rows, index=index, columns=["ratio", "low", "high", "replicas", "equal"])
    return table.astype({"ratio": float, "low": float, "high": float, "equal": bool})


def _element_ratios(record):
    """Ratios of the valid replicas, ``{element: (R,)}``."""
    curves = record.curves
    broke = {end.replica for end in record.breaks}
    sound = [r for r in range(len(curves["stable_step"])) if r not in broke]
    weights = np.asarray(curves["block_frames"], float)[sound]
    species = np.nan_to_num(np.asarray(curves["temperature_species"], float)[sound])
    means = np.einsum("rk,rks->rs", weights, species) / weights.sum(1)[:, None]
    whole = np.nanmean(np.asarray(curves["temperature"], float)[sound], axis=1)
    symbols = map(str, curves["species"])
    return {symbol: means[:, s] / whole for s, symbol in enumerate(symbols) if means.shape[0]}


# -- the two protocols ----------------------------------------------------------------------------------


def protocols(frame: pd.DataFrame, metrics=("wf", "ev_root", "fv", "temperature")) -> pd.DataFrame:
    """Metrics of both protocols, for the datasets and models that have both.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.
    metrics
        Names of the metrics.

    Returns
    -------
    DataFrame with the index (dataset, model) and the columns (metric, ``"as coded"`` or ``"corrected"``), in
    the units of the records.
    """
    rows = frame[frame.kind.isin(PROTOCOLS) & frame.metric.isin(metrics) & (frame.model != "reference")]
    wide = rows.pivot_table(index=["dataset", "model"], columns=["metric", "kind"], values="value")
    columns = pd.MultiIndex.from_product([metrics, PROTOCOLS])
    wide = wide.reindex(columns=columns).dropna(how="all")
    wide.columns = pd.MultiIndex.from_product([metrics, PROTOCOLS.values()], names=["metric", "protocol"])
    both = wide.notna().T.groupby(level="protocol").any().T.all(axis=1)
    wide = wide[both] if len(wide) else wide
    order = [
        (d, m)
        for d in order_datasets(set(wide.index.get_level_values(0)))
        for m in order_models(set(wide.loc[d].index))
    ]
    return wide.reindex(order) if order else wide


def protocol_ratio(values: pd.DataFrame, metric: str) -> float:
    """Geometric mean over cells of the ratio of a metric as coded to corrected; NaN without cells."""
    pair = values[metric].dropna() if len(values) else pd.DataFrame()
    return float(np.exp(np.log(pair["as coded"] / pair["corrected"]).mean())) if len(pair) else np.nan


# -- figures --------------------------------------------------------------------------------------------


def temperature_grid(found, *, most: int = 2, window: float = 20.0) -> Figure:
    """Temperature against time, as coded (left) and corrected (right), with one row per dataset.

    Curves are means over valid replicas and over a window of time; the target is dashed, the expectation
    black.

    Parameters
    ----------
    found
        Records, as returned by `records.read_all`.
    most
        Largest number of datasets, which are those with both protocols, or the first ones if none has both.
    window
        Length of the window, fs.
    """
    runs = [
        (kind, r)
        for kind, r in survival.runs(found)
        if kind in PROTOCOLS and r.curves.get("time") is not None
    ]
    runs = [(kind, r) for kind, r in runs if r.parameters.get("temperature")]
    kinds = {name: {kind for kind, r in runs if r.dataset == name} for name in {r.dataset for _, r in runs}}
    both = [name for name in order_datasets(kinds) if len(kinds[name]) == len(PROTOCOLS)]
    shown = (both or order_datasets(kinds))[:most]
    figure, axes = plt.subplots(
        max(len(shown), 1), 2, figsize=(7.5, 0.8 + 2.2 * max(len(shown), 1)), sharey="row", squeeze=False
    )
    models = {}
    for row, dataset in zip(axes, shown, strict=False):
        for ax, (protocol, title) in zip(row, PROTOCOLS.items(), strict=True):
            here = [r for kind, r in runs if kind == protocol and r.dataset == dataset]
            models |= dict.fromkeys(r.model for r in here)
            _draw_temperatures(ax, here, window)
            ax.set_title(f"{short_title(dataset)}, {title}", fontsize="small", loc="left")
    if not shown:
        axes[0, 0].text(0.5, 0.5, "not run", ha="center", va="center", color="0.4")
    figure.supxlabel("Time (fs)", fontsize="medium")
    figure.supylabel(quantities.of("temperature").axis, fontsize="medium")
    handles = plots.model_handles(order_models(models))
    handles += [Line2D([], [], color="black", linewidth=1.6, label="expected")]
    handles += [Line2D([], [], color="black", linestyle="--", linewidth=1, label="target")]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _draw_temperatures(ax, records, window):
    for record in records:
        time, curve = record.curves["time"], np.asarray(record.curves["temperature"], float)
        broke = [end.replica for end in record.breaks]
        mean = (
            plots.replica_mean(np.delete(curve, broke, axis=0))
            if len(broke) < len(curve)
            else curve[0] * np.nan
        )
        length = max(1, min(round(window / (time[1] - time[0])), len(time))) if len(time) > 1 else 1
        smooth = np.convolve(mean, np.ones(length) / length, mode="valid")
        middle = time[: len(smooth)] + (time[length - 1] - time[0]) / 2
        ax.plot(middle, smooth, color=plots.model_color(record.model), linewidth=1.2)
    if not records:
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color="0.4")
        return
    record = max(records, key=lambda r: len(r.curves["time"]))
    target, time = record.parameters["temperature"], record.curves["time"]
    given = {"target": target * stationary_ratio(record), "friction": friction_rate(record)}
    given["potential"] = start_temperatures(record, target).mean()
    kinetic = float(np.nanmean(velocity_temperatures(record)))
    ax.plot(time, expected_temperature(time, kinetic=kinetic, **given), color="black", linewidth=1.6)
    ax.axhline(target, color="black", linestyle="--", linewidth=1)


def reached_plot(table: pd.DataFrame) -> Figure:
    """Ratio of temperature to target of every rollout with its interval; crosses mark expectations.

    Parameters
    ----------
    table
        DataFrame of `temperatures`.
    """
    keys = list(dict.fromkeys((survival.setting(k, d), d, k) for k, d, _ in table.index))
    settings = (survival.HOME, *survival.SETTINGS.values(), survival.AS_CODED)
    names = order_datasets({d for _, d, _ in keys})
    keys.sort(key=lambda key: (settings.index(key[0]), names.index(key[1])))
    figure, ax = plt.subplots(figsize=(7.5, 1.0 + 0.32 * max(len(keys), 3)))
    models = order_models(set(table.index.get_level_values("model")))
    for place, (_, dataset, kind) in enumerate(keys):
        here = table.loc[(kind, dataset)]
        for model, row in here.iterrows():
            y = place + 0.7 * ((models.index(model) + 0.5) / len(models) - 0.5)
            bar = plots.error_bar(row.ratio, row.low, row.high)
            ax.errorbar(row.ratio, y, xerr=bar, elinewidth=0.9, markersize=3.5, **_marks(model))
            ax.plot(row.expected, y, "x", color="black", markersize=3, markeredgewidth=0.8)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    labels = [f"{short_title(d)}{'' if s == survival.HOME else ', ' + s}" for s, d, _ in keys]
    ax.set_yticks(range(len(keys)), labels, fontsize="small")
    ax.set(xlabel="Temperature over target (dimensionless)", ylabel="Dataset")
    ax.invert_yaxis()
    handles = plots.model_handles(models, markers=True, linestyle="none")
    handles.append(Line2D([], [], color="black", marker="x", linestyle="none", label="expected"))
    figure.legend(handles=handles, loc="outside upper center", ncols=7, columnspacing=0.9, handletextpad=0.3)
    return figure


def _marks(model):
    """Colour and marker of a model."""
    return {"color": plots.model_color(model), "marker": plots.model_marker(model)}


def equipartition_grid(table: pd.DataFrame, kinds=(CORRECTED, AS_CODED)) -> Figure:
    """Ratio of the temperature of each element to that of all atoms, in one panel per protocol with values.

    Intervals are cut at 0.3 and 1.9.

    Parameters
    ----------
    table
        DataFrame of `equipartition`.
    kinds
        Kinds of the rollouts.
    """
    kinds = [kind for kind in kinds if kind in table.index.get_level_values("kind")] or [None]
    figure, axes = plt.subplots(len(kinds), 1, figsize=(7.5, 0.6 + 2.2 * len(kinds)), squeeze=False)
    models = order_models(set(table.index.get_level_values("model")))
    for ax, kind in zip(axes[:, 0], kinds, strict=True):
        if kind is None:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="0.4")
            continue
        here = table.loc[kind]
        places = [
            (d, e)
            for d in order_datasets(set(here.index.get_level_values(0)))
            for e in here.loc[d].index.unique("element")
        ]
        for (dataset, model, element), row in here.iterrows():
            x = places.index((dataset, element)) + 0.7 * ((models.index(model) + 0.5) / len(models) - 0.5)
            bar = plots.error_bar(row.ratio, row.low, row.high)
            ax.errorbar(x, row.ratio, yerr=bar, elinewidth=0.9, markersize=3.5, **_marks(model))
        ax.axhline(1, color="black", linestyle="--", linewidth=1)
        firsts = [i for i, (d, _) in enumerate(places) if i == 0 or places[i - 1][0] != d]
        ax.set_xticks(range(len(places)), [e for _, e in places], fontsize="small")
        for level, i in enumerate(firsts):
            style = {"fontsize": "x-small", "va": "top", "transform": ax.get_xaxis_transform()}
            ax.text(i - 0.45, 0.99 - 0.09 * (level % 2), short_title(places[i][0]), **style)
        for i in firsts[1:]:
            ax.axvline(i - 0.5, color="0.8", linewidth=0.8)
        ax.set_title(PROTOCOLS[kind], fontsize="small", loc="left")
        ax.set(xlim=(-0.5, len(places) - 0.5), ylim=(0.3, 1.9))
    figure.supylabel("Element over all atoms (dimensionless)", fontsize="medium")
    handles = plots.model_handles(models, markers=True, linestyle="none")
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def protocol_plot(values: pd.DataFrame, metrics=("wf", "ev_root", "fv")) -> Figure:
    """A metric as coded against the corrected one, with one panel per metric; markers denote datasets.

    Parameters
    ----------
    values
        DataFrame of `protocols`.
    metrics
        Names of the metrics.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(7.5, 3.0), squeeze=False)
    datasets = list(dict.fromkeys(values.index.get_level_values(0)))
    for ax, metric in zip(axes[0], metrics, strict=True):
        quantity = quantities.of(metric)
        pair = values[metric].dropna() * quantity.factor if len(values) else pd.DataFrame()
        for (dataset, model), row in pair.iterrows():
            marker = plots.MARKERS[datasets.index(dataset) % len(plots.MARKERS)]
            ax.plot(row["corrected"], row["as coded"], marker, color=plots.model_color(model), markersize=5)
        if len(pair):
            ends = [pair.to_numpy().min() * 0.9, pair.to_numpy().max() * 1.1]
            ax.plot(ends, ends, color="0.4", linewidth=0.9, zorder=0)
        else:
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color="0.4")
        ax.set(xlabel="corrected", title=f"{quantity.name} ({quantity.head_unit})")
        ax.title.set(fontsize="small")
    axes[0, 0].set_ylabel("as coded")
    models = order_models(set(values.index.get_level_values(1)))
    handles = plots.model_handles(models, marker="s", linestyle="none")
    handles += [
        Line2D(
            [],
            [],
            color="0.4",
            marker=plots.MARKERS[i % len(plots.MARKERS)],
            linestyle="none",
            label=short_title(d),
        )
        for i, d in enumerate(datasets)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure
