"""Is a potential that was trained elsewhere as good? Tables of the page report/universal."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from egraff_utils import cards, paper, records
from egraff_utils.records import Record
from egraff_utils.report import catalogue, horizon, leaderboards, titles
from egraff_utils.report.values import span

ZERO, PAPER = "Zero force", "Paper, six models"


def judged(found: Iterable[Record]) -> list[Record]:
    """Records of errors of calculators, in the order of datasets."""
    order = catalogue.datasets()
    own = [r for r in found if r.kind == "training" and cards.is_calculator(r.model)]
    own = [r for r in own if r.model != cards.REFERENCE and r.status == "complete"]
    return sorted(own, key=lambda r: (order.index(r.dataset) if r.dataset in order else len(order), r.model))


def trained(found: Iterable[Record], dataset: str) -> list[float]:
    """Force errors of the networks of a campaign on a dataset, meV/Å."""
    return [record["force_mae"] for record in _networks(found) if record.dataset == dataset]


def _networks(found):
    """Finished trainings of networks that started from nothing."""
    elsewhere = cards.pretrained()
    own = [r for r in found if r.kind == "training" and r.status == "complete"]
    return [r for r in own if r.model not in elsewhere and not cards.is_calculator(r.model)]


def published(dataset: str) -> list[float]:
    """Force errors of the paper's Table 1 on a dataset, meV/Å."""
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


def errors(
    own: Iterable[Record], others: dict[str, list[Record]], further: Iterable[Record] = ()
) -> pd.DataFrame:
    """Force errors by dataset, meV/Å, one column for every potential and for every campaign of networks.

    Parameters
    ----------
    own
        Records of :func:`judged`.
    others
        Campaign -> its records.
    further
        Records of :func:`tuned`, with a column for every time.
    """
    rows: dict[str, dict[str, str]] = {}
    own, further = list(own), list(further)
    times = sorted({(r.model, seconds(r)) for r in further}, key=lambda pair: pair[1])
    for record in own:
        row = rows.setdefault(titles.short_title(record.dataset), {})
        row[ZERO] = span([r["zero_force_mae"] for r in own if r.dataset == record.dataset], ",.0f")
        row[PAPER] = span(published(record.dataset), ".0f", missing="–")
        for name, found in others.items():
            row[from_nothing(name, found)] = span(trained(found, record.dataset), ".0f", missing="–")
        for time in times:
            mine = [
                r["force_mae"] for r in further if (r.model, seconds(r), r.dataset) == (*time, record.dataset)
            ]
            row[tuned_title(*time)] = span(mine, ".1f", missing="–")
        row[titles.model_title(record.model)] = f"{record['force_mae']:.0f}"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("Force MAE (meV/Å)")


def from_nothing(campaign: str, found: Iterable[Record]) -> str:
    """Head of the networks of a campaign, with the limits of their processor time."""
    limits = map(seconds, _networks(found))
    time = span(limits, ",.0f", missing="")
    return f"From nothing, {campaign}" + (f" ({time} s)" if time else "")


def tuned_title(model: str, time: float) -> str:
    """Head of a potential after further training.

    >>> tuned_title("so3lr_tuned", 15)
    'SO3LR, fine-tuned 15 s'
    """
    return f"{titles.model_title(model)} {time:.0f} s"


def ratios(own: Iterable[Record], others: dict[str, list[Record]], system: str) -> str:
    """Force errors over those of the best network of a dataset, campaign by campaign, as words.

    Parameters
    ----------
    own, others
        As of :func:`errors`.
    system
        System of the datasets, ``molecule`` or ``bulk``.
    """
    own, parts = [r for r in own if cards.dataset(r.dataset).system == system], []
    for name, found in others.items():
        pairs = [(r, trained(found, r.dataset)) for r in own]
        values = [record["force_mae"] / min(errors) for record, errors in pairs if errors]
        parts += [f"{span(values, '.1f')} times that of the best network of {name}"] if values else []
    return " and ".join(parts) or "not compared with networks"


def unlike(own: Iterable[Record], others: dict[str, list[Record]]) -> str:
    """Range of the zero-force errors of few frames over those of the whole test sets, as a text."""
    whole = {r.dataset: r["zero_force_mae"] for found in others.values() for r in _networks(found)}
    apart = [100 * (r["zero_force_mae"] / whole[r.dataset] - 1) for r in own if r.dataset in whole]
    return f"{span(apart, '+.0f')} %"


