r"""How is NequIP evaluated with frozen weights? With channels last, and a hand-derived gradient.

The input of a layer are features :math:`h_i` of an atom of element :math:`z_i`, a list of kinds (degree and
parity). The messages :math:`m_i` are those of :mod:`~egraff_utils.models.frozen.messages`:

.. math::

    x_i = h_i A, \qquad m_i = \sum_{j} w(r_{ij}) \circ (M_{ij}\, x_j), \qquad
    a_i = m_i L + h_i S_{z_i}

    h'_{\mathrm{scalar}} = c\,\phi(a_{\mathrm{scalar}}), \qquad
    h'_{\mathrm{gated}} = c\,\phi(a_{\mathrm{gate}})\; a_{\mathrm{gated}}, \qquad
    \epsilon_i = h^{\mathrm{last}}_i R + b_{z_i}

where :math:`\phi` is the silu for even scalars and tanh for odd ones. The gradient passes through the same
steps in reverse:

.. math::

    \bar a_{\mathrm{gated}} = c\,\phi(a_{\mathrm{gate}})\,\bar h'_{\mathrm{gated}}, \quad
    \bar a_{\mathrm{gate}} = c\,\phi'(a_{\mathrm{gate}}) \sum_m a_{\mathrm{gated},m}\,
        \bar h'_{\mathrm{gated},m}, \quad
    \bar a_{\mathrm{scalar}} = c\,\phi'(a_{\mathrm{scalar}})\,\bar h'_{\mathrm{scalar}}

    \bar m_i = \bar a_i L^\top, \qquad \bar h_i = \bar x_i A^\top + \bar a_i S_{z_i}^\top

Functions of lengths and directions are evaluated for one direction of every pair of atoms. Linear layers of
the package and its normalisations are one matrix for each kind of features (``tried.csv``: "linear layers and
the self connection as one matrix for each kind of features").
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from e3nn import o3
from nequip.nn import ConvNetLayer, InteractionBlock, SequentialGraphNetwork
from nequip.nn._tp_scatter_base import TensorProductScatter
from nequip.nn.embedding import BesselEdgeLengthEncoding
from nequip.nn.mlp import DeepLinearMLP, ScalarMLPFunction
from torch import nn
from torch.nn.functional import silu

from egraff_utils.graph import AtomicGraph
from egraff_utils.models import frozen
from egraff_utils.models.frozen import geometry, messages, operators
from egraff_utils.models.frozen.convolution import Convolution, share_directions

if TYPE_CHECKING:
    from egraff_utils.models.nequip import NequIPNetwork


def freeze(network: "NequIPNetwork") -> "Frozen":
    """:class:`Frozen` of the adapter's network, with its current weights."""
    return Frozen(network.model.model.func, network.types)


def speed_up(network: nn.Module) -> None:
    """Make radial networks run once per pair instead of per edge, and tensor products as matrix products."""
    for block in [part for part in network.modules() if isinstance(part, InteractionBlock)]:
        share_directions(block.edge_mlp)
        if block.tp_scatter.tp.irreps_in2.lmax > 1:  # tried.csv: "where scalars and vectors are all there is"
            block.tp_scatter = Scatter(block.tp_scatter)


class Scatter(nn.Module):
    """``TensorProductScatter`` of the package, evaluated by a :class:`.Convolution`."""

    def __init__(self, plain: TensorProductScatter) -> None:
        super().__init__()
        self.tp = Convolution(plain.tp, torch.float64)  # the package computes its constants in float64 too

    def forward(
        self,
        x: torch.Tensor,
        edge_attr: torch.Tensor,
        edge_weight: torch.Tensor,
        edge_dst: torch.Tensor,
        edge_src: torch.Tensor,
    ) -> torch.Tensor:
        """Sums of messages from all neighbours; the arguments are those of the package."""
        return self.tp(x, edge_attr, edge_weight, (edge_src, edge_dst))


