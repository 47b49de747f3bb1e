r"""Equiformer (Liao & Smidt, ICLR 2023, arXiv:2206.11990), written for periodic graphs.

Irreps features are lists of tensors. Entry ``l`` holds ``C_l`` channels of degree :math:`l`, with shape
``(N, 2l+1, C_l)`` on nodes and ``(E, 2l+1, C_l)`` on edges. Where the text and the authors' code differ, this
module follows their model for MD17 (``graph_attention_transformer_nonlinear_exp_l2``), down to the number of
its parameters. Section numbers are those of the paper.
"""

import math
from functools import cache
from itertools import accumulate, product

import torch
from ase.data import chemical_symbols
from e3nn.o3 import wigner_3j
from torch import nn
from torch.nn.functional import silu

from egraff_utils.models import frozen

AVERAGE_ATOMS = 18.03065905448718  # mean number of atoms of a QM9 molecule; the authors use it for MD17 too


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    channels=(128, 64, 32),
    head_channels=(32, 16, 8),
    feed_forward_channels=(384, 192, 96),
    features=512,
    blocks=6,
    heads=4,
    radial_basis=32,
    radial_hidden=(64, 64),
    atom_types=64,
    parity=False,
    smooth_cutoff=False,
):
    """The Equiformer network (EGraFFBench, Table 15), one dimensionless energy per atom.

    Parameters
    ----------
    elements
        Atomic numbers.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Mean number of neighbours of an atom; the edge-degree embedding is divided by its square root.
    channels
        Channels of the node features at l = 0, 1, ... (Table 15: embedding dimension).
    head_channels
        Channels of one attention head at l = 0, 1, ...
    feed_forward_channels
        Channels inside the feed-forward network at l = 0, 1, ...
    features
        Channels of the output feature, which is scalar.
    blocks
        Number of transformer blocks.
    heads
        Number of attention heads.
    radial_basis
        Number of exponential-normal radial basis functions.
    radial_hidden
        Widths of the hidden layers of every radial function.
    atom_types
        Number of rows of the embedding table, one for each atomic number below it; 64 as released.
    parity
        Whether only products that respect reflections are kept, which makes the energy invariant under O(3).
        As released (``False``), all features count as even and the energy changes under reflection.
    smooth_cutoff
        Whether attention weights and the edge-degree embedding vanish smoothly at the cutoff. As released
        (``False``), the energy jumps when a neighbour crosses the cutoff.

    Raises
    ------
    ValueError
        If an atomic number has no row in the embedding table, or the lists of channels differ in length.
    """
    if max(elements) >= atom_types:
        symbol = chemical_symbols[max(elements)]
        raise ValueError(f"{symbol} has no row in the embedding; pass atom_types={max(elements) + 1} or more")
    if not len(channels) == len(head_channels) == len(feed_forward_channels):
        raise ValueError(
            f"{channels=}, {head_channels=} and {feed_forward_channels=} differ in largest degree"
        )
    frames = Frames(len(channels) - 1, parity=parity)
    paths = tensor_product_paths(len(channels) - 1, parity=parity)
    radial = (radial_basis, *radial_hidden)
    sizes = [channels] * blocks + [(features,)]
    layers = [
        Block(channels, out, paths, head_channels, feed_forward_channels, heads, radial) for out in sizes[1:]
    ]
    embedding = EdgeDegreeEmbedding(channels, paths, radial, average_neighbors)
    basis = ExponentialNormalBasis(radial_basis, cutoff)
    return Equiformer(frames, basis, embedding, layers, atom_types=atom_types, smooth_cutoff=smooth_cutoff)


