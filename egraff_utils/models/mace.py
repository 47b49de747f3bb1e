"""MACE: messages of high body order from products of one-particle features (package ``mace-torch``).

Symbols: N atoms, E edges, Z elements, U channels, P paths of a convolution, K components of all paths
together, D components of features, one for each degree and order, M those of what a contraction gives.
"""

from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations_with_replacement, permutations
from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from e3nn import o3
from torch import nn
from torch.nn.functional import silu

from egraff_utils import fast

with redirect_stdout(StringIO()):  # mace announces the accelerators that it does not find
    from mace.modules import ScaleShiftMACE, interaction_classes


class MACENetwork(nn.Module):
    """``ScaleShiftMACE``, given our edges and edge vectors instead of positions and a cell.

    It computes the vector of an edge as ``positions[j] - positions[i] + shifts``; with all positions at zero
    and our vectors as the shifts, that is our vector exactly. With frozen weights :class:`Frozen` takes its
    place, unless the network is to be plain.

    Parameters
    ----------
    model
        ``ScaleShiftMACE`` with zero atomic energies, scale 1 and shift 0.
    elements
        Atomic numbers, in the order of the model's.
    """

    def __init__(self, model, elements):
        super().__init__()
        self.model = model
        table = torch.zeros(len(chemical_symbols), len(elements))
        table[elements] = torch.eye(len(elements))
        self.register_buffer("one_hot", table, persistent=False)
        self._frozen = None if fast.is_plain() else fast.Kept(model)

    def as_frozen(self):
        """:class:`~egraff_utils.fast.Frozen` with the present weights; None while these can change."""
        return self._frozen and self._frozen.get(self._freeze)

    def _freeze(self):
        return Frozen(self.model, self.one_hot)

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        atoms = len(graph.species)
        data = {
            "node_attrs": self.one_hot[graph.species],
            "positions": vectors.new_zeros(atoms, 3),
            "shifts": vectors,
            "edge_index": graph.edge_index,
            "batch": torch.zeros_like(graph.species),  # energies of atoms are wanted: one structure will do
            "ptr": graph.species.new_tensor([0, atoms]),
            "cell": vectors.new_zeros(3, 3),
        }
        return self.model(data, compute_force=False)["node_energy"].to(vectors.dtype)


class Frozen(fast.Frozen):
    """MACE with the weights that it has now.

    Features of atoms have shape ``(N, D * U)``, those of edges ``(E, components, U)``: channels last, so that
    rows are long. Atoms are ordered by element.

    Parameters
    ----------
    model
        ``ScaleShiftMACE``.
    one_hot
        Element of each atomic number, shape ``(119, Z)``.
    """

    def __init__(self, model, one_hot):
        basis, envelope = model.radial_embedding.bessel_fn, model.radial_embedding.cutoff_fn
        cutoff, exponent = envelope.r_max.item(), envelope.p.item()
        scale, shift = model.scale_shift.scale, model.scale_shift.shift
        parts = zip(model.interactions, model.products, model.readouts, strict=True)
        self.layers = [Layer(*modules, scale) for modules in parts]
        networks = [_radial_matrices(interaction.conv_tp_weights) for interaction in model.interactions]
        self.geometry = fast.Geometry(
            radial_basis=fast.RadialBasis(basis.bessel_weights, basis.prefactor.item(), cutoff, exponent),
            couplings=fast.couplings(model.spherical_harmonics, one_hot),
            size=model.spherical_harmonics.irreps_out.dim,
            networks=fast.RadialNetworks.of(networks, [layer.messages for layer in self.layers]),
        )
        self.types, elements = one_hot.argmax(1), one_hot.new_ones(one_hot.shape[1]).diag()
        self.energies = model.atomic_energies_fn.atomic_energies.view(-1, 1).to(one_hot) + shift
        features, first = model.node_embedding.linear(elements), self.layers[0]
        self.near = features @ first.up[0][0]
        own = torch.bmm(features.unsqueeze(1), first.own[0][0]).squeeze(1)
        self.own = nn.functional.pad(own, (0, (first.size - 1) * own.shape[1]))
        self._atoms = None

    def __call__(self, graph, vectors):
        """See :meth:`egraff_utils.fast.Frozen.__call__`."""
        atoms, species = self._atoms, graph.species
        if atoms is None or atoms.species is not species or atoms.version != species._version:
            atoms = self._atoms = Atoms(species, self)
        return fast.compiled(evaluate, vectors.device)(atoms.constants, vectors, graph.edge_index)


