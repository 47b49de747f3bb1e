"""How far is a model from its reference? The metrics of the published evaluation, as written and as computed.

All functions compute in float64 and follow one rule: an input that is not finite gives a result that is not
finite (for that frame, where the result is per frame), and shapes that differ are an error.
"""

from typing import overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr


def mae(predicted: ArrayLike, reference: ArrayLike) -> float:
    r"""Mean absolute error over all components (EGraFFBench, Table 1).

    .. math:: \mathrm{MAE} = \langle |\hat x - x| \rangle

    Parameters
    ----------
    predicted, reference
        Arrays of any equal shape; energies in eV, forces in eV/Å.

    Returns
    -------
    float
        Mean absolute error in the unit of the inputs.

    Raises
    ------
    ValueError
        If the shapes differ or there are no values.

    Examples
    --------
    >>> mae([1.0, -1.0], [0.0, 0.0])
    1.0
    """
    predicted, reference = _same_shape(predicted=predicted, reference=reference)
    if not predicted.size:
        raise ValueError(f"no values to average: {predicted.shape=}")
    with np.errstate(invalid="ignore"):
        return float(np.abs(predicted - reference).mean())


def wright_factor(g: ArrayLike, g_ref: ArrayLike) -> float:
    r"""Wright's factor of two radial distributions (EGraFFBench, Eq. 2).

    .. math:: R_\chi = 100\, \frac{\sum_i (g_i - g_{\mathrm{ref},i})^2}{\sum_i g_{\mathrm{ref},i}^2}

    Below 9 % a force field counts as acceptable for a bulk system (Bauchy 2014).

    Parameters
    ----------
    g, g_ref
        Distributions of model and reference, shape ``(B,)``, dimensionless.

    Returns
    -------
    float
        Percent.

    Raises
    ------
    ValueError
        If the shapes differ, a value is negative, or the reference is zero throughout.

    Examples
    --------
    >>> wright_factor([0.0, 1.1], [0.0, 1.0])  # doctest: +ELLIPSIS
    1.0...
    """
    g, g_ref = _curves(g, g_ref)
    with np.errstate(invalid="ignore", over="ignore"):
        return float(100 * np.square(g - g_ref).sum() / np.square(g_ref).sum())


def jsd(g: ArrayLike, g_ref: ArrayLike) -> float:
    r"""Jensen-Shannon divergence of two normalised radial distributions (EGraFFBench, Eq. 3).

    .. math:: \mathrm{JSD} = \tfrac12 \sum_i \Big( p_i \ln\frac{p_i}{m_i} + q_i \ln\frac{q_i}{m_i} \Big),
              \qquad m = \tfrac12 (p + q)

    where p and q are the distributions scaled to unit sum. The value lies between 0 and ln 2, equals the
    square of ``scipy.spatial.distance.jensenshannon``, and does not depend on the density that normalises
    g(r).

    Parameters
    ----------
    g, g_ref
        Distributions of model and reference, shape ``(B,)``, dimensionless, not negative.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If the shapes differ, a value is negative, or a distribution is zero throughout.

    Examples
    --------
    >>> round(jsd([1.0, 0.0], [0.0, 2.0]), 6)  # ln 2
    0.693147
    """
    g, g_ref = _curves(g, g_ref)
    if not g.any():
        raise ValueError("g is zero throughout, so there is no distribution to compare")
    with np.errstate(invalid="ignore"):
        return float(_divergence(g / g.sum(), g_ref / g_ref.sum()).sum())