class Equiformer(nn.Module):
    """The whole network (Section 4.3, Figure 1): embeddings, transformer blocks, scalar head."""

    def __init__(self, frames, basis, degree_embedding, blocks, *, atom_types, smooth_cutoff):
        super().__init__()
        self.frames, self.basis, self.degree_embedding = frames, basis, degree_embedding
        self.blocks = nn.ModuleList(blocks)
        self.smooth_cutoff = smooth_cutoff
        features = blocks[-1].out_channels[0]
        self.atom_embedding = nn.Parameter(torch.randn(atom_types, degree_embedding.channels[0]))
        self.atom_bias = nn.Parameter(torch.zeros(degree_embedding.channels[0]))
        self.norm = EquivariantLayerNorm((features,))
        self.head = nn.ModuleList([Linear((features,), (features,)), Linear((features,), (1,))])
        self.activation = UnitVariance(silu)

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, dimensionless, from edge vectors ``(E, 3)``, Å."""
        distances = vectors.norm(dim=1)
        rotations = self.frames(vectors / distances[:, None])
        geometry = (
            graph.edge_index,
            (rotations, self.frames.extend(rotations)),
            self.basis(distances),
            self.basis.envelope(distances)[:, None] if self.smooth_cutoff else None,
        )
        scalars = (self.atom_embedding[graph.species] + self.atom_bias)[:, None]
        first, *rest = self.degree_embedding(len(scalars), *geometry)
        x = [scalars + first, *rest]
        for block in self.blocks:
            x = block(x, *geometry)
        x = self.head[0](self.norm(x))
        (energy,) = self.head[1]([self.activation(x[0])])
        return energy[:, 0, 0] / AVERAGE_ATOMS**0.5


class ExponentialNormalBasis(nn.Module):
    r"""Radial basis :math:`\phi(r) e^{-\beta (e^{-5r/r_c} - \mu_k)^2}` of PhysNet, with a cosine envelope.

    The centres are evenly spaced between :math:`e^{-r_c}` and one.
    """

    def __init__(self, size, cutoff):
        super().__init__()
        start = math.exp(-cutoff)
        self.cutoff = cutoff
        self.beta = (2 / size * (1 - start)) ** -2
        self.register_buffer("centres", torch.linspace(start, 1, size), persistent=False)

    def envelope(self, distances):
        """Cosine envelope, zero with zero slope at the cutoff; same shape as ``distances``, Å."""
        return 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1) * (distances < self.cutoff)

    def forward(self, distances):
        """Basis functions, shape ``(E, K)``, of distances ``(E,)``, Å."""
        r = distances[:, None]
        closeness = torch.exp(-5 / self.cutoff * r)
        return self.envelope(r) * torch.exp(-self.beta * (closeness - self.centres) ** 2)


class Frames(nn.Module):
    r"""Rotations of features into a frame along each edge, where a product with harmonics is sparse.

    With the edge along the polar axis only :math:`Y_{l m}` with :math:`m = 0` is not zero, so a product
    couples order :math:`m` to :math:`\pm m` alone (Passaro & Zitnick, ICML 2023, arXiv:2302.03655). The angle
    about the edge is arbitrary; energies do not depend on it.

    Rows are ordered by :math:`m = 0, -1, 1, -2, 2, \dots`. Unless ``parity`` is set, two more rows for each
    :math:`m > 0` follow, :math:`(-x_m, x_{-m})`: the pair :math:`(x_{-m}, x_m)` turned by a quarter of a
    period.
    """

    def __init__(self, largest, *, parity):
        super().__init__()
        self.largest, self.parity = largest, parity
        for degree in range(2, largest + 1):
            self.register_buffer(f"raise_{degree}", self._recursion(degree), persistent=False)

    @staticmethod
    def _recursion(degree):
        """Map from products of entries of ``D_1`` and ``D_(degree-1)`` to those of ``D_degree``."""
        symbol = _wigner(1, degree - 1, degree)
        rows = symbol[_by_order(1)][:, _by_order(degree - 1)][:, :, _by_order(degree)]
        entries = torch.einsum("abm,xyk->axbymk", rows, symbol) * (2 * degree + 1)
        return entries.reshape(9 * (2 * degree - 1) ** 2, (2 * degree + 1) ** 2)

    def forward(self, directions):
        """Rotation matrices of ``l = 1, 2, ...`` for unit vectors ``(E, 3)``, list of ``(E, 2l+1, 2l+1)``."""
        helper = torch.eye(3, dtype=directions.dtype, device=directions.device)[
            directions.abs().argmin(dim=1)
        ]
        first = torch.nn.functional.normalize(torch.linalg.cross(directions, helper), dim=1)
        second = torch.linalg.cross(first, directions)
        rotations = [torch.stack([directions, first, second], dim=1)]
        for degree in range(2, self.largest + 1):
            products = (rotations[0].flatten(1)[:, :, None] * rotations[-1].flatten(1)[:, None]).flatten(1)
            entries = products @ getattr(self, f"raise_{degree}")
            rotations.append(entries.unflatten(1, (2 * degree + 1, 2 * degree + 1)))
        return rotations

    def extend(self, rotations):
        """The rotations with the turned rows appended."""
        if self.parity:
            return rotations
        return [torch.cat([d, self._turn(d)], dim=1) for d in rotations]

    @staticmethod
    def _turn(d):
        pairs = d[:, 1:].unflatten(1, (-1, 2))
        return torch.stack([-pairs[:, :, 1], pairs[:, :, 0]], dim=2).flatten(1, 2)


def _wigner(l1, l2, l3):
    return wigner_3j(l1, l2, l3, dtype=torch.get_default_dtype())


def _by_order(degree):
    """Positions of m = 0, -1, 1, -2, 2, ... among -l, ..., l.

    >>> _by_order(2)
    [2, 1, 3, 0, 4]
    """
    return [degree, *(degree + sign * m for m in range(1, degree + 1) for sign in (-1, 1))]


def tensor_product_paths(largest, *, parity):
    """Paths (l1, l2, l3) from a feature of degree l1 and harmonics of degree l2 to degree l3.

    >>> tensor_product_paths(1, parity=True)
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """
    return [
        (l1, l2, l3)
        for l1, l2, l3 in product(range(largest + 1), repeat=3)
        if abs(l1 - l2) <= l3 <= l1 + l2 and not (parity and (l1 + l2 + l3) % 2)
    ]


class Part(nn.Module):
    """The part of order ``±m`` and output degree ``l3`` of a depth-wise product: its places in the weights.

    Even paths, from ``m`` to ``m``, come before odd paths, from ``-m`` to ``m``; each are sorted by ``l1``.
    """

    def __init__(self, channels, paths, degree, order):
        super().__init__()
        into = [k for k, path in enumerate(paths) if path[2] == degree]
        coupled = [k for k in into if paths[k][0] >= order and (order or not _is_odd(paths[k]))]
        chosen = sorted(coupled, key=lambda k: _is_odd(paths[k]))
        columns = [0, *accumulate(channels[l1] for l1, _, _ in paths)]
        rows = dict(zip(into, accumulate((channels[paths[k][0]] for k in into), initial=0), strict=False))
        places = [0] * order + [0, *accumulate(channels[order:])]
        self.sources = [(paths[k][0], _is_odd(paths[k])) for k in chosen]
        self.widths = [channels[l1] for l1, _ in self.sources]
        self.even = sum(width for width, (_, odd) in zip(self.widths, self.sources, strict=True) if not odd)
        self._register("column", [columns[k] for k in chosen])
        self._register("row", [rows[k] for k in chosen])
        self._register("place", [places[l1] for l1, _ in self.sources])
        factors = torch.tensor([_factor(*paths[k], order) for k in chosen])
        factors = factors.repeat_interleave(torch.tensor(self.widths))[:, None]
        self.register_buffer("factor", factors, persistent=False)

    def _register(self, name, starts):
        """Register the indices of all channels of the paths, shape ``(K,)``, as a buffer."""
        index = [torch.arange(width) + start for width, start in zip(self.widths, starts, strict=True)]
        self.register_buffer(name, torch.cat(index), persistent=False)


def _is_odd(path):
    return sum(path) % 2 == 1


def _factor(l1, l2, l3, order):
    """Matrix element of a path in an edge's frame, from ``m`` (even) or ``-m`` (odd path) to ``m``."""
    source = -order if _is_odd((l1, l2, l3)) else order
    return float(_wigner(l1, l2, l3)[l1 + source, l2, l3 + order]) * ((2 * l3 + 1) * (2 * l2 + 1)) ** 0.5


