r"""How are messages summed with frozen weights? In blocks that stay in the cache, with gradients by hand.

.. math::

    m_{i,k,u} = \sum_{j} w_{ij,p(k),u}\, s_{ij,k,u}, \qquad
    s_{ij,k,u} = \sum_a M_{ij,ak}\, x_{j,a,u}, \qquad
    M_{ij,ak} = \sum_b C_{b,ak}\, Y_b(\hat r_{ij})

The gradients follow from that of the sums:

.. math::

    \bar w_{ij,p,u} = \sum_{k \in p} \bar m_{i,k,u}\, s_{ij,k,u}, \qquad
    \bar s_{ij,k,u} = w_{ij,p(k),u}\, \bar m_{i,k,u}

    \bar x_{j,a,u} = \sum_i \sum_k M_{ij,ak}\, \bar s_{ij,k,u}, \qquad
    \bar M_{ij,ak} = \sum_u x_{j,a,u}\, \bar s_{ij,k,u}, \qquad
    \bar Y_b = \sum_{ak} C_{b,ak}\, \bar M_{ij,ak}

Both edges of a pair share the weights :math:`w`, and :math:`Y_l(-\hat r) = (-1)^l\, Y_l(\hat r)`. Quantities
of a pair are therefore computed for one direction, and the gradients of both directions are added.

Symbols: N atoms, E edges, P paths, U channels, D components of features, K components of all paths together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from e3nn import o3

from egraff_utils.models.frozen.convolution import Convolution, path_coupling


class Messages:
    """Constants of the sums that :func:`sum_messages` computes, those of a convolution with channels last.

    The K components of the messages are sorted by kind, component and path; the features have D components.
    The two edges of a pair of atoms are adjacent. Pairs are processed in blocks whose arrays stay in the
    cache. If only scalars are needed, the components of a product, whose sum is the scalar, are used as the
    messages, since small sums are slow.

    Parameters
    ----------
    product
        :class:`~egraff_utils.models.frozen.convolution.Convolution`, or the product that it accepts.
    kinds
        Irreps of the messages that are needed.
    like
        Tensor whose type and device the constants have.
    """

    BLOCK = {"cpu": 2**18, "cuda": 2**27}
    """Size of the largest array of a block, by device, so that it fits into the cache, or on a GPU into
    memory (``tried.csv``: "blocks of messages of 2^15 to 2^22 numbers", "One block of pairs of atoms")."""

    def __init__(
        self, product: o3.TensorProduct | Convolution, kinds: Sequence[o3.Irrep], like: torch.Tensor
    ) -> None:
        inputs, harmonics = product.irreps_in1, product.irreps_in2
        paths = sorted(enumerate(product.instructions), key=lambda path: path[1].i_out)
        of_kind = [[(p, i) for p, i in paths if product.irreps_out[i.i_out].ir == kind] for kind in kinds]
        self.inputs = [ir.dim for _, ir in inputs]
        self.channels = inputs[0].mul
        self.paths = [p for same in of_kind for p, _ in same]
        sizes = [(kind.dim, same) for kind, same in zip(kinds, of_kind, strict=True)]
        places = [p for size, same in sizes for _ in range(size) for p, _ in same]
        heights = [size * len(same) for size, same in sizes]
        widths = [len(same) * self.channels for same in of_kind]
        self.sizes = [height * self.channels for height in heights]
        there = torch.cat([_couplings(product, same, size) for size, same in sizes], dim=2)
        self.scalar = len(kinds) == 1 and [i.i_in1 for _, i in of_kind[0]] == list(range(len(inputs)))
        if self.scalar:
            there = there.sum(2, keepdim=True)
            heights, widths = self.inputs, [self.channels] * len(inputs)
            places = [p for p, size in zip(self.paths, self.inputs, strict=True) for _ in range(size)]
            self.sizes = [sum(self.inputs) * self.channels]
        if len(places) <= 2 * len(self.paths):  # tried.csv: "weights repeated for every component"
            self.paths, heights = places, [len(places)]
            widths = [len(places) * self.channels]
        signs = torch.cat([torch.full((ir.dim, 1, 1), (-1) ** ir.l) for _, ir in harmonics])
        self.sums = Sums(
            coupling=torch.stack([there, there * signs], dim=1).flatten(1).to(like),
            components=sum(self.inputs),
            channels=self.channels,
            scalar=self.scalar,
            heights=heights,
            widths=widths,
            block=max(1, self.BLOCK[like.device.type] // (2 * sum(heights) * self.channels)),
        )

    def on_rows(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix whose rows are paths and channels of a kind, with its rows arranged like the messages."""
        if not self.scalar:
            return matrix
        of_inputs = [p for p, size in enumerate(self.inputs) for _ in range(size)]
        return matrix.unflatten(0, (-1, self.channels))[of_inputs].flatten(0, 1)