class Atoms:
    """What depends on the elements of the atoms alone, which are put in order.

    Parameters
    ----------
    species
        Atomic numbers, shape ``(N,)``.
    frozen
        :class:`Frozen`.
    """

    def __init__(self, species, frozen):
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


def _radial_matrices(network):
    """Weights of an ``e3nn.nn.FullyConnectedNet``, with the factors of the layers and of their silu."""
    matrices, factor = [], 1.0
    for layer in network:
        matrices.append(layer.weight * (factor / layer.h_in**0.5))
        factor = layer.act.cst if layer.act is not None else 1.0
    return matrices


class Layer:
    """Messages from the neighbours, their contraction and what is kept of an atom's own features.

    A linear map of features is a list of matrices, one for each degree, shape ``(2l + 1, rows, columns)``.

    Parameters
    ----------
    interaction, product, readout
        Of the package.
    scale
        Of the energies.
    """

    def __init__(self, interaction, product, readout, scale):
        irreps_in, irreps_out = interaction.node_feats_irreps, product.linear.irreps_out
        degrees, kept = range(irreps_in.lmax + 1), range(min(irreps_in.lmax, irreps_out.lmax) + 1)
        self.contraction = _contraction(product.symmetric_contractions.contractions)
        kinds = [o3.Irrep(n, (-1) ** n) for n in range(self.contraction.degrees)]
        self.messages = fast.Messages(interaction.conv_tp, kinds, product.linear.weight)
        mix = [_matrix(interaction.linear, n) / interaction.avg_num_neighbors for n in range(len(kinds))]
        self.mix = _by_component([self.messages.on_rows(matrix) for matrix in mix])
        self.up = _by_component([_matrix(interaction.linear_up, n) for n in degrees])
        self.linear = _by_component([_matrix(product.linear, n) for n in range(irreps_out.lmax + 1)])
        self.size = (irreps_out.lmax + 1) ** 2
        skip = interaction.skip_tp
        elements = product.linear.weight.new_ones(skip.irreps_in2.dim).diag()
        self.own = _by_component([torch.stack([_matrix(skip, n, e) for e in elements]) for n in kept])
        self.readout = _readout(readout, scale)

    def of_atoms(self, types, present):
        """:class:`Constants` of the layer for atoms of these elements, which are in order."""
        mix, linear = self.mix, self.linear
        weights, contraction = self.contraction.of_atoms(types, present)
        if weights is not None and len(present) == 1:  # all is one linear map
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
"""Numbers of a matrix, mostly zeros, up to which it multiplies all components sooner than one by degree."""


def _by_component(matrices):
    """The matrix of each degree, repeated for its components: shape ``(2l + 1, ..., rows, columns)``."""
    return [matrix.expand(2 * n + 1, *matrix.shape) for n, matrix in enumerate(matrices)]


def _joined(matrices):
    """A linear map of all components as one matrix, ``(1, rows, columns)``, where that is quicker."""
    rows, columns = (sum(len(matrix) * matrix.shape[n] for matrix in matrices) for n in (1, 2))
    if not matrices or rows * columns > SMALL:
        return [matrix.contiguous() for matrix in matrices]
    return [torch.block_diag(*[part for matrix in matrices for part in matrix]).unsqueeze(0)]


def _readout(readout, scale):
    """One matrix, or two with a silu between them."""
    if not hasattr(readout, "non_linearity"):
        return [_matrix(readout.linear, 0) * scale]
    factor = readout.non_linearity.acts[0].cst * scale
    return [_matrix(readout.linear_1, 0), _matrix(readout.linear_2, 0) * factor]


def _channels(irreps, degree):
    """Places of the first components of all channels of a degree."""
    places = [
        range(part.start, part.stop, ir.dim)
        for part, (_, ir) in zip(irreps.slices(), irreps, strict=True)
        if ir.l == degree
    ]
    return [place for part in places for place in part]


def _matrix(linear, degree, *second):
    """What multiplies each component of a degree in a linear module of e3nn's, given its second argument."""
    irreps = linear.irreps_in1 if second else linear.irreps_in
    rows, columns = _channels(irreps, degree), _channels(linear.irreps_out, degree)
    x = linear.weight.new_zeros(len(rows), irreps.dim)
    x[range(len(rows)), rows] = 1
    return linear(x, *[y.expand(len(rows), -1) for y in second])[:, columns]


