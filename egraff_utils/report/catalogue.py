"""Which data are there to learn from? Tables of all datasets, compared with the statements of the paper."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from math import ceil, isclose

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase.data import chemical_symbols

from egraff_utils import cards, data, paper, paths, records
from egraff_utils.report import structures, tables, titles
from egraff_utils.report.values import MISSING

GROUPS = {
    "md17": ["aspirin", "ethanol", "naphthalene", "salicylic_acid"],
    "lips": ["lips"],
    "3bpa": ["3bpa"],
    "acac": ["acac"],
    "lips20": ["lips20"],
    "gete": ["gete"],
}
"""Row of Tables 8 and 10 of the paper -> datasets of this book."""

TITLES = {"md17": "MD17", "lips": "LiPS", "3bpa": "3BPA", "acac": "AcAc", "lips20": "LiPS20", "gete": "GeTe"}

ORDER = [
    *("acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "benzene"),
    *("lips", "lips_full", "lips20", "lips20_stress", "gete", "gete_full", "ethanol_xtb", "copper_emt"),
    *("acac_xtb", "aspirin_xtb"),
]
"""Datasets in the order in which they are shown; others follow, sorted by name."""

SOURCE_STEPS = {"lips": 2.0, "lips20": 0.5}
"""Timestep of the simulation that produced the frames, fs, for datasets without a time-ordered split: for
LiPS according to its first users, for LiPS20 according to the paper (appendix A.2)."""

LIPS20 = [
    *("beta-Li3PS4", "gamma-Li3PS4", "Li2P2S6", "Li2PS3-hex", "Li2PS3-orth", "Li2S", "Li3P", "Li4P2S6"),
    *("Li7P3S11", "Li7PS6", "Li48P16S61", "P2S5", "P4S3", "g67", "g70", "g75", "g80", "Li", "P", "S"),
]
"""Names of the compositions of LiPS20 in the files, in the order of Table 9."""

UNKNOWN, NONE, NOT_RUN = "?", "–", tables.NOT_RUN


def datasets():
    """Names of all datasets of the project, in the order in which they are shown."""
    known = cards.datasets()
    return [name for name in ORDER if name in known] + [name for name in known if name not in ORDER]


def at_hand(name, split="test"):
    """Whether the files of a split are on this machine; nothing is downloaded or generated."""
    card = cards.dataset(name)
    if card.generate:
        return any(paths.generated().glob(f"{card.name}-*.npz"))
    keys = [key for part in card.split(split).parts for key in card.files_of(part.source)]
    folders = paths.data() + ([card.folder] if card.folder else [])
    return all(any((folder / card.files[key].path).exists() for folder in folders) for key in keys)


def overview(names=None):
    """Atoms, elements, frames, conditions, order in time, reference and licence of all datasets.

    Parameters
    ----------
    names
        Names of the datasets; by default all.

    Returns
    -------
    pandas.DataFrame
        One row per dataset. Atoms are counted in the files; a question mark means that these are not
        available. ``every (fs)`` is the interval of the frames of time-ordered splits, if there are any.
    """
    return pd.DataFrame([_row(cards.dataset(name)) for name in names or datasets()]).set_index("dataset")


def _row(card):
    frames = {name: _frames(card, name) for name in ("train", "val", "test")}
    temperatures = sorted({card.conditions(split)[0] for split in card.splits})
    steps = sorted(set(card.time_ordered.values()))
    return {
        "dataset": card.title if card.name.endswith("_full") else titles.dataset_title(card.name),
        "atoms": _atoms(card),
        "elements": ", ".join(chemical_symbols[number] for number in card.elements),
        **frames,
        "T (K)": _range(temperatures)
        if len(temperatures) > 2
        else ", ".join(map("{:g}".format, temperatures)),
        "every (fs)": ", ".join(f"{value:g}" for value in steps) or "no",
        "live reference": cards.oracle_title(card.oracle) or "none",
        "licence": _licence(card),
    }


def _licence(card):
    """Stated licence, without its consequences for users."""
    parts = [part for part in card.licence.split("; ") if "downloaded" not in part]
    return "; ".join(parts).replace("MDBENCHGNN states none", "none stated")


def _frames(card, split):
    if split not in card.splits:
        return NONE
    frames = card.splits[split].frames
    return UNKNOWN if frames is None else f"{frames:,}"


def _atoms(card):
    splits = [name for name, split in card.splits.items() if len(split.parts) == 1 and at_hand(card, name)]
    if not card.name.startswith("lips20"):
        splits = splits[:1]
    counts = sorted({len(data.load(card, split)[0]) for split in splits})
    return _range(counts) if counts else UNKNOWN


def _range(values):
    """Text of sorted values, as one number or as their range."""
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def coverage(campaign, *, beside=()):
    """Runs of models on datasets, in the earlier literature (Table 8) and in our campaigns.

    Parameters
    ----------
    campaign, beside
        Name of a campaign, and names of further campaigns.

    Returns
    -------
    pandas.DataFrame
        Index (dataset, source), with one column per model. Source ``earlier`` has a tick or a dash for each
        row of Table 8. A campaign has ``rolled out``, ``trained`` or ``not run``, with a number for the four
        molecules of MD17. A campaign in `beside` has only the rows in which it ran something.
    """
    table = paper.table(8).set_index("dataset")
    runs = {name: _runs(name) for name in (campaign, *beside)}
    found = {dataset for done in runs.values() for dataset, _ in done}
    grouped = {dataset for members in GROUPS.values() for dataset in members}
    rows = {}
    for row, members in (GROUPS | {name: [name] for name in sorted(found - grouped)}).items():
        title = TITLES.get(row) or titles.dataset_title(row)
        if row in table.index:
            rows[title, "earlier"] = [
                (NONE, "✓")[tick] for tick in table.loc[row, list(paper.HYPERPARAMETERS)]
            ]
        for name, done in runs.items():
            states = [_state([done.get((d, m), "") for d in members]) for m in paper.HYPERPARAMETERS]
            if name == campaign or set(states) != {NOT_RUN}:
                rows[title, name] = states
    heads = [titles.model_title(model) for model in paper.HYPERPARAMETERS]
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "source"])
    return pd.DataFrame(list(rows.values()), index=index, columns=heads)


def rolled_out(campaign):
    """Number of pairs of a model and one of the paper's nine training sets that a campaign rolled out."""
    members = {dataset for group in GROUPS.values() for dataset in group}
    runs = _runs(campaign).items()
    return sum(
        dataset in members and model in paper.HYPERPARAMETERS and state == "rolled out"
        for (dataset, model), state in runs
    )


