"""Which models do installed packages offer? Entry points of a group, each with a card beside its module.

A package that has in its ``pyproject.toml``

.. code-block:: toml

    [project.entry-points."egraff_utils.models"]
    radial = "radial_package.network:build_network"

and the card ``radial.yml`` beside ``radial_package/network.py`` offers the model ``radial``. The value is the
function that builds a network, or the class of an ASE calculator, and stands for the key ``builder`` or
``calculator`` of the card.
"""

import importlib.util
import sys
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from egraff_utils.model_card import ModelCard
from egraff_utils.schema import read, validated

GROUP = "egraff_utils.models"
"""Group of the entry points."""


def models(taken: tuple[str, ...] = ()) -> dict[str, ModelCard]:
    """Cards of the models that installed packages offer, by name.

    The module that an entry point names is not imported before the model is built. What cannot be used is
    left out with a warning that names it.

    Parameters
    ----------
    taken
        Names that no package may give a model, as those of the project.
    """
    return _models(taken, tuple(sys.path))


@cache
def _models(taken, _):
    found = {}
    for point in entry_points(group=GROUP):
        try:
            if point.name in (*taken, *found):
                raise ValueError("its name is taken by another model")
            found[point.name] = _card(point)
        except Exception as error:  # a package that cannot be used must not stop work with others
            package = point.dist.name if point.dist else "a package"
            warnings.warn(f"the model {point.name} that {package} offers is left out: {error}", stacklevel=2)
    return found


def _card(point: EntryPoint) -> ModelCard:
    module = importlib.util.find_spec(point.module)  # imports the packages around the module alone
    if module is None or module.origin is None:
        raise ValueError(f"there is no module {point.module}")
    path = Path(module.origin).with_name(f"{point.name}.yml")
    values = read(path)
    key = "builder" if "presets" in values else "calculator"
    values |= {"name": point.name, key: f"{point.module}.{point.attr}", "folder": path.parent, "file": path}
    return validated(ModelCard, values, where=path)
