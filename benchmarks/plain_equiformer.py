"""What does Equiformer compute as its authors write it? e3nn's operators are applied with our weights.

The network represents the upstream package in the benchmark, as no package is maintained, and the text of the
paper in the tests. Features of E edges or N atoms are flat, with shape ``(E, irreps.dim)`` as everywhere in
e3nn.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph
from egraff_utils.models.equiformer import AVERAGE_ATOMS, Equiformer, blocks, products


class PlainEquiformer(nn.Module):
    """The network of an :class:`~egraff_utils.models.equiformer.Equiformer`, with the same weights.

    Arguments and results are the same: a graph and edge vectors, shape ``(E, 3)``, Å, and dimensionless
    energies of atoms, shape ``(N,)``.
    """

    def __init__(self, network: Equiformer) -> None:
        super().__init__()
        self.parity, self.smooth_cutoff = network.frames.parity, network.smooth_cutoff
        self.largest, self.basis = network.frames.largest, network.basis
        self.atom_embedding, self.atom_bias = network.atom_embedding, network.atom_bias
        self.degree_embedding = _DegreeEmbedding(network.degree_embedding, self.parity)
        self.blocks = nn.ModuleList(_Block(block, self.parity) for block in network.blocks)
        scalars = _irreps(network.blocks[-1].out_channels, self.parity)
        self.norm = _LayerNorm(network.norm, scalars)
        self.head = nn.ModuleList([_linear(layer, self.parity) for layer in network.head])
        self.activation = network.activation

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Energy of each atom, shape ``(N,)``, dimensionless, from edge vectors ``(E, 3)``, Å."""
        distances = vectors.norm(dim=1)
        geometry = (
            graph.edge_index,
            o3.spherical_harmonics(list(range(self.largest + 1)), vectors, True, "component"),
            self.basis(distances),
            self.basis.envelope(distances)[:, None] if self.smooth_cutoff else None,
        )
        scalars = self.atom_embedding[graph.species] + self.atom_bias
        x = self.degree_embedding(len(scalars), *geometry)
        x = torch.cat([x[:, : scalars.shape[1]] + scalars, x[:, scalars.shape[1] :]], dim=1)
        for block in self.blocks:
            x = block(x, *geometry)
        x = self.head[1](self.activation(self.head[0](self.norm(x))))
        return x[:, 0] / AVERAGE_ATOMS**0.5


def _irreps(channels, parity):
    sign = -1 if parity else 1
    return o3.Irreps([(n, (degree, sign**degree)) for degree, n in enumerate(channels)])


def _linear(linear, parity, channels=None):
    """``o3.Linear`` with the weights of ours; it divides them by the square root of the fan-in.

    ``channels`` are those of the argument, of which the layer may use only the first degrees.
    """
    before, after = ([w.shape[side] for w in linear.weights] for side in (0, 1))
    layer = o3.Linear(
        _irreps(channels or before, parity), _irreps(after, parity), biases=linear.bias is not None
    )
    with torch.no_grad():
        layer.weight.copy_(torch.cat([(w * len(w) ** 0.5).flatten() for w in linear.weights]))
        if linear.bias is not None:
            layer.bias.copy_(linear.bias)
    return layer


def _product(channels, paths, parity):
    """``o3.TensorProduct`` of every channel with harmonics; the result is sorted by degree, then by path."""
    sign, order = -1 if parity else 1, sorted(paths, key=lambda path: path[2])
    largest = max(l2 for _, l2, _ in paths)
    return o3.TensorProduct(
        _irreps(channels, parity),
        _irreps([1] * (largest + 1), parity),
        [(channels[l1], (l3, sign**l3)) for l1, _, l3 in order],
        [(l1, l2, order.index((l1, l2, l3)), "uvu", True) for l1, l2, l3 in paths],
        path_normalization="none", shared_weights=False, internal_weights=False,
    )  # fmt: skip


class _DegreeEmbedding(nn.Module):
    def __init__(self, embedding, parity) -> None:
        super().__init__()
        width, degrees = embedding.channels[0], range(len(embedding.channels))
        self.constant, self.radial, self.factor = embedding.constant, embedding.radial, embedding.factor
        self.product = _product([width], [(0, degree, degree) for degree in degrees], parity)
        self.project = _linear(embedding.project, parity)
        self.zeros = [
            (n - width) * (2 * degree + 1) for degree, n in enumerate(embedding.product.out_channels)
        ]
        self.sizes = [width * (2 * degree + 1) for degree in degrees]

    def forward(self, atoms, edge_index, harmonics, basis, envelope):
        (constant,) = self.constant([basis.new_ones(len(basis), 1)])
        y = self.product(constant, harmonics, self.radial(basis)[:, : self.product.weight_numel])
        parts = y.split(self.sizes, dim=1)
        padded = [nn.functional.pad(p, (0, n)) for p, n in zip(parts, self.zeros, strict=True)]
        y = self.project(torch.cat(padded, dim=1))
        y = y if envelope is None else y * envelope
        return blocks.sum_by_centre(y, edge_index[0], atoms) * self.factor


