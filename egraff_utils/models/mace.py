"""MACE: messages of high body order from products of one-particle features (package ``mace-torch``).

Symbols: N atoms, E edges, Z elements, U channels, P paths of a convolution, K components of all paths
together, D components of features, one for each degree and order, M those of what a contraction gives.
"""

from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations_with_replacement, permutations

import numpy as np
import torch
from ase.data import chemical_symbols
from e3nn import o3
from torch import nn
from torch.autograd.function import once_differentiable
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

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        if self._frozen is None or self.training or not self._frozen.are_frozen():
            return self._by_package(graph, vectors)
        return self._frozen.get(self._freeze)(graph.species, graph.edge_index, vectors)

    @torch.no_grad()
    def _freeze(self):
        return Frozen(self.model, self.one_hot)

    def _by_package(self, graph, vectors):
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


class Frozen:
    """MACE with the weights that it has now; it can be differentiated once.

    Features of atoms have shape ``(D, N, U)``, those of edges ``(E, components, U)``: channels last, so that
    rows are long. A linear map of e3nn's multiplies the components of a degree by one matrix, all of them as
    a batch. Atoms are ordered by element.

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
        self.radial_basis = fast.RadialBasis(basis.bessel_weights, basis.prefactor.item(), cutoff, exponent)
        self.harmonics = fast.Harmonics(model.spherical_harmonics, one_hot)
        self.layers = [Layer(*parts) for parts in zip(model.interactions, model.products, strict=True)]
        networks = [_radial_matrices(interaction.conv_tp_weights) for interaction in model.interactions]
        self.radial_networks = fast.RadialNetworks(networks, [layer.messages for layer in self.layers])
        scale, shift = model.scale_shift.scale, model.scale_shift.shift
        self.readouts = [Readout(readout, scale) for readout in model.readouts]
        self.types, elements = one_hot.argmax(1), one_hot.new_ones(one_hot.shape[1]).diag()
        self.energies = model.atomic_energies_fn.atomic_energies.view(-1, 1).to(one_hot) + shift
        features = model.node_embedding.linear(elements).unsqueeze(0)
        first = self.layers[0]
        self.near, own = first.prepare(features, elements.unsqueeze(2), first.own.flatten(1, 2))
        self.own = torch.cat([own, own.new_zeros(first.size - 1, *own.shape[1:])])
        self._atoms = None

    def __call__(self, species, edge_index, vectors):
        """Energy of each atom, shape ``(N,)``; the second half of the edges is the first reversed."""
        atoms = self._atoms
        if atoms is None or atoms.species is not species or atoms.version != species._version:
            atoms = self._atoms = Atoms(species, self)
        vectors = vectors[: len(vectors) // 2]
        radial, directions = fast.Polar.apply(vectors, *self.radial_basis)
        harmonics = self.harmonics(directions)
        pairs = atoms.rank[edge_index[:, : len(vectors)]].T
        edges = pairs.flatten(), pairs.flip(1).flatten()  # neighbour and centre
        x, energy = None, atoms.energies
        for n, weights in enumerate(self.radial_networks(radial)):
            layer, near, own = self.layers[n], atoms.near, atoms.own
            if x is not None:
                near, own = layer.prepare(x, atoms.one_hot, atoms.of_layers[n])
            x = layer(near, own, harmonics, weights, edges, atoms.weightings[n])
            energy = self.readouts[n](x[0], energy)
        return energy.squeeze(1).index_select(0, atoms.rank)


class Atoms:
    """What depends on the elements of the atoms alone, which are put in order; ``rank`` is the place of each.

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
        types, self.rank = frozen.types[species[order]], order.argsort()
        present, places = types.unique(return_inverse=True)
        self.one_hot = nn.functional.one_hot(places, len(present)).unsqueeze(2).to(frozen.near)
        self.of_layers = [layer.own[:, present].flatten(1, 2) for layer in frozen.layers]
        self.energies = frozen.energies[types]
        self.near, self.own = frozen.near[types], frozen.own[:, types]  # of the first layer
        self.weightings = [layer.contraction.weighting(types) for layer in frozen.layers]


def _radial_matrices(network):
    """Weights of an ``e3nn.nn.FullyConnectedNet``, with the factors of the layers and of their silu."""
    matrices, factor = [], 1.0
    for layer in network:
        matrices.append(layer.weight * (factor / layer.h_in**0.5))
        factor = layer.act.cst if layer.act is not None else 1.0
    return matrices


class Readout:
    """Linear, or with one hidden layer of silu; adds energies, shape ``(N, 1)``, of scalars ``(N, U)``."""

    def __init__(self, readout, scale):
        self.hidden = None
        if hasattr(readout, "non_linearity"):
            self.hidden = _matrix(readout.linear_1, 0)
            self.last = _matrix(readout.linear_2, 0) * readout.non_linearity.acts[0].cst * scale
        else:
            self.last = _matrix(readout.linear, 0) * scale

    def __call__(self, x, energy):
        return torch.addmm(energy, x if self.hidden is None else silu(x @ self.hidden), self.last)


