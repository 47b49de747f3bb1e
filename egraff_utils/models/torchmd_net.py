"""TorchMD-NET's equivariant transformer: attention on scalars and vectors (package ``torchmd-net``)."""

import os
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
from torch import nn

from egraff_utils import fast


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
    :func:`attend` unless the network is to be plain.

    Parameters
    ----------
    representation
        ``TorchMD_ET``.
    output
        ``EquivariantScalar``, from both kinds of features to an energy per atom.
    """

    def __init__(self, representation, output):
        super().__init__()
        self.representation_model = representation
        self.output_model = output
        self.plain = fast.is_plain()

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        model = self.representation_model
        lengths = vectors.norm(dim=1)
        x = self._embed(graph, lengths)
        loops = torch.arange(len(x), device=x.device).expand(2, -1)
        edges = torch.cat([graph.edge_index.flip(0), loops], dim=1)  # the package names the neighbour first
        lengths = torch.cat([lengths, lengths.new_zeros(len(x))])
        directions = torch.cat([vectors / lengths[: len(vectors), None], vectors.new_zeros(len(x), 3)])
        radial = model.distance_expansion(lengths)
        vector_features = x.new_zeros(len(x), 3, x.shape[1]) if self.plain else None
        for layer in model.attention_layers:
            if self.plain:
                dx, dv = layer(x, vector_features, edges, lengths, radial, directions)
            else:
                dx, dv = attend(layer, x, vector_features, edges, lengths, radial, directions)
            x, vector_features = x + dx, dv if vector_features is None else vector_features + dv
        x = model.out_norm(x)
        return self.output_model.pre_reduce(x, vector_features, graph.species, None, None).squeeze(-1)

    def _embed(self, graph, lengths):
        """Features of the elements, each mixed with those of its neighbours."""
        model, neighbors = self.representation_model, self.representation_model.neighbor_embedding
        x = model.embedding(graph.species)
        if neighbors is None:
            return x
        centre, neighbour = graph.edge_index
        filters = neighbors.distance_proj(model.distance_expansion(lengths))
        envelope = neighbors.cutoff(lengths)[:, None]
        messages = filters * envelope * neighbors.embedding(graph.species)[neighbour]
        around = torch.zeros_like(x).index_add(0, centre, messages)
        return neighbors.combine(torch.cat([x, around], dim=1))


def attend(layer, x, vectors, edges, lengths, radial, directions):
    """What a layer of the package adds to its scalars and vectors, shapes ``(N, U)`` and ``(N, 3, U)``.

    The package's forward pass, less what comes out as zero while the vectors are zero, and with fewer passes
    over the messages.

    Parameters
    ----------
    layer
        ``EquivariantMultiHeadAttention`` with distances in both keys and values.
    x, vectors
        Features of the atoms, shapes ``(N, U)`` and ``(N, 3, U)``; ``None`` for vectors that are still zero.
    edges
        Neighbours and centres, shape ``(2, E)``.
    lengths, radial, directions
        Of the edges, shapes ``(E,)``, Å, ``(E, B)`` for B radial functions, and ``(E, 3)``.
    """
    (neighbour, centre), u, heads = edges, layer.hidden_channels, layer.num_heads
    envelope = layer.cutoff(lengths)[:, None]
    x = layer.layernorm(x)
    query, key = layer.q_proj(x).index_select(0, centre), layer.k_proj(x).index_select(0, neighbour)
    attention = (query * key * layer.act(layer.dk_proj(radial))).view(len(lengths), heads, -1).sum(2)
    attention = layer.attn_activation(attention)
    value = layer.v_proj(x).index_select(0, neighbour) * layer.act(layer.dv_proj(radial))
    if layer.vector_cutoff:
        value = value * envelope
    else:
        attention = attention * envelope
    scalar, along, across = value.view(len(lengths), heads, -1).split(u // heads, dim=2)
    zero = x.new_zeros(len(x), u)
    total = zero.index_add(0, centre, (scalar * attention.unsqueeze(2)).flatten(1))
    messages = across.unsqueeze(1) * directions[:, :, None, None]
    if vectors is not None:
        near = vectors.view(len(x), 3, heads, -1).index_select(0, neighbour)
        messages = torch.addcmul(messages, near, along.unsqueeze(1))
    zero = x.new_zeros(len(x), 3 * u)
    moved = zero.index_add(0, centre, messages.flatten(1)).view(-1, 3, u)
    first, second, third = layer.o_proj(total).split(u, dim=1)
    if vectors is None:
        return third, moved
    one, two, three = layer.vec_proj(vectors).split(u, dim=2)
    return (one * two).sum(1) * second + third, three * first.unsqueeze(1) + moved


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
    return EquivariantTransformer(representation, output)
