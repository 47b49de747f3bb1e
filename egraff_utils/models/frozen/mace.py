r"""How are MACE and BOTNet evaluated with frozen weights? With channels last, and a hand-derived gradient.

The input of a layer are features :math:`h_i` of an atom of element :math:`z_i`. The messages :math:`m_i` are
those of :mod:`~egraff_utils.models.frozen.messages`, and :math:`B` is the contraction of
:mod:`~egraff_utils.models.frozen.contraction`:

.. math::

    x_i = h_i U, \qquad m_i = \sum_{j} w(r_{ij}) \circ (M_{ij}\, x_j), \qquad
    h'_i = B_{z_i}(m_i V)\, L + h_i S_{z_i}

    \epsilon_i = e_{z_i} + \sum_{\mathrm{layers}} h'_i R, \qquad
    \text{in the last layer} \quad \mathrm{silu}(h'_i R_1)\, R_2

The gradient passes through the same steps in reverse; :math:`\bar h'` has contributions of the next layer and
of the readout:

.. math::

    \bar h'_i \mathrel{+}= R^\top \quad \text{or} \quad
    \left( R_2^\top \circ \mathrm{silu}'(h'_i R_1) \right) R_1^\top, \qquad
    \bar m_i = \bar B_{z_i}(\bar h'_i L^\top)\, V^\top, \qquad
    \bar h_i = \bar x_i U^\top + \bar h'_i S_{z_i}^\top

Features of atoms have shape ``(N, D * U)``, those of edges ``(E, components, U)``. Channels are last, so that
rows are long. A linear module of e3nn is one matrix per degree, batched by component, and quantities that
depend only on the elements are kept for a system (``tried.csv``: "MACE and BOTNet with frozen weights").

Symbols: N atoms, E edges, Z elements, U channels, P paths of a convolution, K components of all paths
together, D components of features, one for each degree and order.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from torch import nn
from torch.nn.functional import silu

from egraff_utils.graph import AtomicGraph
from egraff_utils.models import frozen
from egraff_utils.models.frozen import geometry, messages, operators
from egraff_utils.models.frozen.contraction import OfContraction, contracted, contraction_of, on_contracted
from egraff_utils.models.frozen.convolution import Convolution, share_directions

if TYPE_CHECKING:
    from mace.modules import (
        EquivariantProductBasisBlock,
        InteractionBlock,
        LinearReadoutBlock,
        NonLinearReadoutBlock,
        ScaleShiftMACE,
    )

    from egraff_utils.models.mace import MACENetwork


def freeze(network: "MACENetwork") -> "Frozen":
    """:class:`Frozen` of the adapter's network, with its current weights."""
    return Frozen(network.model, network.one_hot)


def speed_up(network: "MACENetwork") -> None:
    """Make radial networks run once per pair instead of per edge, and tensor products as matrix products."""
    for interaction in network.model.interactions:
        share_directions(interaction.conv_tp_weights)  # type: ignore[arg-type]
        if interaction.conv_tp.irreps_in2.lmax > 1:  # tried.csv: "where scalars and vectors are all there is"
            interaction.conv_tp = Convolution(interaction.conv_tp)
            # The package then passes the edges and expects sums of messages.
            interaction.conv_fusion = True  # type: ignore[assignment]