def _contraction(contractions):
    """:class:`Weighting` where it is all that a symmetric contraction does, else :class:`Contraction`."""
    orders = contractions[0].correlation
    degree = len(contractions) - 1
    if orders == 1 and contractions[0].coupling_irreps.lmax >= degree:
        return Weighting(contractions)
    return Contraction(contractions)


class Weighting:
    """Contraction of order one: components times weights of the element."""

    def __init__(self, contractions):
        self.degrees = len(contractions)
        tensors = [_tensors(contraction)[0] for contraction in contractions]
        diagonal = [tensor[:, m, n**2 + m] for n, tensor in enumerate(tensors) for m in range(2 * n + 1)]
        self.weights = torch.cat(diagonal, dim=1)

    def of_atoms(self, types, present):
        """Weights of atoms, shape ``(N, D * U)``, and no products."""
        return self.weights[types], None


class Contraction:
    r"""Symmetric contraction of features with themselves, by the element of their atom.

    .. math:: B_{m} = \sum_i a_i \sum_f H_{mif}\, f(a), \qquad
              \partial B_m / \partial a_i = \sum_f n_f H_{mif}\, f(a)

    Here f are the products of up to one component less than the order, of which n - 1 are multiplied, and H
    are the tensors of the package times the weights, made symmetric.

    Parameters
    ----------
    contractions
        One of the package for each degree of the result, with the same order.
    """

    def __init__(self, contractions):
        size = contractions[0].coupling_irreps.dim
        self.degrees = contractions[0].coupling_irreps.lmax + 1
        self.steps = []
        per_degree = [_tensors(contraction) for contraction in contractions]
        rows, factors = [], []
        before = {(): 0}
        for order in range(contractions[0].correlation):
            tensor = torch.cat([tensors[order] for tensors in per_degree], dim=1)  # (Z, M, D, ..., D, U)
            indices = list(combinations_with_replacement(range(size), order))
            for index in indices:
                count = len(set(permutations(index)))
                rows.append(tensor[(slice(None), slice(None), slice(None), *index)] * count)
                factors.append(order + 1)
            if order:
                places = tensor.new_tensor([before[index[:-1]] for index in indices], dtype=torch.int64)
                self.steps.append([places, places.new_tensor([index[-1] for index in indices])])
            before = {index: n for n, index in enumerate(indices)}
        tensors = torch.stack(rows, dim=-1).permute(0, 3, 1, 2, 4)  # (Z, U, M, D, F)
        self.tensors = tensors.flatten(2, 3).contiguous()
        self.factors = self.tensors.new_tensor(factors).view(-1, 1, 1)

    def of_atoms(self, types, present):
        """No weights, and :class:`OfContraction` for atoms of these elements, which are in order."""
        tensors = [self.tensors[element] for element in present.tolist()]
        counts = torch.bincount(types)[present].tolist()
        return None, OfContraction(tensors, self.factors, self.steps, counts)


class OfContraction(NamedTuple):
    """Constants of a :class:`Contraction`."""

    tensors: list[torch.Tensor]
    """H of each element, shape ``(U, M * D, F)``."""
    factors: torch.Tensor
    """The numbers n, shape ``(F, 1, 1)``."""
    steps: list[list[torch.Tensor]]
    """Of each number of factors above zero: the products of one less and the last component."""
    counts: list[int]
    """Number of the atoms of each element."""


class OfLayer(NamedTuple):
    """Constants of a :class:`Layer`; lists of tensors are what :func:`_joined` makes."""

    sums: fast.Sums
    up: list[torch.Tensor]
    """From features to those that neighbours see."""
    own: list[torch.Tensor]
    """From features, by element, to what an atom keeps."""
    mix: list[torch.Tensor]
    """From messages to what is contracted."""
    weights: torch.Tensor | None
    """Of what is contracted, where the order is one and they are not in ``mix``."""
    contraction: OfContraction | None
    """Where the order is higher."""
    linear: list[torch.Tensor]
    """From what is contracted to new features; empty where that is in ``mix``."""
    readout: list[torch.Tensor]