class _LayerNorm(nn.Module):
    def __init__(self, norm, irreps) -> None:
        super().__init__()
        self.norm, self.irreps = norm, irreps

    def forward(self, x):
        parts = x.split([part.dim for part in self.irreps], dim=1)
        columns = [p.unflatten(1, (part.mul, -1)).mT for p, part in zip(parts, self.irreps, strict=True)]
        return torch.cat([y.mT.flatten(1) for y in self.norm(columns)], dim=1)


class _Gate(nn.Module):
    def __init__(self, gate, parity) -> None:
        super().__init__()
        self.scalar, self.gate = gate.scalar, gate.gate
        others = _irreps(gate.sizes, parity)[1:]
        self.product = o3.ElementwiseTensorProduct(others, f"{others.num_irreps}x0e")
        self.sizes = [gate.sizes[0], others.num_irreps, others.dim]

    def forward(self, x):
        scalars, gates, others = x.split(self.sizes, dim=1)
        return torch.cat([self.scalar(scalars), self.product(others, self.gate(gates))], dim=1)


class _Attention(nn.Module):
    weights = blocks.Attention.weights

    def __init__(self, attention, parity) -> None:
        super().__init__()
        channels = attention.gate.sizes
        paths = products.tensor_product_paths(len(channels) - 1, parity=parity)
        self.from_centre = _linear(attention.from_centre, parity)
        self.from_neighbour = _linear(attention.from_neighbour, parity)
        self.product = _product(channels, paths, parity)
        self.radial, self.gate = attention.radial, _Gate(attention.gate, parity)
        self.message = _linear(attention.message, parity)
        self.value, self.project = _linear(attention.value, parity), _linear(attention.project, parity)
        self.sizes = [attention.sizes[0], self.message.irreps_out.dim - attention.sizes[0]]
        self.scales = nn.Parameter(self._scales(attention.value.scales, channels, paths))
        self.heads, self.logit_activation = attention.heads, attention.logit_activation
        self.logit_weights = attention.logit_weights
        per_head = [ir.dim * mul // attention.heads for mul, ir in self.value.irreps_out]
        heads = torch.arange(attention.heads)
        self.register_buffer(
            "head", torch.cat([heads.repeat_interleave(n) for n in per_head]), persistent=False
        )

    @staticmethod
    def _scales(scales, channels, paths):
        """Weights of the paths in e3nn's order, from ours, which are sorted by degree of the result."""
        by_degree = []
        for l3, column in enumerate(scales):
            by_degree.append(iter(column.detach()[:, 0].split([channels[a] for a, _, c in paths if c == l3])))
        return torch.cat([next(by_degree[l3]) for _, _, l3 in paths])[None]

    def forward(self, x, edge_index, harmonics, basis, envelope):
        centre, neighbour = edge_index
        merged = self.from_centre(x)[centre] + self.from_neighbour(x)[neighbour]
        message = self.message(self.product(merged, harmonics, self.radial(basis)))
        logits, message = message.split(self.sizes, dim=1)
        weights = self.weights(logits, centre, len(x), envelope)
        value = self.value(self.product(self.gate(message), harmonics, self.scales.expand(len(basis), -1)))
        return self.project(blocks.sum_by_centre(value * weights[:, self.head], centre, len(x)))


class _Block(nn.Module):
    def __init__(self, block, parity) -> None:
        super().__init__()
        irreps = _irreps([len(w) for w in block.attention.from_centre.weights], parity)
        self.attention_norm = _LayerNorm(block.attention_norm, irreps)
        self.attention = _Attention(block.attention, parity)
        self.feed_forward_norm = _LayerNorm(block.feed_forward_norm, irreps)
        forward = block.feed_forward
        self.feed_forward = nn.Sequential(
            _linear(forward.enter, parity),
            _Gate(forward.gate, parity),
            _linear(forward.leave, parity, forward.gate.sizes),
        )
        channels = [part.mul for part in irreps]
        self.shortcut = nn.Identity() if block.shortcut is None else _linear(block.shortcut, parity, channels)

    def forward(self, x, *geometry):
        x = x + self.attention(self.attention_norm(x), *geometry)
        change = self.feed_forward(self.feed_forward_norm(x))
        return self.shortcut(x) + change
