"""Are forces of potentials that were trained elsewhere as good? Tables of the page report/universal."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from egraff_utils import cards, paper
from egraff_utils.records import Record
from egraff_utils.report import catalogue, titles
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
    return [
        record["force_mae"]
        for record in found
        if record.kind == "training" and record.dataset == dataset and record.status == "complete"
        if not cards.is_calculator(record.model)
    ]


def published(dataset: str) -> list[float]:
    """Force errors of the paper's Table 1 on a dataset, meV/Å."""
    table = paper.table(1)
    return table.force_mae_mev_per_ang[table.dataset == dataset].dropna().tolist()


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
        row = rows.setdefault(titles.short_title(record.dataset), {})
        row[ZERO] = span([r["zero_force_mae"] for r in own if r.dataset == record.dataset], ",.0f")
        row[PAPER] = span(published(record.dataset), ".0f", missing="–")
        for name, found in others.items():
            row[f"Trained here, {name}"] = span(trained(found, record.dataset), ".0f", missing="–")
        row[titles.model_title(record.model)] = f"{record['force_mae']:.0f}"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("Force MAE (meV/Å)")


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


def details(own: Iterable[Record]) -> pd.DataFrame:
    """Frames, energy error after the shift and slope of the forces of every potential on every dataset."""
    rows = [
        {
            "Dataset": titles.short_title(record.dataset),
            "Potential": titles.model_title(record.model),
            "Test frames": str(record.metric("force_slope").n),
            "Energy MAE (meV/atom)": f"{record['energy_mae_per_atom']:.1f}",
            "Slope of the forces": f"{record['force_slope']:.2f}",
        }
        for record in own
    ]
    return pd.DataFrame(rows)