def _runs(campaign):
    """State of the runs of a campaign, (dataset, model) -> ``rolled out`` or ``trained``."""
    frame = records.read(campaign)
    done = {}
    for kind, word in (("training", "trained"), ("rollout", "rolled out")):
        rows = frame[(frame.kind == kind) & (frame.status != "failed") & (frame.model != "reference")]
        done |= dict.fromkeys(zip(rows.dataset, rows.model, strict=True), word)
    return done


def _state(states):
    for word in ("rolled out", "trained"):
        if number := states.count(word):
            return word if len(states) == 1 else f"{number} of {len(states)} {word}"
    return NOT_RUN


def compositions():
    """Table 9 compared with the files: composition, atoms and configurations of the materials of LiPS20.

    Returns
    -------
    pandas.DataFrame
        One row for each of the twenty materials, with the name of its files as index. Columns: ``material``
        and ``composition`` as published (in plain text), ``atoms`` and ``frames`` (paper, files), ``use``
        in this book, and ``disagreement``, which is computed: a formula, a number of atoms or of frames that
        does not fit, or a glass whose Li : P ratio is more than 5 % off its name.
    """
    table, rows = paper.table(9), []
    for name, row in zip(LIPS20, table.itertuples(index=False), strict=True):
        counts, frames = _contents(name)
        rows.append(
            {
                "files": name,
                "material": plain(row.material),
                "composition": plain(row.composition),
                "atoms (paper)": row.atoms,
                "atoms (files)": sum(counts.values()) or UNKNOWN,
                "frames (paper)": row.configurations,
                "frames (files)": frames or UNKNOWN,
                "use": _use(name),
                "disagreement": "; ".join(_disagreements(row, counts, frames)),
            }
        )
    return pd.DataFrame(rows).set_index("files")


