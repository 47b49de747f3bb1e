"""How did the others do? Simulations of all models of a cell, or a table of all campaigns, a tab for each."""

from __future__ import annotations

import base64
import io
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from PIL import Image

from egraff_utils import quantities, records
from egraff_utils.cards import REFERENCE
from egraff_utils.quantities import shown
from egraff_utils.report import plots
from egraff_utils.report.beside import campaign_name
from egraff_utils.report.comparison import order_models
from egraff_utils.report.tables import FEW
from egraff_utils.report.titles import model_title, short_title

TOLD = ("stable_fraction", "wf", "jsd", "fv", "ev_root", "temperature")
"""Metrics that a tab gives in words."""
STYLE = """<style>
.record-tabs { display: flex; flex-wrap: wrap; margin: 1em 0; }
.record-tabs > input { position: absolute; opacity: 0; }
.record-tabs > label { padding: .3em .7em; cursor: pointer; border-bottom: 2px solid transparent; }
.record-tabs > input:checked + label { border-color: #0b5394; font-weight: 600; }
.record-tabs > input:focus-visible + label { outline: 2px solid #0b5394; }
.record-tabs > div { display: none; order: 1; width: 100%; padding-top: .5em; }
.record-tabs > input:checked + label + div { display: block; }
.record-tabs img { max-width: 100%; }
</style>"""


def every_model(record, *, floor=None) -> HTML:
    """Tabs with figures and metrics of all models that the campaign has simulated as it did that of a record.

    They have the same dataset, kind and seed, and the tab of the record itself is open. The reference with
    noise of its own, if the campaign ran it, has a tab and a dashed line in the others. Tabs need no script.

    Parameters
    ----------
    record
        Record of a rollout.
    floor
        Record of the saturation level, as for `plots.plot_rdf` and `plots.plot_violations`.
    """
    found = {other.model: other for other in records.read_all(record.campaign) if _alike(other, record)}
    found |= {record.model: record}
    own_noise = found.get(REFERENCE)
    contents = {
        name: (model_title(name), _simulation(found[name], floor, None if name == REFERENCE else own_noise))
        for name in order_models(found)
    }
    return _tabs(f"{record.dataset}-{record.kind}", contents, record.model)


def every_campaign(table, frame, beside=()) -> HTML:
    """Tabs with one table, as each of several campaigns gives it; the first one is open.

    Parameters
    ----------
    table
        Function that makes a Styler from a campaign's metrics, as `records.read` returns them, and from the
        names of campaigns that stand ``beside`` it, such as `tables.paper_table`.
    frame
        Metrics of the campaign of the first tab.
    beside
        Names of further campaigns. One with at most `tables.FEW` simulations has no tab: it stands beside the
        first campaign.
    """
    found = {name: rows for name in beside if len(rows := records.read(name))}
    few = [name for name, rows in found.items() if _simulations(rows) <= FEW]
    tables = {campaign_name(frame): table(frame, beside=few)}
    tables |= {name: table(rows) for name, rows in found.items() if name not in few}
    if len(tables) == 1:
        return HTML(next(iter(tables.values())).to_html())
    first, *_ = tables
    name = tables[first].uuid
    contents = {key: (key, styler.set_uuid(f"{name}-{key}").to_html()) for key, styler in tables.items()}
    return _tabs(name, contents, first)


def _simulations(rows):
    """Number of cells, each a dataset and a model, that a campaign has simulated."""
    return len(rows[rows.kind == "rollout"].groupby(["dataset", "model"]))


def _alike(other, record):
    same = ("kind", "dataset", "seed")
    return all(getattr(other, name) == getattr(record, name) for name in same) and "fv" in other.curves


def _tabs(name, contents, opened):
    """Tabs of contents, key -> title and HTML, of which one is open."""
    parts = []
    for key, (title, content) in contents.items():
        place, checked = escape(f"{name}-{key}"), " checked" if key == opened else ""
        parts += [
            f'<input type="radio" name="{escape(name)}" id="{place}"{checked}>',
            f'<label for="{place}">{escape(title)}</label><div>{content}</div>',
        ]
    return HTML(f'{STYLE}<div class="record-tabs">{"".join(parts)}</div>')


def _simulation(record, floor, own_noise):
    whose = f"{model_title(record.model)} on {short_title(record.dataset)}"
    drawn = f"Structure, force violation and temperature of {whose}"
    return (
        f"<p>{escape(told(record))}</p>"
        f'<img alt="{escape(drawn)}" src="data:image/png;base64,{_figure(record, floor, own_noise)}">'
    )


def told(record) -> str:
    """Metrics of a rollout in words, with their units.

    Examples
    --------
    >>> from egraff_utils.records import Metric, Record
    >>> metrics = [Metric.of("wf", 0.5), Metric.of("fv", None)]
    >>> told(Record("rollout", "demo", "ethanol", "mace", 0, {}, metrics))
    'WF 0.5 %, FV —'
    """
    measured = {metric.name: metric for metric in record.metrics}
    return ", ".join(
        f"{quantities.of(name).short_name} {shown(measured[name].value)} {_unit(measured[name])}".strip()
        for name in TOLD
        if name in measured
    )


def _unit(metric):
    return "" if metric.value is None or metric.unit == "1" else metric.unit


def _figure(record, floor, own_noise):
    """PNG of the panels that a record has curves for, as base64; compositions have targets of their own."""
    target, more = record.parameters.get("temperature"), {"own_noise": own_noise}
    panels = [lambda ax: plots.plot_rdf(record, floor=floor, **more, ax=ax)] if "rdf" in record.curves else []
    panels += [lambda ax: plots.plot_violations(record, "fv", floor=floor, **more, ax=ax)]
    panels += [lambda ax: plots.plot_temperature(record, target, **more, ax=ax)] if target else []
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.6), squeeze=False)
    for ax, draw in zip(np.ravel(axes), panels, strict=True):
        draw(ax)
    return _png(figure)


def _png(figure):
    """Picture of a figure as base64, of few colours, since a page has one for every model."""
    picture, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    plt.close(figure)
    Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(
        packed, "png", optimize=True
    )
    return base64.b64encode(packed.getvalue()).decode()
