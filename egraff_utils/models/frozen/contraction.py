r"""How is MACE's symmetric contraction evaluated? As one batched matrix product for each element.

.. math::

    B_{m} = \sum_i a_i \sum_f H_{mif}\, f(a), \qquad
    \frac{\partial B_m}{\partial a_i} = \sum_f n_f\, H_{mif}\, f(a), \qquad
    \bar a_i = \sum_m \bar B_m \frac{\partial B_m}{\partial a_i}

Here :math:`a` are the components of an atom's features in one channel, and :math:`f` runs over all products
of :math:`n_f - 1` components, where :math:`n_f` is at most the order. :math:`H` are the coefficients of the
package times the weights of the element, symmetrised in all components. Value and derivative are therefore
the same matrices times :math:`f(a)` and :math:`n_f f(a)`, which one product gives (``tried.csv``: "symmetric
contraction as one batched matrix product for each element").

Symbols: N atoms, Z elements, U channels, D components of the features, M components of the result, F
products.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement, permutations
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from mace.modules.symmetric_contraction import Contraction as MACEContraction


def contraction_of(contractions: "Sequence[MACEContraction]") -> "Weighting | Contraction":
    """:class:`Weighting` for a symmetric contraction of order one, else :class:`Contraction`."""
    orders = contractions[0].correlation
    degree = len(contractions) - 1
    if orders == 1 and contractions[0].coupling_irreps.lmax >= degree:
        return Weighting(contractions)
    return Contraction(contractions)


class Weighting:
    """Contraction of order one, in which components are multiplied by weights of the element."""

    def __init__(self, contractions: "Sequence[MACEContraction]") -> None:
        self.degrees = len(contractions)
        tensors = [_tensors(contraction)[0] for contraction in contractions]
        diagonal = [tensor[:, m, n**2 + m] for n, tensor in enumerate(tensors) for m in range(2 * n + 1)]
        self.weights = torch.cat(diagonal, dim=1)

    def of_atoms(self, types: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Weights of the atoms, shape ``(N, D * U)``, and None in place of products."""
        return self.weights[types], None


class Contraction:
    """Symmetric contraction of features with themselves, with weights of the atom's element.

    Parameters
    ----------
    contractions
        Contractions of the package, one for each degree of the result, all with the same order.
    """

    def __init__(self, contractions: "Sequence[MACEContraction]") -> None:
        size = contractions[0].coupling_irreps.dim
        self.degrees = contractions[0].coupling_irreps.lmax + 1
        self.steps = []
        per_degree = [_tensors(contraction) for contraction in contractions]
        rows, factors = [], []
        before: dict[tuple[int, ...], int] = {(): 0}
        for order in range(contractions[0].correlation):
            tensor = torch.cat([tensors[order] for tensors in per_degree], dim=1)  # (Z, M, D, ..., D, U)
            indices = list(combinations_with_replacement(range(size), order))
            for index in indices:
                count = len(set(permutations(index)))
                rows.append(tensor[(slice(None), slice(None), slice(None), *index)] * count)
                factors.append(order + 1)
            if order:
                places = tensor.new_tensor([before[index[:-1]] for index in indices], dtype=torch.int64)
                self.steps.append([places, places.new_tensor([index[-1] for index in indices])])
            before = {index: n for n, index in enumerate(indices)}
        tensors = torch.stack(rows, dim=-1).permute(0, 3, 1, 2, 4)  # (Z, U, M, D, F)
        self.tensors = tensors.flatten(2, 3).contiguous()
        self.factors = self.tensors.new_tensor(factors).view(-1, 1, 1)

    def of_atoms(self, types: torch.Tensor, present: torch.Tensor) -> tuple[None, "OfContraction"]:
        """None in place of weights, and :class:`OfContraction` for atoms sorted by these elements."""
        tensors = [self.tensors[element] for element in present.tolist()]
        counts = torch.bincount(types)[present].tolist()
        return None, OfContraction(tensors, self.factors, self.steps, counts)


class OfContraction(NamedTuple):
    """Constants of a :class:`Contraction`."""

    tensors: list[torch.Tensor]
    """Coefficients H of each element, shape ``(U, M * D, F)``."""
    factors: torch.Tensor
    """Numbers n, shape ``(F, 1, 1)``."""
    steps: list[list[torch.Tensor]]
    """Indices, for each number of factors above zero, of the products with one factor less, and of the last
    component."""
    counts: list[int]
    """Number of atoms of each element."""


def contracted(of: OfContraction, x: torch.Tensor, channels: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Contraction ``(N, M * U)`` of features ``(N, D * U)``, and derivatives for :func:`on_contracted`.

    The derivatives are a list over elements, with shape ``(U, M, D, N)`` for the atoms of each. Atoms are
    sorted by element.
    """
    slopes: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    counts = of.counts
    x = x.view(len(x), -1, channels).permute(1, 2, 0).contiguous()
    monomials = _monomials(of, x)
    every, scaled = monomials.split(counts, 2), (monomials * of.factors).split(counts, 2)
    features = x.transpose(0, 1).unsqueeze(1).split(counts, 3)
    for n, matrix in enumerate(of.tensors):
        both = torch.cat([every[n], scaled[n]], 2).transpose(0, 1)
        found = torch.bmm(matrix, both)  # tried.csv: "value and slope at once"
        value, slope = found.view(channels, -1, len(x), 2 * counts[n]).chunk(2, 3)
        values.append((value * features[n]).sum(2))
        slopes.append(slope)
    return torch.cat(values, 2).permute(2, 1, 0).flatten(1), slopes


def on_contracted(
    of: OfContraction, gradient: torch.Tensor, slopes: list[torch.Tensor], channels: int
) -> torch.Tensor:
    """Gradient with respect to the features, ``(N, D * U)``, from that of the contraction, ``(N, M * U)``."""
    gradient = gradient.view(len(gradient), -1, channels).permute(2, 1, 0).unsqueeze(2)
    parts = gradient.split(of.counts, 3)
    found = [(slope * parts[n]).sum(1) for n, slope in enumerate(slopes)]
    return torch.cat(found, 2).permute(2, 1, 0).flatten(1)


def _monomials(of: OfContraction, x: torch.Tensor) -> torch.Tensor:
    """All products of components ``(D, U, N)``, shape ``(F, U, N)``, sorted by number of factors."""
    found = [torch.ones_like(x[:1])]
    for places, last in of.steps:
        found.append(found[-1].index_select(0, places) * x.index_select(0, last))
    return torch.cat(found)


def _tensors(contraction: "MACEContraction") -> list[torch.Tensor]:
    """Symmetrised tensors times weights for all orders, each of shape ``(Z, M, D, ..., D, U)``."""
    weights = [contraction.weights_max, *contraction.weights]
    found = []
    for order, weight in enumerate(reversed(weights), start=1):
        coefficients = contraction.U_tensors(order)
        coefficients = coefficients.view(-1, *coefficients.shape[-order - 1 :])
        orders = list(permutations(range(1, order + 1)))
        symmetric = sum(coefficients.permute(0, *axes, order + 1) for axes in orders) / len(orders)
        found.append(torch.einsum("m...k,eku->em...u", symmetric, weight))
    return found
