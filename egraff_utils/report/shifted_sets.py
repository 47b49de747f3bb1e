"""What do sets out of distribution hold? Their frames, compositions, and energies along paths."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from egraff_utils import cards, data, statistics
from egraff_utils.config import Kind
from egraff_utils.md import analysis
from egraff_utils.report import look, table_cells, tables, titles
from egraff_utils.report.beside import MODELS
from egraff_utils.report.comparison import order_datasets
from egraff_utils.report.levels import floor_of
from egraff_utils.report.shifts import (
    IN,
    OUT,
    Shift,
    Shown,
    cells_of,
    finished,
    legend_or_note,
    shifts_of,
    spread_of,
    styled,
    texts_of,
)
from egraff_utils.report.values import listed
from egraff_utils.units import EV_TO_MEV


def composition_values(frame: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """One metric of the simulations in a LiPS20 task, with one row per composition and one column per model.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.
    task
        ``lips20_crystals`` or ``lips20_compositions``.
    metric
        Metric of the rollouts, such as ``"wf"``.

    Returns
    -------
    DataFrame with the index (set, composition), where the set is ``in`` or ``out``; missing values are NaN.
    """
    known = frame[frame.metric == metric].groupby(["kind", "dataset", "model"])["value"].mean()
    keys = _composition_keys(frame, task)
    index = pd.MultiIndex.from_tuples(keys, names=["set", "composition"])
    columns = next(iter(keys.values()))
    values = [[known.get(key, np.nan) for key in row.values()] for row in keys.values()]
    return pd.DataFrame(values, index, list(columns), dtype=float)


def worst(values: pd.DataFrame) -> str:
    """Composition of the set ``out`` with the largest median over models, and this median, as text.

    Parameters
    ----------
    values
        DataFrame of `composition_values`.
    """
    middle = values.loc[OUT].median(axis="columns").dropna()
    return f"{middle.idxmax()} ({middle.max():.2f})" if len(middle) else tables.NOT_RUN


def _composition_keys(frame, task):
    """(set, composition) -> model -> kind, dataset and model of the record."""
    (shift,) = shifts_of(task)
    card = cards.dataset(shift.dataset)
    sides = {IN: card.parts(shift.home), OUT: card.parts(shift.away)}
    models = [model for _, model in cells_of(frame, task)]
    return {
        (side, part): {model: (str(Kind("rollout", shift=part)), shift.dataset, model) for model in models}
        for side, parts in sides.items()
        for part in parts
    }


def against_levels(frame: pd.DataFrame, task: str, structure: pd.DataFrame) -> dict:
    """Wright's factor in units of the saturation level of its own set, as texts: a level falls with the set.

    Parameters
    ----------
    frame
        One row per metric, as returned by `records.read`.
    task
        Name of one of `shifts.TASKS`.
    structure
        DataFrame of `shifts.compare` for `shifts.STRUCTURE`.

    Returns
    -------
    dict
        ``levels-in`` and ``levels-out``: median over models and sets, with the range.
    """
    texts = {}
    for side in (IN, OUT):
        kinds = [(shift.kinds(side, rollout=True)[0], shift.dataset) for shift, _ in cells_of(frame, task)]
        levels = np.array([floor_of(frame, *kind, "wf")[0] for kind in kinds])
        known = structure.get(("WF (%)", side), pd.Series(np.nan, structure.index))
        texts[f"levels-{side}"] = spread_of(known / levels)
    return texts


def sets_in_order(errors: pd.Series) -> str:
    """Which sets of a shift have smaller errors than which others, as text; only what is told apart.

    Sets are compared over the models, by Tukey's range test on the logarithms (`statistics.told_apart`).

    Parameters
    ----------
    errors
        Errors with the index (set, model), where sets are names of datasets.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product([["aspirin", "ethanol"], ["mace", "nequip", "botnet"]])
    >>> sets_in_order(pd.Series([1.0, 1.1, 1.0, 9.0, 9.0, 8.0], index.set_names(["set", "model"])))
    'Aspirin below Ethanol'
    >>> sets_in_order(pd.Series([1.0, 9.0, 2.0, 9.0, 1.0, 2.0], index.set_names(["set", "model"])))
    'none of them from another'
    """
    wide = np.log(errors.unstack("set").dropna()) if len(errors) else pd.DataFrame()
    apart = statistics.told_apart({name: wide[[name]].to_numpy() for name in wide})
    below = {}
    for pair in apart:
        better, worse = sorted(pair, key=wide.median().get)
        below.setdefault(worse, []).append(better)
    short = titles.short_title
    words = [
        f"{listed([short(name) for name in order_datasets(better)])} below {short(worse)}"
        for worse, better in below.items()
    ]
    return "; ".join(words) or "none of them from another"


def energy_offsets(ev_root: float, energy: float) -> list[float]:
    """The two constants by which an energy is off if this is its root EV, eV, the smaller one first.

    Eq. 4 of the paper, solved for the offset: upwards and downwards the sum of squares differs.

    Parameters
    ----------
    ev_root
        Root EV, dimensionless, below 1.
    energy
        Energy of the reference, eV.

    Examples
    --------
    >>> [round(offset) for offset in energy_offsets(0.2, -1000.0)]
    [250, 333]
    >>> [float(round(d / np.hypot(1000 + e, 1000), 2)) for d, e in ((250, -250), (333, 333))]
    [0.2, 0.2]
    """
    square = ev_root**2
    roots = np.roots([1 - square, -2 * square, -2 * square])
    return sorted(abs(float(root) * energy) for root in roots)


def set_values(sets: dict) -> pd.DataFrame:
    """Numbers of frames and atoms, size of the forces and spread of the energies of sets of frames.

    Parameters
    ----------
    sets
        Name -> list of ``ase.Atoms`` with energies (eV) and, if available, forces (eV/Å).

    Returns
    -------
    DataFrame with one row per set. The force is the mean absolute component, NaN without forces; the spread
    is the standard deviation within a composition.
    """
    return pd.DataFrame({name: _set_row(frames) for name, frames in sets.items()}).T


def _set_row(frames):
    energies = pd.DataFrame(
        {
            "formula": [atoms.get_chemical_formula() for atoms in frames],
            "energy": [atoms.get_potential_energy() for atoms in frames],
        }
    ).groupby("formula")["energy"]
    known = [np.abs(atoms.get_forces()) for atoms in frames if "forces" in atoms.calc.results]
    sizes = [len(atoms) for atoms in frames]
    deviation = energies.transform(lambda values: values - values.mean())
    force = np.concatenate(known).mean() * EV_TO_MEV if known else np.nan
    return {
        "Frames (count)": len(frames),
        "Atoms, least (count)": min(sizes),
        "Atoms, most (count)": max(sizes),
        "Mean absolute force component (meV/Å)": force,
        "Energy spread (meV)": np.sqrt((deviation**2).mean()) * EV_TO_MEV,
    }


def displacements(frames: list) -> dict:
    """Root mean square displacement of the atoms of each element from the first frame to the last, Å.

    Parameters
    ----------
    frames
        Consecutive frames of one composition, a list of ``ase.Atoms``, close enough to be unwrapped.

    Examples
    --------
    >>> from ase import Atoms
    >>> displacements([Atoms("LiS", [[0, 0, 0], [1, 1, 1]]), Atoms("LiS", [[0, 0, 2], [1, 1, 1]])])
    {'Li': 2.0, 'S': 0.0}
    """
    path = analysis.unwrap(frames)
    squares = np.square(path[-1] - path[0]).sum(-1)
    symbols = np.array(frames[0].get_chemical_symbols())
    return {str(name): float(np.sqrt(squares[symbols == name].mean())) for name in np.unique(symbols)}


def displacement_values(shift: Shift) -> pd.DataFrame:
    """Displacement of each element of each composition in the second half of its reference trajectory.

    Parameters
    ----------
    shift
        Shift of LiPS20, whose splits have one part per composition, of 1000 frames in order of time.

    Returns
    -------
    DataFrame with the index (set, composition), where the set is ``in`` or ``out``: temperature (K), and one
    column per element (Å), NaN for compositions without it.
    """
    card, trained = cards.dataset(shift.dataset), {}
    for atoms in data.load(shift.dataset, "train") + shift.frames(IN):
        if atoms.info["frame"] >= 500:
            trained.setdefault(atoms.info["source"], []).append(atoms)
    others = {part: data.load(shift.dataset, part) for part in card.parts(shift.away)}
    found = {
        (side, name): {"Temperature (K)": card.conditions(name)[0]}
        | {f"{symbol} moved (Å)": far for symbol, far in displacements(frames).items()}
        for side, parts in ((IN, trained), (OUT, others))
        for name, frames in parts.items()
    }
    return pd.DataFrame(found.values(), pd.MultiIndex.from_tuples(found, names=["set", "composition"]))


def held(values: pd.DataFrame, side: str, *, within: float = 1.5) -> str:
    """Compositions of a side whose phosphorus or sulphur moved by at most ``within`` (Å), as text.

    Examples
    --------
    >>> index = pd.MultiIndex.from_tuples([("out", "P"), ("out", "Li3P")], names=["set", "composition"])
    >>> held(pd.DataFrame({"Li moved (Å)": [np.nan, 3.0], "P moved (Å)": [7.0, 1.0]}, index=index), "out")
    'Li3P'
    """
    framework = values.loc[side].filter(["P moved (Å)", "S moved (Å)"]).min(axis="columns")
    return ", ".join(framework.index[framework <= within]) or "none"


def profiles(records: list, x: np.ndarray) -> pd.DataFrame:
    """Energies along a path relative to the reference's lowest frame, in columns ``reference`` and per model.

    Parameters
    ----------
    records
        Records of kind ``errors_<set>`` of one path, with curves ``energy`` and ``energy_reference`` (F,),
        eV.
    x
        Coordinate of the path in any unit, shape ``(F,)``, which becomes the index.

    Returns
    -------
    DataFrame, meV. Every column is zero at the frame where the reference is lowest, which removes the
    constant offset of a model. Without records it has no columns.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> curves = {"energy": np.array([-5.0, -4.0]), "energy_reference": np.array([-9.0, -8.5])}
    >>> profiles([SimpleNamespace(model="mace", curves=curves)], np.array([0, 90])).loc[90].to_dict()
    {'reference': 500.0, 'mace': 1000.0}
    """
    energies = {}
    for record in sorted(records, key=lambda record: (*MODELS, record.model).index(record.model)):
        energies.setdefault("reference", record.curves["energy_reference"])
        energies[record.model] = record.curves["energy"]
    values = pd.DataFrame(energies, index=pd.Index(x), dtype=float) * EV_TO_MEV
    return values if values.empty else values - values.iloc[values["reference"].argmin()]


def barriers(values: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Height and position of the highest point of every profile, and the height of its end.

    Parameters
    ----------
    values
        DataFrame of :func:`profiles`, meV.
    unit
        Unit of the coordinate, for the head.

    Returns
    -------
    DataFrame with one row per model; the reference comes first.
    """
    heads = ["Barrier (meV)", "less the reference's (meV)", f"Place ({unit})", "End of the path (meV)"]
    if values.empty:
        return pd.DataFrame(columns=heads, dtype=float)
    top = values.max()
    columns = [top, top - top["reference"], values.idxmax().round(2) + 0.0, values.iloc[-1]]
    return pd.DataFrame(dict(zip(heads, columns, strict=True)))


