r"""How do edge vectors enter a network? By radial functions, harmonics and weights, with their gradients.

Radial functions of a length :math:`r`, with :math:`x = r / r_c`, and their derivatives:

.. math::

    f_n(r) = c\,u(x)\,\frac{\sin k_n r}{r}, \qquad
    u(x) = 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2)\,x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}

    f_n'(r) = c \left[ u\,k_n \frac{\cos k_n r}{r}
        + \left( \frac{u'}{r} - \frac{u}{r^2} \right) \sin k_n r \right], \qquad
    u'(r) = -\frac{p(p+1)(p+2)}{2 r_c}\,x^{p-1} (1 - x)^2

The gradient with respect to a vector with direction :math:`d`, from those of the radial functions and
:math:`d`:

.. math::

    \bar{\vec r} = \frac{\bar d - (\bar d \cdot d)\,d}{r} + d \sum_n \bar f_n f_n'(r)

Harmonics of a degree follow from those of the degree below:

.. math::

    Y_1 = \sqrt 3\, d, \quad Y_l = (Y_{l-1} \otimes Y_1)\, C_l; \qquad
    \bar Y_{l-1,a} \mathrel{+}= \sum_b P_{ab} Y_{1,b}, \quad
    \bar Y_{1,b} \mathrel{+}= \sum_a P_{ab} Y_{l-1,a}, \quad P = \bar Y_l\, C_l^\top

Networks from radial functions to weights of edges, one for each layer of a force field:

.. math::

    h_1 = f W_1, \quad h_{n+1} = \mathrm{silu}(h_n)\,W_{n+1}, \quad w = \mathrm{silu}(h_{\mathrm{last}})\,W;
    \qquad \bar h_n = \mathrm{silu}'(h_n) \circ (\bar h_{n+1} W_{n+1}^\top)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from e3nn import o3
from torch.nn.functional import silu

from egraff_utils.models.frozen.operators import silu_backward

if TYPE_CHECKING:
    from egraff_utils.models.frozen.messages import Messages


class RadialBasis(NamedTuple):
    r"""Radial functions :math:`c\, u(r / r_c) \sin(k_n r) / r` of a length r.

    The envelope is :math:`u(x) = 1 - (p+1)(p+2) x^p / 2 + p (p+2) x^{p+1} - p (p+1) x^{p+2} / 2` for x below
    one, and zero above.
    """

    roots: torch.Tensor
    """Wave numbers k, shape ``(B,)``, 1/Å."""
    prefactor: float
    """Prefactor c."""
    cutoff: float
    """Cutoff, Å."""
    p: float


def polar(
    vectors: torch.Tensor, basis: RadialBasis
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Radial functions of vectors; also their derivatives, directions and lengths for :func:`on_vectors`."""
    lengths, p = torch.linalg.vector_norm(vectors, dim=[1], keepdim=True), basis.p
    x = (lengths / basis.cutoff).clamp(max=1)  # at one the envelope and its slope are zero
    power = x.pow(p - 1)
    bracket = (p + 1) * (p + 2) / 2 + x * (x * (p * (p + 1) / 2) - p * (p + 2))
    envelope = 1 - x * power * bracket
    slope = power * (x - 1).square() * (-p * (p + 1) * (p + 2) / (2 * basis.cutoff))
    scale, angles = basis.prefactor / lengths, lengths * basis.roots
    sines, factor = angles.sin(), envelope * scale
    by_length = (angles.cos() * (basis.roots * factor)).addcmul_(sines, slope * scale - factor / lengths)
    return sines * factor, by_length, vectors / lengths, lengths


