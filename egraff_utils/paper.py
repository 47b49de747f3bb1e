"""What did the paper report? Its published tables are available as data frames."""

from pathlib import Path

import pandas as pd

from egraff_utils import quantities
from egraff_utils.cards import unknown

FOLDER = Path(__file__).parent / "published"
CARD_NAMES = {"torchmdnet": "torchmd_net"}
"""Name of a model in the files -> name of its card, where they differ."""

HYPERPARAMETERS = {
    "nequip": "11",
    "allegro": "12",
    "botnet": "13",
    "mace": "14",
    "equiformer": "15",
    "torchmd_net": "16",
}
"""Model -> number of the table with its hyperparameters."""


def tables() -> dict[str, Path]:
    """Available tables, a dictionary from number to file.

    >>> list(tables())
    ['1', '2', '3', '4', '5', '6', '7a', '8', '9', '10', '11', '12', ..., '19']
    """
    return {
        path.stem.split("_")[0].removeprefix("table").lstrip("0"): path
        for path in sorted(FOLDER.glob("*.csv"))
    }


def table(number: int | str) -> pd.DataFrame:
    """A table of the EGraFFBench paper, transcribed, with one row per dataset and model.

    Models have the names of their cards. The names of columns end in their unit (``_mev``, ``_percent``; for
    ``_1e-5`` the value is in units of 1e-5). A dash in the paper is NaN. Values are as published, including
    misprints (2205 in Table 18 is probably 22055). Hyperparameters (Tables 11 to 16, columns ``parameter``
    and ``value``) are text. Table 8 holds one where an earlier work had run a model, else zero.

    Parameters
    ----------
    number
        1 to 19; 7 is the part ``"7a"`` (energy and force violation on LiPS20).

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ValueError
        If the paper has no such table; the message lists the available ones.

    Examples
    --------
    >>> errors = table(1)
    >>> errors.query("dataset == 'acac' and model == 'nequip'").force_mae_mev_per_ang.item()
    4.59
    """
    known = tables()
    key = "7a" if str(number) == "7" else str(number).lower()
    if key not in known:
        raise unknown("table", number, known)
    text = {"dtype": str, "keep_default_na": False} if key in HYPERPARAMETERS.values() else {}
    content = pd.read_csv(known[key], **text).rename(columns=CARD_NAMES)
    return content.replace({"model": CARD_NAMES})


def values(metric: str) -> pd.Series:
    """Published values of a metric in the unit of the records, a series with index (dataset, model).

    Raises
    ------
    ValueError
        If the paper has no table of the metric; the message lists those that it has.

    Examples
    --------
    >>> float(values("ms_per_step")["acac", "nequip"])  # 3.18 minutes per 1000 steps
    190.8
    """
    place = quantities.of(metric).published
    if place is None:
        known = [quantity.metric for quantity in quantities.QUANTITIES if quantity.published]
        raise unknown("published metric", metric, known)
    column = table(place.table).set_index(["dataset", "model"])[place.column]
    return (column * place.factor).rename(metric)
