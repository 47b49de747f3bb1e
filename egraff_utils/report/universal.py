"""Is a potential that was trained elsewhere as good? Tables of the page report/universal."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from egraff_utils import cards, paper, records
from egraff_utils.records import Record
from egraff_utils.report import catalogue, gate, horizon, leaderboards, shifts, titles, values

ZERO, PAPER = "Zero force", "Paper, six models"
SHIFTS = {"temperature": "300 to 600 K", "benzene": "to benzene"}
"""Tasks out of distribution on which potentials are judged, and their names in tables."""
Names = dict[tuple[str, str, str], str]
"""Names for readers by campaign, dataset and model (:func:`names`)."""


def judged(found: Iterable[Record]) -> list[Record]:
    """Records of errors of calculators, in the order of datasets."""
    order = catalogue.datasets()
    own = [r for r in found if r.kind == "training" and cards.is_calculator(r.model)]
    own = [r for r in own if r.model != cards.REFERENCE and r.status == "complete"]
    return sorted(own, key=lambda r: (order.index(r.dataset) if r.dataset in order else len(order), r.model))


def trained(found: Iterable[Record], dataset: str) -> list[float]:
    """Force errors of the networks of a campaign on a dataset, meV/Å."""
    return [record["force_mae"] for record in networks(found) if record.dataset == dataset]


def networks(found):
    """Finished trainings of networks that started from nothing."""
    return [r for r in _from_nothing(found) if r.kind == "training" and r.status == "complete"]


def _from_nothing(found):
    """Records of networks that did not come with weights."""
    return [r for r in found if not _is_potential(r.model)]


def _is_potential(model):
    return model in cards.pretrained() or cards.is_calculator(model)


def where(dataset: str) -> str:
    """Name of a dataset in tables, with the temperature of its test set if it was trained at another.

    >>> where("3bpa"), where("ethanol")
    ('3BPA, 300 to 600 K', 'Ethanol')
    """
    title, warm = titles.short_title(dataset), _warm(dataset)
    return f"{title}, {cards.dataset(dataset).temperature:.0f} to {warm:.0f} K" if warm else title


def _warm(dataset):
    """Temperature of the test set, K, if it is not that of the training set; else ``None``."""
    card = cards.dataset(dataset)
    warm = card.temperatures.get("test")
    return warm if warm != card.temperature else None


def published(dataset: str) -> list[float]:
    """Force errors of the paper's Table 1 on the test set of a dataset, meV/Å.

    Empty where our test set is at another temperature than the training set: Table 1 is of frames like those
    of the training.
    """
    if _warm(dataset):
        return []
    table = paper.table(1)
    return table.force_mae_mev_per_ang[table.dataset == dataset].dropna().tolist()


def tuned(found: Iterable[Record], dataset: str | None = None) -> list[Record]:
    """Records of trainings that started from the weights of a universal potential, by dataset and time."""
    own = [r for r in found if r.kind == "training" and r.model in cards.pretrained()]
    own = [r for r in own if r.status == "complete" and dataset in (None, r.dataset)]
    return sorted(own, key=lambda r: (catalogue.datasets().index(r.dataset), r.model, seconds(r)))


def seconds(record: Record) -> float:
    """Limit of the processor time of a training, s; NaN without one."""
    return record.parameters.get("max_seconds") or math.nan


def errors(own: Iterable[Record], others: dict[str, list[Record]]) -> pd.DataFrame:
    """Force errors by dataset, meV/Å, one column for every potential and for every campaign of networks.

    Parameters
    ----------
    own
        Records of :func:`judged`.
    others
        Campaign -> its records.
    """
    rows: dict[str, dict[str, str]] = {}
    own = list(own)
    for record in own:
        row = rows.setdefault(where(record.dataset), {})
        row[ZERO] = values.span([r["zero_force_mae"] for r in own if r.dataset == record.dataset], ",.0f")
        row[PAPER] = values.span(published(record.dataset), ".0f", missing="–")
        row |= _beside(others, record.dataset)
        row[titles.model_title(record.model)] = f"{record['force_mae']:.0f}"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("Force MAE (meV/Å)")


def errors_by_time(
    further: Iterable[Record], own: Iterable[Record], others: dict[str, list[Record]]
) -> pd.DataFrame:
    """Force errors of potentials as they came and after further training, meV/Å, a column for every time.

    Parameters
    ----------
    further
        Records of :func:`tuned`.
    own, others
        As of :func:`errors`.
    """
    rows, further = {}, list(further)
    start = {(r.model, r.dataset): r["force_mae"] for r in own}
    times = sorted({seconds(record) for record in further})
    for dataset, model in dict.fromkeys((r.dataset, r.model) for r in further):
        came = model.removesuffix("_tuned")
        row = {"As it came": values.span([start.get((came, dataset), math.nan)], ".0f", missing="–")}
        for time in times:
            mine = [r for r in further if (r.dataset, r.model, seconds(r)) == (dataset, model, time)]
            row[f"Fine-tuned {time:.0f} s"] = values.span([r["force_mae"] for r in mine], ".1f", missing="–")
        rows[where(dataset), titles.model_title(came)] = row | _beside(others, dataset)
    return _by_potential(rows)


def _by_potential(rows):
    """Table of rows by dataset and potential."""
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["Dataset", "Potential"]) if rows else table


def _indexed(rows, *names):
    table = pd.DataFrame(rows)
    return table.set_index(list(names)) if rows else table


def _beside(others, dataset):
    """Force errors of the networks of every campaign on a dataset, meV/Å, as texts by head."""
    return {
        from_nothing(campaign, found): values.span(trained(found, dataset), ".0f", missing="–")
        for campaign, found in others.items()
    }


def from_nothing(campaign: str, found: Iterable[Record]) -> str:
    """Head of the networks of a campaign, with the limits of their processor time."""
    limits = map(seconds, networks(found))
    time = values.span(limits, ",.0f", missing="")
    return f"From nothing, {campaign}" + (f" ({time} s)" if time else "")


def names(further: Iterable[Record]) -> Names:
    """Names of fine-tuned potentials with their times, by campaign, dataset and model.

    Campaigns differ in the time of training alone, so that the model does not tell their records apart.
    """
    return {(r.campaign, r.dataset, r.model): tuned_title(r.model, seconds(r)) for r in further}


def name(record: Record, known: Names) -> str:
    """Name of the model of a record for readers, one of :func:`names` if it has one there."""
    return known.get((record.campaign, record.dataset, record.model)) or titles.model_title(record.model)


def tuned_title(model: str, time: float) -> str:
    """Head of a potential after further training.

    >>> tuned_title("so3lr_tuned", 15)
    'SO3LR, fine-tuned 15 s'
    """
    return f"{titles.model_title(model)} {time:.0f} s"


def ends(values: Iterable[tuple[str, float]], spec: str, unit: str = "") -> str:
    """Smallest and largest of named values as words, each with its name.

    Examples
    --------
    >>> ends([("MACE", 3.0), ("NequIP", 1.0), ("Allegro", 2.0)], ".1f", " %")
    '1.0 % (NequIP) to 3.0 % (MACE)'
    """
    ranked = sorted(values, key=lambda pair: pair[1])
    texts = [f"{value:{spec}}{unit} ({who})" for who, value in (ranked[:1] + ranked[-1:])]
    return " to ".join(dict.fromkeys(texts)) or "no value"


def _pair(record):
    return f"{titles.model_title(record.model)} on {where(record.dataset)}"


def limits(found: Iterable[Record]) -> set[float]:
    """Limits of the processor time of the networks of a campaign, s; trainings by steps alone have none."""
    return {limit for limit in map(seconds, networks(found)) if math.isfinite(limit)}


def factors(own: Iterable[Record], found: Iterable[Record], system: str) -> str:
    """Force errors over that of the best network of the same dataset, as words.

    Parameters
    ----------
    own
        Records of :func:`judged` or of :func:`tuned`.
    found
        Records, of which finished networks that started from nothing are compared with.
    system
        System of the datasets, ``molecule`` or ``bulk``.
    """
    found, over = list(found), {}
    for record in own:
        errors = trained(found, record.dataset)
        if errors and cards.dataset(record.dataset).system == system:
            over.setdefault(record.dataset, []).append(record["force_mae"] / min(errors))
    times = values.span([factor for each in over.values() for factor in each], ".2f", missing="")
    return f"{times} times ({', '.join(map(titles.short_title, over))})" if times else "not known times"


def ahead(further: Iterable[Record], others: dict[str, list[Record]]) -> str:
    """How many trainings have a smaller force error than every network of a campaign, in words."""
    further, parts = list(further), []
    for name, found in others.items():
        pairs = [(r["force_mae"], trained(found, r.dataset)) for r in further]
        better = [error < min(errors) for error, errors in pairs if errors]
        parts += [f"{sum(better)} of {len(better)} beside campaign {name}"] if better else []
    return values.listed(parts) or "not compared"


def unlike(own: Iterable[Record], others: dict[str, list[Record]]) -> str:
    """Ends of the zero-force errors of few frames over those of the whole test sets, as a text."""
    whole = {r.dataset: r["zero_force_mae"] for found in others.values() for r in networks(found)}
    own = [r for r in own if r.dataset in whole]
    return ends([(_pair(r), 100 * (r["zero_force_mae"] / whole[r.dataset] - 1)) for r in own], "+.0f", " %")


def risen(own: Iterable[Record], further: Iterable[Record]) -> str:
    """Energy errors that further training raised, meV/atom, and what the mean error leaves, as a text."""
    start = {(r.model, r.dataset): r["energy_mae_per_atom"] for r in own}
    parts = []
    for record in further:
        before = start.get((record.model.removesuffix("_tuned"), record.dataset), math.inf)
        if (after := record["energy_mae_per_atom"]) > before:
            rest = after * record["energy_mae_shifted"] / record["energy_mae"]
            changed = f"{before:.1f} to {after:.1f} meV/atom ({rest:.1f} without its mean error)"
            parts.append(f"{_pair(record)} {changed}")
    return "; ".join(parts) or "none"


def details(own: Iterable[Record], found: Iterable[Record] = ()) -> pd.DataFrame:
    """Frames, energy error after the shift, slope of the forces and cost of every potential on every dataset.

    Those of :func:`tuned` follow the potential as it came. The cost is that in a rollout of any length among
    the records `found`, over its number of replicas.
    """
    runs = {(r.campaign, r.dataset, r.model): r for r in found if r.kind == "rollout"}
    rows = [
        {
            "Dataset": where(record.dataset),
            "Potential": tuned_title(record.model, seconds(record))
            if record["steps"]
            else titles.model_title(record.model),
            "Test frames": str(record.metric("force_slope").n),
            "Frames in all steps": _frames(record),
            "Zero of energy": "fitted, then trained" if record["steps"] else "fitted",
            "Energy MAE (meV/atom)": f"{record['energy_mae_per_atom']:.1f}",
            "Slope of the forces": f"{record['force_slope']:.2f}",
            "MD step of a replica (ms)": _cost(runs.get((record.campaign, record.dataset, record.model))),
        }
        for record in sorted(own, key=lambda r: catalogue.datasets().index(r.dataset))
    ]
    return _indexed(rows, "Dataset", "Potential")


def _frames(record):
    """Number of frames in the steps of a training, repeated ones counted again."""
    if not record["steps"]:
        return "–"
    return f"{record['steps'] * record.provenance['hyperparameters']['batch_size']:,.0f}"


def _cost(rollout):
    return f"{rollout['ms_per_step'] / rollout.parameters['replicas']:.0f}" if rollout else "–"


def simulated(campaign: str, further: Iterable[Record], levels: str) -> pd.DataFrame:
    """Rows of a leaderboard: potentials, fine-tuned ones and networks where potentials were simulated.

    A rollout of fewer steps than those of the networks does not compare with them, and is left out.

    Parameters
    ----------
    campaign
        Campaign of the potentials.
    further
        Records of :func:`tuned`.
    levels
        Campaign of networks and of saturation levels.
    """
    further = list(further)
    known, networks = names(further), records.read(levels)
    parts = [records.read(place) for place in dict.fromkeys([campaign, *(r.campaign for r in further)])]
    own = pd.concat(parts)
    places = own.path.str.partition("/")[0]
    keys = zip(places, own.dataset, own.model, strict=True)
    own = own.assign(model=[known.get(key, key[-1]) for key in keys])
    own = own[own.kind.isin(["rollout", "gate", "horizon"])]
    own = own[~own.path.isin(_shorter(own, networks))]
    found = pd.concat([own, networks]) if levels != campaign else own
    return found[found.dataset.isin(own.dataset[own.kind == "rollout"].unique())]


def _shorter(own, networks):
    """Paths of rollouts with fewer steps than those of the networks on their dataset."""
    steps, most = (frame[(frame.kind == "rollout") & (frame.metric == "steps")] for frame in (own, networks))
    return set(steps.path[steps.value < steps.dataset.map(most.groupby("dataset").value.max())])


def strayed(frame: pd.DataFrame) -> str:
    """How many potentials have a larger Wright's factor than every network of their dataset, in words.

    Parameters
    ----------
    frame
        Rows of :func:`simulated`.
    """
    rows = frame[(frame.kind == "rollout") & (frame.metric == "wf") & (frame.model != cards.REFERENCE)]
    means = rows.groupby(["dataset", "model"]).value.mean().reset_index()
    network = means.model.isin(cards.models())
    worst = means[network].groupby("dataset").value.max()
    own = means[~network & means.dataset.isin(worst.index)]
    tuned, beyond = own.model.str.contains("fine-tuned"), own.value > own.dataset.map(worst)
    kinds = {"as they came": ~tuned, "trained further": tuned}
    return values.listed([f"{beyond[kind].sum()} of {kind.sum()} {how}" for how, kind in kinds.items()])


def endurance(rollouts: Iterable[Record], known: Names) -> str:
    """How many replicas were stable to the end, by the length of rollouts, and which broke, in words."""
    lengths: dict[int, list[tuple[str, int, int]]] = {}
    for record in rollouts:
        who = f"{name(record, known)} on {titles.short_title(record.dataset)}"
        run = (who, *leaderboards.stable_replicas(record))
        lengths.setdefault(record.parameters["steps"], []).append(run)
    parts = []
    for steps, runs in sorted(lengths.items(), reverse=True):
        total, replicas = (sum(run[i] for run in runs) for i in (1, 2))
        broken = [f"{stable} of {count} of {who}" for who, stable, count in runs if stable < count]
        tail = f" (only {values.listed(broken)})" if broken else ""
        parts.append(f"{total} of {replicas} over {steps} steps{tail}")
    return ", ".join(parts) or "none was simulated"


def verdicts(found: Iterable[Record], known: Names) -> list[str]:
    """What the gate said of each potential on each dataset, with the size of each failure."""
    said = {
        f"{name(r, known)} on {titles.short_title(r.dataset)}": "passes" if r["passed"] else _failed(r)
        for r in gate.select(list(found))
    }
    return [f"{who} {text}" for who, text in sorted(said.items())]


def _failed(record):
    """Checks that a potential failed, with their values and tolerances."""
    checks, limits = record.message.split(", "), record.parameters["tolerances"]
    each = [f"{check} {record[check]:.2g}" for check in checks]
    limit = values.span([limits[check] for check in checks], "g")
    return f"fails {values.listed(each)} (tolerance {limit})"


def horizons(found: Iterable[Record], known: Names) -> pd.DataFrame:
    """Horizons under every dynamics that was measured, fs, of every potential and dataset."""
    rows = {}
    for record in horizon.following(list(found)):
        row = rows.setdefault((titles.short_title(record.dataset), name(record, known)), {})
        for kind in ("driven", "langevin", "nve"):
            if text := horizon.text(record, kind):
                row[f"Horizon, {horizon.TITLES[kind]} (fs)"] = text
    return _by_potential(rows)


def shifted(found: Iterable[Record], others: dict[str, list[Record]], known: Names) -> pd.DataFrame:
    """Force errors on frames like those of a training and on shifted ones, meV/Å, and their ratio.

    Parameters
    ----------
    found
        Records, of which those of kind ``errors`` of potentials are taken.
    others
        As of :func:`errors`; the networks of a campaign are one row, with their range.
    known
        Names of :func:`names`.
    """
    rows = [
        {
            "Dataset": titles.short_title(shift.dataset),
            "Shift": title,
            "Potential": who,
            "At home (meV/Å)": values.span([home for home, _ in pairs], ".0f"),
            "Shifted (meV/Å)": values.span([away for _, away in pairs], ".0f"),
            "Ratio (×)": values.span(_ratios(pairs), ".1f"),
        }
        for shift, title, who, pairs in _shifted(found, others, known)
    ]
    return _indexed(rows, "Dataset", "Shift", "Potential")


def _shifted(found, others, known):
    """Shift, title of its task, name of a potential or campaign, and pairs of its errors at home and away."""
    found = [r for r in found if _is_potential(r.model)]
    for task, title in SHIFTS.items():
        for shift in shifts.TASKS[task]:
            own = [r for r in found if r.dataset == shift.dataset]
            called = dict.fromkeys(name(r, known) for r in own)
            groups = {who: _pairs([r for r in own if name(r, known) == who], shift) for who in called}
            if any(groups.values()):
                networks = {from_nothing(place, held): _from_nothing(held) for place, held in others.items()}
                groups |= {who: _pairs(held, shift) for who, held in networks.items()}
            yield from ((shift, title, who, pairs) for who, pairs in groups.items() if pairs)


def _pairs(found, shift):
    """Force errors at home and away, meV/Å, of every model and seed that has both."""
    sides = []
    for side in (shifts.IN, shifts.OUT):
        (kind, *_) = shift.kinds(side, rollout=False)
        own = [r for r in found if (r.kind, r.dataset) == (kind, shift.dataset)]
        sides.append({(r.campaign, r.model, r.seed): r["force_mae"] for r in own})
    home, away = sides
    return [(home[key], away[key]) for key in home if key in away]


def _ratios(pairs):
    return [away / home for home, away in pairs]


def facts(models: Iterable[str]) -> pd.DataFrame:
    """What the cards of potentials say of their weights, one column for every potential."""
    found = {card.title: {"Package": card.package} | card.facts for card in map(cards.model, models)}
    return pd.DataFrame(found).fillna("–").rename_axis("Fact")