def plain(text):
    """A formula of the paper without its typesetting.

    >>> plain(r"\\beta - Li_3P_4S_4"), plain("Li_{24}P_8S_{32}"), plain("67Li_2S - 33P_2S_5")
    ('beta-Li3P4S4', 'Li24P8S32', '67Li2S-33P2S5')
    """
    return re.sub(r"[_{}\\$]", "", text).replace(" - ", "-")


def count(formula):
    """Numbers of atoms of each element in a plain formula; words and prefixes before it are ignored.

    >>> dict(count("Hexagonal Li2PS3")), dict(count("80Li2S-20P2S5"))
    ({'Li': 2, 'P': 1, 'S': 3}, {'Li': 160, 'S': 180, 'P': 40})
    """
    total = Counter()
    for part in re.sub(r"[A-Z][a-z]{2,} |[a-z]{4,}-", "", formula).split("-"):
        times, atoms = re.fullmatch(r"(\d*)(.*)", part).groups()
        for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", atoms):
            total[symbol] += int(times or 1) * int(number or 1)
    return total


def _contents(name):
    """Atoms of each element and number of frames in the files of a composition; nothing if unavailable."""
    if not at_hand("lips20", name):
        return Counter(), 0
    files = data.fetch("lips20", name)
    energies = np.load(files[f"{name}/energy"], allow_pickle=False)
    return Counter(data.load("lips20", name)[0].symbols), energies.size


def _use(name):
    card = cards.dataset("lips20")
    parents = card.split(name).subset_of
    words = {"test": "trained on", "crystals": "crystal", "compositions": "unseen", "glasses": "glass"}
    return words.get(parents[0], parents[0]) if parents else NONE


def _disagreements(row, counts, frames):
    named, cell = count(plain(row.material)), count(plain(row.composition))
    if "-33" in plain(row.material) or re.match(r"\d", row.material):
        ratios = named["Li"] / named["P"], cell["Li"] / cell["P"]
        if not isclose(*ratios, rel_tol=0.05):
            yield f"Li : P is {ratios[0]:.2f} by name, {ratios[1]:.2f} in the cell"
    elif _reduced(named) != _reduced(cell):
        yield f"{_formula(cell)} is {_formula(_reduced(cell))}, not {_formula(named)}"
    if sum(cell.values()) != row.atoms:
        yield f"the composition has {sum(cell.values())} atoms"
    if counts and counts != cell:
        yield f"the files hold {_formula(counts)}"
    if frames and frames != row.configurations:
        yield f"the files hold {frames} frames"
    if not counts:
        yield "files not at hand"


