r"""How are tensor products evaluated in training? As one matrix product per edge, with sums and autograd.

.. math::

    m_{i,p,u,k} = \sum_{j} w_{ij,p,u} \sum_{a} M^p_{ij,ka}\, x_{j,u,a}, \qquad
    M^p_{ij,ka} = \sum_b C^p_{b,ka}\, Y_{ij,b}

The upstream packages build every path :math:`p` of a tensor product from outer products of features. Here all
paths from one kind of features are one small matrix per edge, which multiplies all channels :math:`u` at
once, and channels are the last axis, so that memory is read in order (``tried.csv``: "the convolution as one
small matrix product per edge and kind of feature"). Results are the same up to rounding in the forward pass
and in its first and second derivatives.

Symbols: N atoms, E edges, P paths, U channels, K components of all paths together.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from e3nn import o3
from torch import Tensor, nn


def share_directions(module: nn.Module) -> None:
    """Make a module that depends only on the lengths of edges evaluate one direction of every pair.

    The second half of the edges is the first reversed (:class:`~egraff_utils.graph.AtomicGraph`), so only the
    first E/2 of E rows are evaluated, and the result is repeated.
    """
    module.register_forward_pre_hook(_first_half)
    module.register_forward_hook(_for_both)


def _first_half(module: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    (rows,) = arguments
    return rows[: len(rows) // 2]


def _for_both(module: nn.Module, arguments: tuple[Tensor], rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])


class Convolution(nn.Module):
    r"""Sum over neighbours of weighted tensor products of their features with an edge's harmonics.

    .. math:: m_{i,p,u,k} = \sum_{j} w_{ij,p,u} \sum_{ab} C^p_{abk}\, x_{j,u,a}\, Y_{ij,b}

    Parameters
    ----------
    product
        ``e3nn.o3.TensorProduct`` with unshared weights, the same number U of channels in every part of its
        first argument, one in the second, and instructions of the kind ``uvu`` with an output each.
    dtype
        Type in which the coefficients are computed before they are converted to torch's default type; by
        default the latter.

    Raises
    ------
    ValueError
        If the product is of another kind.
    """

    def __init__(self, product: o3.TensorProduct, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._buffers.update(product._buffers)  # unused, but keeps the state dict of the upstream package
        self._modules.update(product._modules)
        self.instructions = instructions = product.instructions
        self.irreps_in1, self.irreps_in2 = product.irreps_in1, product.irreps_in2
        self.irreps_out = product.irreps_out
        channels = {part.mul for part in product.irreps_in1}
        if len(channels) > 1 or any(i.connection_mode != "uvu" for i in instructions):
            raise ValueError(f"{product} does not couple features of equal width with an edge's harmonics")
        outputs = [product.irreps_out[i.i_out].ir.l for i in instructions]
        order = sorted(range(len(instructions)), key=lambda p: (instructions[p].i_in1, outputs[p]))
        heights = [2 * outputs[p] + 1 for p in order]
        inputs = [instructions[p].i_in1 for p in order]
        self.channels, self.order, self.heights = product.irreps_in1[0].mul, order, heights
        self.sizes = [part.dim for part in product.irreps_in1]
        self.groups = [
            [
                (len(list(same)), k)
                for k, same in groupby(k for k, i in zip(heights, inputs, strict=True) if i == n)
            ]
            for n in range(len(self.sizes))
        ]
        self.widths = [sum(paths * k for paths, k in groups) for groups in self.groups]
        self.places = sorted(range(len(order)), key=lambda n: instructions[order[n]].i_out)
        coupling = torch.cat([path_coupling(product, instructions[p], dtype) for p in order], dim=1)
        self.register_buffer("coupling", coupling.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        """Messages, shape ``(N, K * U)``, in the layout of the product's output.

        Parameters
        ----------
        x
            Features of the atoms, in the layout of the product's first argument.
        harmonics
            Harmonics of the edges, shape ``(E, (l_max + 1)^2)``.
        weights
            Weights of the edges, shape ``(E, P * U)``.
        edges
            Neighbours and centres of the edges, two tensors of shape ``(E,)``.
        """
        neighbour, centre = edges
        messages = torch.cat(list(self._messages(x, harmonics, weights, neighbour)), dim=1)
        total = messages.new_zeros(len(x), messages.shape[1]).index_add(0, centre, messages)
        paths = total.split([k * self.channels for k in self.heights], dim=1)
        parts = [paths[n].view(len(x), self.heights[n], self.channels).transpose(1, 2) for n in self.places]
        return torch.cat([part.reshape(len(x), -1) for part in parts], dim=1)

    def _messages(self, x: Tensor, harmonics: Tensor, weights: Tensor, neighbour: Tensor) -> Iterator[Tensor]:
        """Messages of all edges, ``(E, paths * k * U)``, for paths with the same input and k components."""
        u, dims = self.channels, [size // self.channels for size in self.sizes]
        couplings = (harmonics @ self.coupling).split(
            [k * d for k, d in zip(self.widths, dims, strict=True)], 1
        )
        columns = weights.split(u, dim=1)
        ordered = torch.cat([columns[p] for p in self.order], dim=1)
        factors = iter(ordered.split([paths * u for groups in self.groups for paths, _ in groups], dim=1))
        for part, coupling, d, groups in zip(
            x.split(self.sizes, 1), couplings, dims, self.groups, strict=True
        ):
            if not groups:
                continue
            near = part.view(-1, u, d).transpose(1, 2).contiguous().index_select(0, neighbour)
            products = torch.bmm(coupling.unflatten(1, (-1, d)), near)
            for product, (paths, k) in zip(
                products.split([p * k for p, k in groups], 1), groups, strict=True
            ):
                weighted = product.view(-1, paths, k, u) * next(factors).view(-1, paths, 1, u)
                yield weighted.flatten(1)


def path_coupling(
    product: o3.TensorProduct, instruction: o3.Instruction, dtype: torch.dtype | None = None
) -> Tensor:
    """Coefficients of a path, shape ``((l_max + 1)^2, k * a)``, which map harmonics to its matrices."""
    harmonics, i = product.irreps_in2, instruction
    x, y, out = (product.irreps_in1[i.i_in1].ir, harmonics[i.i_in2].ir, product.irreps_out[i.i_out].ir)
    coefficients = o3.wigner_3j(x.l, y.l, out.l, dtype=dtype).permute(1, 2, 0) * i.path_weight
    block = coefficients.new_zeros(harmonics.dim, out.dim * x.dim)
    block[harmonics.slices()[i.i_in2]] = coefficients.reshape(y.dim, -1)
    return block
