"""Which hyperparameters did the paper publish, and which do we use? Tables are compared with the cards.

Published values come from the transcribed tables, ours from the model cards. :data:`TERMS` maps the terms of
a table to keywords of a card, so that agreement is computed and not claimed.
"""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from html import escape
from math import isclose
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from egraff_utils import cards, models, paper, records
from egraff_utils.hyperparameters import SecondStage
from egraff_utils.report import tables

NOT_GIVEN = "–"
PRESETS = ("paper", "small")


TERMS = Path(__file__).with_name("terms.csv")
"""Counterparts in the cards of the terms of the published tables, by model and parameter: a ``keyword``,
``network.<name>`` or ``training.<name>``, several of them joined by ``+``, empty if there is none; the
``form`` of its value in the table; and a ``note``, the reason why the value differs, has another form or has
no keyword."""

FORMS = {"largest": max, "count": len, "ones": lambda values: [1] * len(values)}
"""Form of a value in a table -> function that converts the value in the card to it. Values of the form
``other`` cannot be compared number by number; those without a form are as in the card."""


WORDS = {
    "True": True,
    "False": False,
    "Adam": "adam",
    "AdamW": "adamw",
    "AMSGrad Adam": ["adam", True],
    "ReduceLROnPlateau": "plateau",
    "Cosine learning rate with linear warmup": "cosine",
}
"""Published text -> value in the form of the cards."""


@cache
def terms(model):
    """Rows of :data:`TERMS` of a model by parameter, a dictionary of named tuples."""
    table = pd.read_csv(TERMS, keep_default_na=False)
    return {row.parameter: row for row in table[table.model == model].itertuples(index=False)}


def read(text):
    """A published value in the form of the cards.

    >>> read("5e-7"), read("AMSGrad Adam"), read("[(128, 0), (64, 1)]"), read("16x0e+16x1o+16x2e")
    (5e-07, ['adam', True], [128, 64], [16, 2])
    """
    if text in WORDS:
        return WORDS[text]
    if pairs := re.findall(r"\((\d+), \d+\)", text):  # pairs of width and degree
        return _single([int(width) for width in pairs])
    if re.fullmatch(r"(\d+x\d[eo]\+?)+", text):  # irreps of one width
        width, degrees = re.match(r"\d+", text).group(), re.findall(r"x(\d)", text)
        return [int(width), len(degrees) - 1] if len(degrees) > 1 else int(width)
    if re.fullmatch(r"\[[\d, ]+\]", text):
        return _single([int(number) for number in re.findall(r"\d+", text)])
    return float(text) if re.fullmatch(r"[\d.]+(e-?\d+)?", text) else text


def _single(values):
    return values[0] if len(values) == 1 else values


def agree(published, ours):
    """Whether two values are the same; a published "True" agrees with any value that is set.

    >>> agree(5.0, 5), agree(True, 0.99), agree([16, 2], [16, 2]), agree(1.0, 80.0)
    (True, True, True, False)
    """
    if isinstance(published, bool) and not isinstance(ours, bool):
        return published == (ours is not None)
    if isinstance(published, list):
        return len(published) == len(ours) and all(map(agree, published, ours))
    if isinstance(published, float) and isinstance(ours, int | float):
        return isclose(published, ours)
    return published == ours


