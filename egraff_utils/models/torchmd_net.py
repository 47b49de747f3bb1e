"""TorchMD-NET's equivariant transformer: attention on scalars and vectors (package ``torchmd-net``)."""

import math
import os
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, silu

from egraff_utils import fast

silu_backward = torch.ops.aten.silu_backward


@contextmanager
def _silence():
    """Nothing on standard output, nor on standard error, which compiled code writes to directly."""
    error, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        os.dup2(error, 2)
        os.close(error)
        os.close(null)


with _silence():  # warp, which the package's own neighbour search needs, describes the machine
    from torchmdnet.models.output_modules import EquivariantScalar
    from torchmdnet.models.torchmd_et import TorchMD_ET


class EquivariantTransformer(nn.Module):
    """``TorchMD_ET`` and its scalar output, with our periodic edges in place of its neighbour search.

    The package's forward pass searches neighbours itself, without images in small cells, and takes an edge
    from an atom to its own image for the self loop. Here its blocks are called in the same order with our
    edges, and the self loops, of length zero, are added behind them. While weights can change its attention
    is evaluated by :class:`Attention`, else the whole network by :class:`Frozen`, unless it is to be plain.

    Parameters
    ----------
    representation
        ``TorchMD_ET``.
    output
        ``EquivariantScalar``, from both kinds of features to an energy per atom.
    elements
        Atomic numbers that can be met.
    """

    def __init__(self, representation, output, elements):
        super().__init__()
        kinds = torch.zeros(max(elements) + 1, dtype=torch.int64)
        kinds[elements] = torch.arange(len(elements))
        self.register_buffer("elements", torch.tensor(elements), persistent=False)
        self.register_buffer("kinds", kinds, persistent=False)
        self.representation_model = representation
        self.output_model = output
        self.plain = fast.is_plain()
        self._attentions = [Attention(layer) for layer in representation.attention_layers]
        self._frozen = fast.Kept(representation, output)

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        x, vector_features = (self._plain if self.plain else self._fast)(graph, vectors)
        x = self.representation_model.out_norm(x)
        if self.plain:
            return self.output_model.pre_reduce(x, vector_features, graph.species, None, None).squeeze(-1)
        for block in self.output_model.output_network:
            x, vector_features = _gated(block, x, vector_features)
        return (x + 0 * vector_features.sum()).squeeze(-1)  # so that every weight has a gradient

    def as_frozen(self):
        """:class:`~egraff_utils.fast.Frozen` with the present weights; None while these can change."""
        return None if self.plain else self._frozen.get(lambda: Frozen(self))

    def _plain(self, graph, vectors):
        """Features of the atoms, ``(N, U)`` and ``(N, 3, U)``, by the package's layers."""
        model = self.representation_model
        lengths = vectors.norm(dim=1)
        x = self._embed(graph, lengths, model.distance_expansion(lengths))
        loops = torch.arange(len(x), device=x.device).expand(2, -1)
        edges = torch.cat([graph.edge_index.flip(0), loops], dim=1)  # the package names the neighbour first
        lengths = torch.cat([lengths, lengths.new_zeros(len(x))])
        directions = torch.cat([vectors / lengths[: len(vectors), None], vectors.new_zeros(len(x), 3)])
        radial = model.distance_expansion(lengths)
        vector_features = x.new_zeros(len(x), 3, x.shape[1])
        for layer in model.attention_layers:
            dx, dv = layer(x, vector_features, edges, lengths, radial, directions)
            x, vector_features = x + dx, vector_features + dv
        return x, vector_features

    def _fast(self, graph, vectors):
        """The same from one direction of every pair."""
        model = self.representation_model
        there = vectors[: len(vectors) // 2]
        lengths = there.norm(dim=1)
        directions, envelope = there / lengths[:, None], model.attention_layers[0].cutoff(lengths)[:, None]
        radial = model.distance_expansion(torch.cat([lengths, lengths.new_zeros(1)]))
        if model.attention_layers[0].vector_cutoff:
            directions = directions * envelope
        x, vector_features = self._embed(graph, lengths, radial[:-1]), None
        blocks = Block.all_of(graph.edge_index[:, : len(there)], x)
        geometry = _to_messages(torch.cat([envelope, directions], dim=1), blocks)
        for attention in self._attentions:
            x, vector_features = attention(x, vector_features, radial, geometry, blocks)
        return x, vector_features

    def _embed(self, graph, lengths, radial):
        """Features of the elements, each mixed with those of its neighbours.

        Lengths and radial functions are those of the edges, or of their first half.
        """
        model, neighbors = self.representation_model, self.representation_model.neighbor_embedding
        x = model.embedding(graph.species)
        if neighbors is None:
            return x
        filters = neighbors.distance_proj(radial) * neighbors.cutoff(lengths)[:, None]
        centre, neighbour = graph.edge_index
        kind, kinds = self.kinds[graph.species], len(self.elements)
        around = x.new_zeros(len(x) * kinds, x.shape[1])  # by element of the neighbour
        for part in (centre * kinds + kind[neighbour]).split(max(len(filters), 1)):
            around = around.index_add(0, part, filters)
        around = (around.view(len(x), kinds, -1) * neighbors.embedding(self.elements)).sum(1)
        return neighbors.combine(torch.cat([x, around], dim=1))


def _gated(block, x, vectors):
    """What a ``GatedEquivariantBlock`` gives, from operators whose sizes do not depend on values.

    Vectors of an atom that are all zero, which has no neighbours, have the norm zero and no gradient.
    """
    moved = block.vec1_proj(vectors)
    some = (moved != 0).flatten(1).any(1)[:, None]
    norms = torch.where(some, torch.where(some[:, None], moved, 1.0).norm(dim=1), 0.0)
    x, gates = block.update_net(torch.cat([x, norms], dim=1)).split(block.out_channels, dim=1)
    return x if block.act is None else block.act(x), gates.unsqueeze(1) * block.vec2_proj(vectors)


class Attention:
    """A layer of the package in training, evaluated with less traffic of memory.

    Filters, which depend on lengths alone, are made once for both directions of a pair; channels stand in the
    order key, scalar, vector along the edge, vector of the neighbour, over all heads; nothing is done
    with vectors while they are zero.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention`` with distances in both keys and values.
    """

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, vectors, radial, geometry, blocks):
        """New scalars and vectors of the atoms, shapes ``(N, U)`` and ``(N, 3, U)``.

        Parameters
        ----------
        x, vectors
            Features of the atoms; ``None`` for vectors that are still zero.
        radial, geometry
            As in :class:`Given`.
        blocks
            A list of :class:`Block`.
        """
        layer, u = self.layer, self.layer.hidden_channels
        atoms, filters, heads = _matrices(layer)
        parts = 3 if vectors is None else 4  # without the vectors of the neighbours
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        normed = layer.layernorm(x)
        query, table = layer.q_proj(normed), linear(normed, *atoms)
        rows = None if vectors is None else vectors.flatten(1)
        given = Given(query, table, rows, radial, geometry, *filters, heads, layer.vector_cutoff)
        total = _sum(given, blocks)
        scalar, moved = total[:, :u], total[:, u:].unflatten(1, (3, u)).contiguous()
        first, second, third = layer.o_proj(scalar).split(u, dim=1)
        if vectors is None:
            return x + third, moved
        one, two, three = layer.vec_proj(vectors).split(u, dim=2)
        return x + (one * two).sum(1) * second + third, vectors + three * first.unsqueeze(1) + moved