class DepthwiseProduct(nn.Module):
    r"""Depth-wise product with harmonics (Section 4.1) in the frames of the edges, then a linear layer.

    A path :math:`(l_1, l_2, l_3)` couples degree :math:`l_1` of a feature with
    :math:`Y_{l_2}(\hat r)` to degree :math:`l_3` by :math:`\sqrt{2 l_3 + 1}` times the Wigner 3j symbol.
    Channels do not mix, and every path has its own weights. The channels of degree ``l3`` that enter the
    linear layer are those of all paths into ``l3``, in the order of the paths.

    Features by order are lists. Entry ``m`` has shape ``(E, 1, C)`` for ``m = 0``, else ``(E, 2, C)``, with
    ``-m`` before ``m``; its channels are those of all degrees ``l >= m``, concatenated.
    """

    def __init__(self, channels, paths):
        super().__init__()
        degrees = range(len(channels))
        self.channels = channels
        self.path_channels = [channels[l1] for l1, _, _ in paths]
        self.out_channels = [sum(channels[l1] for l1, _, l3 in paths if l3 == degree) for degree in degrees]
        self.parts = nn.ModuleList(
            nn.ModuleList(Part(channels, paths, l3, m) for l3 in degrees[m:]) for m in degrees
        )

    def message_maps(self, linear, radial, largest):
        """Matrix of the linear layer, and weight and bias of the path weights, of every part needed."""
        last = radial[-1]
        return [
            [
                (linear.weights[l3][p.row] * p.factor, last.weight[p.column], last.bias[p.column])
                for l3, p in enumerate(parts, m)
            ]
            for m, parts in enumerate(self.parts[: largest + 1])
        ]

    def value_maps(self, linear, largest):
        """One matrix per order for product and linear layer together, as no weight depends on the edge."""
        return [self._value_map(linear, m, largest) for m in range(largest + 1)]

    def _value_map(self, linear, m, largest):
        evens, odds = [], []
        for l3, part in enumerate(self.parts[m][: largest + 1 - m], m):
            weights = (linear.weights[l3] * linear.scales[l3])[part.row] * part.factor
            zero = weights.new_zeros(sum(self.channels[m:]), weights.shape[1])
            evens.append(zero.index_add(0, part.place[: part.even], weights[: part.even]))
            odds.append(zero.index_add(0, part.place[part.even :], weights[part.even :]))
        even, odd = torch.cat(evens, dim=1), torch.cat(odds, dim=1)
        if m == 0:
            return even
        return torch.cat([torch.cat([even, odd], dim=1), torch.cat([-odd, even], dim=1)])

    def forward(self, x, rotations, hidden, maps):
        """Product by order, each entry a list of degrees, of ``x`` on edges with :meth:`message_maps`."""
        rows = self._rotate(x, rotations)
        return [
            [self._couple(rows, m, part, hidden, *map_) for part, map_ in zip(parts, some, strict=True)]
            for m, (parts, some) in enumerate(zip(self.parts, maps, strict=False))
        ]

    @staticmethod
    def _couple(rows, m, part, hidden, matrix, weight, bias):
        features = torch.cat([rows[degree, m, odd] for degree, odd in part.sources], dim=-1)
        weighted = features * nn.functional.linear(hidden, weight, bias)[:, None]
        return (weighted.flatten(0, 1) @ matrix).unflatten(0, weighted.shape[:2])

    @staticmethod
    def _rotate(x, rotations):
        """Rows of the rotated features by (degree, order, whether the row is turned)."""
        rows = {(0, 0, False): x[0]}
        for degree, (feature, d) in enumerate(zip(x[1:], rotations, strict=True), 1):
            orders = range(1, degree + 1)
            keys = [(degree, 0, False), *((degree, m, odd) for odd in (False, True) for m in orders)]
            sizes = [1] + [2] * (d.shape[1] // 2)
            rows |= zip(keys, (d @ feature).split(sizes, dim=1), strict=False)
        return rows


class Linear(nn.Module):
    """Linear layer for each degree (Section 4.1); only scalars have a bias; weights have variance 1/fan-in.

    With ``scaled``, each input channel has one more weight, that of a depth-wise product whose weights do not
    depend on the distance.
    """

    def __init__(self, in_channels, out_channels, *, bias=True, scaled=False):
        super().__init__()
        pairs = list(zip(in_channels, out_channels, strict=False))
        self.weights = nn.ParameterList([torch.randn(i, o) / i**0.5 for i, o in pairs])
        self.scales = nn.ParameterList([torch.randn(i, 1) for i, _ in pairs] if scaled else [])
        self.bias = nn.Parameter(torch.zeros(out_channels[0])) if bias else None

    def forward(self, x):
        weights = list(self.weights)
        if len(self.scales):
            weights = [w * s for w, s in zip(weights, self.scales, strict=True)]
        y = [feature @ w for feature, w in zip(x, weights, strict=False)]
        if self.bias is not None:
            y[0] = y[0] + self.bias
        return y


class EquivariantLayerNorm(nn.Module):
    """Layer normalisation (Section 4.1): each degree is divided by its root mean square."""

    def __init__(self, channels, epsilon=1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.weights = nn.ParameterList([torch.ones(n) for n in channels])
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, x):
        centred = [x[0] - x[0].mean(dim=-1, keepdim=True), *x[1:]]
        y = [self._normalise(t) * w for t, w in zip(centred, self.weights, strict=False)]
        return [y[0] + self.bias, *y[1:]]

    def _normalise(self, t):
        return t * (t.square().mean(dim=(1, 2), keepdim=True) + self.epsilon).rsqrt()


class UnitVariance(nn.Module):
    """Activation scaled to a mean square of one for standard normal input.

    >>> round(UnitVariance(torch.nn.functional.silu).gain, 3)
    1.677
    """

    def __init__(self, function):
        super().__init__()
        self.function, self.gain = function, _gain(function)

    def forward(self, x):
        return self.function(x) * self.gain


@cache
def _gain(function):
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    return float((density.sum() / (density * function(z) ** 2).sum()) ** 0.5)


def smooth_leaky_relu(x, slope=0.2):
    """Leaky ReLU without a kink, used on attention logits (Section 4.2)."""
    return (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * torch.sigmoid(x) - 1)


class Gate(nn.Module):
    """Gate activation (Section 4.1): SiLU for scalars, a sigmoid of a scalar for each other channel."""

    def __init__(self, channels):
        super().__init__()
        self.sizes = list(channels)
        self.in_channels = (sum(channels), *channels[1:])
        self.scalar, self.gate = UnitVariance(silu), UnitVariance(torch.sigmoid)

    def forward(self, x):
        scalars, gates = x[0].split([self.sizes[0], sum(self.sizes[1:])], dim=-1)
        gates = self.gate(gates).split(self.sizes[1:], dim=-1)
        return [self.scalar(scalars), *(t * g for t, g in zip(x[1:], gates, strict=False))]


class RadialFunction(nn.Sequential):
    """Multilayer perceptron from the radial basis to weights of tensor products (Section 4.3).

    Because of its biases, above all the last one, the weights do not vanish at the cutoff.
    """

    def __init__(self, sizes):
        layers = []
        for before, after in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.SiLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))
        for layer in layers[::3]:
            nn.init.zeros_(layer.bias)

    def hidden(self, basis):
        """Activations before the last layer, shape ``(E, hidden)``."""
        for layer in list(self)[:-1]:
            basis = layer(basis)
        return basis