def compare(model):
    """Published hyperparameters of a model compared with ours.

    Parameters
    ----------
    model
        Name of a model in the paper.

    Returns
    -------
    pandas.DataFrame
        Columns ``parameter`` (as published), ``paper``, ``keyword`` (of the card), ``preset paper``, ``preset
        small``, ``agreement`` (``same``, ``differs``, ``other form``, ``no keyword``, or ``not in the table``
        for keywords of the card that the table does not set) and ``note``.

    Raises
    ------
    ValueError
        If the paper has no such model, or its table holds a term that is missing in :data:`TERMS`.
    """
    if model not in paper.HYPERPARAMETERS:
        raise cards.unknown("model of the paper", model, paper.HYPERPARAMETERS)
    card, known = cards.model(model), terms(model)
    ours = {preset: _values(card, preset) for preset in PRESETS}
    rows = []
    for parameter, text in paper.table(paper.HYPERPARAMETERS[model]).itertuples(index=False):
        if parameter not in known:
            raise cards.unknown(f"term of {card.title}", parameter, known)
        rows.append(_row(parameter, text, known[parameter], ours))
    named = {name for term in known.values() for name in term.keyword.split("+")}
    for keyword in ours["paper"]:
        if not any(name == keyword or name.startswith(f"{keyword}.") for name in named):
            values = [ours[preset].get(keyword) for preset in PRESETS]
            rows.append([NOT_GIVEN, NOT_GIVEN, keyword, *map(_text, values), "not in the table", ""])
    columns = ["parameter", "paper", "keyword", "preset paper", "preset small", "agreement", "note"]
    return pd.DataFrame(rows, columns=columns)


def _row(parameter, text, term, ours):
    if not term.keyword:
        return [parameter, text, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN, "no keyword", term.note]
    names = term.keyword.split("+")
    found = {preset: _single([_lookup(values, name) for name in names]) for preset, values in ours.items()}
    take = FORMS.get(term.form, lambda value: value)
    taken = {preset: None if value is None else take(value) for preset, value in found.items()}
    verdict = "same" if agree(read(text), taken["paper"]) else "differs"
    verdict = "other form" if term.form == "other" else verdict
    return [parameter, text, term.keyword.replace("+", ", "), *map(_text, taken.values()), verdict, term.note]


def _values(card, preset):
    """All keywords of a preset, including defaults."""
    network = {f"network.{key}": value for key, value in card.network(preset).items()}
    training = vars(card.training(preset))
    return network | {f"training.{key}": value for key, value in training.items()}


def _lookup(values, name):
    if name in values:
        return values[name]
    parent, _, last = name.rpartition(".")
    stage = values[parent]
    return None if stage is None else getattr(stage, last)


def _text(value):
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, SecondStage):
        return f"from {value.start:g} of the budget on"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def sheet(model):
    """One of Tables 11 to 16 with published values and ours, the notes of the card, and a CSV link.

    Returns
    -------
    HTML, which a notebook displays. Rows that differ are bold.
    """
    frame, card = compare(model), cards.model(model)
    styler = frame.style.hide(axis="index").set_uuid(f"hyperparameters-{model}")
    styler.set_table_attributes('class="dataframe"').set_caption(f"Table {card.table}, {card.title}")
    cell = {"selector": "th, td", "props": "padding: 0.2em 0.5em; text-align: left; vertical-align: top"}
    styler.set_table_styles([{"selector": "", "props": "font-size: 0.8em"}, cell])
    styler.apply(lambda row: ["font-weight: bold" * (row.agreement == "differs")] * len(row), axis=1)
    notes = "".join(f"<li>{_code(note)}</li>" for note in card.notes)
    link = tables.csv_link(frame, f"table{card.table}-{model}").data
    folded = f"<details><summary>Notes of the card</summary><ul>{notes}</ul></details>"
    return HTML(f'<div style="overflow-x: auto">{styler.format(_breakable).to_html()}</div>{folded}{link}')


def _breakable(text):
    """HTML of a cell, with line breaks allowed at the points and underscores of long keywords."""
    return re.sub(r"([._](?=[a-z]))", r"\1<wbr>", escape(text))


def _code(text):
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def agreement():
    """Numbers of terms in each published table that agree, differ, or have no counterpart.

    Returns
    -------
    pandas.DataFrame
        Counts, with one row per model and one column per verdict of :func:`compare`.
    """
    counts = {model: compare(model).agreement.value_counts() for model in paper.HYPERPARAMETERS}
    order = ["same", "differs", "other form", "no keyword", "not in the table"]
    table = pd.DataFrame(counts).T.reindex(columns=order).fillna(0).astype(int)
    return table.rename_axis(index="model", columns=None)


