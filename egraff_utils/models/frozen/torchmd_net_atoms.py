r"""How are TorchMD-NET's atoms changed by their messages, and how is their energy read? Gradients by hand.

The equations of a layer are in :mod:`.torchmd_net`. The gradient through the update of an atom's features:

.. math::

    \bar m_i = (\textstyle\sum \bar v' \circ vC)\, O_1^\top + (\bar x' \circ (vA \cdot vB))\, O_2^\top
        + \bar x' O_3^\top, \qquad \bar \mu_i = \bar v'

    \bar v_i \mathrel{+}= \bar v' + (\bar x' m O_2 \circ vB)\, A^\top + (\bar x' m O_2 \circ vA)\, B^\top
        + (\bar v' \circ m O_1)\, C^\top

``forward`` of each part returns its results and what its ``backward`` needs for the gradient with respect to
the arguments. The parts are used by :mod:`.torchmd_net_gradient`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from egraff_utils.models.frozen.operators import silu_backward

if TYPE_CHECKING:
    from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention
    from torchmdnet.models.utils import GatedEquivariantBlock

OfNorm = tuple[Tensor, torch.Size, Tensor, Tensor]
"""What the backward pass of :class:`Norm` needs; the others are likewise named after their class."""
OfUpdate = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
OfGate = tuple[Tensor, Tensor, Tensor]
OfHead = tuple[OfNorm, OfGate, Tensor, Tensor, Tensor, OfGate]


class Norm:
    """Layer normalisation, whose weight and bias are merged into the matrices that follow."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def before(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a linear layer after the norm, with those of the norm merged in."""
        return weight * self.norm.weight, torch.addmv(bias, weight, self.norm.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, OfNorm]:
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[1:], None, None, self.norm.eps)
        return normed, (x, x.shape[1:], mean, deviation)

    def backward(self, kept: OfNorm, slope: Tensor) -> Tensor:
        wanted = [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(slope, *kept, None, None, wanted)[0]


class FirstUpdate:
    """New features from the sum of messages in the first layer, where vectors are zero."""

    def __init__(self, layer: "EquivariantMultiHeadAttention") -> None:
        self.weight, self.bias = (t.chunk(3)[2] for t in (layer.o_proj.weight, layer.o_proj.bias))

    def forward(self, x: Tensor, vectors: Tensor | None, total: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scalars ``(N, U)`` and vectors ``(N, 3, U)``, from scalars, ``None`` and a sum ``(N, 4U)``."""
        u = x.shape[1]
        return (
            linear(total[:, :u], self.weight, self.bias).add_(x),
            total[:, u:].contiguous().view(-1, 3, u),
            None,
        )

    def backward(self, kept: None, on_x: Tensor, on_vectors: Tensor) -> tuple[Tensor, None]:
        """Gradient with respect to the sum; there is none with respect to vectors."""
        return torch.cat([torch.mm(on_x, self.weight), on_vectors.flatten(1)], dim=1), None


class Update:
    """New features from the sum of messages and the vectors of the atom."""

    def __init__(self, layer: "EquivariantMultiHeadAttention") -> None:
        self.weight, self.bias, self.vectors = layer.o_proj.weight, layer.o_proj.bias, layer.vec_proj.weight

    def forward(self, x: Tensor, vectors: Tensor, total: Tensor) -> tuple[Tensor, Tensor, OfUpdate]:
        """New scalars ``(N, U)`` and vectors ``(N, 3, U)``, from the old ones and a sum ``(N, 4U)``."""
        u = x.shape[1]
        first, second, third = linear(total[:, :u], self.weight, self.bias).split(u, dim=1)
        first = first.unsqueeze(1)
        one, two, three = _turn(vectors, self.vectors).split(u, dim=2)
        dots = (one * two).sum(1)
        x = torch.addcmul(third, dots, second).add_(x)
        vectors = torch.addcmul(total[:, u:].view(-1, 3, u), three, first).add_(vectors)
        return x, vectors, (first, second, dots, one, two, three)

    def backward(self, kept: OfUpdate, on_x: Tensor, on_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to the sum, and to the vectors apart from their contribution to the sum."""
        u = on_x.shape[1]
        first, second, dots, one, two, three = kept
        on_dots = (on_x * second).unsqueeze(1)
        on_scalars = torch.cat([(on_vectors * three).sum(1), on_x * dots, on_x], dim=1)
        on_total = torch.cat([torch.mm(on_scalars, self.weight), on_vectors.flatten(1)], dim=1)
        on_turned = torch.cat([on_dots * two, on_dots * one, on_vectors * first], dim=2)
        own = torch.addmm(on_vectors.view(-1, u), on_turned.view(-1, 3 * u), self.vectors)
        return on_total, own.view_as(on_vectors)


class Head:
    """Energies of the atoms from scalars and vectors, by a norm and two gated blocks of the package.

    Parameters
    ----------
    norm, blocks
        ``LayerNorm`` and two ``GatedEquivariantBlock``.
    """

    def __init__(self, norm: nn.LayerNorm, blocks: Sequence["GatedEquivariantBlock"]) -> None:
        one, two = blocks
        self.norm = Norm(norm)
        hidden, out = one.update_net.layers[0], one.update_net.layers[2]
        self.gate = Gate(self._after_norm(hidden), (out.weight, out.bias))
        hidden, out = two.update_net.layers[0], two.update_net.layers[2]
        self.last = Gate((hidden.weight, hidden.bias), (out.weight[:1], out.bias[:1]))  # no vectors
        self.vectors = torch.cat([one.vec1_proj.weight, one.vec2_proj.weight])
        self.last_vectors = two.vec1_proj.weight.detach()

    def _after_norm(self, hidden: nn.Linear) -> tuple[Tensor, Tensor]:
        of_scalars, of_lengths = hidden.weight.chunk(2, dim=1)
        of_scalars, bias = self.norm.before(of_scalars, hidden.bias)
        return torch.cat([of_scalars, of_lengths], dim=1), bias

    def forward(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, OfHead]:
        """Energies, shape ``(N,)``, from features of shapes ``(N, U)`` and ``(N, 3, U)``."""
        normed, of_norm = self.norm.forward(x)
        first, second = _turn(vectors, self.vectors).tensor_split((x.shape[1],), dim=2)
        found, of_gate = self.gate.forward(normed, first)
        scalars, factors = found.chunk(2, dim=1)
        factors = factors.unsqueeze(1)
        gated = _turn(second * factors, self.last_vectors)
        energies, of_last = self.last.forward(silu(scalars), gated)
        return energies.squeeze(1), (of_norm, of_gate, scalars, factors, second, of_last)

    def backward(self, kept: OfHead, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to scalars and vectors."""
        of_norm, of_gate, scalars, factors, second, of_last = kept
        on_scalars, on_gated = self.last.backward(of_last, slope.unsqueeze(1))
        on_gated = _turn(on_gated, self.last_vectors.T)
        on_found = torch.cat([silu_backward(on_scalars, scalars), (on_gated * second).sum(1)], dim=1)
        on_normed, on_first = self.gate.backward(of_gate, on_found)
        on_vectors = _turn(torch.cat([on_first, on_gated * factors], dim=2), self.vectors.T)
        return self.norm.backward(of_norm, on_normed), on_vectors


def _turn(vectors: Tensor, weight: Tensor) -> Tensor:
    """Linear map of the channels of vectors, shape ``(N, 3, U)`` -> ``(N, 3, V)``."""
    return linear(vectors.flatten(0, 1), weight).view(len(vectors), 3, -1)


class Gate:
    """The network of a ``GatedEquivariantBlock`` on scalars and lengths of vectors.

    Parameters
    ----------
    hidden, last
        Weights and biases of the two layers.
    """

    def __init__(self, hidden: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]) -> None:
        self.hidden, self.last = hidden, last

    def forward(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, OfGate]:
        """Outputs, from features of shapes ``(N, U)`` and ``(N, 3, U)``."""
        lengths = vectors.square().sum(1).sqrt_()  # tried.csv: "square, sum and root"
        before = linear(torch.cat([x, lengths], dim=1), *self.hidden)
        return linear(silu(before), *self.last), (before, vectors, lengths)

    def backward(self, kept: OfGate, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to scalars and vectors; that of a zero vector is zero, as in the package."""
        before, vectors, lengths = kept
        on_before = silu_backward(torch.mm(slope, self.last[0]), before)
        on_x, on_lengths = torch.mm(on_before, self.hidden[0]).chunk(2, dim=1)
        least = torch.finfo(lengths.dtype).tiny ** 0.5  # so that its square does not underflow
        return on_x, vectors * (on_lengths / lengths.clamp(min=least)).unsqueeze(1)
