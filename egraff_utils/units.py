"""The only conversion factors. Inside the package: eV, Å, fs, K; energies of tables in meV."""

from ase import units as _ase

EV_TO_MEV = 1000.0
KCAL_PER_MOL = _ase.kcal / _ase.mol  # eV
FEMTOSECOND = _ase.fs  # ASE time units