def packages(campaigns=()):
    """Package, version, licence, table of the paper and trainable parameters of each model.

    Parameters
    ----------
    campaigns
        Campaigns whose trainings give further numbers of parameters, as a range if datasets differ.

    Returns
    -------
    pandas.DataFrame
        One row per model; parameters at preset ``paper`` for the elements H, C, O, and of the models that
        each campaign trained.
    """
    rows = {}
    trained = {name: _trained_parameters(name) for name in campaigns}
    for model in paper.HYPERPARAMETERS:
        card = cards.model(model)
        package, _, version = card.package.partition(" ")
        rows[model] = {
            "package": package,
            "version": version,
            "licence": licence(package),
            "table": card.table,
            "parameters, preset paper": f"{card.parameters_paper:,}",
            **{f"parameters, {name}": known.get(model, tables.NOT_RUN) for name, known in trained.items()},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _trained_parameters(campaign):
    frame = records.read(campaign)
    frame = frame[(frame.kind == "training") & (frame.metric == "parameters")]
    ends = frame.groupby("model")["value"].agg(["min", "max"])
    return {
        model: f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
        for model, low, high in ends.itertuples()
    }


def licence(package):
    """Licence that an installed package states in its metadata, in short form.

    >>> licence("e3nn")
    'MIT'
    """
    try:
        stated = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    classifiers = [c.rpartition(":: ")[2] for c in stated.get_all("Classifier") or [] if "License" in c]
    words = (
        stated["License-Expression"]
        or (stated["License"] or "").partition("\n")[0]
        or "".join(classifiers[:1])
    )
    return words.removesuffix(" License") or "not stated"


def shape():
    """Differences of the architectures at the presets ``paper`` and ``small``, from the cards.

    Returns
    -------
    pandas.DataFrame
        Index model and preset. Columns: number of ``layers``; ``highest degree`` of the features (0 scalars,
        1 vectors, 2 second-degree tensors); ``reach (Å)``, the largest distance at which an atom influences
        another; ``radial functions``; ``batch`` (structures); ``learning rate``; ``force : energy``, the
        weights of the loss in its first stage.
    """
    rows = {}
    for model in paper.HYPERPARAMETERS:
        for preset in PRESETS:
            network, training = cards.model(model).network(preset), cards.model(model).training(preset)
            layers = _first(network, "num_layers", "num_interactions", "blocks")
            rows[model, preset] = {
                "layers": layers,
                "highest degree": _degree(network),
                "reach (Å)": network["cutoff"] * (1 if model == "allegro" else layers),
                "radial functions": _first(network, "num_bessels", "num_rbf", "radial_basis"),
                "batch": training.batch_size,
                "learning rate": training.learning_rate,
                "force : energy": f"{training.force_weight:g} : {training.energy_weight:g}",
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.rename_axis(["model", "preset"])


def changes(preset):
    """Changes of the paper's networks by a preset, from the cards.

    Returns
    -------
    pandas.DataFrame
        One row per model: ``parameters`` for the elements H, C, O, the ratio ``factor`` of those of the paper
        to them, and ``changed``, the keywords with both values.
    """
    rows = {}
    for model in paper.HYPERPARAMETERS:
        card = cards.model(model)
        published, ours = card.network("paper"), card.network(preset)
        parameters = models.build(model, preset).num_parameters()
        rows[model] = {
            "parameters": parameters,
            "factor": card.parameters_paper / parameters,
            "changed": ", ".join(f"{k} {published[k]} → {v}" for k, v in ours.items() if v != published[k])
            or "nothing",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _first(mapping, *names):
    return next(mapping[name] for name in names if name in mapping)


def _degree(network):
    """Highest degree of the features; TorchMD-NET, which has no keyword for it, has vectors."""
    if "channels" in network:
        return len(network["channels"]) - 1
    return next((network[name] for name in ("hidden_l_max", "l_max") if name in network), 1)