class Frozen(frozen.Frozen):
    """MACE with the weights that it had when it was frozen.

    Internally, atoms are sorted by element.

    Parameters
    ----------
    model
        ``ScaleShiftMACE``.
    one_hot
        Element of each atomic number, shape ``(119, Z)``.
    """

    def __init__(self, model: "ScaleShiftMACE", one_hot: torch.Tensor) -> None:
        basis, envelope = model.radial_embedding.bessel_fn, model.radial_embedding.cutoff_fn
        cutoff, exponent = envelope.r_max.item(), envelope.p.item()
        scale, shift = model.scale_shift.scale, model.scale_shift.shift
        parts = zip(model.interactions, model.products, model.readouts, strict=True)
        self.layers = [Layer(*modules, scale) for modules in parts]  # type: ignore[arg-type]
        networks = [_radial_matrices(interaction.conv_tp_weights) for interaction in model.interactions]
        self.geometry = geometry.Geometry(
            radial_basis=geometry.RadialBasis(basis.bessel_weights, basis.prefactor.item(), cutoff, exponent),
            couplings=geometry.couplings(model.spherical_harmonics, one_hot),
            size=model.spherical_harmonics.irreps_out.dim,
            networks=geometry.RadialNetworks.of(networks, [layer.messages for layer in self.layers]),
        )
        self.types, elements = one_hot.argmax(1), one_hot.new_ones(one_hot.shape[1]).diag()
        self.energies = model.atomic_energies_fn.atomic_energies.view(-1, 1).to(one_hot) + shift
        features, first = model.node_embedding.linear(elements), self.layers[0]
        self.near = features @ first.up[0][0]
        own = torch.bmm(features.unsqueeze(1), first.own[0][0]).squeeze(1)
        self.own = nn.functional.pad(own, (0, (first.size - 1) * own.shape[1]))
        self._atoms: Atoms | None = None

    def __call__(self, graph: AtomicGraph, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`egraff_utils.models.frozen.Frozen.__call__`."""
        atoms, species = self._atoms, graph.species
        if atoms is None or atoms.species is not species or atoms.version != species._version:
            atoms = self._atoms = Atoms(species, self)
        return operators.compiled(evaluate, vectors.device)(atoms.constants, vectors, graph.edge_index)


class Atoms:
    """Quantities that depend only on the elements of the atoms, and the order by element.

    Parameters
    ----------
    species
        Atomic numbers, shape ``(N,)``.
    frozen
        :class:`Frozen`.
    """

    def __init__(self, species: torch.Tensor, frozen: Frozen) -> None:
        self.species, self.version = species, species._version
        order = frozen.types[species].argsort(stable=True)
        types = frozen.types[species[order]]
        present, places = types.unique(return_inverse=True)
        self.constants = Constants(
            geometry=frozen.geometry,
            layers=[layer.of_atoms(types, present) for layer in frozen.layers],
            rank=order.argsort(),
            one_hot=nn.functional.one_hot(places, len(present)).view(len(types), 1, -1, 1).to(frozen.near),
            near=frozen.near[types],
            own=frozen.own[types],
            energies=frozen.energies[types],
        )


def _radial_matrices(network: "FullyConnectedNet") -> list[torch.Tensor]:
    """Weights of an ``e3nn.nn.FullyConnectedNet``, times the factors of the layers and of their silu."""
    matrices, factor = [], 1.0
    for layer in network:
        matrices.append(layer.weight * (factor / layer.h_in**0.5))
        factor = layer.act.cst if layer.act is not None else 1.0
    return matrices


class Layer:
    """Messages from the neighbours, their contraction, and the self connection of an atom's own features.

    A linear map of features is a list of matrices, one for each degree, shape ``(2l + 1, rows, columns)``.

    Parameters
    ----------
    interaction, product, readout
        Modules of the package.
    scale
        Scale of the energies.
    """

    def __init__(
        self,
        interaction: "InteractionBlock",
        product: "EquivariantProductBasisBlock",
        readout: "LinearReadoutBlock | NonLinearReadoutBlock",
        scale: torch.Tensor,
    ) -> None:
        linear: o3.Linear = product.linear  # type: ignore[assignment]  # what mace's wrapper returns
        irreps_in, irreps_out = interaction.node_feats_irreps, linear.irreps_out
        degrees, kept = range(irreps_in.lmax + 1), range(min(irreps_in.lmax, irreps_out.lmax) + 1)
        contractions = product.symmetric_contractions.contractions  # type: ignore[attr-defined]
        self.contraction = contraction_of(contractions)
        kinds = [o3.Irrep(n, (-1) ** n) for n in range(self.contraction.degrees)]
        self.messages = messages.Messages(interaction.conv_tp, kinds, linear.weight)
        mix = [_matrix(interaction.linear, n) / interaction.avg_num_neighbors for n in range(len(kinds))]
        self.mix = _by_component([self.messages.on_rows(matrix) for matrix in mix])
        self.up = _by_component([_matrix(interaction.linear_up, n) for n in degrees])
        self.linear = _by_component([_matrix(linear, n) for n in range(irreps_out.lmax + 1)])
        self.size = (irreps_out.lmax + 1) ** 2
        skip = interaction.skip_tp
        elements = linear.weight.new_ones(skip.irreps_in2.dim).diag()
        self.own = _by_component([torch.stack([_matrix(skip, n, e) for e in elements]) for n in kept])
        self.readout = _readout(readout, scale)

    def of_atoms(self, types: torch.Tensor, present: torch.Tensor) -> "OfLayer":
        """:class:`OfLayer` constants for atoms that are sorted by these elements."""
        mix, linear = self.mix, self.linear
        weights, contraction = self.contraction.of_atoms(types, present)
        if weights is not None and len(present) == 1:  # the whole product is one linear map
            factors = weights[0].view(self.size, 1, -1).split([len(matrix) for matrix in mix])
            mix = [(m * w) @ matrix for m, w, matrix in zip(mix, factors, linear, strict=True)]
            weights, linear = None, []
        return OfLayer(
            sums=self.messages.sums,
            up=_joined(self.up),
            own=_joined([matrix[:, present].flatten(1, 2) for matrix in self.own]),
            mix=_joined(mix),
            weights=weights,
            contraction=contraction,
            linear=_joined(linear),
            readout=self.readout,
        )


SMALL = 2**14
"""Largest size of a block matrix, mostly zeros, that is faster than one matrix for each degree
(``tried.csv``: "one matrix of blocks mixes all paths")."""


def _by_component(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Matrices of the degrees, repeated for their components, shape ``(2l + 1, ..., rows, columns)``."""
    return [matrix.expand(2 * n + 1, *matrix.shape) for n, matrix in enumerate(matrices)]


def _joined(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A linear map of all components, as one matrix ``(1, rows, columns)`` if that is faster."""
    rows, columns = (sum(len(matrix) * matrix.shape[n] for matrix in matrices) for n in (1, 2))
    if not matrices or rows * columns > SMALL:
        return [matrix.contiguous() for matrix in matrices]
    return [torch.block_diag(*[part for matrix in matrices for part in matrix]).unsqueeze(0)]


def _readout(
    readout: "LinearReadoutBlock | NonLinearReadoutBlock", scale: torch.Tensor
) -> list[torch.Tensor]:
    """Matrices of a readout: one, or two with a silu between them."""
    if not hasattr(readout, "non_linearity"):
        return [_matrix(readout.linear, 0) * scale]
    factor = readout.non_linearity.acts[0].cst * scale
    return [_matrix(readout.linear_1, 0), _matrix(readout.linear_2, 0) * factor]


def _channels(irreps: o3.Irreps, degree: int) -> list[int]:
    """Indices of the first components of all channels of a degree."""
    places = [
        range(part.start, part.stop, ir.dim)
        for part, (_, ir) in zip(irreps.slices(), irreps, strict=True)
        if ir.l == degree
    ]
    return [place for part in places for place in part]


def _matrix(
    linear: o3.Linear | o3.FullyConnectedTensorProduct, degree: int, *second: torch.Tensor
) -> torch.Tensor:
    """Matrix that an e3nn linear module applies to each component of a degree, given its second argument."""
    irreps = linear.irreps_in1 if second else linear.irreps_in
    rows, columns = _channels(irreps, degree), _channels(linear.irreps_out, degree)
    x = linear.weight.new_zeros(len(rows), irreps.dim)
    x[range(len(rows)), rows] = 1
    return linear(x, *[y.expand(len(rows), -1) for y in second])[:, columns]


class OfLayer(NamedTuple):
    """Constants of a :class:`Layer`; lists of tensors are linear maps in the form of :func:`_joined`."""

    sums: messages.Sums
    up: list[torch.Tensor]
    """Map from features to the features that neighbours receive."""
    own: list[torch.Tensor]
    """Map of the self connection, from features, by element."""
    mix: list[torch.Tensor]
    """Map from messages to the input of the contraction."""
    weights: torch.Tensor | None
    """Weights of a contraction of order one, unless they are part of ``mix``."""
    contraction: OfContraction | None
    """Contraction of higher order."""
    linear: list[torch.Tensor]
    """Map from the contraction to new features; empty if it is part of ``mix``."""
    readout: list[torch.Tensor]


class Constants(NamedTuple):
    """Inputs of :func:`evaluate` other than the vectors of edges."""

    geometry: geometry.Geometry
    layers: list[OfLayer]
    rank: torch.Tensor
    """Position of each atom in the order by element."""
    one_hot: torch.Tensor
    """One-hot elements of the atoms, among those present, shape ``(N, 1, Z, 1)``."""
    near: torch.Tensor
    """Features that neighbours receive in the first layer."""
    own: torch.Tensor
    """Self connection of the first layer."""
    energies: torch.Tensor
    """Energies of atoms without neighbours, shape ``(N, 1)``."""


def evaluate(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of the atoms, shape ``(N,)``, and the gradient of their sum with respect to vectors."""
    energies, shared, of_layers = _energies(of, vectors, edge_index)
    return energies, _gradient(of, shared, of_layers)


def _energies(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor
) -> tuple[torch.Tensor, list[list[torch.Tensor]], list[list[list[torch.Tensor]]]]:
    """Energies of the atoms; also intermediate results, shared and by layer, for :func:`_gradient`."""
    harmonics, weights, kept = geometry.of_pairs(of.geometry, vectors)
    pairs = len(harmonics)
    ends = of.rank.index_select(0, edge_index[:, :pairs].T.flatten())
    neighbour, centre = ends, ends.view(pairs, 2).flip(1).flatten()
    x, energy = of.near, of.energies
    nears: list[torch.Tensor] = []
    of_layers: list[list[list[torch.Tensor]]] = []
    for n, layer in enumerate(of.layers):
        near = _times(x, layer.up, None) if n > 0 else of.near
        own = _own(of, layer, x) if n > 0 else of.own
        nears.append(near.view(len(near), layer.sums.components, layer.sums.channels))
        given = messages.Given(nears[n], harmonics, weights[n], neighbour, centre)
        total, products = messages.sum_messages(layer.sums, given)
        slopes: list[torch.Tensor] = []
        if len(layer.linear) > 0:
            contracted, slopes = _contracted(layer, _times(total, layer.mix, None))
            x = _times(contracted, layer.linear, own)
        else:
            x = _times(total, layer.mix, own)
        energy, hidden = _read(layer, x, energy)
        of_layers.append([products, slopes, hidden])
    shared = kept + [[harmonics, neighbour, centre], weights, nears]
    return energy.squeeze(1).index_select(0, of.rank), shared, of_layers


def _gradient(
    of: Constants, shared: list[list[torch.Tensor]], of_layers: list[list[list[torch.Tensor]]]
) -> torch.Tensor:
    """Gradient of the sum of all energies with respect to vectors, from intermediate results."""
    edges, weights, nears = shared[3:]
    harmonics, neighbour, centre = edges
    slope = torch.ones_like(of.energies)
    on_harmonics, on_x = torch.zeros_like(harmonics), slope
    on_weights: list[torch.Tensor] = []
    for n in range(len(of.layers) - 1, -1, -1):
        layer = of.layers[n]
        products, slopes, hidden = of_layers[n]
        on_scalars = _on_scalars(layer, slope, hidden)
        if n + 1 < len(of.layers):
            on_x[:, : on_scalars.shape[1]] += on_scalars
        else:
            on_x = on_scalars
        on_mixed = on_x
        if len(layer.linear) > 0:
            on_mixed = _on_contracted(layer, _times(on_x, _transposed(layer.linear), None), slopes)
        on_total = _times(on_mixed, _transposed(layer.mix), None)
        given = messages.Given(nears[n], harmonics, weights[n], neighbour, centre)
        on_near = torch.zeros_like(nears[n]) if n > 0 else None
        found = messages.on_messages(layer.sums, given, products, on_total, on_near, on_harmonics)
        on_weights.insert(0, found)
        if on_near is not None:
            on_own = _on_own(of, layer, on_x)
            on_x = _times(on_near.flatten(1), _transposed(layer.up), None)
            on_x[:, : on_own.shape[1]] += on_own
    return geometry.on_pairs(of.geometry, on_harmonics, on_weights, shared[:3])


def _times(x: torch.Tensor, matrices: list[torch.Tensor], plus: torch.Tensor | None) -> torch.Tensor:
    """Rows of atoms after a linear map of all components, plus ``plus`` if it is not None."""
    if len(matrices) == 1 and matrices[0].shape[0] == 1:
        return x @ matrices[0][0] if plus is None else torch.addmm(plus, x, matrices[0][0])
    found: list[torch.Tensor] = []
    parts = x.split([matrix.shape[0] * matrix.shape[1] for matrix in matrices], 1)
    for n, matrix in enumerate(matrices):
        rows = parts[n].view(len(x), matrix.shape[0], matrix.shape[1]).transpose(0, 1)
        found.append(torch.bmm(rows, matrix).transpose(0, 1).flatten(1))
    total = torch.cat(found, 1)
    return total if plus is None else total.add_(plus)


def _transposed(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    return [matrix.transpose(1, 2) for matrix in matrices]


def _own(of: Constants, layer: OfLayer, x: torch.Tensor) -> torch.Tensor:
    """Self connection of the atoms' features."""
    elements, channels = of.one_hot.shape[2], layer.sums.channels
    rows = sum([matrix.shape[0] * matrix.shape[2] for matrix in layer.own])
    x = x[:, :rows]
    if elements > 1:
        x = (x.view(len(x), -1, 1, channels) * of.one_hot).flatten(1)
    return _times(x, layer.own, None)


def _on_own(of: Constants, layer: OfLayer, slope: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to the features, from that of the self connection."""
    elements, channels = of.one_hot.shape[2], layer.sums.channels
    slope = _times(slope, _transposed(layer.own), None)
    if elements > 1:
        slope = (slope.view(len(slope), -1, elements, channels) * of.one_hot).sum(2).flatten(1)
    return slope


def _read(layer: OfLayer, x: torch.Tensor, energy: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Energies plus those of a layer, and the input of the nonlinearity of its readout, if it has one."""
    scalars = x[:, : layer.readout[0].shape[0]]
    if len(layer.readout) == 1:
        return torch.addmm(energy, scalars, layer.readout[0]), []
    hidden = scalars @ layer.readout[0]
    return torch.addmm(energy, silu(hidden), layer.readout[1]), [hidden]


def _on_scalars(layer: OfLayer, slope: torch.Tensor, hidden: list[torch.Tensor]) -> torch.Tensor:
    """Gradient with respect to the scalars, from that of the energies."""
    if len(hidden) > 0:
        slope = operators.silu_backward(slope @ layer.readout[1].T, hidden[0])
    return slope @ layer.readout[0].T


def _contracted(layer: OfLayer, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Contraction of mixed messages, shape ``(N, D * U)``, and slopes for :func:`_on_contracted`."""
    weights, contraction = layer.weights, layer.contraction
    slopes: list[torch.Tensor] = []
    if contraction is not None:
        return contracted(contraction, x, layer.sums.channels)
    return x if weights is None else x * weights, slopes


def _on_contracted(layer: OfLayer, gradient: torch.Tensor, slopes: list[torch.Tensor]) -> torch.Tensor:
    """Gradient with respect to the mixed messages, shape ``(N, D * U)``."""
    weights, contraction = layer.weights, layer.contraction
    if contraction is not None:
        return on_contracted(contraction, gradient, slopes, layer.sums.channels)
    return gradient if weights is None else gradient * weights
