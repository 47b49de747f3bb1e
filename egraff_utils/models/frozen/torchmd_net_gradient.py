r"""How is TorchMD-NET evaluated with frozen weights? With a hand-derived gradient of the energies.

The equations of a layer are in :mod:`.torchmd_net`. With :math:`\delta_n = e^{-\alpha r} - \mu_n`, the
envelope and the radial functions are

.. math::

    u(r) = \tfrac12 \left( 1 + \cos \frac{\pi r}{r_c} \right), \qquad f_n(r) = u(r)\, e^{-\beta_n \delta_n^2},
    \qquad f_n' = e^{-\beta_n \delta_n^2} \left( u' + 2 \alpha \beta_n \delta_n e^{-\alpha r} u \right)

The gradients with respect to the inputs of the messages, from those of their sums:

.. math::

    \bar s = \alpha\, \bar m_i, \quad \bar t = \bar \mu_i \cdot d, \quad \bar p = \bar \mu_i \cdot v_j, \quad
    \bar v_j \mathrel{+}= p\, \bar \mu_i, \quad \bar d = \sum_c t_c\, \bar \mu_{i,c}

    \bar \alpha = \sum_{c \in h} \bar m_{i,c}\, s_c, \quad
    \bar z = \bar \alpha\, u\, \mathrm{silu}'(z), \quad \bar u = \sum_h \bar \alpha\, \mathrm{silu}(z), \quad
    \bar q_i \mathrel{+}= \bar z\, k, \quad \bar k = \bar z\, q_i

where :math:`z` is the sum of :math:`q k` over a head. What acts on each atom alone, before and after its
messages, is in :mod:`.torchmd_net_atoms`.

``forward`` of each part returns its results and what its ``backward`` needs for the gradient with respect
to the arguments. Gradients with respect to ``radial`` and ``geometry`` are accumulated in place.

This file and that can be removed together with the import in :mod:`.torchmd_net`; forces are then computed by
autograd. Their benefit is the ratio of the times of a step of :func:`egraff_utils.running.cost.stepper` with
the force field's ``_freezer`` set to None and unchanged, on every system; the former also with a compiled
network.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from egraff_utils.graph import AtomicGraph
from egraff_utils.models import frozen
from egraff_utils.models.frozen import operators
from egraff_utils.models.frozen import torchmd_net_messages as messages
from egraff_utils.models.frozen.operators import silu_backward
from egraff_utils.models.frozen.torchmd_net_atoms import (
    FirstUpdate,
    Head,
    Norm,
    OfHead,
    OfNorm,
    OfUpdate,
    Update,
)
from egraff_utils.models.frozen.torchmd_net_messages import Block, Given, Rows, joined_matrices

if TYPE_CHECKING:
    from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention
    from torchmdnet.models.utils import ExpNormalSmearing

    from egraff_utils.models.frozen.torchmd_net import Transformer

Made = TypeVar("Made")
OfLengths = tuple[Tensor, ...]
"""What the backward pass of :class:`Lengths` needs; the others are likewise named after their class."""
OfEmbedding = tuple[Tensor | list[Tensor], Tensor, Tensor]
OfMessages = tuple[Given, Callable[..., list], list[tuple[Sequence[Block], list[list[Tensor]]]]]
OfLayer = tuple[OfNorm, OfMessages, OfUpdate | None]
OfFrozen = tuple[Tensor, Tensor, list[Block], OfLengths, OfEmbedding | None, list[OfLayer], OfHead]


def freeze(network: "Transformer") -> "Frozen":
    """:class:`Frozen` of the adapter's network, with its current weights."""
    return Frozen(network)