def jsd_raw(g: ArrayLike, g_ref: ArrayLike) -> float:
    r"""Divergence of two radial distributions without normalisation, averaged over bins (as published).

    .. math:: \frac1B \sum_i \tfrac12 \Big( g_i \ln\frac{g_i}{m_i}
              + g_{\mathrm{ref},i} \ln\frac{g_{\mathrm{ref},i}}{m_i} \Big), \qquad
              m = \tfrac12 (g + g_\mathrm{ref})

    This is the only form of Eq. 3 that reproduces the magnitude of the published JSD; no code for it has been
    released. It has no upper bound and scales with the chosen density, so use it only to compare with the
    paper.

    Parameters
    ----------
    g, g_ref
        Distributions of model and reference, shape ``(B,)``, dimensionless, not negative.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        As :func:`jsd`, but ``g`` may be zero throughout.

    Examples
    --------
    >>> round(jsd_raw([20.0, 0.0], [0.0, 20.0]), 6)  # 10 ln 2
    6.931472
    """
    return float(_divergence(*_curves(g, g_ref)).mean())


def _divergence(p, q):
    """Terms of the Jensen-Shannon divergence, shape (B,); a term with p = 0 counts as zero."""
    middle = (p + q) / 2
    return (rel_entr(p, middle) + rel_entr(q, middle)) / 2


def energy_violation(predicted: ArrayLike, reference: ArrayLike) -> np.ndarray:
    r"""Relative squared energy error of every frame (EGraFFBench, Eq. 4).

    .. math:: \mathrm{EV}(t) = \frac{(\hat E(t) - E(t))^2}{\hat E(t)^2 + E(t)^2}

    It is at most one for energies of equal sign, and it depends on the energy zero. Where both energies are
    zero it is 0.

    Parameters
    ----------
    predicted
        Potential energy of the model, shape ``(T,)``, eV.
    reference
        Potential energy of the reference, shape ``(T,)``, eV.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> energy_violation(np.array([-1.0, -3.0]), np.array([-1.0, -1.0]))
    array([0. , 0.4])
    """
    predicted, reference = _same_shape(predicted=predicted, reference=reference)
    with np.errstate(invalid="ignore"):
        return _ratio(np.square(predicted - reference), np.square(predicted) + np.square(reference))


def energy_violation_root(predicted: ArrayLike, reference: ArrayLike) -> np.ndarray:
    r"""Relative energy error of every frame, the square root of Eq. 4, which the paper reports.

    .. math:: \frac{|\hat E(t) - E(t)|}{\sqrt{\hat E(t)^2 + E(t)^2}}

    Parameters, shapes, units and errors are those of :func:`energy_violation`.

    Examples
    --------
    >>> energy_violation_root([-3.0], [-4.0])
    array([0.2])
    """
    return np.sqrt(energy_violation(predicted, reference))


def force_violation(predicted: ArrayLike, reference: ArrayLike) -> np.ndarray:
    r"""Relative force error of every frame (EGraFFBench, Eq. 4).

    .. math:: \mathrm{FV}(t) = \frac{\lVert \hat F(t) - F(t) \rVert}
              {\lVert \hat F(t) \rVert + \lVert F(t) \rVert}

    with norms over all 3N components. The value lies between 0 and 1. Uncorrelated forces of equal size give
    0.707; where all forces are zero it is 0.

    Parameters
    ----------
    predicted, reference
        Forces of model and reference, shape ``(T, N, 3)``, eV/Å.

    Returns
    -------
    ndarray
        Shape ``(T,)``, dimensionless.

    Raises
    ------
    ValueError
        If the shapes differ or are not ``(T, N, 3)``.

    Examples
    --------
    >>> force_violation([[[1.0, 0, 0]], [[1.0, 0, 0]]], [[[1.0, 0, 0]], [[-1.0, 0, 0]]])
    array([0., 1.])
    """
    predicted, reference = _same_shape(predicted=predicted, reference=reference)
    if predicted.ndim != 3 or predicted.shape[2] != 3:
        raise ValueError(f"forces must have shape (T, N, 3), not {predicted.shape}")

    def norm(x):
        return np.sqrt(np.einsum("tik,tik->t", x, x))

    with np.errstate(invalid="ignore"):
        return _ratio(norm(predicted - reference), norm(predicted) + norm(reference))


