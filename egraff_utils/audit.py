"""Do the data hold what they promise? Checks of frames and labels, from the data alone."""

import numpy as np
from ase import units


def virial_temperature(frames):
    r"""Temperature at which frames of a molecule would be in equilibrium with their own forces.

    .. math:: T_v = -\frac{1}{(3N - 3)\, k_B} \sum_i \mathbf F_i \cdot (\mathbf r_i - \bar{\mathbf r})

    Its mean over frames is the temperature of the thermostat if the frames were sampled with the potential
    that labels them (equipartition, in the form of the virial theorem). If bonds are systematically too
    short for their labels it is far too low, even negative; if too long, far too high.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of a molecule, with forces (eV/Å).

    Returns
    -------
    ndarray
        One value per frame, shape ``(T,)``, K; single values scatter by thousands of kelvin.

    Raises
    ------
    ValueError
        If the frames are periodic: the sum has no meaning across a boundary.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> pulled = Atoms("H2", [[0, 0, 0], [1, 0, 0]])
    >>> pulled.calc = SinglePointCalculator(pulled, forces=[[0.2, 0, 0], [-0.2, 0, 0]])
    >>> virial_temperature([pulled]).round()
    array([774.])
    """
    if frames[0].pbc.any():
        raise ValueError("the virial temperature needs a molecule, not a periodic system")
    virial = [-np.sum(a.get_forces() * (a.positions - a.positions.mean(axis=0))) for a in frames]
    return np.array(virial) / ((3 * len(frames[0]) - 3) * units.kB)