def _matrices(layer):
    """Weights and biases for atoms and for lengths, and which channel is of which head."""
    h, u = layer.num_heads, layer.hidden_channels

    def by_part(rows):
        scalar, near, along = rows.unflatten(0, (h, 3, u // h)).unbind(1)
        return [part.flatten(0, 1) for part in (scalar, along, near)]

    def joined(key, value):
        pairs = zip(key.parameters(), value.parameters(), strict=True)
        return [torch.cat([k, *by_part(v)]) for k, v in pairs]

    heads = torch.eye(h, dtype=layer.q_proj.weight.dtype, device=layer.q_proj.weight.device)
    atoms, filters = joined(layer.k_proj, layer.v_proj), joined(layer.dk_proj, layer.dv_proj)
    return atoms, filters, heads.repeat_interleave(u // h, dim=1)


class Block(NamedTuple):
    """M messages: both directions of some pairs and, in the last block, all self loops."""

    centre: torch.Tensor
    """Shape ``(M,)``."""
    neighbour: torch.Tensor
    start: int
    """First row of what is known of the pairs and of a self loop."""
    stop: int
    """Behind the last; the row of a self loop, if there are any, is the last."""
    pairs: int
    """Those that come first."""

    @classmethod
    def all_of(cls, edges, x):
        """Blocks of P pairs, whose centres and neighbours are ``edges``, shape ``(2, P)``.

        ``x``, shape ``(N, U)``, says how large the arrays of a block are; on a GPU there is one block.
        """
        loops, pairs = torch.arange(len(x), device=x.device), edges.shape[1]
        count = cls.count(pairs, x)
        parts = edges.tensor_split(count, dim=1)
        starts = accumulate((part.shape[1] for part in parts), initial=0)
        own = [loops[:0]] * (count - 1) + [loops]
        return [cls._of(*block) for block in zip(parts, starts, own, strict=False)]

    @staticmethod
    def count(pairs, x):
        """Number of blocks of so many pairs for features like ``x``, shape ``(..., U)``."""
        size = CACHE // (8 * x.shape[-1] * x.element_size())
        return max(1, round(pairs / size)) if x.device.type == "cpu" else 1

    @classmethod
    def _of(cls, edges, start, loops):
        (one, other), pairs = edges, edges.shape[1]
        stop = start + pairs + bool(len(loops))
        return cls(torch.cat([one, other, loops]), torch.cat([other, one, loops]), start, stop, pairs)


CACHE = 2**20
"""Bytes of an array of all channels of the messages of a block, which a core keeps at hand."""


LEAST = 2
"""Blocks of a thread; for fewer, waking it takes longer than it saves."""


def _to_messages(geometry, blocks):
    """Rows of messages, block after block, from those of P pairs, shape ``(P, 4)``."""
    back = torch.cat([geometry[:, :1], -geometry[:, 1:]], dim=1)
    sizes = [block.pairs for block in blocks]
    halves = chain.from_iterable(zip(geometry.split(sizes), back.split(sizes), strict=True))
    loops = geometry.new_zeros(len(blocks[-1].centre) - 2 * sizes[-1], 4)
    loops[:, 0] = 1
    return torch.cat([*halves, loops])


def _to_pairs(rows, blocks):
    """Gradient by what :func:`_to_messages` is given."""
    sizes = [block.pairs for block in blocks for _ in range(2)]
    halves = rows[: sum(sizes)].split(sizes)
    there, back = (torch.cat(part) if len(part) > 1 else part[0] for part in (halves[::2], halves[1::2]))
    return torch.cat([there[:, :1] + back[:, :1], there[:, 1:] - back[:, 1:]], dim=1)


class Given(NamedTuple):
    """What messages are made of; N atoms, P pairs, U channels, H heads."""

    query: torch.Tensor
    """Shape ``(N, U)``."""
    table: torch.Tensor
    """Keys and values of the atoms, shape ``(N, 3U)`` without and ``(N, 4U)`` with vectors."""
    vectors: torch.Tensor | None
    """Shape ``(N, 3U)``; ``None`` while they are zero."""
    radial: torch.Tensor
    """Functions of the lengths of pairs and, last, of a self loop, shape ``(P + 1, B)``."""
    geometry: torch.Tensor
    """Envelopes and unit vectors of all messages, block after block, four columns."""
    weight: torch.Tensor
    """Of the filters, as many rows as ``table`` has columns."""
    bias: torch.Tensor
    heads: torch.Tensor
    """Ones where a channel is of a head, else zero, shape ``(H, U)``."""
    smooth: bool
    """Whether envelopes multiply vectors too; those along the edges they have multiplied already."""


class Rows(NamedTuple):
    """What the M messages of a block are made of."""

    before: torch.Tensor
    """Filters of the pairs before their nonlinearity."""
    logits: torch.Tensor
    """Of the attention, before the nonlinearity, shape ``(M, H)``."""
    filters: torch.Tensor
    query: torch.Tensor
    """Of the centres, shape ``(M, U)``."""
    near: torch.Tensor
    """Row of ``table`` of the neighbours."""
    attention: torch.Tensor
    weights: torch.Tensor
    """Of the scalars, shape ``(M, U)``."""
    values: list[torch.Tensor]
    """Key, scalar, vector along the edge and, if there are vectors, factor of that of the neighbour."""
    vectors: list[torch.Tensor]
    """Of the neighbours, three of shape ``(M, U)``, or none."""
    factor: torch.Tensor
    """The last of the values, times the envelope if that is to multiply vectors too."""
    geometry: list[torch.Tensor]
    """Envelope and direction, four of shape ``(M, 1)``."""


# What follows, down to `_dot`, is compiled by TorchScript too: hence the types. Where arrays can
# be written over, a dictionary of them, ``scratch``, is used block after block: they stay at hand for the
# processor. Where a derivative needs them all it is None, and every operator makes its own.


def _place(scratch: dict[str, torch.Tensor] | None, name: str, like, columns: int):
    return None if scratch is None else _take(scratch, name, like, columns)


def _take(scratch: dict[str, torch.Tensor], name: str, like, columns: int):
    """Array of a name, as long as ``like`` and of its type."""
    if name not in scratch or len(scratch[name]) < len(like):
        scratch[name] = torch.empty([len(like), columns], dtype=like.dtype, device=like.device)
    found = scratch[name]
    return found if len(found) == len(like) else found[: len(like)]


def _mul(x, y, out: torch.Tensor | None):
    return x * y if out is None else torch.mul(x, y, out=out)


def _fetch(table, index, out: torch.Tensor | None):
    return table.index_select(0, index) if out is None else torch.index_select(table, 0, index, out=out)


def _spread(rows, block: Block):
    """A row of every message, shape ``(M, K)``, out of those of the lengths."""
    there, loop = rows[: block.pairs], rows[block.pairs :]
    return torch.cat([there, there, loop.expand(len(block.centre) - 2 * block.pairs, -1)])


def _times(x, rows, block: Block, out: torch.Tensor | None):
    """Product of ``x``, shape ``(M, K)``, with the row of every message."""
    if out is None:
        return x * _spread(rows, block)
    there, both = 2 * block.pairs, [2, block.pairs, rows.shape[1]]
    torch.mul(x[:there].view(both), rows[: block.pairs], out=out[:there].view(both))
    torch.mul(x[there:], rows[block.pairs :], out=out[there:])
    return out


def _made(given: Given, block: Block, scratch: dict[str, torch.Tensor] | None, kept: list[torch.Tensor]):
    """Arrays of :class:`Rows` that are no views, those of values and vectors last.

    ``kept``: in the backward pass, the first two, which take longer to make than to fetch.
    """
    u = given.query.shape[1]
    lengths = given.radial[block.start : block.stop]
    before = kept[0] if len(kept) > 0 else linear(lengths, given.weight, given.bias)
    filters = silu(before)
    query = given.query.index_select(0, block.centre)
    near = _fetch(given.table, block.neighbour, _place(scratch, "near", query, before.shape[1]))
    values = _times(near, filters, block, _place(scratch, "values", query, before.shape[1]))
    logits = kept[1] if len(kept) > 0 else torch.mm(query * values[:, :u], given.heads.t())
    attention = silu(logits)
    weights = torch.mm(attention * _geometry(given, block)[0], given.heads)
    made = [before, logits, filters, query, near, attention, weights, values]
    table = given.vectors
    if table is not None:
        made.append(_fetch(table, block.neighbour, _place(scratch, "vectors", query, 3 * u)))
    return made


def _geometry(given: Given, block: Block):
    start = 2 * block.start
    return given.geometry[start : start + len(block.centre)].split(1, dim=1)


def _rows(given: Given, block: Block, made: list[torch.Tensor]):
    """Rows of a block, with views of what :func:`_made` gave."""
    before, logits, filters, query, near, attention, weights, together = made[:8]
    values, vectors = together.split(query.shape[1], dim=1), made[8:]
    if len(vectors) > 0:
        vectors = vectors[0].split(query.shape[1], dim=1)
    geometry = _geometry(given, block)
    factor = values[-1] * geometry[0] if given.smooth else values[-1]
    return Rows(before, logits, filters, query, near, attention, weights, values, vectors, factor, geometry)


def _messages(rows: Rows, out: torch.Tensor | None):
    """A scalar and three components of a vector, each of shape ``(M, U)``; in ``out``, ``(M, 4U)``."""
    u = rows.query.shape[1]
    messages = [_mul(rows.values[1], rows.weights, None if out is None else out[:, :u])]
    for k in range(3):
        place = None if out is None else out[:, (k + 1) * u : (k + 2) * u]
        messages.append(_mul(rows.values[2], rows.geometry[k + 1], place))
        if len(rows.vectors) > 0:
            messages[k + 1].addcmul_(rows.vectors[k], rows.factor)
    return messages


def _total(given: Given, blocks: list[Block]):
    """Sum of the messages to every atom, shape ``(N, 4U)``, and what is kept of every block."""
    scratch: dict[str, torch.Tensor] = {}
    width = 4 * given.query.shape[1]
    total = torch.zeros([len(given.query), width], dtype=given.query.dtype, device=given.query.device)
    kept: list[list[torch.Tensor]] = []
    nothing: list[torch.Tensor] = []
    for block in blocks:
        made = _made(given, block, scratch, nothing)
        messages = _take(scratch, "messages", made[3], width)
        _messages(_rows(given, block, made), messages)
        total.index_add_(0, block.centre, messages)
        kept.append(made if len(blocks) == 1 else made[:2])
    return total, kept


def _slopes(given: Given, blocks: list[Block], kept: list[list[torch.Tensor]], slope, radial, geometry):
    """Gradients of ``query``, ``table`` and ``vectors`` from that of the sum; the others are added to."""
    scratch: dict[str, torch.Tensor] = {}
    slopes = [torch.zeros_like(given.query), torch.zeros_like(given.table)]
    vectors = given.vectors
    if vectors is not None:
        slopes.append(torch.zeros_like(vectors))
    for k, block in enumerate(blocks):
        made = kept[k] if len(blocks) == 1 else _made(given, block, scratch, kept[k])
        _add_slopes(slopes, radial, geometry, given, _rows(given, block, made), block, slope, scratch)
    return slopes


def _add_slopes(
    slopes: list[torch.Tensor],
    radial,
    geometry,
    given: Given,
    rows: Rows,
    block: Block,
    slope,
    scratch: dict[str, torch.Tensor],
):
    """Add to the gradients what the messages of a block contribute; ``slope``: of the sum, ``(N, 4U)``."""
    u, width = rows.query.shape[1], rows.near.shape[1]
    of_sum = _fetch(slope, block.centre, _take(scratch, "slope", rows.query, 4 * u)).split(u, dim=1)
    scalar, vector = of_sum[0], of_sum[1:]
    of_values = _take(scratch, "slope of values", rows.query, width)
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
        turned = _take(scratch, "turned", rows.query, 3 * u)
        for k in range(3):
            torch.mul(vector[k], rows.factor, out=turned[:, k * u : (k + 1) * u])
        slopes[2].index_add_(0, block.neighbour, turned)
    start = 2 * block.start
    geometry[start : start + len(rows.query)].add_(torch.stack(around, dim=1))

    of_table = _take(scratch, "slope of table", rows.query, width)
    slopes[1].index_add_(0, block.neighbour, _times(of_values, rows.filters, block, of_table))
    there, pairs = of_values.mul_(rows.near), block.pairs
    filters = silu_backward(there[:pairs].add_(there[pairs : 2 * pairs]), rows.before[:pairs])
    radial[block.start : block.start + pairs].addmm_(filters, given.weight)


def _dot(first: list[torch.Tensor], second: list[torch.Tensor], out):
    """Sum over components of products, into ``out``, shape ``(M, U)``."""
    torch.mul(first[0], second[0], out=out)
    out.addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


def _sum(given, blocks):
    """Sum of the messages to every atom, shape ``(N, 4U)``, which can be differentiated twice."""
    total = given.query.new_zeros(len(given.query), 4 * given.heads.shape[1])
    for block in blocks:
        messages = _messages(_rows(given, block, _made(given, block, None, [])), None)
        total = total.index_add(0, block.centre, torch.cat(messages, dim=1))
    return total


class Frozen(fast.Frozen):
    """TorchMD-NET with the weights that it has now.

    ``forward`` of each part gives its results and what its ``backward`` needs, which is the gradient by hand:
    from that of the results to that of the arguments. Gradients by ``radial`` and ``geometry`` are added up.

    Parameters
    ----------
    network
        :class:`EquivariantTransformer`.
    """

    def __init__(self, network):
        model = network.representation_model
        first, *others = model.attention_layers
        self.lengths = Lengths(model.distance_expansion, smooth=first.vector_cutoff)
        self.embedding = Embedding(network)
        self.layers = [Layer(first, parts=3), *(Layer(layer, parts=4) for layer in others)]
        self.head = Head(model.out_norm, network.output_model.output_network)

    def __call__(self, graph, vectors):
        """See :meth:`egraff_utils.fast.Frozen.__call__`."""
        energies, kept = self.forward(graph, vectors)
        return energies, self.backward(kept, torch.ones_like(energies))

    def has_threads(self, graph):
        """Whether there are several blocks."""
        return Block.count(graph.edge_index.shape[1] // 2, self.embedding.own) > 1

    def forward(self, graph, vectors):
        """Energies from vectors of pairs, shape ``(E / 2, 3)``."""
        edges = graph.edge_index[:, : len(vectors)]
        radial, geometry, of_lengths = self.lengths.forward(vectors)
        x, of_embedding = self.embedding.forward(graph.species, edges, radial, geometry[:, :1])
        vectors, blocks, of_layers = None, Block.all_of(edges, x), []
        geometry = _to_messages(geometry, blocks)
        for layer in self.layers:
            x, vectors, of_layer = layer.forward(x, vectors, radial, geometry, blocks)
            of_layers.append(of_layer)
        energies, of_head = self.head.forward(x, vectors)
        return energies, (radial, geometry, blocks, of_lengths, of_embedding, of_layers, of_head)

    def backward(self, kept, slope):
        """Gradient by the vectors of pairs, shape ``(E / 2, 3)``."""
        radial, geometry, blocks, of_lengths, of_embedding, of_layers, of_head = kept
        on_radial, on_geometry = torch.zeros_like(radial), torch.zeros_like(geometry)
        on_x, on_vectors = self.head.backward(of_head, slope)
        for layer, of_layer in zip(self.layers[::-1], of_layers[::-1], strict=True):
            on_x, on_vectors = layer.backward(of_layer, on_x, on_vectors, on_radial, on_geometry)
        on_radial, on_geometry = on_radial[:-1], _to_pairs(on_geometry, blocks)
        self.embedding.backward(of_embedding, on_x, on_radial, on_geometry[:, :1])
        return self.lengths.backward(of_lengths, on_radial, on_geometry)


class Lengths:
    r"""Radial functions, envelopes and directions of pairs and, last, of a self loop.

    .. math:: u(r) = \tfrac12 \left( 1 + \cos \frac{\pi r}{r_c} \right), \qquad
              f_n(r) = u(r)\, e^{-\beta_n \left( e^{-\alpha r} - \mu_n \right)^2}

    Parameters
    ----------
    basis
        ``ExpNormalSmearing``.
    smooth
        Whether the envelope multiplies directions.
    """

    def __init__(self, basis, *, smooth):
        self.smooth, self.cutoff, self.alpha = smooth, basis.cutoff_upper, basis.alpha
        self.means, self.slopes = basis.means.detach(), 2 * self.alpha * basis.betas.detach()
        self.betas = basis.betas.detach() * (-1 / math.log(2))

    def forward(self, vectors):
        """Functions ``(P + 1, B)``, envelopes and directions ``(P, 4)`` from vectors, shape ``(P, 3)``."""
        pairs = len(vectors)
        lengths = vectors.new_zeros(pairs + 1, 1)
        torch.linalg.vector_norm(vectors, dim=1, keepdim=True, out=lengths[:pairs])
        directions = vectors / lengths[:pairs]
        angles = lengths.clamp(max=self.cutoff).mul_(math.pi / self.cutoff)
        envelope = angles.cos().add_(1).mul_(0.5)
        decay = (lengths * (-self.alpha / math.log(2))).exp2_()  # exp is slow where numbers underflow
        distance = decay - self.means
        bells = distance.square().mul_(self.betas).exp2_()
        radial = bells * envelope
        kept = [t[:pairs] for t in (lengths, angles, envelope, decay, distance, bells)]
        moved = directions * kept[2] if self.smooth else directions
        return radial, torch.cat([kept[2], moved], dim=1), (directions, *kept)

    def backward(self, kept, on_radial, on_geometry):
        """Gradient by the vectors."""
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
    """Features of the elements, each mixed with those of its neighbours.

    Sums over neighbours are of radial functions, for each of the K elements, and one matrix does the rest.

    Parameters
    ----------
    network
        :class:`EquivariantTransformer`.
    """

    def __init__(self, network):
        model, elements = network.representation_model, network.elements
        neighbors = model.neighbor_embedding
        self.kinds, self.count, self.matrix = network.kinds, len(elements), None
        self.own = model.embedding.weight[elements]
        if neighbors is not None:
            own, near = neighbors.combine.weight.chunk(2, dim=1)
            self.own = linear(self.own, own, neighbors.combine.bias)
            filters = torch.cat([neighbors.distance_proj.weight.T, neighbors.distance_proj.bias[None]])
            near_elements = neighbors.embedding(elements).unsqueeze(1)
            self.matrix = ((filters * near_elements) @ near.T).flatten(0, 1)  # (K * (B + 1), U)

    def forward(self, species, edges, radial, envelope):
        """Shape ``(N, U)``, for atomic numbers, shape ``(N,)``, and edges of pairs, shape ``(2, P)``."""
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

    def backward(self, kept, slope, on_radial, on_envelope):
        """Add to the gradients by radial functions and envelopes."""
        if kept is None:
            return
        places, radial, envelope = kept
        of_atoms = torch.mm(slope, self.matrix.T).view(len(slope) * self.count, -1)
        there, back = (of_atoms.index_select(0, place) for place in places)
        of_rows, of_envelope = there.add_(back).split((radial.shape[1], 1), dim=1)
        on_radial.addcmul_(of_rows, envelope)
        on_envelope.add_((of_rows * radial).sum(1, keepdim=True)).add_(of_envelope)


class Layer:
    """An attention layer of the package: see :class:`Attention`.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention``.
    parts
        Of the channels of messages: four, or three in the first layer, which meets no vectors.
    """

    def __init__(self, layer, *, parts):
        u = layer.hidden_channels
        atoms, filters, heads = _matrices(layer)
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        self.norm = Norm(layer.layernorm)
        self.query = self.norm.before(layer.q_proj.weight, layer.q_proj.bias)
        self.table = self.norm.before(*atoms)
        self.constants = *filters, heads, layer.vector_cutoff
        self.update = Update(layer) if parts == 4 else FirstUpdate(layer)

    def forward(self, x, vectors, radial, geometry, blocks):
        """New features of the atoms, shapes ``(N, U)`` and ``(N, 3, U)``; the arguments are those there."""
        normed, of_norm = self.norm.forward(x)
        query, table = linear(normed, *self.query), linear(normed, *self.table)
        rows = None if vectors is None else vectors.flatten(1)
        total, of_messages = Messages.forward(
            Given(query, table, rows, radial, geometry, *self.constants), blocks
        )
        x, vectors, of_update = self.update.forward(x, vectors, total)
        return x, vectors, (of_norm, of_messages, of_update)

    def backward(self, kept, on_x, on_vectors, on_radial, on_geometry):
        """Gradients by the features of the atoms, from those by the new ones."""
        of_norm, of_messages, of_update = kept
        on_total, own = self.update.backward(of_update, on_x, on_vectors)
        on_query, on_table, *near = Messages.backward(of_messages, on_total, on_radial, on_geometry)
        on_normed = torch.mm(on_query, self.query[0]).addmm_(on_table, self.table[0])
        on_x = on_x + self.norm.backward(of_norm, on_normed)
        return on_x, own.add_(near[0].view_as(own)) if near else None


class Norm:
    """Layer normalisation, whose weight and bias are part of the matrices behind it."""

    def __init__(self, norm):
        self.norm = norm

    def before(self, weight, bias):
        """Weight and bias of a linear layer behind the norm."""
        return weight * self.norm.weight, torch.addmv(bias, weight, self.norm.bias)

    def forward(self, x):
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[1:], None, None, self.norm.eps)
        return normed, (x, x.shape[1:], mean, deviation)

    def backward(self, kept, slope):
        wanted = [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(slope, *kept, None, None, wanted)[0]


class Messages:
    """Sum of the messages to every atom, whose arrays stay in the cache of one core.

    Several blocks are shared out among threads, and little is kept of them for the backward pass, which
    makes the rest anew.
    """

    @staticmethod
    def forward(given, blocks):
        """Shape ``(N, 4U)``, from :class:`Given` and a list of :class:`Block`."""
        count = max(1, min(fast.threads(), (len(blocks) + 1) // LEAST))
        shares = [blocks[::-1][k::count] for k in range(count)]  # the largest first
        run = _at_once if len(blocks) == 1 else fast.in_threads
        totals, kept = zip(*run(_total, [(given, share) for share in shares]), strict=True)
        return sum(totals[1:], totals[0]), (given, run, list(zip(shares, kept, strict=True)))

    @staticmethod
    def backward(kept, slope, on_radial, on_geometry):
        """Gradients by ``query``, ``table`` and, if there are any, ``vectors``."""
        given, run, shares = kept
        calls = [(given, *share, slope, on_radial, on_geometry) for share in shares]
        return [sum(parts[1:], parts[0]) for parts in zip(*run(_slopes, calls), strict=True)]


def _at_once(function, calls):
    """The result of the only call, with all threads of torch."""
    (arguments,) = calls
    return [fast.compiled(function, arguments[0].query.device)(*arguments)]


class FirstUpdate:
    """New features out of the sum of messages, where vectors are still zero."""

    def __init__(self, layer):
        self.weight, self.bias = (t.chunk(3)[2] for t in (layer.o_proj.weight, layer.o_proj.bias))

    def forward(self, x, vectors, total):
        """Scalars ``(N, U)`` and vectors ``(N, 3, U)`` from scalars, ``None`` and a sum ``(N, 4U)``."""
        u = x.shape[1]
        return (
            linear(total[:, :u], self.weight, self.bias).add_(x),
            total[:, u:].contiguous().view(-1, 3, u),
            None,
        )

    def backward(self, kept, on_x, on_vectors):
        """Gradient by the sum; that by the vectors there is not."""
        return torch.cat([torch.mm(on_x, self.weight), on_vectors.flatten(1)], dim=1), None


class Update:
    """New features out of the sum of messages and of the atom's own vectors."""

    def __init__(self, layer):
        self.weight, self.bias, self.vectors = layer.o_proj.weight, layer.o_proj.bias, layer.vec_proj.weight

    def forward(self, x, vectors, total):
        """Scalars ``(N, U)`` and vectors ``(N, 3, U)`` from those and a sum ``(N, 4U)``."""
        u = x.shape[1]
        first, second, third = linear(total[:, :u], self.weight, self.bias).split(u, dim=1)
        first = first.unsqueeze(1)
        one, two, three = _turn(vectors, self.vectors).split(u, dim=2)
        dots = (one * two).sum(1)
        x = torch.addcmul(third, dots, second).add_(x)
        vectors = torch.addcmul(total[:, u:].view(-1, 3, u), three, first).add_(vectors)
        return x, vectors, (first, second, dots, one, two, three)

    def backward(self, kept, on_x, on_vectors):
        """Gradients by the sum and, apart from those, by the vectors."""
        u = on_x.shape[1]
        first, second, dots, one, two, three = kept
        on_dots = (on_x * second).unsqueeze(1)
        on_scalars = torch.cat([(on_vectors * three).sum(1), on_x * dots, on_x], dim=1)
        on_total = torch.cat([torch.mm(on_scalars, self.weight), on_vectors.flatten(1)], dim=1)
        on_turned = torch.cat([on_dots * two, on_dots * one, on_vectors * first], dim=2)
        own = torch.addmm(on_vectors.view(-1, u), on_turned.view(-1, 3 * u), self.vectors)
        return on_total, own.view_as(on_vectors)


class Head:
    """Energies of the atoms from both kinds of features: a norm and two gated blocks of the package.

    Parameters
    ----------
    norm, blocks
        ``LayerNorm`` and two ``GatedEquivariantBlock``.
    """

    def __init__(self, norm, blocks):
        one, two = blocks
        self.norm = Norm(norm)
        hidden, out = one.update_net.layers[0], one.update_net.layers[2]
        self.gate = Gate(self._behind_norm(hidden), (out.weight, out.bias))
        hidden, out = two.update_net.layers[0], two.update_net.layers[2]
        self.last = Gate((hidden.weight, hidden.bias), (out.weight[:1], out.bias[:1]))  # no vectors
        self.vectors = torch.cat([one.vec1_proj.weight, one.vec2_proj.weight])
        self.last_vectors = two.vec1_proj.weight.detach()

    def _behind_norm(self, hidden):
        of_scalars, of_lengths = hidden.weight.chunk(2, dim=1)
        of_scalars, bias = self.norm.before(of_scalars, hidden.bias)
        return torch.cat([of_scalars, of_lengths], dim=1), bias

    def forward(self, x, vectors):
        """Shape ``(N,)``, from shapes ``(N, U)`` and ``(N, 3, U)``."""
        normed, of_norm = self.norm.forward(x)
        first, second = _turn(vectors, self.vectors).tensor_split((x.shape[1],), dim=2)
        found, of_gate = self.gate.forward(normed, first)
        scalars, factors = found.chunk(2, dim=1)
        factors = factors.unsqueeze(1)
        gated = _turn(second * factors, self.last_vectors)
        energies, of_last = self.last.forward(silu(scalars), gated)
        return energies.squeeze(1), (of_norm, of_gate, scalars, factors, second, of_last)

    def backward(self, kept, slope):
        """Gradients by both kinds of features."""
        of_norm, of_gate, scalars, factors, second, of_last = kept
        on_scalars, on_gated = self.last.backward(of_last, slope.unsqueeze(1))
        on_gated = _turn(on_gated, self.last_vectors.T)
        on_found = torch.cat([silu_backward(on_scalars, scalars), (on_gated * second).sum(1)], dim=1)
        on_normed, on_first = self.gate.backward(of_gate, on_found)
        on_vectors = _turn(torch.cat([on_first, on_gated * factors], dim=2), self.vectors.T)
        return self.norm.backward(of_norm, on_normed), on_vectors


def _turn(vectors, weight):
    """Vectors of other channels, ``(N, 3, V)``, from those of shape ``(N, 3, U)``."""
    return linear(vectors.flatten(0, 1), weight).view(len(vectors), 3, -1)


class Gate:
    """The small network of a ``GatedEquivariantBlock``, of scalars and of the lengths of vectors.

    Parameters
    ----------
    hidden, last
        Weight and bias of its two layers.
    """

    def __init__(self, hidden, last):
        self.hidden, self.last = hidden, last

    def forward(self, x, vectors):
        """Outputs, from shapes ``(N, U)`` and ``(N, 3, U)``."""
        lengths = vectors.square().sum(1).sqrt_()  # a norm over an inner dimension is slow
        before = linear(torch.cat([x, lengths], dim=1), *self.hidden)
        return linear(silu(before), *self.last), (before, vectors, lengths)

    def backward(self, kept, slope):
        """Gradients by scalars and vectors; a vector of zero has none, as in the package."""
        before, vectors, lengths = kept
        on_before = silu_backward(torch.mm(slope, self.last[0]), before)
        on_x, on_lengths = torch.mm(on_before, self.hidden[0]).chunk(2, dim=1)
        least = torch.finfo(lengths.dtype).tiny ** 0.5  # whose square is not zero
        return on_x, vectors * (on_lengths / lengths.clamp(min=least)).unsqueeze(1)


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_layers=6,
    embedding_dimension=128,
    num_heads=8,
    num_rbf=32,
    trainable_rbf=False,
    neighbor_embedding=True,
    max_z=100,
    smooth_cutoff=False,
):
    """Equivariant transformer (Thölke and De Fabritiis 2022; EGraFFBench, Table 16).

    Parameters
    ----------
    elements
        Sorted atomic numbers, below ``max_z``.
    cutoff
        Å.
    average_neighbors
        Not used: this architecture does not normalise its sums over neighbours.
    num_layers, embedding_dimension, num_heads
        Attention layers, width of the features, attention heads.
    num_rbf, trainable_rbf
        Number of exponential-normal radial functions, and whether they are trained.
    neighbor_embedding
        Whether the elements of the neighbours enter the first features.
    max_z
        Size of the table of element embeddings.
    smooth_cutoff
        Whether the envelope multiplies vector messages too. As published it multiplies scalar messages only,
        so that, once biases are trained, the energy jumps where a neighbour crosses the cutoff.

    Raises
    ------
    ValueError
        If an element is not below ``max_z``.
    """
    if max(elements) >= max_z:
        raise ValueError(f"atomic number {max(elements)} needs max_z above it, but {max_z=}")
    dtype = torch.get_default_dtype()
    representation = TorchMD_ET(
        hidden_channels=embedding_dimension,
        num_layers=num_layers,
        num_heads=num_heads,
        num_rbf=num_rbf,
        rbf_type="expnorm",
        trainable_rbf=trainable_rbf,
        activation="silu",
        attn_activation="silu",
        neighbor_embedding=neighbor_embedding,
        distance_influence="both",
        cutoff_lower=0.0,
        cutoff_upper=float(cutoff),
        max_z=max_z,
        vector_cutoff=smooth_cutoff,
        dtype=dtype,
    )
    output = EquivariantScalar(embedding_dimension, activation="silu", dtype=dtype)
    return EquivariantTransformer(representation, output, elements)
