"""Which velocities belong to a temperature, and which temperature to velocities?

There is one count of degrees of freedom: 3N - 3 for N atoms whose centre of mass rests, whether the system is
a molecule or periodic. Everything that draws velocities or states the temperature of a state uses it.
"""

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from numpy.typing import ArrayLike
from scipy.stats import gamma

HEATING_WINDOW = 100.0
"""Time over which a temperature is averaged before it is judged, fs: ten periods of the fastest vibrations,
within which a molecule shares its energy between kinetic and potential energy."""

HEATING_CHANCE = 1e-4
"""Probability that a perfect model at equilibrium exceeds the limit of :func:`hottest`."""


def degrees_of_freedom(atoms: int) -> int:
    """Number of degrees of freedom of N atoms: 3N - 3, as the centre of mass rests, and 3 for a single atom.

    A single atom is its own centre of mass, and would have none. The thermostat lets it move
    (:class:`~egraff_utils.md.dynamics.ReplicaLangevin`), so it counts with 3.

    >>> degrees_of_freedom(9), degrees_of_freedom(1)
    (24, 3)
    """
    return 3 * atoms - 3 if atoms > 1 else 3


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Atoms:
    r"""Set velocities drawn at a temperature, without net momentum.

    They are drawn from the Maxwell-Boltzmann distribution, and the velocity of the centre of mass is
    subtracted. Nothing is rescaled, so that the *mean* over draws of the temperature over 3N - 3 degrees of
    freedom is T, and a draw scatters about it by :math:`T \sqrt{2 / (3N - 3)}`. By default, ASE's
    ``Stationary`` rescales to the drawn temperature over 3N, which makes starts too hot by N / (N - 1). A
    single atom keeps its velocity, see :func:`degrees_of_freedom`.

    Parameters
    ----------
    atoms
        Structure, ``ase.Atoms``, whose momenta are set in place.
    temperature
        Temperature T, K.
    rng
        ``numpy.random.Generator``.

    Returns
    -------
    ase.Atoms
        The same object.

    Examples
    --------
    >>> from ase import Atoms
    >>> water = draw_velocities(Atoms("OH2"), 300.0, np.random.default_rng(0))
    >>> bool(np.allclose(water.get_momenta().sum(0), 0))
    True
    """
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    return rest(atoms)


def rest(atoms: Atoms) -> Atoms:
    """Subtract the velocity of the centre of mass in place, without rescaling; a single atom keeps its own.

    Returns the same ``ase.Atoms``.
    """
    if len(atoms) > 1:
        Stationary(atoms, preserve_temperature=False)
    return atoms


def kinetic_temperature(momenta: np.ndarray, masses: np.ndarray) -> np.ndarray:
    r"""Kinetic temperature, K, over the :func:`degrees_of_freedom` f.

    .. math:: T = \frac{1}{f k_B} \sum_i \frac{p_i^2}{m_i}

    Parameters
    ----------
    momenta
        Momenta relative to the centre of mass, shape ``(..., N, 3)``, ASE units.
    masses
        Masses, shape ``(N,)``, atomic mass units.

    Returns
    -------
    ndarray
        Temperatures, shape ``(...)``, K.

    Examples
    --------
    >>> momenta = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    >>> round(float(kinetic_temperature(momenta, np.ones(2)) * units.kB), 3)  # 2 over 3 degrees of freedom
    0.667
    """
    twice_kinetic = (np.square(momenta).sum(-1) / masses).sum(-1)
    return twice_kinetic / (degrees_of_freedom(len(masses)) * units.kB)