def _reduced(counts):
    divisor = np.gcd.reduce(list(counts.values()))
    return Counter({symbol: number // divisor for symbol, number in counts.items()})


def _formula(counts):
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in sorted(counts))


def conditions():
    """Table 10 compared with the cards and the frames: temperature and timestep of the simulations.

    Returns
    -------
    pandas.DataFrame
        One row for each dataset and temperature of the table: ``T`` (K) and ``timestep`` (fs) of the paper
        and of the cards, ``frames every`` (fs) if the available frames are ordered in time, ``source
        timestep`` (fs) of the simulation that produced them, if known, and ``disagreement``.
    """
    rows = []
    for name, temperature, timestep in paper.table(10).itertuples(index=False):
        card = cards.dataset(GROUPS[name][0])
        split = _split_at(card, temperature)
        ours = card.conditions(split) if split else (None, None)
        interval, step = card.time_ordered.get(split), SOURCE_STEPS.get(name)
        parts = sorted(T for key, T in card.temperatures.items() if not key.startswith("test"))
        differences = [*_differences(temperature, timestep, ours, interval, step)]
        differences += [f"{len(parts)} compositions are at {_range(parts)} K"] if parts else []
        rows.append(
            {
                "dataset": TITLES[name],
                "T (K), paper": temperature,
                "T (K), card": ours[0],
                "timestep (fs), paper": timestep,
                "timestep (fs), card": ours[1],
                "frames every (fs)": interval,
                "source timestep (fs)": step,
                "disagreement": "; ".join(differences),
            }
        )
    return pd.DataFrame(rows).set_index("dataset")


def _split_at(card, temperature):
    """Name of a split whose rollouts run at a temperature, K, preferably the test split."""
    known = [name for name in card.splits if name.startswith("test")]
    return next((name for name in known if card.conditions(name)[0] == temperature), None)


def _differences(temperature, timestep, ours, interval, step):
    if ours[0] != temperature:
        yield f"no card at {temperature:g} K"
    elif ours[1] != timestep:
        yield f"the card runs at {ours[1]:g} fs"
    if interval and not isclose(interval, timestep):
        yield f"frames are {interval:g} fs apart, {interval / timestep:.3g} steps"
    if step and not isclose(step, timestep):
        yield f"the frames come from a simulation of {step:g} fs steps"


def plot_datasets():
    """Figure 2, a picture of every dataset whose files are available, with scale bars.

    Returns
    -------
    matplotlib.figure.Figure
    """
    pairs = pictured()
    rows = max(1, ceil(len(pairs) / 4))
    figure, axes = plt.subplots(rows, 4, figsize=(9.2, 2.5 * rows), squeeze=False)
    for ax in axes.ravel()[len(pairs) :]:
        ax.set_axis_off()
    handles = {}
    for (name, split), ax in zip(pairs, axes.ravel(), strict=False):
        atoms = data.load(name, split)[0]
        atoms.wrap()  # wraps periodic systems into the cell and leaves molecules unchanged
        structures.plot_structure(atoms, ax=ax)
        shown, texts = ax.get_legend_handles_labels()
        handles |= dict(zip(texts, shown, strict=True))
        ax.get_legend().remove()
        ax.set_axis_off()
        ax.set_title(_picture_title(name, split, atoms), fontsize=9)
        _draw_scale(ax, 5 if atoms.pbc.any() else 2)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return figure


def pictured():
    """Pairs of dataset and split that are shown, those available, with one composition of LiPS20.

    Cards that hold the structures of another, all of them or with more labels, are not shown again.
    """
    pairs = [(name, "P4S3" if name == "lips20" else "test") for name in datasets()]
    again = "_full", "_stress"
    return [(name, split) for name, split in pairs if not name.endswith(again) and at_hand(name, split)]


def views(*, atoms=3000, frames=40, every=5):
    """Structures for :func:`egraff_utils.report.viewer.show`, name -> first frame, or frames in order.

    Parameters
    ----------
    atoms
        Largest number of positions of a trajectory, which limits the size of the page.
    frames
        Largest number of frames of a trajectory.
    every
        Distance of the chosen frames in the trajectory.
    """
    chosen = {}
    for name, split in pictured():
        loaded, interval = data.load(name, split), cards.dataset(name).time_ordered.get(split)
        title = _picture_title(name, split, loaded[0]).partition("\n")[0]
        if interval:
            start = cards.dataset(name).first_contiguous.get(split, 0)
            kept = loaded[start::every][: min(frames, atoms // len(loaded[0]))]
            chosen[f"{title}, every {every * interval:g} fs"] = kept
        else:
            chosen[title] = loaded[0]
    return chosen


def _picture_title(name, split, atoms):
    title = titles.dataset_title(name).partition(" (")[0] + (f", {split}" if split != "test" else "")
    return f"{title}\n{len(atoms)} atoms"


def _draw_scale(ax, length):
    """Draw a scale bar of a length, Å, under the structure."""
    (left, _), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    height = bottom - 0.02 * (top - bottom)
    ax.plot([left, left + length], [height, height], color="black", linewidth=2)
    ax.text(left + length, height, f"  {length} Å", va="center", fontsize=8)


def sampler_values(found) -> dict:
    """Virial temperatures of the test frames of molecules, K with the 95 % error, as texts.

    Parameters
    ----------
    found
        Records of `egraff_utils.checks.audit.sampler.compare`.

    Returns
    -------
    dict
        ``<dataset>_labels`` and ``<dataset>_candidate`` of acetylacetone and 3BPA, by the labels and by the
        candidate for the method that sampled the frames; ``no value`` without a record.
    """
    known = {record.dataset: record for record in found}
    values = {}
    for dataset, side in itertools.product(("acac", "3bpa"), ("labels", "candidate")):
        metric = known[dataset].metric(f"virial_{side}_test") if dataset in known else None
        error = metric and metric.high - metric.value
        values[f"{dataset}_{side}"] = f"{metric.value:,.0f} ± {error:,.0f}" if metric else MISSING
    return values
