"""Which model is a training notebook of? Its names, labels and titles have to agree on one."""

import json
import re
from pathlib import Path

import nbformat

from egraff_utils import cards, paths

NOTEBOOKS = paths.ROOT / "notebooks"
NAMED = re.compile(
    r"""(?:(?:cards\.model|TrainConfig)\((?:\s*name=)?\s*|\bmodel=)["']([^"']+)"""
    r"""|(?<!\w)(?<!{ref}`sec-)training-([\w-]+)"""
)
"""Where a training notebook names its model: as a card, in a training, or in a glued value or a label."""
TAKEN = re.compile(r"^model: str", re.MULTILINE)
"""Line of the cell of parameters of a notebook that takes any model."""


def check_names(notebook: str | Path) -> None:
    """Reject a training notebook in which two models are named, as in a copy that was changed in part.

    Its model is the one that its file is named after if it stands in ``notebooks/training``, else the first
    one that its code names. A notebook with a parameter ``model`` may name any.

    Raises
    ------
    ValueError
        If a cell names another one, as a card, a training, the beginning of a label or of a glued value,
        which would then be that of another page, or with its title in the heading or a caption. The message
        gives both names and all such cells.
    """
    cells = _cells(notebook)
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    if any(map(TAKEN.search, sources)) or not any("TrainConfig(" in source for source in sources):
        return
    model = model_of(notebook)
    found = [(_of_a_model(name, model), index) for name, index in _named_models(cells)]
    if model and (wrong := [(name, index) for name, index in found if name != model]):
        places = ", ".join(str(index) for index in sorted({index for _, index in wrong}))
        raise ValueError(
            f"{Path(notebook).name} is of the model '{model}', but names '{wrong[0][0]}' in cell {places}, "
            f"counted from 0; write '{model}' there"
        )


def model_of(notebook: str | Path) -> str | None:
    """Model that a training notebook is of (:func:`check_names`); None if its code names none."""
    notebook = Path(notebook).resolve()
    if notebook.parent == NOTEBOOKS / "training" or not notebook.is_file():
        return notebook.stem
    sources = [cell.source for cell in _cells(notebook) if cell.cell_type == "code"]
    return next((match[1] for source in sources for match in NAMED.finditer(source) if match[1]), None)


def _cells(notebook):
    return nbformat.read(notebook, as_version=4).cells


def _named_models(cells):
    """Names of models in cells, or what begins with one, each with the index of its cell."""
    titles = {cards.model(name).title: name for name in cards.models()}
    titled = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, titles))})(?![\w-])")
    found = []
    for index, cell in enumerate(cells):
        text = f"{cell.source}\n{json.dumps(cell.metadata)}"
        found += [(match[1] or match[2], index) for match in NAMED.finditer(text)]
        heading = re.findall("^# .*", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
        found += [(titles[name], index) for name in titled.findall(" ".join([*heading, caption]))]
    return found


def _of_a_model(name, own=None):
    """Longest name of a model, ``own`` or one of the project's, that a name begins with; else the name."""
    known = [model for model in (own, *cards.models()) if model and f"{name}-".startswith(f"{model}-")]
    return max(known, key=len, default=name)
