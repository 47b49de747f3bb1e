"""Which units apply? The package uses eV, Å, fs and K, and meV in tables; all conversion factors are here."""

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