class Frozen(frozen.Frozen):
    """NequIP with the weights that it had when it was frozen.

    Parameters
    ----------
    model
        ``SequentialGraphNetwork`` of the package.
    types
        Types of the model, by atomic number.
    """

    def __init__(self, model: SequentialGraphNetwork, types: torch.Tensor) -> None:
        energy, embedding = model.per_type_energy_scale_shift, model.type_embed.embed_module.weight
        parts = [part for part in model.children() if isinstance(part, ConvNetLayer)]
        networks = [matrices(part.conv.edge_mlp) for part in parts]
        messages = [_messages(part, embedding) for part in parts]
        layers = [_layer(*both, embedding) for both in zip(parts, messages, strict=True)]
        elements = torch.eye(len(embedding)).to(embedding)[:, None, :, None]
        near, own = _enter(layers[0], [embedding.unsqueeze(1)], elements)
        (readout,) = matrices(model.per_atom_energy_readout.mlp_module)
        self.types = types
        self.constants = Constants(
            geometry=geometry.Geometry(
                radial_basis=radial_basis(model, model.bessel_encode, model.factor.factor),
                couplings=geometry.couplings(model.spharm.sh, embedding),
                size=model.spharm.sh.irreps_out.dim,
                networks=geometry.RadialNetworks.of(networks, messages),
            ),
            layers=layers,
            elements=elements,
            near=near,
            own=own,
            readout=readout * energy.scales,
            shift=energy.shifts,
        )

    def __call__(self, graph: AtomicGraph, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`egraff_utils.models.frozen.Frozen.__call__`."""
        types = self.types.index_select(0, graph.species)
        return operators.compiled(evaluate, vectors.device)(self.constants, vectors, graph.edge_index, types)


def _messages(layer: ConvNetLayer, like: torch.Tensor) -> messages.Messages:
    product = layer.conv.tp_scatter.tp
    return messages.Messages(product, _kinds(product.irreps_out.simplify()), like)


def _layer(layer: ConvNetLayer, messages: messages.Messages, embedding: torch.Tensor) -> "Layer":
    """:class:`Layer` of a ``ConvNetLayer`` of the package, its messages and the embedding of elements."""
    block, gate, product = layer.conv, layer.equivariant_nonlin, layer.conv.tp_scatter.tp
    inputs, middle = product.irreps_in1, product.irreps_out.simplify()
    near = block.linear_1(_eye(inputs, embedding)) * block.avg_num_neighbors_norm.norm_const
    own = [()] * len(embedding)
    if block.sc is not None:
        own = [gate.sc(block.sc(_eye(inputs, row), row.expand(inputs.dim, -1))) for row in embedding]
    outputs = gate.irreps_scalars, gate.irreps_gates, gate.irreps_gated
    enter = []
    for _, ir in inputs:
        there = _channels(near, inputs, inputs, ir)
        rows = [torch.cat([there, *_targets(dense, inputs, outputs, ir)], dim=1) for dense in own]
        enter.append(torch.cat(rows))
    leave = gate.sc(block.linear_2(_eye(middle, embedding)))
    if messages.scalar:
        leave = [messages.on_rows(matrix) for matrix in leave]
        middle = o3.Irreps([(len(leave[0]), middle[0].ir)])
    kinds = _kinds([*gate.irreps_scalars, *gate.irreps_gated])
    return Layer(
        sums=messages.sums,
        sizes=messages.sizes,
        enter=enter,
        leave=[operators.both(torch.cat(_targets(leave, middle, outputs, ir), dim=1)) for ir in kinds],
        around=[_kinds(middle).index(ir) for ir in kinds],
        before=[_kinds(inputs).index(ir) if own[0] and ir in _kinds(inputs) else -1 for ir in kinds],
        dims=[ir.dim for ir in kinds],
        factors=[act.cst for act in gate.act_scalars.acts],
        odd=[ir.p < 0 for _, ir in gate.irreps_scalars],
    )


class Layer(NamedTuple):
    """Constants of a layer; T elements, U channels."""

    sums: messages.Sums
    sizes: list[int]
    """Number of values of each kind of messages that an atom receives."""
    enter: list[torch.Tensor]
    """Matrices from each kind of features, with ``T * U`` rows, to messages and self connections."""
    leave: list[list[torch.Tensor]]
    """Matrices, by `both`, from messages to each kind of new features; scalars include their gates."""
    around: list[int]
    """Kind of messages from which each kind of new features is computed."""
    before: list[int]
    """Kind of features in the self connection of each kind of new features, or -1."""
    dims: list[int]
    """Number of components of the new features."""
    factors: list[float]
    """Factor of the nonlinearity of each kind of scalars."""
    odd: list[bool]
    """Whether scalars are odd, and have tanh instead of silu."""


class Constants(NamedTuple):
    """Inputs of :func:`evaluate` other than the vectors of edges."""

    geometry: geometry.Geometry
    layers: list[Layer]
    elements: torch.Tensor
    """One-hot rows of the elements, shape ``(T, 1, T, 1)``."""
    near: torch.Tensor
    """Features that neighbours receive in the first layer, by element, shape ``(T, D, U)``."""
    own: list[torch.Tensor]
    """Self connection of the first layer by element, a list of kinds."""
    readout: torch.Tensor
    shift: torch.Tensor
    """Energy of each element."""


def evaluate(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of the atoms, shape ``(N,)``, and the gradient of their sum with respect to vectors."""
    energies, shared, of_layers = _energies(of, vectors, edge_index, types)
    return energies, _gradient(of, shared, of_layers)


def _energies(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor
) -> tuple[torch.Tensor, list[list[torch.Tensor]], list[list[list[torch.Tensor]]]]:
    """Energies of the atoms; also intermediate results, shared and by layer, for :func:`_gradient`."""
    harmonics, weights, kept = geometry.of_pairs(of.geometry, vectors)
    ends = edge_index[:, : len(harmonics)].T
    neighbour, centre = ends.flip(1).flatten(), ends.flatten()
    one_hot = of.elements.index_select(0, types)
    near, own = of.near.index_select(0, types), [x.index_select(0, types) for x in of.own]
    features: list[torch.Tensor] = []
    nears: list[torch.Tensor] = []
    of_layers: list[list[list[torch.Tensor]]] = []
    for n, layer in enumerate(of.layers):
        if n > 0:
            near, own = _enter(layer, features, one_hot)
        nears.append(near)
        given = messages.Given(near, harmonics, weights[n], neighbour, centre)
        total, products = messages.sum_messages(layer.sums, given)
        kinds = _leave(layer, total, own)
        features, activated = _gated(layer, kinds)
        of_layers.append([products, kinds, activated])
    energy = torch.addmm(of.shift, features[0].squeeze(1), of.readout).squeeze(1)
    return energy, kept + [[harmonics, neighbour, centre, one_hot], weights, nears], of_layers


def _gradient(
    of: Constants, shared: list[list[torch.Tensor]], of_layers: list[list[list[torch.Tensor]]]
) -> torch.Tensor:
    """Gradient of the sum of all energies with respect to vectors, from intermediate results."""
    edges, weights, nears = shared[3:]
    harmonics, neighbour, centre, one_hot = edges
    on_harmonics = torch.zeros_like(harmonics)
    on_weights: list[torch.Tensor] = []
    on_features = [of.readout.T.expand(len(one_hot), -1).unsqueeze(1)]
    for n in range(len(of.layers) - 1, -1, -1):
        layer = of.layers[n]
        products, kinds, activated = of_layers[n]
        on_kinds = _on_gated(layer, on_features, kinds, activated)
        given = messages.Given(nears[n], harmonics, weights[n], neighbour, centre)
        wanted = torch.zeros_like(nears[n]) if n > 0 else None
        on_total = _on_messages(layer, on_kinds)
        found = messages.on_messages(layer.sums, given, products, on_total, wanted, on_harmonics)
        on_weights.insert(0, found)
        if wanted is not None:
            on_features = _on_entered(layer, wanted, on_kinds, of.layers[n - 1].dims, one_hot)
    return geometry.on_pairs(of.geometry, on_harmonics, on_weights, shared[:3])


def _enter(
    of: Layer, features: list[torch.Tensor], one_hot: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Features that neighbours receive, ``(N, D, U)``, and self connection, from kinds ``(N, 2l + 1, U)``."""
    near: list[torch.Tensor] = []
    own: list[torch.Tensor] = []
    for n, x in enumerate(features):
        if one_hot.shape[2] > 1:
            x = (one_hot * x.unsqueeze(2)).flatten(2)
        both = x @ of.enter[n]
        near.append(both[:, :, : of.sums.channels])
        own.append(both[:, :, of.sums.channels :])
    return torch.cat(near, 1), own


def _on_entered(
    of: Layer, on_near: torch.Tensor, on_kinds: list[torch.Tensor], dims: list[int], one_hot: torch.Tensor
) -> list[torch.Tensor]:
    """Gradient with respect to the features, from those of the results of :func:`_enter`.

    ``dims`` are the numbers of components of the features.
    """
    on_features: list[torch.Tensor] = []
    parts, elements = on_near.split(dims, 1), one_hot.shape[2]
    for n, part in enumerate(parts):
        slope = part @ of.enter[n][:, : of.sums.channels].T
        for k, before in enumerate(of.before):
            if before == n:
                slope = slope + on_kinds[k] @ of.enter[n][:, of.sums.channels :].T
        if elements > 1:
            slope = (slope.view(len(slope), dims[n], elements, -1) * one_hot).sum(2)
        on_features.append(slope)
    return on_features


def _leave(of: Layer, total: torch.Tensor, own: list[torch.Tensor]) -> list[torch.Tensor]:
    """Kinds of new features before their nonlinearity, ``(N, 2l + 1, channels)``."""
    found: list[torch.Tensor] = []
    around = total.split(of.sizes, 1)
    for n, matrix in enumerate(of.leave):
        rows = around[of.around[n]].reshape(len(total) * of.dims[n], -1)
        x = operators.times(rows, matrix[0]).view(len(total), of.dims[n], -1)
        found.append(x if of.before[n] < 0 else x + own[of.before[n]])
    return found


def _on_messages(of: Layer, on_kinds: list[torch.Tensor]) -> torch.Tensor:
    """Gradient with respect to the messages, from that of the results of :func:`_leave`."""
    atoms = len(on_kinds[0])
    on_total = on_kinds[0].new_zeros([atoms, sum(of.sizes)])
    parts = on_total.split(of.sizes, 1)
    for n, matrix in enumerate(of.leave):
        slope = operators.times(on_kinds[n].flatten(0, 1), matrix[1])
        parts[of.around[n]].copy_(slope.view(atoms, -1))
    return on_total


def _gated(of: Layer, kinds: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """New features, and activated scalars, each followed by the gates of its kind."""
    activated: list[torch.Tensor] = []
    gates: list[torch.Tensor] = []
    features: list[torch.Tensor] = []
    for n, odd in enumerate(of.odd):
        activated.append((torch.tanh(kinds[n]) if odd else silu(kinds[n])) * of.factors[n])
        parts = activated[n].split(of.sums.channels, 2)
        features.append(parts[0])
        gates += parts[1:]
    for n, gate in enumerate(gates):
        features.append(gate * kinds[len(of.odd) + n])
    return features, activated


def _on_gated(
    of: Layer, on_features: list[torch.Tensor], kinds: list[torch.Tensor], activated: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Gradient with respect to the input of :func:`_gated`."""
    scalars, gates = len(of.odd), 0
    on_scalars: list[torch.Tensor] = []
    on_gated: list[torch.Tensor] = []
    for n, odd in enumerate(of.odd):
        slopes, parts = [on_features[n]], activated[n].split(of.sums.channels, 2)
        for gate in parts[1:]:
            on_feature, x = on_features[scalars + gates], kinds[scalars + gates]
            slopes.append((on_feature * x).sum(1, keepdim=True))
            on_gated.append(on_feature * gate)
            gates += 1
        slope = torch.cat(slopes, 2) * of.factors[n]
        if odd:
            value = activated[n] / of.factors[n]
            on_scalars.append(slope * (1 - value * value))
        else:
            on_scalars.append(operators.silu_backward(slope, kinds[n]))
    return on_scalars + on_gated


def _targets(
    dense: Sequence[torch.Tensor], irreps: o3.Irreps, outputs: Sequence[o3.Irreps], ir: o3.Irrep
) -> list[torch.Tensor]:
    """Parts of matrices from irreps to the scalars, gates and gated features of a kind; none if absent."""
    parts = zip(dense, outputs, strict=False)
    return [_channels(matrix, irreps, columns, ir) for matrix, columns in parts if ir in _kinds(columns)]


def _kinds(irreps: o3.Irreps) -> list[o3.Irrep]:
    return [kind for _, kind in irreps]


def _channels(matrix: torch.Tensor, rows: o3.Irreps, columns: o3.Irreps, ir: o3.Irrep) -> torch.Tensor:
    """The part of a matrix between irreps that maps a kind to the same kind, for one component."""
    part = [irreps.slices()[_kinds(irreps).index(ir)] for irreps in (rows, columns)]
    return matrix[tuple(part)][:: ir.dim, :: ir.dim].contiguous()


def _eye(irreps: o3.Irreps, like: torch.Tensor) -> torch.Tensor:
    return torch.eye(irreps.dim).to(like)


def radial_basis(
    model: SequentialGraphNetwork, basis: BesselEdgeLengthEncoding, factor: float = 1.0
) -> geometry.RadialBasis:
    """:class:`~egraff_utils.models.frozen.geometry.RadialBasis` of a basis of the package times a factor."""
    cutoff = 1 / model.edge_norm._rmax_recip.item()
    roots = basis.bessel_weights * (torch.pi / cutoff)
    return geometry.RadialBasis(roots, float(factor * cutoff / torch.pi), cutoff, float(basis.cutoff.p))


def matrices(mlp: ScalarMLPFunction) -> list[torch.Tensor]:
    """Scaled weights of all layers of a ``ScalarMLPFunction``, or their product if it is linear."""
    if isinstance(mlp.mlp, DeepLinearMLP):
        return [torch.linalg.multi_dot(list(mlp.mlp.weights)) * mlp.mlp.alpha]
    return [layer.weight * layer.alpha for layer in mlp.mlp if hasattr(layer, "weight")]