class Frozen(frozen.Frozen):
    """TorchMD-NET with the weights that an ``EquivariantTransformer`` had when it was frozen."""

    def __init__(self, network: "Transformer") -> None:
        model = network.representation_model
        first, *others = model.attention_layers
        self.lengths = Lengths(model.distance_expansion, smooth=first.vector_cutoff)
        self.embedding = Embedding(network)
        self.layers = [Layer(first, parts=3), *(Layer(layer, parts=4) for layer in others)]
        self.head = Head(model.out_norm, network.output_model.output_network)

    def __call__(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`egraff_utils.models.frozen.Frozen.__call__`."""
        energies, kept = self.forward(graph, vectors)
        return energies, self.backward(kept, torch.ones_like(energies))

    def has_threads(self, graph: AtomicGraph) -> bool:
        """Whether there are several blocks, which are distributed to threads."""
        return Block.count(graph.edge_index.shape[1] // 2, self.embedding.own) > 1

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, OfFrozen]:
        """Energies, ``(N,)``, and values for ``backward``, from vectors of pairs, shape ``(E / 2, 3)``."""
        edges = graph.edge_index[:, : len(vectors)]
        radial, geometry, of_lengths = self.lengths.forward(vectors)
        x, of_embedding = self.embedding.forward(graph.species, edges, radial, geometry[:, :1])
        features: Tensor | None = None
        blocks, of_layers = Block.all_of(edges, x), []
        geometry = messages.to_messages(geometry, blocks)
        for layer in self.layers:
            x, features, of_layer = layer.forward(x, features, radial, geometry, blocks)
            of_layers.append(of_layer)
        energies, of_head = self.head.forward(x, features)  # type: ignore[arg-type]  # there is a layer
        return energies, (radial, geometry, blocks, of_lengths, of_embedding, of_layers, of_head)

    def backward(self, kept: OfFrozen, slope: Tensor) -> Tensor:
        """Gradient with respect to the vectors of pairs, shape ``(E / 2, 3)``."""
        radial, geometry, blocks, of_lengths, of_embedding, of_layers, of_head = kept
        on_radial, on_geometry = torch.zeros_like(radial), torch.zeros_like(geometry)
        on_x, on_vectors = self.head.backward(of_head, slope)
        for layer, of_layer in zip(self.layers[::-1], of_layers[::-1], strict=True):
            on_x, on_vectors = layer.backward(  # type: ignore[assignment]  # None for the first, which is last
                of_layer, on_x, on_vectors, on_radial, on_geometry
            )
        on_radial, on_geometry = on_radial[:-1], messages.to_pairs(on_geometry, blocks)
        self.embedding.backward(of_embedding, on_x, on_radial, on_geometry[:, :1])
        return self.lengths.backward(of_lengths, on_radial, on_geometry)


class Lengths:
    """Radial functions, envelopes and directions of pairs and, in the last row, of a self loop.

    Parameters
    ----------
    basis
        ``ExpNormalSmearing``.
    smooth
        Whether the envelope multiplies directions.
    """

    def __init__(self, basis: "ExpNormalSmearing", *, smooth: bool) -> None:
        self.smooth, self.cutoff, self.alpha = smooth, basis.cutoff_upper, basis.alpha
        self.means, self.slopes = basis.means.detach(), 2 * self.alpha * basis.betas.detach()
        self.betas = basis.betas.detach() * (-1 / math.log(2))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, OfLengths]:
        """Functions ``(P + 1, B)``, and envelopes and directions ``(P, 4)``, of vectors, shape ``(P, 3)``."""
        pairs = len(vectors)
        lengths = vectors.new_zeros(pairs + 1, 1)
        torch.linalg.vector_norm(vectors, dim=1, keepdim=True, out=lengths[:pairs])
        directions = vectors / lengths[:pairs]
        angles = lengths.clamp(max=self.cutoff).mul_(math.pi / self.cutoff)
        envelope = angles.cos().add_(1).mul_(0.5)
        decay = (lengths * (-self.alpha / math.log(2))).exp2_()  # tried.csv: "radial functions by exp2"
        distance = decay - self.means
        bells = distance.square().mul_(self.betas).exp2_()
        radial = bells * envelope
        kept = [t[:pairs] for t in (lengths, angles, envelope, decay, distance, bells)]
        moved = directions * kept[2] if self.smooth else directions
        return radial, torch.cat([kept[2], moved], dim=1), (directions, *kept)

    def backward(self, kept: OfLengths, on_radial: Tensor, on_geometry: Tensor) -> Tensor:
        """Gradient with respect to the vectors, shape ``(P, 3)``."""
        directions, lengths, angles, envelope, decay, distance, bells = kept
        on_envelope, on_directions = on_geometry.split((1, 3), dim=1)
        along = (on_directions * directions).sum(1, keepdim=True)
        if self.smooth:
            on_envelope = on_envelope + along
            on_directions, along = on_directions * envelope, along * envelope
        slope = angles.sin().mul_(-0.5 * math.pi / self.cutoff)
        by_length = (distance * self.slopes).mul_(decay * envelope).add_(slope).mul_(bells)
        on_lengths = (on_radial * by_length).sum(1, keepdim=True)
        on_lengths.addcmul_(on_envelope, slope).sub_(along / lengths)
        return torch.addcmul(on_directions / lengths, directions, on_lengths)


class Embedding:
    """Initial features of atoms, from their elements and those of their neighbours.

    Radial functions are summed over neighbours of each of K elements; one matrix maps the sums to features.
    """

    def __init__(self, network: "Transformer") -> None:
        model, elements = network.representation_model, network.present
        neighbors = model.neighbor_embedding
        self.kinds, self.count, self.matrix = network.kinds, len(elements), None
        self.own = model.embedding.weight[elements]
        if neighbors is not None:
            own, near = neighbors.combine.weight.chunk(2, dim=1)
            self.own = linear(self.own, own, neighbors.combine.bias)
            filters = torch.cat([neighbors.distance_proj.weight.T, neighbors.distance_proj.bias[None]])
            near_elements = neighbors.embedding(elements).unsqueeze(1)
            self.matrix = ((filters * near_elements) @ near.T).flatten(0, 1)  # (K * (B + 1), U)

    def forward(
        self, species: Tensor, edges: Tensor, radial: Tensor, envelope: Tensor
    ) -> tuple[Tensor, OfEmbedding | None]:
        """Features, shape ``(N, U)``, for atomic numbers, ``(N,)``, and edges of pairs, ``(2, P)``."""
        kinds = self.kinds[species]
        own = self.own.index_select(0, kinds)
        if self.matrix is None:
            return own, None
        places = edges if self.count == 1 else edges * self.count + kinds[edges.flip(0)]
        radial = radial[: len(envelope)]
        rows = torch.cat([radial * envelope, envelope], dim=1)
        around = rows.new_zeros(len(own) * self.count, rows.shape[1])
        for place in places:
            around.index_add_(0, place, rows)
        x = torch.addmm(own, around.view(len(own), -1), self.matrix)
        return x, (places, radial, envelope)

    def backward(
        self, kept: OfEmbedding | None, slope: Tensor, on_radial: Tensor, on_envelope: Tensor
    ) -> None:
        """Add to the gradients with respect to radial functions and envelopes."""
        if kept is None:
            return
        places, radial, envelope = kept
        of_atoms = torch.mm(slope, self.matrix.T).view(len(slope) * self.count, -1)
        there, back = (of_atoms.index_select(0, place) for place in places)
        of_rows, of_envelope = there.add_(back).split((radial.shape[1], 1), dim=1)
        on_radial.addcmul_(of_rows, envelope)
        on_envelope.add_((of_rows * radial).sum(1, keepdim=True)).add_(of_envelope)


class Layer:
    """An attention layer of the package, as in :class:`Attention`.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention``.
    parts
        Number of parts of the channels of messages: four, or three in the first layer, without vectors.
    """

    def __init__(self, layer: "EquivariantMultiHeadAttention", *, parts: int) -> None:
        u = layer.hidden_channels
        atoms, filters, heads = joined_matrices(layer)
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        self.norm = Norm(layer.layernorm)
        self.query = self.norm.before(layer.q_proj.weight, layer.q_proj.bias)
        self.table = self.norm.before(*atoms)
        self.constants = *filters, heads, layer.vector_cutoff
        self.update: Update | FirstUpdate = Update(layer) if parts == 4 else FirstUpdate(layer)

    def forward(
        self, x: Tensor, vectors: Tensor | None, radial: Tensor, geometry: Tensor, blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor, OfLayer]:
        """New features of the atoms, ``(N, U)`` and ``(N, 3, U)``; arguments as in :class:`Attention`."""
        normed, of_norm = self.norm.forward(x)
        query, table = linear(normed, *self.query), linear(normed, *self.table)
        rows = None if vectors is None else vectors.flatten(1)
        total, of_messages = Messages.forward(
            Given(query, table, rows, radial, geometry, *self.constants), blocks
        )
        x, vectors, of_update = self.update.forward(x, vectors, total)  # type: ignore[arg-type]
        return x, vectors, (of_norm, of_messages, of_update)

    def backward(
        self, kept: OfLayer, on_x: Tensor, on_vectors: Tensor, on_radial: Tensor, on_geometry: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients with respect to the features of the atoms, from those of the new features."""
        of_norm, of_messages, of_update = kept
        on_total, own = self.update.backward(of_update, on_x, on_vectors)  # type: ignore[arg-type]
        on_query, on_table, *near = Messages.backward(of_messages, on_total, on_radial, on_geometry)
        on_normed = torch.mm(on_query, self.query[0]).addmm_(on_table, self.table[0])
        on_x = on_x + self.norm.backward(of_norm, on_normed)
        return on_x, own.add_(near[0].view_as(own)) if near else None  # type: ignore[arg-type]


class Messages:
    """Sums of the messages to all atoms, in blocks whose arrays stay in the cache of one core.

    Several blocks are distributed to threads. Few of their arrays are kept for the backward pass, which
    recomputes the others.
    """

    @staticmethod
    def forward(given: Given, blocks: Sequence[Block]) -> tuple[Tensor, OfMessages]:
        """Sums, shape ``(N, 4U)``, from :class:`Given` and a list of :class:`Block`."""
        count = max(1, min(operators.threads(), (len(blocks) + 1) // LEAST))
        shares = [blocks[::-1][k::count] for k in range(count)]  # the largest block, which is the last, first
        run = _at_once if len(blocks) == 1 else operators.in_threads
        totals, kept = zip(*run(_total, [(given, share) for share in shares]), strict=True)
        return sum(totals[1:], totals[0]), (given, run, list(zip(shares, kept, strict=True)))

    @staticmethod
    def backward(kept: OfMessages, slope: Tensor, on_radial: Tensor, on_geometry: Tensor) -> list[Tensor]:
        """Gradients with respect to ``query``, ``table`` and, if there are any, ``vectors``."""
        given, run, shares = kept
        calls = [(given, *share, slope, on_radial, on_geometry) for share in shares]
        return [sum(parts[1:], parts[0]) for parts in zip(*run(_slopes, calls), strict=True)]


def _at_once(function: Callable[..., Made], calls: Sequence[tuple]) -> list[Made]:
    """Result of the single call, which runs with all threads of torch."""
    (arguments,) = calls
    return [operators.compiled(function, arguments[0].query.device)(*arguments)]


LEAST = 2
"""Smallest number of blocks of a thread; starting a thread for fewer takes longer than it saves
(``tried.csv``: "a thread for every two blocks at least")."""


def _total(given: Given, blocks: list[Block]) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """Sums of the messages to all atoms, shape ``(N, 4U)``, and arrays of every block that are kept."""
    scratch: dict[str, torch.Tensor] = {}
    width = 4 * given.query.shape[1]
    total = torch.zeros([len(given.query), width], dtype=given.query.dtype, device=given.query.device)
    kept: list[list[torch.Tensor]] = []
    nothing: list[torch.Tensor] = []
    for block in blocks:
        made = messages.made_arrays(given, block, scratch, nothing)
        out = messages.take(scratch, "messages", made[3], width)
        messages.write_messages(messages.rows_of_block(given, block, made), out)
        total.index_add_(0, block.centre, out)
        kept.append(made if len(blocks) == 1 else made[:2])
    return total, kept


def _slopes(
    given: Given,
    blocks: list[Block],
    kept: list[list[torch.Tensor]],
    slope: torch.Tensor,
    radial: torch.Tensor,
    geometry: torch.Tensor,
) -> list[torch.Tensor]:
    """Gradients with respect to ``query``, ``table`` and ``vectors``; the others are added in place."""
    scratch: dict[str, torch.Tensor] = {}
    slopes = [torch.zeros_like(given.query), torch.zeros_like(given.table)]
    vectors = given.vectors
    if vectors is not None:
        slopes.append(torch.zeros_like(vectors))
    for k, block in enumerate(blocks):
        made = kept[k] if len(blocks) == 1 else messages.made_arrays(given, block, scratch, kept[k])
        _add_slopes(
            slopes, radial, geometry, given, messages.rows_of_block(given, block, made), block, slope, scratch
        )
    return slopes


def _add_slopes(
    slopes: list[torch.Tensor],
    radial: torch.Tensor,
    geometry: torch.Tensor,
    given: Given,
    rows: Rows,
    block: Block,
    slope: torch.Tensor,
    scratch: dict[str, torch.Tensor],
) -> None:
    """Add the contributions of a block to the gradients; ``slope`` is that of the sum, ``(N, 4U)``."""
    u, width = rows.query.shape[1], rows.near.shape[1]
    of_sum = messages.fetch(slope, block.centre, messages.take(scratch, "slope", rows.query, 4 * u)).split(
        u, dim=1
    )
    scalar, vector = of_sum[0], of_sum[1:]
    of_values = messages.take(scratch, "slope of values", rows.query, width)
    parts = of_values.split(u, dim=1)
    envelope, directions = rows.geometry[0], rows.geometry[1:]

    torch.mul(scalar, rows.weights, out=parts[1])
    attention = torch.mm(scalar * rows.values[1], given.heads.t())
    logits = torch.mm(silu_backward(attention * envelope, rows.logits), given.heads)
    torch.mul(logits, rows.query, out=parts[0])
    slopes[0].index_add_(0, block.centre, logits * rows.values[0])

    around = [(attention * rows.attention).sum(1)]
    for k in range(3):
        around.append((vector[k] * rows.values[2]).sum(1))
    _dot(vector, directions, parts[2])
    if len(rows.vectors) > 0:
        _dot(vector, rows.vectors, parts[3])
        if given.smooth:
            around[0] += (parts[3] * rows.values[3]).sum(1)
            parts[3].mul_(envelope)
        turned = messages.take(scratch, "turned", rows.query, 3 * u)
        for k in range(3):
            torch.mul(vector[k], rows.factor, out=turned[:, k * u : (k + 1) * u])
        slopes[2].index_add_(0, block.neighbour, turned)
    start = 2 * block.start
    geometry[start : start + len(rows.query)].add_(torch.stack(around, dim=1))

    of_table = messages.take(scratch, "slope of table", rows.query, width)
    slopes[1].index_add_(0, block.neighbour, messages.times_rows(of_values, rows.filters, block, of_table))
    there, pairs = of_values.mul_(rows.near), block.pairs
    filters = silu_backward(there[:pairs].add_(there[pairs : 2 * pairs]), rows.before[:pairs])
    radial[block.start : block.start + pairs].addmm_(filters, given.weight)


def _dot(first: list[torch.Tensor], second: list[torch.Tensor], out: torch.Tensor) -> None:
    """Sum of the products of corresponding components, written to ``out``, shape ``(M, U)``."""
    torch.mul(first[0], second[0], out=out)
    out.addcmul_(first[1], second[1]).addcmul_(first[2], second[2])