class EdgeDegreeEmbedding(nn.Module):
    """Embedding of the local geometry (Section 4.3): a constant times the harmonics, summed over edges.

    The constant is scalar, so only paths from ``l1 = 0`` contribute. The released model also holds the
    weights of the other paths, which have no effect; they are kept here so that the numbers of parameters
    agree.
    """

    def __init__(self, channels, paths, radial, average_neighbors):
        super().__init__()
        self.channels = channels
        self.product = DepthwiseProduct(channels, paths)
        self.constant = Linear((1,), channels[:1])
        self.radial = RadialFunction((*radial, sum(self.product.path_channels)))
        self.project = Linear(self.product.out_channels, channels)
        self.factor = average_neighbors**-0.5

    def forward(self, atoms, edge_index, rotations, basis, envelope):
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

    def __init__(self, channels, paths, head_channels, heads, radial):
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
        self._kept = frozen.Kept(self.message, self.value, self.radial[-1])

    def forward(self, x, edge_index, rotations, basis, envelope, largest):
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

    def maps(self, largest):
        """Matrices computed from the weights, cached between calls while the weights are frozen."""
        kept = self._kept.get(lambda: self._maps(largest))
        return self._maps(largest) if kept is None else kept

    def _maps(self, largest):
        messages = self.product.message_maps(self.message, self.radial, largest)
        return messages, self.product.value_maps(self.value, largest)

    def gated(self, coupled):
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

    def by_degree(self, values):
        """Features by degree, with rows sorted by order, from features by order."""
        widths = [w.shape[1] for w in self.value.weights][: len(values)]
        by_order = [v.split(widths[m:], dim=-1) for m, v in enumerate(values)]
        degrees = range(len(widths))
        return [torch.cat([by_order[m][degree - m] for m in range(degree + 1)], dim=1) for degree in degrees]

    def weights(self, logits, centre, atoms, envelope):
        """Attention weights, shape ``(E, heads)``."""
        logits = self.logit_activation(logits.unflatten(-1, (self.heads, -1)))
        return softmax_by_centre((logits * self.logit_weights).sum(dim=-1), centre, atoms, envelope)


