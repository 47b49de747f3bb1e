r"""Equiformer (Liao & Smidt, ICLR 2023, arXiv:2206.11990), written for periodic graphs.

What the paper calls irreps of degree :math:`l` is here a list of tensors, entry ``l`` of shape
``(N, 2l+1, C_l)`` with ``C_l`` channels on nodes, ``(E, 2l+1, C_l)`` on edges. Where the text and the
authors' code differ, this follows their model for MD17 (``graph_attention_transformer_nonlinear_exp_l2``),
down to the number of its parameters. Section numbers are the paper's.
"""

import math
from functools import cache
from itertools import product

import torch
from ase.data import chemical_symbols
from e3nn.o3 import wigner_3j
from torch import nn
from torch.nn.functional import silu

AVERAGE_ATOMS = 18.03065905448718  # atoms of a QM9 molecule, which the authors keep for MD17


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
    """Equiformer: one dimensionless energy per atom.

    Parameters
    ----------
    elements
        Atomic numbers.
    cutoff
        Largest distance of neighbours, Å.
    average_neighbors
        Mean number of neighbours of an atom; the edge-degree embedding is divided by its square root.
    channels
        Channels of the node features at l = 0, 1, ... (Table 15: embedding dimension).
    head_channels
        Channels of one attention head at l = 0, 1, ...
    feed_forward_channels
        Channels inside the feed-forward network at l = 0, 1, ...
    features
        Channels of the output feature, scalars only.
    blocks
        Transformer blocks.
    heads
        Attention heads.
    radial_basis
        Exponential-normal radial basis functions.
    radial_hidden
        Widths of the hidden layers of every radial function.
    atom_types
        Rows of the embedding table, one for each atomic number below this; 64 as released.
    parity
        Keep only products that respect reflections: the energy is invariant under O(3). As released
        (``False``), all features count as even and the energy changes under reflection.
    smooth_cutoff
        Let attention weights and the edge-degree embedding vanish smoothly at the cutoff. As released
        (``False``), the energy jumps when a neighbour crosses it.

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
    coupling = Coupling(len(channels) - 1, parity=parity)
    radial = (radial_basis, *radial_hidden)
    sizes = [channels] * blocks + [(features,)]
    layers = [
        Block(channels, out, coupling.paths, head_channels, feed_forward_channels, heads, radial)
        for out in sizes[1:]
    ]
    embedding = EdgeDegreeEmbedding(channels, coupling.paths, radial, average_neighbors)
    basis = ExponentialNormalBasis(radial_basis, cutoff)
    return Equiformer(coupling, basis, embedding, layers, atom_types=atom_types, smooth_cutoff=smooth_cutoff)


class Equiformer(nn.Module):
    """The whole network (Section 4.3, Figure 1): embeddings, transformer blocks, scalar head."""

    def __init__(self, coupling, basis, degree_embedding, blocks, *, atom_types, smooth_cutoff):
        super().__init__()
        self.coupling, self.basis, self.degree_embedding = coupling, basis, degree_embedding
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
        geometry = (
            graph.edge_index,
            self.coupling(vectors / distances[:, None]),
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
        """One at zero, zero at the cutoff, where its slope vanishes; same shape as ``distances``, Å."""
        return 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1) * (distances < self.cutoff)

    def forward(self, distances):
        """Basis functions, shape ``(E, K)``, of distances ``(E,)``, Å."""
        r = distances[:, None]
        closeness = torch.exp(-5 / self.cutoff * r)
        return self.envelope(r) * torch.exp(-self.beta * (closeness - self.centres) ** 2)


class Coupling(nn.Module):
    r"""Spherical harmonics, and products with them as one matrix per edge for all channels (Section 3).

    A path :math:`(l_1, l_2, l_3)` couples degree :math:`l_1` of a feature with
    :math:`Y_{l_2}(\hat r)` to degree :math:`l_3` by
    :math:`\sqrt{2 l_3 + 1}` times the Wigner 3j symbol. The matrices depend on directions only, so all
    blocks share them; where :math:`l_1` or :math:`l_2` is zero none is needed.

    >>> Coupling(1, parity=True).paths
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """

    def __init__(self, largest, *, parity):
        super().__init__()
        degrees = range(largest + 1)
        self.largest = largest
        self.paths = [
            (l1, l2, l3)
            for l1, l2, l3 in product(degrees, repeat=3)
            if abs(l1 - l2) <= l3 <= l1 + l2 and not (parity and (l1 + l2 + l3) % 2)
        ]
        for degree in degrees[2:]:
            self.register_buffer(f"raise_{degree}", self._recursion(degree), persistent=False)
        for degree in degrees[1:]:
            self.register_buffer(f"from_{degree}", self._tensor(degree), persistent=False)

    def _tensor(self, l1):
        """Linear map from all harmonics to the matrices of ``l1``, shape ``(H, R (2 l1 + 1))``."""
        rows = []
        for _, l2, l3 in (path for path in self.paths if path[0] == l1 and path[1] > 0):
            rows.append(torch.zeros((self.largest + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
            rows[-1][l2**2 : (l2 + 1) ** 2] = _wigner(l2, l3, l1) * (2 * l3 + 1) ** 0.5
        return torch.cat(rows, dim=1).flatten(1)

    def _recursion(self, degree):
        """Map from products of ``Y_1`` and ``Y_(degree-1)`` to ``Y_degree``."""
        symbol = _wigner(1, degree - 1, degree).flatten(0, 1)
        lower = self.harmonics(torch.eye(3)[:1], degree - 1)
        length = (_outer(lower[1], lower[-1]) @ symbol).norm()
        return symbol * ((2 * degree + 1) ** 0.5 / length)

    def harmonics(self, directions, largest):
        """Real spherical harmonics of unit vectors ``(E, 3)``, list of ``(E, 2l+1)``, norm ``sqrt(2l+1)``."""
        y = [torch.ones_like(directions[:, :1]), directions * 3**0.5]
        for degree in range(2, largest + 1):
            y.append(_outer(y[1], y[-1]) @ getattr(self, f"raise_{degree}"))
        return y[: largest + 1]

    def forward(self, directions):
        """Harmonics, list of ``(E, 2l+1, 1)``, and matrices of ``l1 > 0``, list of ``(E, R, 2 l1 + 1)``."""
        harmonics = self.harmonics(directions, self.largest)
        y = torch.cat(harmonics, dim=1)
        matrices = [
            (y @ getattr(self, f"from_{l1}")).unflatten(1, (-1, 2 * l1 + 1))
            for l1 in range(1, self.largest + 1)
        ]
        return [h[:, :, None] for h in harmonics], matrices


def _wigner(l1, l2, l3):
    return wigner_3j(l1, l2, l3, dtype=torch.get_default_dtype())


def _outer(a, b):
    return (a[:, :, None] * b[:, None]).flatten(1)


class DepthwiseProduct(nn.Module):
    """Depth-wise tensor product (Section 4.1): every channel is coupled alone, every path has its weights.

    The channels of degree ``l3`` of the result are those of all paths into it, in the order of the paths.
    """

    def __init__(self, channels, paths):
        super().__init__()
        degrees = range(len(channels))
        self.path_channels = [channels[l1] for l1, _, _ in paths]
        self.rows = [[2 * l3 + 1 for l1, l2, l3 in paths if l1 == degree and l2] for degree in degrees]
        self.into = [[k for k, path in enumerate(paths) if path[2] == degree] for degree in degrees]
        self.out_channels = [sum(self.path_channels[k] for k in into) for into in self.into]

    def forward(self, x, coupling, weights=None):
        """Result on edges from ``x`` on edges and weights of shape ``(E, sum(path_channels))``."""
        harmonics, matrices = coupling
        parts = [y * x[0] for y in harmonics]
        for feature, matrix, rows in zip(x[1:], matrices, self.rows[1:], strict=True):
            parts += [feature, *(matrix @ feature).split(rows, dim=1)]
        if weights is not None:
            per_path = weights[:, None].split(self.path_channels, dim=-1)
            parts = [p * w for p, w in zip(parts, per_path, strict=True)]
        return [torch.cat([parts[k] for k in into], dim=-1) for into in self.into]


class Linear(nn.Module):
    """Linear layer for each degree (Section 4.1); a bias for scalars only; weights of variance 1/fan-in.

    With ``scaled``, each input channel has one more weight, that of a depth-wise product whose weights
    do not depend on the distance.
    """

    def __init__(self, in_channels, out_channels, *, bias=True, scaled=False):
        super().__init__()
        pairs = [(i, o) for i, o in zip(in_channels, out_channels, strict=False)]
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
        y = [self._normalise(t) * w for t, w in zip(centred, self.weights, strict=True)]
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
        return [self.scalar(scalars), *(t * g for t, g in zip(x[1:], gates, strict=True))]


class RadialFunction(nn.Sequential):
    """Multilayer perceptron from the radial basis to weights of tensor products (Section 4.3).

    Its biases, and the final one most of all, leave weights that do not vanish at the cutoff.
    """

    def __init__(self, sizes):
        layers = []
        for before, after in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.SiLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))
        for layer in layers[::3]:
            nn.init.zeros_(layer.bias)


class EdgeDegreeEmbedding(nn.Module):
    """Embedding of the local geometry (Section 4.3): a constant times the harmonics, summed over edges.

    The constant is scalar, so only paths from ``l1 = 0`` contribute. The released model carries the weights
    of the others without effect; they are kept so that the number of parameters is its own.
    """

    def __init__(self, channels, paths, radial, average_neighbors):
        super().__init__()
        self.channels = channels
        self.product = DepthwiseProduct(channels, paths)
        self.constant = Linear((1,), channels[:1])
        self.radial = RadialFunction((*radial, sum(self.product.path_channels)))
        self.project = Linear(self.product.out_channels, channels)
        self.factor = average_neighbors**-0.5

    def forward(self, atoms, edge_index, coupling, basis, envelope):
        width = self.channels[0]
        (constant,) = self.constant([basis.new_ones(1, 1)])
        weights = self.radial(basis)[:, None, : width * len(self.channels)].split(width, dim=-1)
        maps = [constant.T * p[:width] for p in self.project.weights]
        y = [h * (w @ m) for h, w, m in zip(coupling[0], weights, maps, strict=True)]
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

    def forward(self, x, edge_index, coupling, basis, envelope):
        centre, neighbour = edge_index
        pairs = zip(self.from_centre(x), self.from_neighbour(x), strict=True)
        merged = [a.index_select(0, centre) + b.index_select(0, neighbour) for a, b in pairs]
        coupled = self.product(merged, coupling, self.radial(basis))
        scalars, *others = self.message(coupled)
        logits, scalars = scalars.split(self.sizes, dim=-1)
        weights = self.weights(logits[:, 0], centre, len(x[0]), envelope)
        value = self.value(self.product(self.gate([scalars, *others]), coupling))
        weighted = [(v.unflatten(-1, (self.heads, -1)) * weights[:, None, :, None]).flatten(2) for v in value]
        return self.project([sum_by_centre(v, centre, len(x[0])) for v in weighted])

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
    :math:`u_{ij} e^{z_{ij}} / (1 + \sum_k u_{ik} e^{z_{ik}})`, which vanish smoothly with :math:`u`, also
    for the only neighbour of an atom: the one stands for a neighbour that is always there and says nothing.

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
    """Transformer block (Section 4.3): attention and feed-forward network, each after a norm and added."""

    def __init__(self, channels, out_channels, paths, head_channels, hidden_channels, heads, radial):
        super().__init__()
        self.out_channels = out_channels
        self.attention_norm = EquivariantLayerNorm(channels)
        self.attention = Attention(channels, paths, head_channels, heads, radial)
        self.feed_forward_norm = EquivariantLayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden_channels, out_channels)
        self.shortcut = Linear(channels, out_channels) if out_channels != channels else None

    def forward(self, x, *geometry):
        x = _add(x, self.attention(self.attention_norm(x), *geometry))
        change = self.feed_forward(self.feed_forward_norm(x))
        return _add(x if self.shortcut is None else self.shortcut(x), change)


def _add(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]
