"""Which units apply? The package uses eV, Å, fs and K, and meV in tables; all conversion factors are here."""

from ase import units as _ase

EV_TO_MEV = 1000.0
KCAL_PER_MOL = _ase.kcal / _ase.mol  # eV
FEMTOSECOND = _ase.fs  # ASE time units
