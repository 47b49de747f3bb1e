r"""How are the messages of TorchMD-NET's attention computed? In blocks of pairs that fit into the cache.

The equations are in :mod:`.torchmd_net`. Filters and envelopes depend on the length of a pair and are
computed once for its two directions; the unit vector changes sign.

.. math::

    \phi(r_{ji}) = \phi(r_{ij}) = \mathrm{silu}(f(r_{ij}) W + b), \qquad
    u(r_{ji}) = u(r_{ij}), \qquad d_{ji} = -d_{ij}

Arrays of a block take about one megabyte and stay in the cache of one core (``tried.csv``: "messages in
blocks of one megabyte an array", "blocks of half and of twice a megabyte an array"). Channels are in the
order key, scalar, vector along the edge, vector of the neighbour, each over all heads.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, silu

if TYPE_CHECKING:
    from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention


def joined_matrices(
    layer: "EquivariantMultiHeadAttention",
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Weights and biases for atoms and for lengths, and the matrix that assigns channels to heads."""
    h, u = layer.num_heads, layer.hidden_channels

    def by_part(rows: torch.Tensor) -> list[torch.Tensor]:
        scalar, near, along = rows.unflatten(0, (h, 3, u // h)).unbind(1)
        return [part.flatten(0, 1) for part in (scalar, along, near)]

    def joined(key: nn.Linear, value: nn.Linear) -> list[torch.Tensor]:
        pairs = zip(key.parameters(), value.parameters(), strict=True)
        return [torch.cat([k, *by_part(v)]) for k, v in pairs]

    heads = torch.eye(h, dtype=layer.q_proj.weight.dtype, device=layer.q_proj.weight.device)
    atoms, filters = joined(layer.k_proj, layer.v_proj), joined(layer.dk_proj, layer.dv_proj)
    return atoms, filters, heads.repeat_interleave(u // h, dim=1)


class Block(NamedTuple):
    """M messages, both directions of some pairs and, in the last block, all self loops."""

    centre: torch.Tensor
    """Atoms that receive the messages, shape ``(M,)``."""
    neighbour: torch.Tensor
    start: int
    """First row of the block in arrays over pairs and a self loop."""
    stop: int
    """One past the last row, which is that of the self loop if the block has any."""
    pairs: int
    """Number of pairs, which come first."""

    @classmethod
    def all_of(cls, edges: torch.Tensor, x: torch.Tensor) -> "list[Block]":
        """Blocks of P pairs, whose centres and neighbours are ``edges``, shape ``(2, P)``.

        ``x``, shape ``(N, U)``, determines the size of the arrays of a block; on a GPU there is one block.
        """
        loops, pairs = torch.arange(len(x), device=x.device), edges.shape[1]
        count = cls.count(pairs, x)
        parts = edges.tensor_split(count, dim=1)
        starts = accumulate((part.shape[1] for part in parts), initial=0)
        own = [loops[:0]] * (count - 1) + [loops]
        return [cls._of(*block) for block in zip(parts, starts, own, strict=False)]

    @classmethod
    def of_all(cls, edges: torch.Tensor, x: torch.Tensor) -> "Block":
        """One block of all messages, for training, where blocks save nothing (``tried.csv``: "one block")."""
        return cls._of(edges, 0, torch.arange(len(x), device=x.device))

    @staticmethod
    def count(  # type: ignore[override]  # a tuple's own, which counts equal values, has no use here
        pairs: int, x: torch.Tensor
    ) -> int:
        """Number of blocks for a number of pairs and features like ``x``, shape ``(..., U)``."""
        size = CACHE // (8 * x.shape[-1] * x.element_size())
        return max(1, round(pairs / size)) if x.device.type == "cpu" else 1

    @classmethod
    def _of(cls, edges: torch.Tensor, start: int, loops: torch.Tensor) -> "Block":
        (one, other), pairs = edges, edges.shape[1]
        stop = start + pairs + bool(len(loops))
        return cls(torch.cat([one, other, loops]), torch.cat([other, one, loops]), start, stop, pairs)


CACHE = 2**20
"""Size of an array with all channels of a block's messages, bytes, which fits into the cache of a core."""


def to_messages(geometry: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Rows of all messages, block after block, from rows of P pairs, shape ``(P, 4)``."""
    back = torch.cat([geometry[:, :1], -geometry[:, 1:]], dim=1)
    sizes = [block.pairs for block in blocks]
    halves = chain.from_iterable(zip(geometry.split(sizes), back.split(sizes), strict=True))
    loops = geometry.new_zeros(len(blocks[-1].centre) - 2 * sizes[-1], 4)
    loops[:, 0] = 1
    return torch.cat([*halves, loops])


def to_pairs(rows: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Gradient with respect to the argument of :func:`to_messages`, ``(P, 4)``, from that of its result."""
    sizes = [block.pairs for block in blocks for _ in range(2)]
    halves = rows[: sum(sizes)].split(sizes)
    there, back = (torch.cat(part) if len(part) > 1 else part[0] for part in (halves[::2], halves[1::2]))
    return torch.cat([there[:, :1] + back[:, :1], there[:, 1:] - back[:, 1:]], dim=1)


class Given(NamedTuple):
    """Inputs of the messages; N atoms, P pairs, U channels, H heads."""

    query: torch.Tensor
    """Queries of the atoms, shape ``(N, U)``."""
    table: torch.Tensor
    """Keys and values of the atoms, shape ``(N, 3U)`` without and ``(N, 4U)`` with vectors."""
    vectors: torch.Tensor | None
    """Vectors of the atoms, shape ``(N, 3U)``; ``None`` while they are zero."""
    radial: torch.Tensor
    """Radial functions of pairs and, in the last row, of a self loop, shape ``(P + 1, B)``."""
    geometry: torch.Tensor
    """Envelopes and unit vectors of all messages, block after block, four columns."""
    weight: torch.Tensor
    """Weight of the filters, with as many rows as ``table`` has columns."""
    bias: torch.Tensor
    heads: torch.Tensor
    """One where a channel belongs to a head, else zero, shape ``(H, U)``."""
    smooth: bool
    """Whether envelopes multiply vectors too; unit vectors along edges already include them."""


class Rows(NamedTuple):
    """Parts of the M messages of a block."""

    before: torch.Tensor
    """Filters of the pairs before their nonlinearity."""
    logits: torch.Tensor
    """Logits of the attention, before the nonlinearity, shape ``(M, H)``."""
    filters: torch.Tensor
    query: torch.Tensor
    """Queries of the centres, shape ``(M, U)``."""
    near: torch.Tensor
    """Rows of ``table`` of the neighbours."""
    attention: torch.Tensor
    weights: torch.Tensor
    """Weights of the scalars, shape ``(M, U)``."""
    values: list[torch.Tensor]
    """Key, scalar, vector along the edge and, if there are vectors, factor of the neighbour's vector."""
    vectors: list[torch.Tensor]
    """Vectors of the neighbours, three tensors of shape ``(M, U)``, or none."""
    factor: torch.Tensor
    """The last of the values, times the envelope if it multiplies vectors too."""
    geometry: list[torch.Tensor]
    """Envelope and direction, four tensors of shape ``(M, 1)``."""


# The following functions are also compiled by TorchScript, which needs the type hints. With frozen weights,
# arrays are kept in the dictionary ``scratch`` and overwritten by block after block, so that they stay in the
# cache. In training the derivative needs all arrays, so ``scratch`` is None and operators allocate their own.


def _place(
    scratch: dict[str, torch.Tensor] | None, name: str, like: torch.Tensor, columns: int
) -> torch.Tensor | None:
    return None if scratch is None else take(scratch, name, like, columns)


def take(scratch: dict[str, torch.Tensor], name: str, like: torch.Tensor, columns: int) -> torch.Tensor:
    """Array of this name in ``scratch``, with the length and type of ``like``."""
    if name not in scratch or len(scratch[name]) < len(like):
        scratch[name] = torch.empty([len(like), columns], dtype=like.dtype, device=like.device)
    found = scratch[name]
    return found if len(found) == len(like) else found[: len(like)]


def _mul(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return x * y if out is None else torch.mul(x, y, out=out)


def fetch(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return table.index_select(0, index) if out is None else torch.index_select(table, 0, index, out=out)


def _spread(rows: torch.Tensor, block: Block) -> torch.Tensor:
    """Rows of all messages, shape ``(M, K)``, from rows of the lengths."""
    there, loop = rows[: block.pairs], rows[block.pairs :]
    return torch.cat([there, there, loop.expand(len(block.centre) - 2 * block.pairs, -1)])


def times_rows(x: torch.Tensor, rows: torch.Tensor, block: Block, out: torch.Tensor | None) -> torch.Tensor:
    """Product of ``x``, shape ``(M, K)``, with the rows of all messages."""
    if out is None:
        return x * _spread(rows, block)
    there, both = 2 * block.pairs, [2, block.pairs, rows.shape[1]]
    torch.mul(x[:there].view(both), rows[: block.pairs], out=out[:there].view(both))
    torch.mul(x[there:], rows[block.pairs :], out=out[there:])
    return out


def made_arrays(
    given: Given, block: Block, scratch: dict[str, torch.Tensor] | None, kept: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Arrays of :class:`Rows` that are not views, with those of values and vectors last.

    In the backward pass, ``kept`` holds the first two, which take longer to recompute than to read.
    """
    u = given.query.shape[1]
    lengths = given.radial[block.start : block.stop]
    before = kept[0] if len(kept) > 0 else linear(lengths, given.weight, given.bias)
    filters = silu(before)
    query = given.query.index_select(0, block.centre)
    near = fetch(given.table, block.neighbour, _place(scratch, "near", query, before.shape[1]))
    values = times_rows(near, filters, block, _place(scratch, "values", query, before.shape[1]))
    logits = kept[1] if len(kept) > 0 else torch.mm(query * values[:, :u], given.heads.t())
    attention = silu(logits)
    weights = torch.mm(attention * geometry_of_block(given, block)[0], given.heads)
    made = [before, logits, filters, query, near, attention, weights, values]
    table = given.vectors
    if table is not None:
        made.append(fetch(table, block.neighbour, _place(scratch, "vectors", query, 3 * u)))
    return made


def geometry_of_block(given: Given, block: Block) -> list[torch.Tensor]:
    start = 2 * block.start
    return given.geometry[start : start + len(block.centre)].split(1, dim=1)


def rows_of_block(given: Given, block: Block, made: list[torch.Tensor]) -> Rows:
    """Rows of a block, with views of the results of :func:`made_arrays`."""
    before, logits, filters, query, near, attention, weights, together = made[:8]
    values, vectors = together.split(query.shape[1], dim=1), made[8:]
    if len(vectors) > 0:
        vectors = vectors[0].split(query.shape[1], dim=1)
    geometry = geometry_of_block(given, block)
    factor = values[-1] * geometry[0] if given.smooth else values[-1]
    return Rows(before, logits, filters, query, near, attention, weights, values, vectors, factor, geometry)


def write_messages(rows: Rows, out: torch.Tensor | None) -> list[torch.Tensor]:
    """Scalar and three vector components of messages, each ``(M, U)``, written to ``out``, ``(M, 4U)``."""
    u = rows.query.shape[1]
    messages = [_mul(rows.values[1], rows.weights, None if out is None else out[:, :u])]
    for k in range(3):
        place = None if out is None else out[:, (k + 1) * u : (k + 2) * u]
        messages.append(_mul(rows.values[2], rows.geometry[k + 1], place))
        if len(rows.vectors) > 0:
            messages[k + 1].addcmul_(rows.vectors[k], rows.factor)
    return messages
