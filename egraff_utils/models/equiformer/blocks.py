"""How do atoms send messages to each other? Equivariant attention, and the blocks that are made of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from egraff_utils.models import frozen
from egraff_utils.models.equiformer.layers import (
    EquivariantLayerNorm,
    Gate,
    Linear,
    RadialFunction,
    UnitVariance,
    smooth_leaky_relu,
)
from egraff_utils.models.equiformer.products import Degrees, DepthwiseProduct, Map

Rotations = tuple[list[Tensor], list[Tensor]]
"""Rotation matrices of the edges by degree, without and with the turned rows of :class:`.Frames`."""
Geometry = tuple[Tensor, Rotations, Tensor, Tensor | None]
"""Ends of the edges, ``(2, E)``, their rotations, radial basis, ``(E, K)``, and envelope, ``(E, 1)``."""
Maps = tuple[list[list[Map]], list[Tensor]]
"""Matrices of messages and of values, see :class:`.DepthwiseProduct`."""


class EdgeDegreeEmbedding(nn.Module):
    """Embedding of the local geometry (Section 4.3): a constant times the harmonics, summed over edges.

    The constant is scalar, so only paths from ``l1 = 0`` contribute. The released model also holds the
    weights of the other paths, which have no effect; they are kept here so that the numbers of parameters
    agree.
    """

    def __init__(
        self,
        channels: Sequence[int],
        paths: Sequence[Degrees],
        radial: Sequence[int],
        average_neighbors: float,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.product = DepthwiseProduct(channels, paths)
        self.constant = Linear((1,), channels[:1])
        self.radial = RadialFunction((*radial, sum(self.product.path_channels)))
        self.project = Linear(self.product.out_channels, channels)
        self.factor = average_neighbors**-0.5

    def forward(
        self, atoms: int, edge_index: Tensor, rotations: Rotations, basis: Tensor, envelope: Tensor | None
    ) -> list[Tensor]:
        width = self.channels[0]
        (constant,) = self.constant([basis.new_ones(1, 1)])
        weights = self.radial(basis)[:, None, : width * len(self.channels)].split(width, dim=-1)
        maps = [constant.T * p[:width] for p in self.project.weights]
        harmonics = [1, *(d[:, 0, :, None] * d.shape[1] ** 0.5 for d in rotations[0])]
        y = [h * (w @ m) for h, w, m in zip(harmonics, weights, maps, strict=True)]
        y[0] = y[0] + self.project.bias
        if envelope is not None:
            y = [t * envelope[:, None] for t in y]
        return [sum_by_centre(t, edge_index[0], atoms) * self.factor for t in y]


class Attention(nn.Module):
    """Equivariant graph attention with non-linear messages (Section 4.2, Figure 1b)."""

    def __init__(
        self,
        channels: Sequence[int],
        paths: Sequence[Degrees],
        head_channels: Sequence[int],
        heads: int,
        radial: Sequence[int],
    ) -> None:
        super().__init__()
        values = [heads * n for n in head_channels]
        self.heads = heads
        self.from_neighbour = Linear(channels, channels)
        self.from_centre = Linear(channels, channels, bias=False)
        self.product = DepthwiseProduct(channels, paths)
        self.radial = RadialFunction((*radial, sum(self.product.path_channels)))
        self.gate = Gate(channels)
        gated = self.gate.in_channels
        self.sizes = [values[0], gated[0]]
        self.message = Linear(self.product.out_channels, (sum(self.sizes), *gated[1:]))
        self.logit_activation = UnitVariance(smooth_leaky_relu)
        bound = (6 / (heads + head_channels[0])) ** 0.5
        self.logit_weights = nn.Parameter(torch.empty(heads, head_channels[0]).uniform_(-bound, bound))
        self.value = Linear(self.product.out_channels, values, scaled=True)
        self.project = Linear(values, channels)
        self._kept: frozen.Kept[Maps] = frozen.Kept(self.message, self.value, self.radial[-1])

    def forward(
        self,
        x: Sequence[Tensor],
        edge_index: Tensor,
        rotations: Rotations,
        basis: Tensor,
        envelope: Tensor | None,
        largest: int,
    ) -> list[Tensor]:
        """Update of the node features up to degree ``largest``."""
        centre, neighbour = edge_index
        atoms, (message_maps, value_maps) = len(x[0]), self.maps(largest)
        pairs = zip(self.from_centre(x), self.from_neighbour(x), strict=True)
        merged = [a.index_select(0, centre) + b.index_select(0, neighbour) for a, b in pairs]
        coupled = self.product(merged, rotations[1], self.radial.hidden(basis), message_maps)
        logits, gated = self.gated(coupled)
        weights = self.weights(logits, centre, atoms, envelope)[:, None, :, None]
        pairs = zip(gated, value_maps, strict=True)
        values = self.by_degree([(g.flatten(1) @ w).unflatten(1, (g.shape[1], -1)) for g, w in pairs])
        values[0] = values[0] + self.value.bias
        weighted = [(v.unflatten(-1, (self.heads, -1)) * weights).flatten(2) for v in values]
        weighted[1:] = [d.mT @ v for d, v in zip(rotations[0], weighted[1:], strict=False)]
        return self.project([sum_by_centre(v, centre, atoms) for v in weighted])

    def maps(self, largest: int) -> Maps:
        """Matrices computed from the weights, cached between calls while the weights are frozen."""
        kept = self._kept.get(lambda: self._maps(largest))
        return self._maps(largest) if kept is None else kept

    def _maps(self, largest: int) -> Maps:
        messages = self.product.message_maps(self.message, self.radial, largest)
        return messages, self.product.value_maps(self.value, largest)

    def gated(self, coupled: Sequence[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Logits, shape ``(E, heads * channels)``, and gated messages by order."""
        channels = self.gate.sizes
        (first, *zeroth), *higher = coupled
        logits, scalars, gates = (first + self.message.bias).split(
            [self.sizes[0], channels[0], sum(channels[1:])], dim=-1
        )
        gates = self.gate.gate(gates)  # one per channel, shared by all orders, which keeps equivariance
        gated = [torch.cat([self.gate.scalar(scalars), torch.cat(zeroth, dim=-1) * gates], dim=-1)]
        for m, features in enumerate(higher, 1):
            gated.append(torch.cat(features, dim=-1) * gates[..., sum(channels[1:m]) :])
        return logits[:, 0], gated

    def by_degree(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Features by degree, with rows sorted by order, from features by order."""
        widths = [w.shape[1] for w in self.value.weights][: len(values)]
        by_order = [v.split(widths[m:], dim=-1) for m, v in enumerate(values)]
        degrees = range(len(widths))
        return [torch.cat([by_order[m][degree - m] for m in range(degree + 1)], dim=1) for degree in degrees]

    def weights(self, logits: Tensor, centre: Tensor, atoms: int, envelope: Tensor | None) -> Tensor:
        """Attention weights, shape ``(E, heads)``."""
        logits = self.logit_activation(logits.unflatten(-1, (self.heads, -1)))
        return softmax_by_centre((logits * self.logit_weights).sum(dim=-1), centre, atoms, envelope)


def sum_by_centre(x: Tensor, centre: Tensor, atoms: int) -> Tensor:
    """Sum over the edges of each atom, shape ``(N, ...)``, of ``x``, shape ``(E, ...)``."""
    return x.new_zeros(atoms, *x.shape[1:]).index_add(0, centre, x)


def softmax_by_centre(logits: Tensor, centre: Tensor, atoms: int, envelope: Tensor | None = None) -> Tensor:
    r"""Softmax over the edges of each atom, shape ``(E, heads)`` as ``logits``.

    With an envelope :math:`u`, shape ``(E, 1)``, the weights are
    :math:`u_{ij} e^{z_{ij}} / (1 + \sum_k u_{ik} e^{z_{ik}})`. They vanish smoothly with :math:`u`, even for
    an atom with a single neighbour: the one in the denominator acts as a neighbour that is always present and
    sends no message.

    >>> softmax_by_centre(torch.zeros(3, 1), torch.tensor([0, 0, 1]), 2)[:, 0]
    tensor([0.5000, 0.5000, 1.0000])
    >>> softmax_by_centre(torch.zeros(2, 1), torch.tensor([0, 0]), 1, torch.tensor([[1.0], [0.0]]))[:, 0]
    tensor([0.5000, 0.0000])
    """
    lowest = -math.inf if envelope is None else 0.0
    peak = logits.new_full((atoms, logits.shape[1]), lowest)
    peak = peak.scatter_reduce(0, centre[:, None].expand_as(logits), logits.detach(), "amax")
    weights = torch.exp(logits - peak[centre])
    if envelope is None:
        return weights / sum_by_centre(weights, centre, atoms)[centre]
    weights = weights * envelope
    return weights / (sum_by_centre(weights, centre, atoms) + torch.exp(-peak))[centre]


class FeedForward(nn.Module):
    """Feed-forward network on each atom: linear layer, gate, linear layer (Figure 1)."""

    def __init__(
        self, channels: Sequence[int], hidden_channels: Sequence[int], out_channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.gate = Gate(hidden_channels)
        self.enter = Linear(channels, self.gate.in_channels)
        self.leave = Linear(hidden_channels, out_channels)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        return self.leave(self.gate(self.enter(x)))


class Block(nn.Module):
    """Transformer block (Section 4.3): attention and feed-forward network, pre-normalised, with residuals.

    Degrees that the block does not return are not computed.
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: Sequence[int],
        paths: Sequence[Degrees],
        head_channels: Sequence[int],
        hidden_channels: Sequence[int],
        heads: int,
        radial: Sequence[int],
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.attention_norm = EquivariantLayerNorm(channels)
        self.attention = Attention(channels, paths, head_channels, heads, radial)
        self.feed_forward_norm = EquivariantLayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden_channels, out_channels)
        self.shortcut = Linear(channels, out_channels) if out_channels != channels else None

    def forward(self, x: Sequence[Tensor], *geometry: *Geometry) -> list[Tensor]:
        largest = len(self.out_channels) - 1
        x = _add(x, self.attention(self.attention_norm(x), *geometry, largest))
        change = self.feed_forward(self.feed_forward_norm(x))
        return _add(x if self.shortcut is None else self.shortcut(x), change)


def _add(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    """Sum of two features, up to the lower of their largest degrees."""
    return [a + b for a, b in zip(x, y, strict=False)]
