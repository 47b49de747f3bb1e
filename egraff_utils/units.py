"""Which units apply? The package uses eV, Å, fs and K, and meV in tables; all conversion factors are here."""

import re

from ase import units as _ase

EV_TO_MEV = 1000.0
KCAL_PER_MOL = _ase.kcal / _ase.mol  # eV

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": _ase.kJ / _ase.mol,
    "Hartree": _ase.Hartree,
    "Rydberg": _ase.Rydberg,
}
"""Units of energy that a file may have -> eV."""
LENGTH = {"Å": 1.0, "Angstrom": 1.0, "Bohr": _ase.Bohr}
"""Units of length that a file may have -> Å."""
SECONDS = (86400, 3600, 60, 1)
"""Day, hour, minute and second, s."""


def seconds(text: str | float) -> float:
    """Time in s, from a number of seconds or from a text such as ``25m``.

    Raises
    ------
    ValueError
        If the argument is neither, or zero.

    Examples
    --------
    >>> seconds("25m"), seconds("1h30m"), seconds("2d"), seconds(90)
    (1500.0, 5400.0, 172800.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(text))
    numbers = [float(number or 0) for number in found.groups()] if found else []
    total = sum(number * unit for number, unit in zip(numbers, SECONDS, strict=False))
    if not total:
        raise ValueError(f"'{text}' is no time; write 90s, 25m, 1h30m or 2d")
    return total


def check_time(text: str) -> str:
    """The text, of which :func:`seconds` can be taken; otherwise its ``ValueError``."""
    seconds(text)
    return text
