"""TorchMD-NET's equivariant transformer: attention on scalars and vectors (package ``torchmd-net``)."""

import os
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import accumulate, starmap
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
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
    edges, and the self loops, of length zero, are added behind them. Its attention is evaluated by
    :class:`Attention` unless the network is to be plain.

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

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        model = self.representation_model
        x, vector_features = (self._plain if self.plain else self._fast)(graph, vectors)
        x = model.out_norm(x)
        if self.plain or self.training:
            return self.output_model.pre_reduce(x, vector_features, graph.species, None, None).squeeze(-1)
        *gates, last = self.output_model.output_network
        for layer in gates:
            x, gate = _gate(layer, x, vector_features)
            vector_features = gate.unsqueeze(1) * layer.vec2_proj(vector_features)
        return _gate(last, x, vector_features)[0].squeeze(-1)

    def has_threads(self, graph):
        """Whether the work on a graph is shared out among threads here, not by the operators of torch."""
        model = self.representation_model
        if self.plain or self.training or model.attention_layers[0].vector_cutoff:
            return False
        return Block.count(graph.edge_index.shape[1] // 2, model.embedding.weight) > 1

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
        one_way = vectors[: len(vectors) // 2]
        lengths = one_way.norm(dim=1)
        directions = one_way / lengths[:, None]
        lengths, directions = (torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in (lengths, directions))
        radial, envelope = model.distance_expansion(lengths), model.attention_layers[0].cutoff(lengths)
        geometry = torch.cat([envelope[:, None], directions], dim=1)
        x, vector_features = self._embed(graph, lengths[:-1], radial[:-1]), None
        blocks = Block.all_of(graph.edge_index[:, : len(one_way)], x)
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


def _gate(layer, x, vectors):
    """Scalars and the factors of vectors that a ``GatedEquivariantBlock`` of the package gives out.

    A vector of zero has no slope, as there.
    """
    squares = layer.vec1_proj(vectors).square().sum(1)
    zero = squares == 0
    lengths = squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
    scalar, gate = layer.update_net(torch.cat([x, lengths], dim=1)).split(layer.out_channels, dim=1)
    return layer.act(scalar) if layer.act else scalar, gate


class Attention:
    """A layer of the package, evaluated with less traffic of memory.

    Filters, which depend on lengths alone, are made once for both directions of a pair; channels stand in the
    order key, scalar, vector along the edge, vector of the neighbour, over all heads; nothing is done
    with vectors while they are zero. Where forces alone are wanted, :class:`Messages` does the sums.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention`` with distances in both keys and values.
    """

    def __init__(self, layer):
        self.layer, self._kept = layer, fast.Kept(layer)

    def __call__(self, x, vectors, radial, geometry, blocks):
        """New scalars and vectors of the atoms, shapes ``(N, U)`` and ``(N, 3, U)``.

        Parameters
        ----------
        x, vectors
            Features of the atoms; ``None`` for vectors that are still zero.
        radial
            Functions of the lengths of P pairs and, last, of a self loop, shape ``(P + 1, B)``.
        geometry
            Envelopes and unit vectors of the same, shape ``(P + 1, 4)``; a self loop has no direction.
        blocks
            A list of :class:`Block`.
        """
        layer, u = self.layer, self.layer.hidden_channels
        atoms, filters, heads = self._kept.get(self._matrices)
        parts = 3 if vectors is None else 4  # without the vectors of the neighbours
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        normed = layer.layernorm(x)
        query, table = layer.q_proj(normed), linear(normed, *atoms)
        rows = None if vectors is None else vectors.flatten(1)
        given = Given(query, table, rows, radial, geometry, *filters, heads)
        if layer.training or layer.vector_cutoff:
            total = _sum(given, blocks, everywhere=layer.vector_cutoff)
        else:
            total = Messages.apply(*given, blocks)
        scalar, moved = total[:, :u], total[:, u:].unflatten(1, (3, u)).contiguous()
        first, second, third = layer.o_proj(scalar).split(u, dim=1)
        if vectors is None:
            return x + third, moved
        one, two, three = layer.vec_proj(vectors).split(u, dim=2)
        return x + (one * two).sum(1) * second + third, vectors + three * first.unsqueeze(1) + moved

    def _matrices(self):
        """Weights and biases for atoms and for lengths, and which channel is of which head."""
        layer, h, u = self.layer, self.layer.num_heads, self.layer.hidden_channels

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
    """M messages: both directions of some pairs, or all self loops, or all of both."""

    centre: torch.Tensor
    """Shape ``(M,)``."""
    neighbour: torch.Tensor
    start: int
    """First row of what is known of the pairs and of a self loop."""
    stop: int
    """Behind the last; the row of a self loop, if there are any, is the last."""
    pairs: int
    """Those that come first."""
    sign: torch.Tensor
    """Of the envelope and of the direction, shape ``(M, 4)``."""

    @classmethod
    def all_of(cls, edges, x):
        """Blocks of P pairs, whose centres and neighbours are ``edges``, shape ``(2, P)``.

        ``x``, shape ``(N, U)``, says how large the arrays of a block are; on a GPU there is one block.
        """
        loops, pairs = torch.arange(len(x), device=x.device), edges.shape[1]
        count = cls.count(pairs, x)
        if count == 1:
            return [cls._of(edges, 0, loops, x)]
        parts = edges.tensor_split(count, dim=1)
        starts = accumulate((part.shape[1] for part in parts), initial=0)
        blocks = [cls._of(part, start, loops[:0], x) for part, start in zip(parts, starts, strict=False)]
        return [*blocks, cls._of(edges[:, pairs:], pairs, loops, x)]

    @staticmethod
    def count(pairs, x):
        """Number of blocks of so many pairs for features like ``x``, shape ``(..., U)``."""
        size = CACHE // (8 * x.shape[-1] * x.element_size())
        return max(1, round(pairs / size)) if x.device.type == "cpu" else 1

    @classmethod
    def _of(cls, edges, start, loops, x):
        (one, other), pairs = edges, edges.shape[1]
        sign = x.new_ones(2 * pairs + len(loops), 4)
        sign[pairs:, 1:] = -1
        stop = start + pairs + bool(len(loops))
        return cls(torch.cat([one, other, loops]), torch.cat([other, one, loops]), start, stop, pairs, sign)


CACHE = 2**20
"""Bytes of an array of all channels of the messages of a block, which a core keeps at hand."""


LEAST = 2
"""Blocks of a thread; for fewer, waking it takes longer than it saves."""


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
    """Envelopes and unit vectors of the same, shape ``(P + 1, 4)``."""
    weight: torch.Tensor
    """Of the filters, as many rows as ``table`` has columns."""
    bias: torch.Tensor
    heads: torch.Tensor
    """Ones where a channel is of a head, else zero, shape ``(H, U)``."""


class Rows(NamedTuple):
    """What the M messages of a block are made of."""

    before: torch.Tensor
    """Filters of the pairs before their nonlinearity."""
    filters: torch.Tensor
    query: torch.Tensor
    """Of the centres, shape ``(M, U)``."""
    near: torch.Tensor
    """Row of ``table`` of the neighbours."""
    values: list[torch.Tensor]
    """Key, scalar, vector along the edge and, if there are vectors, factor of that of the neighbour."""
    logits: torch.Tensor
    """Before the nonlinearity, ``attention`` behind it, shape ``(M, H)``."""
    attention: torch.Tensor
    geometry: list[torch.Tensor]
    """Envelope and direction, four of shape ``(M, 1)``."""
    weights: torch.Tensor
    """Of the scalars, shape ``(M, U)``."""
    vectors: list[torch.Tensor]
    """Of the neighbours, three of shape ``(M, U)``, or none."""


# What follows, down to the class Messages, is compiled by TorchScript too: hence the types. Where arrays can
# be written over, a dictionary of them, ``scratch``, is used block after block: they stay at hand for the
# processor. Where a derivative needs them all it is None, and every operator makes its own.


def _place(scratch: dict[str, torch.Tensor] | None, name: str, like, columns: int):
    return None if scratch is None else _take(scratch, name, like, columns)


def _take(scratch: dict[str, torch.Tensor], name: str, like, columns: int):
    """Array of a name, as long as ``like`` and of its type."""
    if name not in scratch or len(scratch[name]) < len(like):
        scratch[name] = torch.empty([len(like), columns], dtype=like.dtype, device=like.device)
    return scratch[name][: len(like)]


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


def _gather(rows, block: Block, out):
    """Sums of the rows of both directions into the rows of pairs; the length of a loop is a constant."""
    torch.add(rows[: block.pairs], rows[block.pairs : 2 * block.pairs], out=out[: block.pairs])


def _rows(
    given: Given,
    block: Block,
    scratch: dict[str, torch.Tensor] | None,
    kept: tuple[torch.Tensor, torch.Tensor] | None,
):
    """Rows of a block; ``kept``: ``before`` and ``logits``, which take longer to make than to fetch."""
    u = given.query.shape[1]
    lengths = given.radial[block.start : block.stop]
    before = linear(lengths, given.weight, given.bias) if kept is None else kept[0]
    filters = silu(before)
    query = given.query.index_select(0, block.centre)
    near = _fetch(given.table, block.neighbour, _place(scratch, "near", query, before.shape[1]))
    values = _times(near, filters, block, _place(scratch, "values", query, before.shape[1])).split(u, dim=1)
    logits = torch.mm(query * values[0], given.heads.t()) if kept is None else kept[1]
    attention = silu(logits)
    geometry = (_spread(given.geometry[block.start : block.stop], block) * block.sign).split(1, dim=1)
    weights = torch.mm(attention * geometry[0], given.heads)
    vectors: list[torch.Tensor] = []
    table = given.vectors
    if table is not None:
        near_vectors = _fetch(table, block.neighbour, _place(scratch, "vectors", query, 3 * u))
        vectors = near_vectors.split(u, dim=1)
    return Rows(before, filters, query, near, values, logits, attention, geometry, weights, vectors)


def _messages(rows: Rows, out: torch.Tensor | None):
    """A scalar and three components of a vector, each of shape ``(M, U)``; in ``out``, ``(M, 4U)``."""
    u = rows.query.shape[1]
    messages = [_mul(rows.values[1], rows.weights, None if out is None else out[:, :u])]
    for k in range(3):
        place = None if out is None else out[:, (k + 1) * u : (k + 2) * u]
        messages.append(_mul(rows.values[2], rows.geometry[k + 1], place))
        if len(rows.vectors) > 0:
            messages[k + 1].addcmul_(rows.vectors[k], rows.values[3])
    return messages


def _total(given: Given, blocks: list[Block]):
    """Sum of the messages to every atom, shape ``(N, 4U)``; what is kept of every block; rows of the last."""
    scratch: dict[str, torch.Tensor] = {}
    width = 4 * given.query.shape[1]
    total = torch.zeros([len(given.query), width], dtype=given.query.dtype, device=given.query.device)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    last: list[Rows] = []
    for block in blocks:
        rows = _rows(given, block, scratch, None)
        messages = _take(scratch, "messages", rows.query, width)
        _messages(rows, messages)
        total.index_add_(0, block.centre, messages)
        kept.append((rows.before, rows.logits))
        last = [rows]
    return total, kept, last[0]


def _slopes(
    given: Given,
    blocks: list[Block],
    kept: list[tuple[torch.Tensor, torch.Tensor]],
    whole: Rows | None,
    slope,
    radial,
    geometry,
):
    """Gradients of ``query``, ``table`` and ``vectors`` from that of the sum; the others' are filled in.

    ``whole``: the rows if there is one block.
    """
    scratch: dict[str, torch.Tensor] = {}
    slopes = [torch.zeros_like(given.query), torch.zeros_like(given.table)]
    vectors = given.vectors
    if vectors is not None:
        slopes.append(torch.zeros_like(vectors))
    for k, block in enumerate(blocks):
        rows = _rows(given, block, scratch, kept[k]) if whole is None else whole
        _add_slopes(slopes, radial, geometry, given, rows, block, slope, scratch)
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

    _dot(vector, directions, parts[2])
    if len(rows.vectors) > 0:
        _dot(vector, rows.vectors, parts[3])
        turned = _take(scratch, "turned", rows.query, 3 * u)
        for k in range(3):
            torch.mul(vector[k], rows.values[3], out=turned[:, k * u : (k + 1) * u])
        slopes[2].index_add_(0, block.neighbour, turned)
    around = [(attention * rows.attention).sum(1)]
    for k in range(3):
        around.append((vector[k] * rows.values[2]).sum(1))
    _gather(torch.stack(around, dim=1) * block.sign, block, geometry[block.start : block.stop])

    of_table = _take(scratch, "slope of table", rows.query, width)
    slopes[1].index_add_(0, block.neighbour, _times(of_values, rows.filters, block, of_table))
    filters = torch.zeros_like(rows.before)
    _gather(of_values.mul_(rows.near), block, filters)
    radial[block.start : block.stop] = torch.mm(silu_backward(filters, rows.before), given.weight)


def _dot(first: list[torch.Tensor], second: list[torch.Tensor], out):
    """Sum over components of products, into ``out``, shape ``(M, U)``."""
    torch.mul(first[0], second[0], out=out)
    out.addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


class Messages(torch.autograd.Function):
    """Sum of the messages to every atom, whose arrays stay in the cache of one core.

    Several blocks are shared out among threads, and little is kept of them for the backward pass, which
    makes the rest anew. The sum can be differentiated once, by its first five arguments; weights are
    constants.
    """

    @staticmethod
    def forward(ctx, query, table, vectors, radial, geometry, weight, bias, heads, blocks):
        """Shape ``(N, 4U)``; the arguments are those of :class:`Given` and a list of :class:`Block`."""
        given = Given(query, table, vectors, radial, geometry, weight, bias, heads)
        count = max(1, min(fast.threads(), len(blocks) // LEAST))
        shares = [blocks[k::count] for k in range(count)]
        run = starmap if len(blocks) == 1 else fast.in_threads
        totals, kept, rows = zip(*run(_total, [(given, share) for share in shares]), strict=True)
        ctx.save_for_backward(*given)
        ctx.run, ctx.shares = run, list(zip(shares, kept, strict=True))
        ctx.whole = rows[0] if len(blocks) == 1 else None
        return sum(totals[1:], totals[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        """Gradients of the first five arguments from that of the sum."""
        given = Given(*ctx.saved_tensors)
        rest = [torch.zeros_like(given.radial), torch.zeros_like(given.geometry)]
        calls = [(given, *share, ctx.whole, slope, *rest) for share in ctx.shares]
        slopes = [sum(parts[1:], parts[0]) for parts in zip(*ctx.run(_slopes, calls), strict=True)]
        return *slopes, *[None] * (3 - len(slopes)), *rest, None, None, None, None


def _sum(given, blocks, *, everywhere):
    """The same, differentiable twice; ``everywhere``: the envelope multiplies vectors too."""
    total = given.query.new_zeros(len(given.query), 4 * given.heads.shape[1])
    for block in blocks:
        rows = _rows(given, block, None, None)
        scalar, *vectors = _messages(rows, None)
        if everywhere:
            vectors = [vector * rows.geometry[0] for vector in vectors]
        total = total.index_add(0, block.centre, torch.cat([scalar, *vectors], dim=1))
    return total


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