def _couplings(
    product: o3.TensorProduct | Convolution, paths: Sequence[tuple[int, o3.Instruction]], size: int
) -> torch.Tensor:
    """Coefficients of paths to a kind of ``size`` components, shape ``((l_max + 1)^2, D, size * paths)``."""
    dims = [ir.dim for _, ir in product.irreps_in1]
    couplings = torch.zeros(product.irreps_in2.dim, sum(dims), size, len(paths), dtype=torch.float64)
    for n, (_, i) in enumerate(paths):
        start = sum(dims[: i.i_in1])
        coupling = path_coupling(product, i, torch.float64).unflatten(1, (size, -1))
        couplings[:, start : start + dims[i.i_in1], :, n] = coupling.transpose(1, 2)
    return couplings.flatten(2)


class Sums(NamedTuple):
    """Constants of :class:`Messages`."""

    coupling: torch.Tensor
    """Coefficients from the harmonics of a pair to the matrices of its two edges."""
    components: int
    """Number of components of the features, D."""
    channels: int
    """Number of channels, U."""
    scalar: bool
    """Whether only scalars are needed."""
    heights: list[int]
    """Number of components of the messages for each kind."""
    widths: list[int]
    """Width of a row of weights for each kind."""
    block: int
    """Number of pairs in a block."""


class Given(NamedTuple):
    """Inputs of the messages."""

    x: torch.Tensor
    """Features of the atoms, shape ``(N, D, U)``."""
    harmonics: torch.Tensor
    """Harmonics of pairs, shape ``(E / 2, (l_max + 1)^2)``."""
    weights: torch.Tensor
    """Weights of pairs for ``Messages.paths``, shape ``(E / 2, P * U)``."""
    neighbour: torch.Tensor
    """Neighbours, shape ``(E,)``: first of each pair in the direction of the harmonics, then reversed."""
    centre: torch.Tensor


def sum_messages(of: Sums, given: Given) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sums of messages, shape ``(N, K * U)``, and intermediate results for :func:`on_messages`."""
    total = given.x.new_zeros([len(given.x), sum(of.heights) * of.channels])
    kept: list[torch.Tensor] = []
    pairs, size = len(given.harmonics), _block(of, given)
    for start in range(0, pairs, size):
        y, factors, source, target = _part(given, start, min(start + size, pairs))
        near = given.x.index_select(0, source)
        coupling, products = _products(of, y, near)
        weighted = products
        if size >= pairs:  # with several blocks, intermediate results would not stay in the cache
            kept, weighted = [near, coupling, products], torch.empty_like(products)
        _weigh(of, products, factors, weighted)
        total.index_add_(0, target, weighted.flatten(1))
    return total, kept


def on_messages(
    of: Sums,
    given: Given,
    kept: list[torch.Tensor],
    gradient: torch.Tensor,
    on_x: torch.Tensor | None,
    on_harmonics: torch.Tensor,
) -> torch.Tensor:
    """Gradient with respect to the weights, from that of the sums.

    The gradients with respect to features and harmonics are added to ``on_x`` and ``on_harmonics``.
    """
    on_weights = torch.empty_like(given.weights)
    pairs, size = len(given.harmonics), _block(of, given)
    for start in range(0, pairs, size):
        stop = min(start + size, pairs)
        y, factors, source, target = _part(given, start, stop)
        if len(kept) > 0:
            near, coupling, products = kept
        else:
            near = given.x.index_select(0, source)
            coupling, products = _products(of, y, near)
        slope = gradient.index_select(0, target).view_as(products)
        _on_weights(of, products, slope, on_weights[start:stop])
        _weigh(of, slope, factors, slope)
        on_coupling = _on_coupling(of, near, slope).view(stop - start, -1)
        on_harmonics[start:stop].addmm_(on_coupling, of.coupling.T)
        if on_x is not None:
            on_x.index_add_(0, source, _on_near(of, coupling, slope))
    return on_weights


def _block(of: Sums, given: Given) -> int:
    """Number of pairs in a block; all pairs are one block unless they exceed twice the nominal size."""
    pairs = len(given.harmonics)
    return of.block if pairs > 2 * of.block else max(1, pairs)


def _part(
    given: Given, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Harmonics and weights of a block of pairs, and neighbours and centres of its edges."""
    y, factors, source, target = given.harmonics, given.weights, given.neighbour, given.centre
    if stop - start < len(y):
        y, factors = y[start:stop], factors[start:stop]
        source, target = source[2 * start : 2 * stop], target[2 * start : 2 * stop]
    return y, factors, source, target