def composition_table(frame: pd.DataFrame, task: str, quantity: Shown):
    """`composition_values` of a metric as a styled table; better models in a row are darker."""
    values = composition_values(frame, task, quantity.metric) * quantity.factor
    keys = _composition_keys(frame, task)
    texts = [texts_of(frame, values.loc[row], quantity, keys[row].values()) for row in values.index]
    css = [table_cells.shading(values.loc[row], quantity) for row in values.index]
    styler = styled(*(pd.DataFrame(rows, values.index, values.columns) for rows in (texts, css)), values)
    styler.format_index(titles.model_title, axis="columns")
    return finished(styler, f"{task}-{quantity.metric}")


def set_table(sets: dict, name: str):
    """`set_values` as a styled table with this name."""
    values = set_values(sets).dropna(axis="columns", how="all")
    return finished(values.style.format("{:,.0f}", na_rep=tables.NO_VALUE), name)


def displacement_table(values: pd.DataFrame, name: str):
    """`displacement_values` as a styled table with this name."""
    formats = {head: "{:,.0f}" if head.startswith("Temperature") else "{:.1f}" for head in values}
    return finished(values.style.format(formats, na_rep=tables.NO_VALUE), name)


def barrier_table(values: pd.DataFrame, name: str):
    """`barriers` as a styled table with this name."""
    formats = {head: "{:g}" if head.startswith("Place") else "{:,.1f}" for head in values}
    names = {"reference": "Reference"}  # which has no noise here
    styler = values.style.format(formats).format_index(lambda m: names.get(m) or titles.model_title(m))
    return finished(styler, name)


def plot_profiles(values: pd.DataFrame, *, label: str, ax: Axes | None = None) -> Axes:
    """Energy along a path, with the reference in black and one line per model.

    Parameters
    ----------
    values
        DataFrame of :func:`profiles`, meV.
    label
        Label of the coordinate, with its unit.
    """
    ax = look.take_axes(ax)
    for model in values.columns.drop("reference", errors="ignore"):
        ax.plot(values.index, values[model], **look.model_line(model), label=titles.model_title(model))
    if "reference" in values:
        color = look.REFERENCE_COLOR
        ax.plot(values.index, values["reference"], ".-", color=color, linewidth=1.2, label="reference")
    ax.set(xlabel=label, ylabel="Energy above the lowest frame (meV)")
    return legend_or_note(ax, values)