def details(own: Iterable[Record]) -> pd.DataFrame:
    """Frames, energy error after the shift and slope of the forces of every potential on every dataset.

    Those of :func:`tuned` follow the potential as it came.
    """
    rows = [
        {
            "Dataset": titles.short_title(record.dataset),
            "Potential": tuned_title(record.model, seconds(record))
            if record["steps"]
            else titles.model_title(record.model),
            "Test frames": str(record.metric("force_slope").n),
            "Energy MAE (meV/atom)": f"{record['energy_mae_per_atom']:.1f}",
            "Slope of the forces": f"{record['force_slope']:.2f}",
        }
        for record in sorted(own, key=lambda r: catalogue.datasets().index(r.dataset))
    ]
    return pd.DataFrame(rows)


def gained(further: Iterable[Record], own: Iterable[Record], others: dict[str, list[Record]]) -> str:
    """Force errors of further training beside those of nothing learnt and of networks, dataset by dataset."""
    parts, further = [], list(further)
    start = {(r.model, r.dataset): r["force_mae"] for r in own}
    for dataset in dict.fromkeys(r.dataset for r in further):
        mine = [r for r in further if r.dataset == dataset]
        first = start.get((mine[0].model.removesuffix("_tuned"), dataset), math.nan)
        steps = ", ".join(f"{r['force_mae']:.1f} after {seconds(r):.0f} s" for r in mine)
        nothing = [f"{span(trained(found, dataset), '.0f')} ({name})" for name, found in others.items()]
        beside = f"; networks from nothing {' and '.join(nothing)}" if nothing else ""
        parts.append(f"on {titles.short_title(dataset)} {first:.0f} as it came, {steps}{beside}")
    return ". ".join(parts) or "not run"


def simulated(campaign: str, further: Iterable[str], levels: str) -> pd.DataFrame:
    """Rows of a leaderboard: potentials, fine-tuned ones and networks where potentials were simulated.

    A rollout of fewer steps than those of the networks does not compare with them, and is left out.

    Parameters
    ----------
    campaign
        Campaign of the potentials.
    further
        Campaigns of fine-tuned ones.
    levels
        Campaign of networks and of saturation levels.
    """
    own = pd.concat([records.read(name) for name in dict.fromkeys((campaign, *further))])
    own, networks = own[own.kind.isin(["rollout", "gate", "horizon"])], records.read(levels)
    own = own[~own.path.isin(_shorter(own, networks))]
    found = pd.concat([own, networks]) if levels != campaign else own
    return found[found.dataset.isin(own.dataset[own.kind == "rollout"].unique())]


def _shorter(own, networks):
    """Paths of rollouts with fewer steps than those of the networks on their dataset."""
    steps, most = (frame[(frame.kind == "rollout") & (frame.metric == "steps")] for frame in (own, networks))
    return set(steps.path[steps.value < steps.dataset.map(most.groupby("dataset").value.max())])


def endurance(rollouts: Iterable[Record]) -> str:
    """How many replicas of each rollout were stable to its end, in words."""
    parts = [
        "{} of {} of {} on {} ({} steps)".format(
            *leaderboards.stable_replicas(record),
            titles.model_title(record.model)
            + (f", {record.campaign}" if not cards.is_calculator(record.model) else ""),
            titles.short_title(record.dataset),
            record.parameters["steps"],
        )
        for record in rollouts
    ]
    return ", ".join(parts) or "none was simulated"


def horizons(found: Iterable[Record]) -> pd.DataFrame:
    """Horizons with the thermostat of rollouts and without one, fs, of every potential and dataset."""
    rows = {}
    for record in horizon.following(list(found)):
        row = rows.setdefault((titles.short_title(record.dataset), titles.model_title(record.model)), {})
        row |= {
            f"Horizon, {horizon.TITLES[name]} (fs)": horizon.text(record, name)
            for name in ("langevin", "nve")
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["Dataset", "Potential"]) if len(table) else table


def facts(models: Iterable[str]) -> pd.DataFrame:
    """What the cards of potentials say of their weights, one column for every potential."""
    found = {card.title: {"Package": card.package} | card.facts for card in map(cards.model, models)}
    return pd.DataFrame(found).fillna("–").rename_axis("Fact")