def _products(of: Sums, harmonics: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of edges, ``(E, D, K)``, and their products with features, ``(E, K, U)``.

    If no product involves a sum, the matrices are columns, shape ``(E, K, 1)``.
    """
    coupling = harmonics @ of.coupling
    if of.scalar or of.components == 1:
        coupling = coupling.view(len(near), -1, 1)
        return coupling, coupling * near
    coupling = coupling.view(len(near), of.components, -1)
    return coupling, torch.bmm(coupling.transpose(1, 2), near)


def _on_coupling(of: Sums, near: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to the matrices, from that of the products."""
    if of.scalar and of.components > 1:
        return (near * gradient).sum(2)
    return torch.bmm(near, gradient.transpose(1, 2))


def _on_near(of: Sums, coupling: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to the neighbours' features, ``(E, D, U)``, from that of the products."""
    if of.scalar:
        return coupling * gradient
    if of.components == 1:
        return (coupling * gradient).sum(1, keepdim=True)
    return torch.bmm(coupling, gradient)


def _by_kind(of: Sums, rows: torch.Tensor) -> list[torch.Tensor]:
    """Views of the rows of edges, ``(E, K, U)``, by kind, each ``(E / 2, 2, components, paths * U)``."""
    pairs = len(rows) // 2
    if len(of.widths) == 1:
        return [rows.view(pairs, 2, -1, of.widths[0])]
    parts = rows.view(pairs, 2, -1, of.channels).split(of.heights, 2)
    return [part.view(pairs, 2, -1, of.widths[n]) for n, part in enumerate(parts)]


def _weights_by_kind(of: Sums, weights: torch.Tensor) -> list[torch.Tensor]:
    """Views of the weights of pairs, ``(E / 2, P * U)``, by kind, each ``(E / 2, 1, 1, paths * U)``."""
    weights = weights.unsqueeze(1).unsqueeze(1)
    return list(weights.split(of.widths, 3)) if len(of.widths) > 1 else [weights]


def _weigh(of: Sums, rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """Multiply rows of edges, shape ``(E, K, U)``, by the weights of their pairs."""
    found, factors = _by_kind(of, out), _weights_by_kind(of, weights)
    for n, row in enumerate(_by_kind(of, rows)):
        torch.mul(row, factors[n], out=found[n])


def _on_weights(of: Sums, rows: torch.Tensor, gradient: torch.Tensor, out: torch.Tensor) -> None:
    """Gradient with respect to the weights, from that of the weighted rows."""
    found, slopes = _weights_by_kind(of, out), _by_kind(of, gradient)
    for n, row in enumerate(_by_kind(of, rows)):
        given = slopes[n]
        if row.shape[2] > 1:
            torch.sum(row * given, [1, 2], keepdim=True, out=found[n])
        else:  # tried.csv: "sums over the two edges and the components by two sums"
            torch.mul(row[:, :1], given[:, :1], out=found[n]).addcmul_(row[:, 1:], given[:, 1:])