class Layer:
    """Messages from the neighbours, their contraction and what is kept of an atom's own features.

    Parameters
    ----------
    interaction, product
        Of the package.
    """

    SMALL = 64
    """Components of messages times those of mixed ones up to which one matrix, mostly zeros, mixes all."""

    def __init__(self, interaction, product):
        irreps_in, irreps_out = interaction.node_feats_irreps, product.linear.irreps_out
        degrees, kept = range(irreps_in.lmax + 1), range(min(irreps_in.lmax, irreps_out.lmax) + 1)
        self.contraction = _contraction(product.symmetric_contractions.contractions)
        kinds = [o3.Irrep(n, (-1) ** n) for n in range(self.contraction.degrees)]
        self.messages = fast.Messages(interaction.conv_tp, kinds, product.linear.weight)
        mix = [_matrix(interaction.linear, n) / interaction.avg_num_neighbors for n in range(len(kinds))]
        self.mix = [self.messages.on_rows(m).expand(2 * n + 1, -1, -1) for n, m in enumerate(mix)]
        self.whole = None
        if sum(self.messages.heights) * self.contraction.degrees**2 <= self.SMALL:
            self.whole = torch.block_diag(*[matrix for matrices in self.mix for matrix in matrices])
        self.up = _by_component([_matrix(interaction.linear_up, n) for n in degrees])
        self.linear = _by_component([_matrix(product.linear, n) for n in range(irreps_out.lmax + 1)])
        self.size = len(self.linear)
        skip = interaction.skip_tp
        elements = self.linear.new_ones(skip.irreps_in2.dim).diag()
        self.own = _by_component([torch.stack([_matrix(skip, n, e) for e in elements]) for n in kept])

    def prepare(self, x, one_hot, matrices):
        """Features for neighbours, ``(N, D, U)``, and what an atom keeps.

        Parameters
        ----------
        x, one_hot
            Features, ``(D, N, U)``, and elements of the atoms among those that there are, ``(N, Z, 1)``.
        matrices
            Those of ``own`` for these elements, ``(M, Z * U, U)``.
        """
        own = x if len(x) == len(matrices) else x[: len(matrices)]
        if one_hot.shape[1] > 1:
            own = (own.unsqueeze(2) * one_hot).flatten(2)
        return torch.bmm(x, self.up).transpose(0, 1).contiguous(), torch.bmm(own, matrices)

    def __call__(self, near, own, harmonics, weights, edges, weighting):
        """New features of atoms."""
        messages = self.messages(near, harmonics, weights, edges)
        contracted = self.contraction(self._mixed(messages), weighting)
        return torch.baddbmm(own, contracted, self.linear)

    def _mixed(self, messages):
        if self.whole is not None:
            return (messages @ self.whole).view(len(messages), -1, self.linear.shape[1]).transpose(0, 1)
        parts = messages.split(self.messages.sizes, 1)
        mixed = [
            torch.bmm(part.view(len(messages), *matrix.shape[:2]).transpose(0, 1), matrix)
            for part, matrix in zip(parts, self.mix, strict=True)
        ]
        return torch.cat(mixed)


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


def _by_component(matrices):
    """Matrices of all degrees, repeated for the components of each: shape ``(D, ..., rows, columns)``."""
    return torch.cat([matrix.expand(2 * n + 1, *matrix.shape) for n, matrix in enumerate(matrices)])


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
        self.weights = torch.stack(diagonal)

    def weighting(self, types):
        """Weights of atoms."""
        return self.weights[:, types]

    def __call__(self, x, weighting):
        """Features of shape ``(M, N, U)`` from those of shape ``(D, N, U)``."""
        return x * weighting


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
                self.steps.append((places, places.new_tensor([index[-1] for index in indices])))
            before = {index: n for n, index in enumerate(indices)}
        tensors = torch.stack(rows, dim=-1).permute(0, 3, 1, 2, 4)  # (Z, U, M, D, F)
        self.tensors = tensors.flatten(2, 3).contiguous()
        self.factors = self.tensors.new_tensor(factors).view(-1, 1, 1)

    def weighting(self, types):
        """Number of the atoms of each element."""
        return torch.bincount(types, minlength=len(self.tensors)).tolist()

    def __call__(self, x, weighting):
        """Features of shape ``(M, N, U)`` from those of shape ``(D, N, U)``."""
        return Contracted.apply(x, weighting, self)

    def monomials(self, x):
        """All products of components, ``(F, U, N)``, of ``(D, U, N)``, ordered by number of factors."""
        found = [torch.ones_like(x[:1])]
        for places, last in self.steps:
            found.append(found[-1].index_select(0, places) * x.index_select(0, last))
        return torch.cat(found)


class Contracted(torch.autograd.Function):
    """:class:`Contraction` of features, given the number of atoms of each element."""

    @staticmethod
    def forward(ctx, x, counts, constants):
        x = x.transpose(1, 2).contiguous()
        monomials = constants.monomials(x)
        scaled = monomials * constants.factors
        values, slopes = [], []
        parts = (array.split(counts, dim=2) for array in (x, monomials, scaled))
        for matrix, x, *both in zip(constants.tensors, *parts, strict=True):
            found = torch.bmm(matrix, torch.cat(both, dim=2).transpose(0, 1))  # reads the matrix once
            value, slope = found.unflatten(1, (-1, len(x))).chunk(2, dim=3)
            values.append((value * x.transpose(0, 1).unsqueeze(1)).sum(2))
            slopes.append(slope)
        ctx.counts = counts
        ctx.save_for_backward(*slopes)
        return torch.cat(values, dim=2).permute(1, 2, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        parts = gradient.permute(2, 0, 1).unsqueeze(2).split(ctx.counts, dim=3)
        found = [(slope * part).sum(1) for slope, part in zip(ctx.saved_tensors, parts, strict=True)]
        return torch.cat(found, dim=2).permute(1, 2, 0), None, None


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