def on_vectors(
    on_values: torch.Tensor,
    on_directions: torch.Tensor,
    by_length: torch.Tensor,
    directions: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Gradient with respect to vectors, from those of radial functions and directions.

    ``by_length``, ``directions`` and ``lengths`` are results of :func:`polar`.
    """
    across = on_directions / lengths
    along = (on_values * by_length).sum(1, keepdim=True) - (across * directions).sum(1, keepdim=True)
    return across.addcmul_(along, directions)


def couplings(harmonics: o3.SphericalHarmonics, like: torch.Tensor) -> list[torch.Tensor]:
    """Matrices that map products of harmonics of one degree and of degree one to those of the next.

    Parameters
    ----------
    harmonics
        ``e3nn.o3.SphericalHarmonics`` of all degrees, which gives the normalisation.
    like
        Tensor whose type and device the matrices have.
    """
    degrees = range(harmonics.irreps_out.lmax + 1)
    point = torch.tensor([[0.6, 0.48, 0.64]], dtype=torch.float64)
    known = [y.flatten() for y in harmonics(point).split([2 * degree + 1 for degree in degrees], 1)]
    found = []
    for n in degrees[2:]:
        coupling = o3.wigner_3j(n - 1, 1, n, dtype=torch.float64).flatten(0, 1)
        made = torch.outer(known[n - 1], known[1]).flatten() @ coupling
        found.append((coupling * (known[n] @ made) / (made @ made)).to(like))
    return found


def harmonics_by_degree(directions: torch.Tensor, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Harmonics of degrees zero and one, and of one more degree for each matrix of :func:`couplings`."""
    first = directions * 3**0.5
    parts = [torch.ones_like(first[:, :1]), first]
    for matrix in matrices:
        parts.append((parts[-1].unsqueeze(2) * first.unsqueeze(1)).flatten(1) @ matrix)
    return parts


def on_directions(
    slope: torch.Tensor, parts: list[torch.Tensor], matrices: list[torch.Tensor]
) -> torch.Tensor:
    """Gradient with respect to directions, from that of all harmonics, concatenated, or of degree zero."""
    if slope.shape[1] == 1:
        return torch.zeros_like(parts[1])
    slopes = list(slope.split([part.shape[1] for part in parts], 1))
    first, on_first = parts[1].unsqueeze(1), slopes[1].clone()
    for n in range(len(matrices) - 1, -1, -1):
        below = parts[n + 1].unsqueeze(2)
        on_products = (slopes[n + 2] @ matrices[n].T).view(len(slope), parts[n + 1].shape[1], 3)
        on_first += (on_products * below).sum(1)
        on_below = (on_products * first).sum(2)
        if n > 0:
            slopes[n + 1] = slopes[n + 1] + on_below
        else:
            on_first += on_below
    return on_first * 3**0.5


class RadialNetworks(NamedTuple):
    """Networks from radial functions to weights of edges for L layers, which are evaluated together."""

    first: torch.Tensor | None
    """First matrices of all layers, concatenated, shape ``(n, L * width)``."""
    hidden: list[torch.Tensor]
    """Hidden matrices of all layers, each of shape ``(L, width, width)``."""
    last: list[torch.Tensor]
    """Last matrix of each layer, for the paths that it needs."""

    @classmethod
    def of(
        cls, networks: Sequence[Sequence[torch.Tensor]], messages: "Sequence[Messages]"
    ) -> "RadialNetworks":
        """Networks from their matrices, with silus between them, and the :class:`Messages` of layers.

        All networks have the same depth and width.
        """
        *hidden, last = zip(*networks, strict=True)
        return cls(
            first=torch.cat(hidden[0], dim=1) if hidden else None,
            hidden=[torch.stack(same) for same in hidden[1:]],
            last=[
                matrix.unflatten(1, (-1, of.channels))[:, of.paths].flatten(1)
                for matrix, of in zip(last, messages, strict=True)
            ],
        )


def radial_weights(of: RadialNetworks, radial: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights for each layer, shape ``(E, P * U)``, from radial functions, shape ``(E, n)``.

    The second result holds the inputs of the nonlinearities, which :func:`on_radial` needs.
    """
    first, count = of.first, len(of.last)
    before: list[torch.Tensor] = []
    parts = [radial for _ in of.last]
    if first is not None:
        before.append(radial @ first)
        x = silu(before[0]).view(len(radial), count, first.shape[1] // count)
        for matrices in of.hidden:
            before.append(torch.bmm(x.transpose(0, 1), matrices))
            x = silu(before[-1]).transpose(0, 1)
        parts = list(x.unbind(1))
    return [parts[n] @ last for n, last in enumerate(of.last)], before


def on_radial(of: RadialNetworks, on_weights: list[torch.Tensor], before: list[torch.Tensor]) -> torch.Tensor:
    """Gradient with respect to the radial functions, from those of all weights."""
    first, count = of.first, len(of.last)
    if first is None:
        return torch.cat(on_weights, 1) @ torch.cat(of.last, 1).T
    slope = torch.empty_like(before[-1])
    parts = slope.unbind(0) if slope.dim() == 3 else slope.chunk(count, 1)
    for n, last in enumerate(of.last):
        torch.mm(on_weights[n], last.T, out=parts[n])
    for n in range(len(of.hidden) - 1, -1, -1):
        slope = torch.bmm(silu_backward(slope, before[n + 1]), of.hidden[n].transpose(1, 2))
    if slope.dim() == 3:
        slope = slope.transpose(0, 1).flatten(1)
    return silu_backward(slope, before[0]) @ first.T


class Geometry(NamedTuple):
    """Constants of the map from vectors of pairs to their harmonics and weights."""

    radial_basis: RadialBasis
    couplings: list[torch.Tensor]
    """Matrices of the harmonics, see :func:`couplings`."""
    size: int
    """Number of harmonics."""
    networks: RadialNetworks


def of_pairs(
    of: Geometry, vectors: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], list[list[torch.Tensor]]]:
    """Harmonics and weights of pairs from vectors ``(E / 2, 3)``, and three lists for :func:`on_pairs`."""
    radial, by_length, directions, lengths = polar(vectors, of.radial_basis)
    by_degree = harmonics_by_degree(directions, of.couplings)
    weights, before = radial_weights(of.networks, radial)
    kept = [[by_length, directions, lengths], by_degree, before]
    return torch.cat(by_degree, 1)[:, : of.size], weights, kept


def on_pairs(
    of: Geometry, on_harmonics: torch.Tensor, on_weights: list[torch.Tensor], kept: list[list[torch.Tensor]]
) -> torch.Tensor:
    """Gradient with respect to the vectors of pairs, from those of harmonics and weights."""
    lengths, by_degree, before = kept
    on_radii = on_radial(of.networks, on_weights, before)
    on_units = on_directions(on_harmonics, by_degree, of.couplings)
    return on_vectors(on_radii, on_units, lengths[0], lengths[1], lengths[2])
