"""Where are the atoms? Radial distributions, bonds, vibrations, and the rules by which a run is broken."""

from egraff_utils.structure.bonded import (
    angles,
    bond_angles,
    bonded_distributions,
    bonded_kinds,
    intact_bonds,
)
from egraff_utils.structure.distributions import (
    RadialDistributions,
    as_coded_r_max,
    radial_distribution,
    radial_distributions,
)
from egraff_utils.structure.spectrum import vibrational_spectrum, wavenumbers
from egraff_utils.structure.stability import (
    BOND_TOLERANCE,
    MAXIMUM_DISTANCE,
    MINIMUM_DISTANCE,
    RDF_RANGE,
    RDF_TOLERANCE,
    bond_lengths,
    bonds,
    nearest_distances,
    rdf_deviation,
    reference_bonds,
    unstable_bonds,
    unstable_contacts,
    unstable_step_bulk,
    unstable_step_molecule,
)

__all__ = [
    "BOND_TOLERANCE",
    "MAXIMUM_DISTANCE",
    "MINIMUM_DISTANCE",
    "RDF_RANGE",
    "RDF_TOLERANCE",
    "RadialDistributions",
    "angles",
    "as_coded_r_max",
    "bond_angles",
    "bond_lengths",
    "bonded_distributions",
    "bonded_kinds",
    "bonds",
    "intact_bonds",
    "nearest_distances",
    "radial_distribution",
    "radial_distributions",
    "rdf_deviation",
    "reference_bonds",
    "unstable_bonds",
    "unstable_contacts",
    "unstable_step_bulk",
    "unstable_step_molecule",
    "vibrational_spectrum",
    "wavenumbers",
]
