"""How do atoms vibrate? The vibrational density of states of a trajectory, from its positions.

Symbols: T frames, N atoms, B bins.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.constants import c
from scipy.signal import welch

HIGHEST = 5000.0
"""Upper end of spectra, 1/cm; the stiffest bond, that of H2, vibrates at 4401 / cm."""
PER_CM = 1e13 / c
"""Wavenumber of a vibration of one period in a femtosecond, 1/cm."""


def wavenumbers(window: int, interval: float) -> np.ndarray:
    """Wavenumbers of the bins of a spectrum, shape ``(B,)``, 1/cm, up to ``HIGHEST``.

    Parameters
    ----------
    window
        Number of velocities in a window.
    interval
        Time between two frames, fs.

    Examples
    --------
    >>> wavenumbers(500, 0.5)[:3].round(1)
    array([  0. , 133.4, 266.9])
    """
    found = np.fft.rfftfreq(window, interval) * PER_CM
    return found[found <= HIGHEST]


def vibrational_spectrum(
    positions: ArrayLike, masses: ArrayLike, *, interval: float, window: int
) -> np.ndarray:
    r"""Vibrational density of states: how the kinetic energy is distributed over wavenumbers.

    .. math:: p_b = \frac{1}{Z} \sum_s \sum_i m_i \Big| \sum_\tau w_\tau \mathbf v_i(s + \tau)\,
              \mathrm e^{-2 \pi \mathrm i b \tau / W} \Big|^2

    Windows of W velocities begin at s, a quarter of a window apart; w is that of Hann, and Z gives unit sum
    (Welch 1967, IEEE Trans. Audio Electroacoust. 15, 70). It is the Fourier transform of the velocity
    autocorrelation function, with lines as wide as 1.4 bins. Velocities are differences of consecutive
    positions, which lack the part :math:`(\omega\, \Delta t)^2 / 24` of a vibration: at 3000 / cm and 0.5 fs,
    a third of a percent.

    Parameters
    ----------
    positions
        Unwrapped positions, shape ``(T, N, 3)``, Å.
    masses
        Shape ``(N,)``, u.
    interval
        Time between two frames, fs.
    window
        Number W of velocities in a window.

    Returns
    -------
    ndarray
        Shape ``(B,)``, dimensionless, for the bins of :func:`wavenumbers`. Zero throughout if there are fewer
        than W velocities, or none that differs from zero.

    Examples
    --------
    >>> time = np.arange(401.0)  # fs; 1000 / cm is a period of 33.4 fs
    >>> x = np.sin(2 * np.pi * time * 1000 / PER_CM)
    >>> path = np.stack([x, 0 * x, 0 * x], axis=-1)[:, None]
    >>> spectrum = vibrational_spectrum(path, [1.0], interval=1, window=200)
    >>> float(wavenumbers(200, 1.0)[spectrum.argmax()].round())
    1001.0
    """
    velocities = np.diff(np.asarray(positions, dtype=float), axis=0)
    bins = len(wavenumbers(window, interval))
    if len(velocities) < window or not velocities.any():
        return np.zeros(bins)
    options = {"window": "hann", "nperseg": window, "noverlap": window - max(1, window // 4)}
    _, power = welch(velocities, detrend=False, scaling="spectrum", axis=0, **options)
    power[1:] /= 2  # one-sided: welch doubles what negative frequencies share, but for the first bin
    found = np.einsum("bix,i->b", power[:bins], np.asarray(masses, dtype=float))
    return found / found.sum()
