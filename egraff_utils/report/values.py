"""Which values does the prose of a page show? They are known by name, and written as words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number

import numpy as np
from IPython.display import DisplayHandle, Markdown, display

MISSING = "no value"
NOT_YET = "…"
"""What a paragraph shows for a value until the cell that computes it has run."""
FIELD = re.compile(r"\{\{([\w-]+)(?::([^{}]+))?\}\}")
"""Place of a value in a paragraph: its name and, behind a colon, its format."""

_known: dict = {}
_paragraphs: list[tuple[str, DisplayHandle]] = []


def tell(text: str) -> None:
    """Show a paragraph of a page, whose values may be computed further down.

    A value stands as ``{{name}}`` or ``{{name:.1f}}`` under the name that `glue_all` gives it, which also
    writes it into the paragraphs above: the result of a page comes first. Everything else is Markdown.
    """
    handle = display(Markdown(filled(text, _known)), display_id=True)
    _paragraphs.append((text, handle))


def filled(text: str, values: Mapping) -> str:
    """A paragraph of `tell` with its values.

    Examples
    --------
    >>> filled("wrong by {{error:.1f}} meV/Å, {{what}}", {"error": 12.34})
    'wrong by 12.3 meV/Å, …'
    """
    return FIELD.sub(
        lambda field: say(values[field[1]], field[2] or "") if field[1] in values else NOT_YET, text.strip()
    )


def told(source: str) -> str | None:
    """Paragraph that the source of a cell tells; None if the cell is of another kind.

    Examples
    --------
    >>> told('tell("Wrong by {{error:.1f}} meV.")'), told("fit(config)")
    ('Wrong by {{error:.1f}} meV.', None)
    """
    if "tell(" not in source:
        return None
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return next((ast.literal_eval(c.args[0]).strip() for c in calls if ast.unparse(c.func) == "tell"), None)


def glue_all(page: str, values: Mapping, form: str | None = None, *, forms: Mapping | None = None) -> None:
    """Make values known to the prose: to the paragraphs that `tell` shows, and to other pages of the book.

    Other pages show them by the role ``{glue:text}`` and the name.

    Parameters
    ----------
    page
        Beginning of all names, such as ``"rollout-lips-"``.
    values
        Rest of the name -> value. A number is glued as ``float``, whose format the prose gives, and ``None``
        as NaN; anything else is glued unchanged.
    form
        Format of the numbers, such as ``".2f"``, which are then glued as texts, see `say`.
    forms
        Rest of the name -> format, where it is not `form`.
    """
    from myst_nb import glue  # takes a second, and most of what imports this module has no page

    for name, value in values.items():
        if value is None or isinstance(value, Number | np.number):
            spec = (forms or {}).get(name, form)
            value = float("nan" if value is None else value) if spec is None else say(value, spec)
        _known[f"{page}{name}"] = value
        glue(f"{page}{name}", value, display=False)
    for text, handle in _paragraphs:
        handle.update(Markdown(filled(text, _known)))


def metrics(record, *names: str, prefix: str = "") -> dict:
    """Some metrics of a record by the names that its page glues, with hyphens.

    Examples
    --------
    >>> metrics({"force_mae": 12.0, "epochs": 3}, "force_mae", prefix="test-")
    {'test-force-mae': 12.0}
    """
    return {prefix + name.replace("_", "-"): record[name] for name in names}


def value(record, name: str) -> float:
    """Value of a metric of a record; NaN if it is missing.

    Examples
    --------
    >>> from egraff_utils.records import Metric, Record
    >>> value(Record("gate", "demo", "ethanol", "mace", 0, {}, [Metric("jump", 0.5, "meV")]), "jump")
    0.5
    """
    held = {metric.name: metric.value for metric in record.metrics}.get(name)
    return np.nan if held is None else float(held)


def say(value, spec: str = ".2f") -> str:
    """Text of a number on a page; ``no value`` if it is missing or not finite; a text is returned unchanged.

    Examples
    --------
    >>> say(0.7071), say(0.25, ".0%"), say(float("nan")), say(None), say("none")
    ('0.71', '25%', 'no value', 'no value', 'none')
    """
    if isinstance(value, str):
        return value
    return MISSING if value is None or not np.isfinite(value) else format(float(value), spec)


def span(values: Iterable[float], spec: str = ".2f", *, missing: str = MISSING) -> str:
    """Range of the finite values as text; one number if both ends are written alike.

    Examples
    --------
    >>> span([3.0, 1.0, float("nan")]), span([0.501, 0.499]), span([])
    ('1.00 to 3.00', '0.50', 'no value')
    """
    known = [value for value in values if np.isfinite(value)]
    ends = [format(float(pick(known)), spec) for pick in (min, max)] if known else []
    return " to ".join(dict.fromkeys(ends)) or missing


def count(cases) -> str:
    """Number of cases that hold among all, as text.

    Examples
    --------
    >>> count([True, False, True])
    '2 of 3'
    """
    return f"{np.sum(np.asarray(cases, dtype=bool))} of {len(cases)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; empty without any.

    Examples
    --------
    >>> listed(["WF", "FV", "EV"]), listed(["WF"])
    ('WF, FV and EV', 'WF')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
