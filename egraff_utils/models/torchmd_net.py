"""TorchMD-NET's equivariant transformer: attention on scalars and vectors (package ``torchmd-net``)."""

import os
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from itertools import accumulate
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
        for layer in self.output_model.output_network:
            x, vector_features = _gate(layer, x, vector_features)
        return x.squeeze(-1)

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
    """A ``GatedEquivariantBlock`` of the package; a vector of zero has no slope, as there."""
    squares = layer.vec1_proj(vectors).square().sum(1)
    zero = squares == 0
    lengths = squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
    scalar, gate = layer.update_net(torch.cat([x, lengths], dim=1)).split(layer.out_channels, dim=1)
    return (layer.act or nn.Identity())(scalar), gate.unsqueeze(1) * layer.vec2_proj(vectors)


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
        self.layer, self._kept = layer, fast.Kept()

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
        atoms, filters, heads = self._kept.get(list(layer.parameters()), self._matrices)
        parts = 3 if vectors is None else 4  # without the vectors of the neighbours
        atoms, filters = ([t[: parts * u] for t in pair] for pair in (atoms, filters))
        normed = layer.layernorm(x)
        query, table = layer.q_proj(normed), linear(normed, *atoms)
        tensors = query, table, None if vectors is None else vectors.flatten(1), radial, geometry
        if layer.training or layer.vector_cutoff:
            total = _sum(tensors, blocks, filters, heads, everywhere=layer.vector_cutoff)
        else:
            total = Messages.apply(*tensors, blocks, filters, heads)
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
    lengths: slice
    """Rows of what is known of the pairs and of a self loop."""
    pairs: int
    """Those that come first; the row of a self loop, if there are any, is the last."""
    sign: torch.Tensor
    """Of the envelope and of the direction, shape ``(M, 4)``."""

    @classmethod
    def all_of(cls, edges, x):
        """Blocks of P pairs, whose centres and neighbours are ``edges``, shape ``(2, P)``.

        ``x``, shape ``(N, U)``, says how large the arrays of a block are; on a GPU there is one block.
        """
        loops, pairs = torch.arange(len(x), device=x.device), edges.shape[1]
        size = CACHE // (8 * x.shape[1] * x.element_size())
        count = max(1, round(pairs / size)) if x.device.type == "cpu" else 1
        if count == 1:
            return [cls._of(edges, 0, loops, x)]
        parts = edges.tensor_split(count, dim=1)
        starts = accumulate((part.shape[1] for part in parts), initial=0)
        blocks = [cls._of(part, start, loops[:0], x) for part, start in zip(parts, starts, strict=False)]
        return [*blocks, cls._of(edges[:, pairs:], pairs, loops, x)]

    @classmethod
    def _of(cls, edges, start, loops, x):
        (one, other), pairs = edges, edges.shape[1]
        sign = x.new_ones(2 * pairs + len(loops), 4)
        sign[pairs:, 1:] = -1
        return cls(
            torch.cat([one, other, loops]),
            torch.cat([other, one, loops]),
            slice(start, start + pairs + bool(len(loops))),
            pairs,
            sign,
        )

    def spread(self, rows):
        """A row of every message, shape ``(M, K)``, out of those of the lengths."""
        there, loop = rows[: self.pairs], rows[self.pairs :]
        return torch.cat([there, there, loop.expand(len(self.centre) - 2 * self.pairs, -1)])

    def times(self, x, rows, out=None):
        """Product of ``x``, shape ``(M, K)``, with the row of every message."""
        if len(rows) > self.pairs:
            return torch.mul(x, self.spread(rows), out=out)
        both = (2, *rows.shape)
        return torch.mul(x.view(both), rows, out=None if out is None else out.view(both)).view_as(x)

    def gather(self, rows, *, out):
        """Sums of the rows of both directions into the rows of pairs; the length of a loop is a constant."""
        torch.add(rows[: self.pairs], rows[self.pairs : 2 * self.pairs], out=out[: self.pairs])


CACHE = 2**20
"""Bytes of an array of all channels of the messages of a block, which a core keeps at hand."""


class Scratch:
    """Arrays that one block after another writes into: they stay where the processor has them at hand."""

    def __init__(self):
        self._arrays = {}

    def take(self, name, like, columns):
        """Array of a name, as long as ``like`` and of its type."""
        if len(like) > len(self._arrays.get(name, ())):
            self._arrays[name] = like.new_empty(len(like), columns)
        return self._arrays[name][: len(like)]


class Nothing:
    """In place of :class:`Scratch` where a derivative needs all arrays: every operator makes its own."""

    def take(self, name, like, columns):
        """``None``."""