def sum_by_centre(x, centre, atoms):
    """Sum over the edges of each atom, shape ``(N, ...)``, of ``x``, shape ``(E, ...)``."""
    return x.new_zeros(atoms, *x.shape[1:]).index_add(0, centre, x)


def softmax_by_centre(logits, centre, atoms, envelope=None):
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

    def __init__(self, channels, hidden_channels, out_channels):
        super().__init__()
        self.gate = Gate(hidden_channels)
        self.enter = Linear(channels, self.gate.in_channels)
        self.leave = Linear(hidden_channels, out_channels)

    def forward(self, x):
        return self.leave(self.gate(self.enter(x)))


class Block(nn.Module):
    """Transformer block (Section 4.3): attention and feed-forward network, pre-normalised, with residuals.

    Degrees that the block does not return are not computed.
    """

    def __init__(self, channels, out_channels, paths, head_channels, hidden_channels, heads, radial):
        super().__init__()
        self.out_channels = out_channels
        self.attention_norm = EquivariantLayerNorm(channels)
        self.attention = Attention(channels, paths, head_channels, heads, radial)
        self.feed_forward_norm = EquivariantLayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden_channels, out_channels)
        self.shortcut = Linear(channels, out_channels) if out_channels != channels else None

    def forward(self, x, *geometry):
        largest = len(self.out_channels) - 1
        x = _add(x, self.attention(self.attention_norm(x), *geometry, largest))
        change = self.feed_forward(self.feed_forward_norm(x))
        return _add(x if self.shortcut is None else self.shortcut(x), change)


def _add(x, y):
    """Sum of two features, up to the lower of their largest degrees."""
    return [a + b for a, b in zip(x, y, strict=False)]