def rmsd(positions: ArrayLike, reference: ArrayLike, *, remove_drift: bool = False) -> np.ndarray:
    r"""Root mean square displacement of every frame from the reference (EGraFFBench, App. A.9).

    .. math:: \mathrm{RMSD}(t) = \sqrt{\frac1N \sum_i |\hat x_i(t) - x_i(t)|^2}

    Frames are not aligned, so positions must be unwrapped and the rotation of a molecule counts as
    displacement.

    Parameters
    ----------
    positions
        Trajectory of the model, shape ``(T, N, 3)``, Å.
    reference
        Trajectory of the reference, or one frame, shape ``(T, N, 3)`` or ``(N, 3)``, Å.
    remove_drift
        Whether the displacement of the centroid is subtracted first.

    Returns
    -------
    ndarray
        Shape ``(T,)``, Å.

    Raises
    ------
    ValueError
        If the shapes do not match.

    Examples
    --------
    >>> rmsd([[[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]]], [[0.0, 0, 0], [0, 0, 0]])
    array([5.])
    """
    positions, reference = np.asarray(positions, dtype=float), np.asarray(reference, dtype=float)
    fits = reference.shape in (positions.shape, positions.shape[1:])
    if positions.ndim != 3 or positions.shape[2] != 3 or not fits:
        expected = "expected (T, N, 3) and (T, N, 3) or (N, 3)"
        raise ValueError(f"{positions.shape=} but {reference.shape=}; {expected}")
    with np.errstate(invalid="ignore"):
        moved = positions - reference
        if remove_drift:
            moved = moved - moved.mean(axis=1, keepdims=True)
        return np.sqrt(np.square(moved).sum(axis=2).mean(axis=1))


@overload
def geometric_mean(values: ArrayLike, axis: None = None) -> float: ...


@overload
def geometric_mean(values: ArrayLike, axis: int | tuple[int, ...]) -> float | np.ndarray: ...


def geometric_mean(values: ArrayLike, axis: int | tuple[int, ...] | None = None) -> float | np.ndarray:
    r"""Geometric mean, the paper's summary of EV(t) and FV(t) over a trajectory (EGraFFBench, Sec. 4.2.2).

    .. math:: \bar x = \exp \langle \ln x_t \rangle

    A single zero makes the mean zero, so frames that agree exactly, such as a shared first frame, must be
    dropped before averaging.

    Parameters
    ----------
    values
        Array of any shape without negative values.
    axis
        Axis to average over; by default all values are averaged.

    Returns
    -------
    float or ndarray
        Mean in the unit of the values.

    Raises
    ------
    ValueError
        If there are no values, or a value is negative.

    Examples
    --------
    >>> geometric_mean([1.0, 100.0])  # doctest: +ELLIPSIS
    10.0...
    >>> geometric_mean([0.0, 100.0])
    0.0
    """
    values = np.asarray(values, dtype=float)
    if not values.size:
        raise ValueError(f"no values to average: {values.shape=}")
    if (values < 0).any():
        raise ValueError(f"a geometric mean needs values that are not negative, not {np.nanmin(values)}")
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(values).mean(axis=axis))
    return float(mean) if np.ndim(mean) == 0 else mean


def _same_shape(**named: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    (name, x), (other, y) = ((key, np.asarray(value, dtype=float)) for key, value in named.items())
    if x.shape != y.shape:
        raise ValueError(f"{name}.shape={x.shape} but {other}.shape={y.shape}")
    return x, y


def _curves(g: ArrayLike, g_ref: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    g, g_ref = _same_shape(g=g, g_ref=g_ref)
    if g.ndim != 1:
        raise ValueError(f"distributions must have shape (B,), not {g.shape}")
    if (g < 0).any() or (g_ref < 0).any():
        raise ValueError("a radial distribution is never negative, but one of these is")
    if not g_ref.any():
        raise ValueError("g_ref is zero throughout, so there is nothing to compare with")
    return g, g_ref


def _ratio(part, whole):
    """part / whole, zero where both are zero."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