def species_temperatures(momenta: np.ndarray, masses: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    r"""Kinetic temperature of the atoms of each element, K.

    .. math:: T_s = \frac{\sum_{i \in s} p_i^2 / m_i}{3 k_B \sum_{i \in s} (1 - m_i / M)}

    In the canonical ensemble with the centre of mass at rest (total mass M), the mean of each is T.

    Parameters
    ----------
    momenta
        Momenta, shape ``(..., N, 3)``, ASE units.
    masses, numbers
        Masses, atomic mass units, and atomic numbers, shape ``(N,)``.

    Returns
    -------
    ndarray
        Temperatures, shape ``(..., S)``, K, with elements in the order of their atomic numbers.

    Examples
    --------
    >>> species_temperatures(np.eye(3)[:2], np.array([1.0, 3.0]), np.array([8, 1])) * units.kB
    array([0.44444444, 0.44444444])
    """
    twice_kinetic = np.square(momenta).sum(-1) / masses
    freedom = 3 * (1 - masses / masses.sum())
    found = [
        twice_kinetic[..., numbers == z].sum(-1) / max(freedom[numbers == z].sum(), 1e-12)
        for z in np.unique(numbers)
    ]
    return np.stack(found, axis=-1) / units.kB


def centred_noise_factor(masses: ArrayLike) -> np.ndarray:
    r"""Ratio to the target of the temperature that the as-coded noise imposes on each atom, shape ``(N,)``.

    .. math:: f_i = \frac{N}{N - 1} \Big(1 - \frac{2}{N} + \frac{1}{N^2} \sum_j \frac{m_j}{m_i}\Big)

    ASE's ``fixcm=True`` subtracts the mean *momentum* of the noise equally from every atom, so light atoms
    receive the share of heavy ones, and it scales the rest.

    Examples
    --------
    >>> centred_noise_factor(np.ones(4)).round(6)
    array([1., 1., 1., 1.])
    """
    masses = np.asarray(masses, dtype=float)
    n = len(masses)
    return n / (n - 1) * (1 - 2 / n + masses.sum() / (n**2 * masses))


def stationary_ratio(masses: np.ndarray) -> float:
    r"""Ratio to the target of the stationary temperature of the as-coded noise.

    Over 3N - 3 degrees of freedom it is :math:`\sum_i f_i / (N - 1)` with the :func:`centred_noise_factor`,
    which is N / (N - 1) for equal masses.

    >>> float(stationary_ratio(np.ones(4)).round(6))
    1.333333
    """
    return centred_noise_factor(masses).sum() / (len(masses) - 1)


def hottest(temperature: float, atoms: int) -> float:
    r"""Highest temperature, K, averaged over :data:`HEATING_WINDOW`, at which a run still counts as stable.

    In the canonical ensemble at temperature T, the total energy of f harmonic modes has a gamma distribution
    of shape f and scale :math:`k_B T`, and the averaged kinetic temperature is that energy over
    :math:`f k_B`. The limit is its upper quantile of :data:`HEATING_CHANCE`: T times 1.9 for ethanol, 1.55
    for aspirin, 1.25 for 83 atoms. A run that exceeds it has taken up energy that no bath at T gives it.

    Parameters
    ----------
    temperature
        Temperature T, K: that of the reference's ensemble, which is the thermostat's, or that of the start if
        it is hotter.
    atoms
        Number of atoms, N.

    Examples
    --------
    >>> round(float(hottest(500.0, 21)))
    776
    """
    freedom = degrees_of_freedom(atoms)
    return temperature * gamma.isf(HEATING_CHANCE, freedom) / freedom


def first_too_hot(temperatures: np.ndarray, limit: float, *, interval: float) -> int | None:
    """Last frame of the first window whose mean temperature exceeds a limit; None if there is none.

    Parameters
    ----------
    temperatures
        Temperature of consecutive frames of a replica, shape ``(T,)``, K.
    limit
        Limit, K, see :func:`hottest`.
    interval
        Time between frames, fs; a window has :data:`HEATING_WINDOW`. A shorter run is not judged.

    Examples
    --------
    >>> first_too_hot(np.array([1.0, 1.0, 3.0, 5.0]), 2.5, interval=50.0)
    3
    """
    frames = max(1, round(HEATING_WINDOW / interval))
    if len(temperatures) < frames:
        return None
    means = np.convolve(temperatures, np.ones(frames) / frames, mode="valid")
    hot = np.flatnonzero(means > limit)
    return int(hot[0]) + frames - 1 if len(hot) else None