class Constants(NamedTuple):
    """What :func:`evaluate` needs beside the vectors of edges."""

    geometry: fast.Geometry
    layers: list[OfLayer]
    rank: torch.Tensor
    """Place of each atom in the order."""
    one_hot: torch.Tensor
    """Element of each atom, among those that there are, shape ``(N, 1, Z, 1)``."""
    near: torch.Tensor
    """What neighbours see in the first layer."""
    own: torch.Tensor
    """What an atom keeps in the first layer."""
    energies: torch.Tensor
    """Without neighbours, shape ``(N, 1)``."""


def evaluate(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of the atoms, shape ``(N,)``, and the gradient of their sum by the vectors of pairs."""
    energies, shared, of_layers = _energies(of, vectors, edge_index)
    return energies, _gradient(of, shared, of_layers)


def _energies(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor
) -> tuple[torch.Tensor, list[list[torch.Tensor]], list[list[list[torch.Tensor]]]]:
    """Energies of the atoms, and for :func:`_gradient` what is kept, also of each layer."""
    harmonics, weights, kept = fast.of_pairs(of.geometry, vectors)
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
        given = fast.Given(nears[n], harmonics, weights[n], neighbour, centre)
        total, products = fast.messages(layer.sums, given)
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
    """Gradient of the sum of all energies by the vectors, from what was kept."""
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
        given = fast.Given(nears[n], harmonics, weights[n], neighbour, centre)
        on_near = torch.zeros_like(nears[n]) if n > 0 else None
        found = fast.on_messages(layer.sums, given, products, on_total, on_near, on_harmonics)
        on_weights.insert(0, found)
        if on_near is not None:
            on_own = _on_own(of, layer, on_x)
            on_x = _times(on_near.flatten(1), _transposed(layer.up), None)
            on_x[:, : on_own.shape[1]] += on_own
    return fast.on_pairs(of.geometry, on_harmonics, on_weights, shared[:3])


def _times(x: torch.Tensor, matrices: list[torch.Tensor], plus: torch.Tensor | None) -> torch.Tensor:
    """Rows of atoms by a linear map of all components, to which something may be added."""
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
    """What atoms keep of their features."""
    elements, channels = of.one_hot.shape[2], layer.sums.channels
    rows = sum([matrix.shape[0] * matrix.shape[2] for matrix in layer.own])
    x = x[:, :rows]
    if elements > 1:
        x = (x.view(len(x), -1, 1, channels) * of.one_hot).flatten(1)
    return _times(x, layer.own, None)


def _on_own(of: Constants, layer: OfLayer, slope: torch.Tensor) -> torch.Tensor:
    """Gradient of the features from that of what atoms keep."""
    elements, channels = of.one_hot.shape[2], layer.sums.channels
    slope = _times(slope, _transposed(layer.own), None)
    if elements > 1:
        slope = (slope.view(len(slope), -1, elements, channels) * of.one_hot).sum(2).flatten(1)
    return slope


def _read(layer: OfLayer, x: torch.Tensor, energy: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Energies with those of a layer, and what went into the nonlinearity of its readout, if it has one."""
    scalars = x[:, : layer.readout[0].shape[0]]
    if len(layer.readout) == 1:
        return torch.addmm(energy, scalars, layer.readout[0]), []
    hidden = scalars @ layer.readout[0]
    return torch.addmm(energy, silu(hidden), layer.readout[1]), [hidden]


def _on_scalars(layer: OfLayer, slope: torch.Tensor, hidden: list[torch.Tensor]) -> torch.Tensor:
    """Gradient of the scalars from that of the energies."""
    if len(hidden) > 0:
        slope = fast.silu_backward(slope @ layer.readout[1].T, hidden[0])
    return slope @ layer.readout[0].T


def _contracted(layer: OfLayer, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Contraction of features, ``(N, D * U)``, and what :func:`_on_contracted` needs.

    These are the derivatives by element, ``(U, M, D, N)``, unless they are constant.
    """
    weights, contraction = layer.weights, layer.contraction
    slopes: list[torch.Tensor] = []
    if contraction is None:
        return x if weights is None else x * weights, slopes
    values: list[torch.Tensor] = []
    channels, counts = layer.sums.channels, contraction.counts
    x = x.view(len(x), -1, channels).permute(1, 2, 0).contiguous()
    monomials = _monomials(contraction, x)
    every, scaled = monomials.split(counts, 2), (monomials * contraction.factors).split(counts, 2)
    features = x.transpose(0, 1).unsqueeze(1).split(counts, 3)
    for n, matrix in enumerate(contraction.tensors):
        both = torch.cat([every[n], scaled[n]], 2).transpose(0, 1)
        found = torch.bmm(matrix, both)  # reads the matrix once
        value, slope = found.view(channels, -1, len(x), 2 * counts[n]).chunk(2, 3)
        values.append((value * features[n]).sum(2))
        slopes.append(slope)
    return torch.cat(values, 2).permute(2, 1, 0).flatten(1), slopes


def _on_contracted(layer: OfLayer, gradient: torch.Tensor, slopes: list[torch.Tensor]) -> torch.Tensor:
    """Gradient of what is contracted, shape ``(N, D * U)``."""
    weights, contraction = layer.weights, layer.contraction
    if contraction is None:
        return gradient if weights is None else gradient * weights
    gradient = gradient.view(len(gradient), -1, layer.sums.channels).permute(2, 1, 0).unsqueeze(2)
    parts = gradient.split(contraction.counts, 3)
    found = [(slope * parts[n]).sum(1) for n, slope in enumerate(slopes)]
    return torch.cat(found, 2).permute(2, 1, 0).flatten(1)


def _monomials(of: OfContraction, x: torch.Tensor) -> torch.Tensor:
    """All products of components, ``(F, U, N)``, of ``(D, U, N)``, ordered by number of factors."""
    found = [torch.ones_like(x[:1])]
    for places, last in of.steps:
        found.append(found[-1].index_select(0, places) * x.index_select(0, last))
    return torch.cat(found)


def _tensors(contraction):
    """Tensors times weights of all orders, symmetric, each of shape ``(Z, M, D, ..., D, U)``."""
    weights = [contraction.weights_max, *contraction.weights]
    found = []
    for order, weight in enumerate(reversed(weights), start=1):
        coefficients = contraction.U_tensors(order)
        coefficients = coefficients.view(-1, *coefficients.shape[-order - 1 :])
        orders = list(permutations(range(1, order + 1)))
        symmetric = sum(coefficients.permute(0, *axes, order + 1) for axes in orders) / len(orders)
        found.append(torch.einsum("m...k,eku->em...u", symmetric, weight))
    return found


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_interactions=2,
    correlation=3,
    num_channels=16,
    hidden_l_max=2,
    l_max=3,
    num_bessels=8,
    polynomial_cutoff=5,
    readout_width=16,
    radial_layers=3,
    radial_width=64,
):
    """MACE (Batatia et al. 2022; EGraFFBench, Table 14) with an energy of scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Å.
    average_neighbors
        Mean number of neighbours on the training set, which normalises sums over neighbours.
    num_interactions, correlation
        Layers, and the correlation order of each (body order less one).
    num_channels, hidden_l_max
        Channels of every degree and highest degree of the hidden features.
    l_max
        Highest degree of the spherical harmonics.
    num_bessels, polynomial_cutoff
        Radial basis and the exponent of its envelope.
    readout_width
        Hidden width of the last readout.
    radial_layers, radial_width
        Hidden layers of the radial network and their width.
    """
    if len(elements) == 1 and correlation == 1:  # a view in mace fails; a spare element helps
        elements = [*elements, 2 if elements == [1] else 1]
    irreps = o3.Irreps([(num_channels, (degree, (-1) ** degree)) for degree in range(hidden_l_max + 1)])
    interaction = interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = ScaleShiftMACE(
        r_max=float(cutoff),
        num_bessel=num_bessels,
        num_polynomial_cutoff=polynomial_cutoff,
        max_ell=l_max,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=num_interactions,
        num_elements=len(elements),
        hidden_irreps=irreps,
        MLP_irreps=o3.Irreps([(readout_width, (0, 1))]),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=float(average_neighbors),
        atomic_numbers=list(elements),
        correlation=correlation,
        radial_MLP=[radial_width] * radial_layers,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    for interaction in model.interactions if not fast.is_plain() else ():
        fast.share_directions(interaction.conv_tp_weights)
        if l_max > 1:  # with scalars and vectors alone the package is as fast
            interaction.conv_tp = fast.Convolution(interaction.conv_tp)
            interaction.conv_fusion = True  # the product then gets the edges and sums over neighbours itself
    return MACENetwork(model, elements)