class Rows:
    """What the messages of a block are made of; U channels, H heads.

    Parameters
    ----------
    query, table
        Of the atoms, shape ``(N, U)``; their keys and values, shape ``(N, 3U or 4U)``.
    vectors
        Of the atoms, shape ``(N, 3U)``; or ``None``.
    radial, geometry
        As :class:`Attention` gets them.
    block
        :class:`Block`.
    filters
        Weight and bias, of ``3U or 4U`` rows.
    heads
        Ones where a channel is of a head, else zero, shape ``(H, U)``.
    scratch
        Where the widest arrays lie.
    kept
        ``before`` and ``logits`` of the same, which take longer to make than to fetch.
    """

    def __init__(self, query, table, vectors, radial, geometry, block, filters, heads, scratch, kept=None):
        self.u, self.heads, self.scratch = heads.shape[1], heads, scratch
        u, width = self.u, table.shape[1]
        before, logits = kept or (None, None)
        self.before = linear(radial[block.lengths], *filters) if before is None else before
        self.filters = silu(self.before)
        self.query = query.index_select(0, block.centre)
        near, values = (scratch.take(name, self.query, width) for name in ("near", "values"))
        self.near = torch.index_select(table, 0, block.neighbour, out=near)
        values = block.times(self.near, self.filters, values)
        self.key, self.scalar, self.along, *self.across = values.split(u, dim=1)
        self.logits = (self.query * self.key) @ heads.T if logits is None else logits
        self.attention = silu(self.logits)
        geometry = block.spread(geometry[block.lengths]) * block.sign
        self.envelope, *self.directions = geometry.split(1, dim=1)
        self.weights = (self.attention * self.envelope) @ heads
        self.vectors = []
        if vectors is not None:
            near = scratch.take("vectors", self.query, 3 * u)
            self.vectors = torch.index_select(vectors, 0, block.neighbour, out=near).split(u, 1)

    def messages(self, out=None):
        """A scalar and three components of a vector, each of shape ``(M, U)``; in ``out``, ``(M, 4U)``."""
        first, *rest = [None] * 4 if out is None else out.split(self.u, 1)
        vectors = [torch.mul(self.along, d, out=o) for d, o in zip(self.directions, rest, strict=True)]
        if self.vectors:
            (across,) = self.across
            parts = zip(vectors, self.vectors, rest, strict=True)
            vectors = [torch.addcmul(total, vector, across, out=o) for total, vector, o in parts]
        return torch.mul(self.scalar, self.weights, out=first), *vectors


def _sum(tensors, blocks, filters, heads, *, everywhere):
    """Sum of the messages to every atom, shape ``(N, 4U)``, differentiable twice.

    ``everywhere``: the envelope multiplies vectors too.
    """
    total = tensors[0].new_zeros(len(tensors[0]), 4 * heads.shape[1])
    for block in blocks:
        rows = Rows(*tensors, block, filters, heads, Nothing())
        scalar, *vectors = rows.messages()
        if everywhere:
            vectors = [vector * rows.envelope for vector in vectors]
        total = total.index_add(0, block.centre, torch.cat([scalar, *vectors], dim=1))
    return total


class Messages(torch.autograd.Function):
    """The same sum, whose arrays of messages stay in the cache of one core.

    Of several blocks little is kept for the backward pass, which makes the rest anew. The sum can be
    differentiated once, by its first five arguments; weights are constants.
    """

    @staticmethod
    def forward(ctx, query, table, vectors, radial, geometry, blocks, filters, heads):
        """Shape ``(N, 4U)``."""
        tensors = query, table, vectors, radial, geometry
        ctx.save_for_backward(*tensors)
        ctx.constants, ctx.kept, scratch = (blocks, filters, heads), [], Scratch()
        total = query.new_zeros(len(query), 4 * query.shape[1])
        with _threads_of(blocks):
            for block in blocks:
                rows = Rows(*tensors, block, filters, heads, scratch)
                messages = scratch.take("messages", rows.query, total.shape[1])
                rows.messages(out=messages)
                total.index_add_(0, block.centre, messages)
                ctx.kept.append((rows.before, rows.logits))
        ctx.rows = rows if len(blocks) == 1 else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        """Gradients of the first five arguments from that of the sum."""
        blocks, filters, heads = ctx.constants
        slopes, scratch = [None if t is None else torch.zeros_like(t) for t in ctx.saved_tensors], Scratch()
        with _threads_of(blocks):
            for block, kept in zip(blocks, ctx.kept, strict=True):
                rows = ctx.rows or Rows(*ctx.saved_tensors, block, filters, heads, scratch, kept)
                _add_slopes(*slopes, slope, rows, block, filters[0])
        return *slopes, None, None, None


def _threads_of(blocks):
    """One thread for several blocks; for one, which is small or on a GPU, as many as torch has."""
    return fast.one_thread() if len(blocks) > 1 else nullcontext()


def _add_slopes(query, table, vectors, radial, geometry, slope, rows, block, weight):
    """Add to the gradients of the five tensors what the messages of a block contribute.

    ``slope``: gradient of the sum, shape ``(N, 4U)``.
    """
    u, heads, scratch, width = rows.u, rows.heads, rows.scratch, table.shape[1]
    of_messages = scratch.take("slope", rows.query, slope.shape[1])
    scalar, *vector = torch.index_select(slope, 0, block.centre, out=of_messages).split(u, 1)
    values = scratch.take("slope of values", rows.query, width)
    d_key, d_scalar, d_along, *d_across = values.split(u, 1)

    torch.mul(scalar, rows.weights, out=d_scalar)
    attention = (scalar * rows.scalar) @ heads.T
    logits = silu_backward(attention * rows.envelope, rows.logits) @ heads
    torch.mul(logits, rows.query, out=d_key)
    query.index_add_(0, block.centre, logits * rows.key)

    _dot(vector, rows.directions, out=d_along)
    if rows.vectors:
        _dot(vector, rows.vectors, out=d_across[0])
        turned = scratch.take("turned", rows.query, 3 * u)
        for v, part in zip(vector, turned.split(u, 1), strict=True):
            torch.mul(v, rows.across[0], out=part)
        vectors.index_add_(0, block.neighbour, turned)
    directions = [(v * rows.along).sum(1) for v in vector]
    around = torch.stack([(attention * rows.attention).sum(1), *directions], dim=1) * block.sign
    block.gather(around, out=geometry[block.lengths])

    of_table = scratch.take("slope of table", rows.query, width)
    table.index_add_(0, block.neighbour, block.times(values, rows.filters, of_table))
    filters = torch.zeros_like(rows.before)
    block.gather(values.mul_(rows.near), out=filters)
    radial[block.lengths] = silu_backward(filters, rows.before) @ weight


def _dot(first, second, *, out):
    """Sum over components of products, into ``out``, shape ``(M, U)``."""
    torch.mul(first[0], second[0], out=out)
    out.addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


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
