r"""How is TorchMD-NET evaluated in training? With less memory traffic in its attention, and by autograd.

The inputs of a layer are scalars :math:`x_i` and vectors :math:`v_i`. Queries are :math:`q = x W_q`; keys
:math:`k` and values :math:`s, t, p` are linear in the scalars of the neighbour, each times a filter
:math:`\mathrm{silu}(f(r_{ij}) W + b)`. With the envelope :math:`u` and the direction :math:`d_{ij}`, a layer
is, for each head :math:`h`,

.. math::

    \alpha_{ij} = \mathrm{silu}\!\left( \sum_{c \in h} q_{i,c}\, k_{ij,c} \right) u(r_{ij}), \qquad
    m_i = \sum_j \alpha_{ij}\, s_{ij}, \qquad
    \mu_i = \sum_j \left( t_{ij}\, d_{ij} + p_{ij}\, v_j \right)

    x'_i = x_i + (v_i A \cdot v_i B) \circ (m_i O_2) + m_i O_3, \qquad
    v'_i = v_i + v_i C \circ (m_i O_1) + \mu_i

where the sums run over the neighbours and the atom itself, whose edge has length zero.

Filters depend only on lengths and are computed once for both directions of a pair. The hand-derived gradient
for frozen weights is in :mod:`~egraff_utils.models.frozen.torchmd_net_gradient`.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from egraff_utils.graph import AtomicGraph
from egraff_utils.models.frozen.torchmd_net_gradient import freeze  # noqa: F401
from egraff_utils.models.frozen.torchmd_net_messages import (
    Block,
    Given,
    joined_matrices,
    made_arrays,
    rows_of_block,
    to_messages,
    write_messages,
)
from egraff_utils.models.torchmd_net import EquivariantTransformer

if TYPE_CHECKING:
    from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention
    from torchmdnet.models.utils import GatedEquivariantBlock


def speed_up(network: EquivariantTransformer) -> None:
    """Make layers and output run by the functions below; the weights stay where they are."""
    elements, network.__class__ = network.elements, Transformer
    kinds = torch.zeros(max(elements) + 1, dtype=torch.int64)
    kinds[elements] = torch.arange(len(elements))
    network.register_buffer("present", torch.tensor(elements), persistent=False)
    network.register_buffer("kinds", kinds, persistent=False)
    layers = network.representation_model.attention_layers
    network.attentions = [Attention(layer) for layer in layers]  # type: ignore[assignment]


class Transformer(EquivariantTransformer):
    """The network of the adapter, evaluated with one direction of every pair."""

    kinds: Tensor
    present: Tensor
    attentions: "list[Attention]"

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Dimensionless energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        x, vector_features = self.features(graph, vectors)
        x = self.representation_model.out_norm(x)
        for block in self.output_model.output_network:
            x, vector_features = _gated(block, x, vector_features)
        return (x + 0 * vector_features.sum()).squeeze(-1)  # the zero term gives every weight a gradient

    def features(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the atoms: scalars, shape ``(N, U)``, and vectors, shape ``(N, 3, U)``."""
        model = self.representation_model
        there = vectors[: len(vectors) // 2]
        lengths = there.norm(dim=1)
        directions, envelope = there / lengths[:, None], model.attention_layers[0].cutoff(lengths)[:, None]
        radial = model.distance_expansion(torch.cat([lengths, lengths.new_zeros(1)]))
        if model.attention_layers[0].vector_cutoff:
            directions = directions * envelope
        x, vector_features = self.embed(graph, lengths, radial[:-1]), None
        block = Block.of_all(graph.edge_index[:, : len(there)], x)
        geometry = to_messages(torch.cat([envelope, directions], dim=1), [block])
        for attention in self.attentions:
            x, vector_features = attention(x, vector_features, radial, geometry, block)
        return x, vector_features  # type: ignore[return-value]  # there is a layer at least

    def embed(self, graph: AtomicGraph, lengths: Tensor, radial: Tensor) -> Tensor:
        """Initial features of atoms, from their elements and those of their neighbours, shape ``(N, U)``.

        Lengths and radial functions are those of pairs. Neighbours are summed by element instead of being
        embedded one by one (``tried.csv``: "neighbours' elements embedded by a sum over elements").
        """
        model, neighbors = self.representation_model, self.representation_model.neighbor_embedding
        x = model.embedding(graph.species)
        if neighbors is None:
            return x
        filters = neighbors.distance_proj(radial) * neighbors.cutoff(lengths)[:, None]
        centre, neighbour = graph.edge_index
        kind, kinds = self.kinds[graph.species], len(self.present)
        around = x.new_zeros(len(x) * kinds, x.shape[1])  # one sum per atom and element of the neighbour
        for part in (centre * kinds + kind[neighbour]).split(max(len(filters), 1)):
            around = around.index_add(0, part, filters)
        around = (around.view(len(x), kinds, -1) * neighbors.embedding(self.present)).sum(1)
        return neighbors.combine(torch.cat([x, around], dim=1))


def _gated(block: "GatedEquivariantBlock", x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a ``GatedEquivariantBlock``, by operators whose sizes do not depend on values.

    The vectors of an atom without neighbours are zero; their norm is zero and has no gradient.
    """
    moved = block.vec1_proj(vectors)
    some = (moved != 0).flatten(1).any(1)[:, None]
    norms = torch.where(some, torch.where(some[:, None], moved, 1.0).norm(dim=1), 0.0)
    x, gates = block.update_net(torch.cat([x, norms], dim=1)).split(block.out_channels, dim=1)
    return x if block.act is None else block.act(x), gates.unsqueeze(1) * block.vec2_proj(vectors)


class Attention:
    """A layer of the package in training, evaluated with less memory traffic.

    Filters, which depend only on lengths, are computed once for both directions of a pair. Channels are in
    the order key, scalar, vector along the edge, vector of the neighbour, each over all heads. Vectors are
    skipped while they are zero.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention`` with distances in both keys and values.
    """

    def __init__(self, layer: "EquivariantMultiHeadAttention") -> None:
        self.layer = layer

    def __call__(
        self, x: Tensor, vectors: Tensor | None, radial: Tensor, geometry: Tensor, block: Block
    ) -> tuple[Tensor, Tensor]:
        """New scalars and vectors of the atoms, shapes ``(N, U)`` and ``(N, 3, U)``.

        Parameters
        ----------
        x, vectors
            Features of the atoms; ``None`` for vectors that are still zero.
        radial, geometry
            As in :class:`Given`.
        block
            :class:`Block` of all messages.
        """
        layer, u = self.layer, self.layer.hidden_channels
        atoms, filters, heads = joined_matrices(layer)
        parts = 3 if vectors is None else 4  # without the vectors of the neighbours
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        normed = layer.layernorm(x)
        query, table = layer.q_proj(normed), linear(normed, *atoms)
        rows = None if vectors is None else vectors.flatten(1)
        matrix, bias = filters
        given = Given(query, table, rows, radial, geometry, matrix, bias, heads, layer.vector_cutoff)
        total = _sum(given, block)
        scalar, moved = total[:, :u], total[:, u:].unflatten(1, (3, u)).contiguous()
        first, second, third = layer.o_proj(scalar).split(u, dim=1)
        if vectors is None:
            return x + third, moved
        one, two, three = layer.vec_proj(vectors).split(u, dim=2)
        return x + (one * two).sum(1) * second + third, vectors + three * first.unsqueeze(1) + moved


def _sum(given: Given, block: Block) -> Tensor:
    """Sums of the messages to all atoms, shape ``(N, 4U)``, which can be differentiated twice."""
    messages = write_messages(rows_of_block(given, block, made_arrays(given, block, None, [])), None)
    total = given.query.new_zeros(len(given.query), 4 * given.heads.shape[1])
    return total.index_add(0, block.centre, torch.cat(messages, dim=1))
