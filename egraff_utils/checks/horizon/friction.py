"""Which friction did the thermostat of a reference have? It is determined from consecutive frames alone."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms, units

from egraff_utils.md import analysis


def friction(frames: Sequence[Atoms], interval: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Friction of a Nosé-Hoover thermostat at each frame, determined from the frames.

    The friction is one number for all atoms, which is obtained by least squares from

    .. math:: m_i a_i - F_i = -\zeta m_i v_i, \quad
        a(t) = \frac{x(t+h) - 2 x(t) + x(t-h)}{h^2}, \quad v(t) = \frac{x(t+h) - x(t-h)}{2h}

    Parameters
    ----------
    frames
        Consecutive frames with forces, T ``ase.Atoms``.
    interval
        Time h between two frames, fs.

    Returns
    -------
    friction, residual, residual_without
        Arrays of shape ``(T - 2,)``, without the two ends: :math:`\zeta`, 1/fs; the length of the remainder
        of :math:`m a - F` over that of F, with the friction and without it.

    Raises
    ------
    ValueError
        If there are fewer than three frames.
    """
    if len(frames) < 3:
        raise ValueError(f"a friction needs three frames or more, not {len(frames)}")
    h, x, forces = interval * units.fs, analysis.unwrap(frames), forces_of(frames)[1:-1]
    momenta = frames[0].get_masses()[:, None] * (x[2:] - x[:-2]) / (2 * h)
    rest = frames[0].get_masses()[:, None] * (x[2:] - 2 * x[1:-1] + x[:-2]) / h**2 - forces
    velocities = momenta / frames[0].get_masses()[:, None]
    zeta = -(rest * velocities).sum((1, 2)) / (momenta * velocities).sum((1, 2))
    length = _length(forces)
    return zeta * units.fs, _length(rest + zeta[:, None, None] * momenta) / length, _length(rest) / length


def check_reference(frames: Sequence[Atoms], interval: float) -> dict[str, tuple[float, str]]:
    """Properties of a reference that follow from its frames alone, a dict of (value, unit).

    Parameters
    ----------
    frames
        Consecutive frames with forces, a list of ``ase.Atoms``.
    interval
        Time h between two frames, fs.

    Returns
    -------
    dict
        ``temperature`` over 3N degrees of freedom, as the thermostat of MD17 counts them, from
        finite-difference velocities, K; ``friction`` (root mean square, 1/fs); ``residual`` and
        ``residual_friction``: what Newton's equation leaves unexplained without and with the friction, as a
        fraction of the forces (median over frames); ``step_error`` and ``step_error_friction``: root mean
        square difference between one step of velocity Verlet, from the positions, velocities and forces of
        the reference, and its next frame, Å. As velocities are central differences, this error is that
        residual times h²/2m.
    """
    zeta, with_friction, without = friction(frames, interval)
    masses, h = frames[0].get_masses()[:, None], interval * units.fs
    x = analysis.unwrap(frames)
    v = (x[2:] - x[:-2]) / (2 * h)
    a = forces_of(frames)[1:-1] / masses
    braked = a - (zeta / units.fs)[:, None, None] * v

    def error(acceleration: np.ndarray) -> float:
        return np.sqrt(np.square(x[1:-1] + h * v + h**2 / 2 * acceleration - x[2:]).sum(-1).mean())

    return {
        "temperature": ((masses * v**2).sum((1, 2)).mean() / (3 * len(masses) * units.kB), "K"),
        "friction": (np.sqrt(np.mean(zeta**2)), "1/fs"),
        "residual": (np.median(without), "1"),
        "residual_friction": (np.median(with_friction), "1"),
        "step_error": (error(a), "Å"),
        "step_error_friction": (error(braked), "Å"),
    }


def forces_of(frames: Sequence[Atoms]) -> np.ndarray:
    """Stored forces of frames, shape ``(T, N, 3)``, eV/Å."""
    return np.stack([atoms.get_forces() for atoms in frames])


def _length(vectors: np.ndarray) -> np.ndarray:
    """Norm over atoms and components of every frame, shape ``(T, N, 3)`` -> ``(T,)``."""
    return np.sqrt(np.square(vectors).sum((1, 2)))
