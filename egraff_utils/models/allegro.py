"""Allegro: strictly local, a tensor and a scalar track on every edge (package ``nequip-allegro``).

Symbols: N atoms, E edges, U channels of the tensor track, R degrees, D = R^2 harmonics.
"""

import torch
from allegro.model import AllegroModel
from allegro.nn._strided import Contracter
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from egraff_utils import fast
from egraff_utils.models.nequip import NequIPNetwork, common_arguments, matrices, nequip_state, radial_basis


class Frozen:
    """Allegro with the weights that it has now, written for whole rows of channels.

    Features of the tensor track have shape ``(E, components, U)``: channels last, so that each coefficient of
    a tensor product is one multiplication and addition of long rows.

    Parameters
    ----------
    model
        ``SequentialGraphNetwork`` of the package.
    """

    def __init__(self, model):
        track = model.allegro
        channels, scalars = track.num_tensor_features, track.num_scalar_features
        energy = model.per_type_energy_scale_shift
        self.radial_basis = radial_basis(model, model.radial_chemical_embed.bessel_encode)
        self.harmonics = model.tensor_embed.sh
        self.scale = energy.scales * model.edge_eng_sum.norm_module.norm_const / 2**0.5
        self.shift = energy.shifts
        embed = model.radial_chemical_embed.type_embed
        self.num_types = embed.num_types
        centre, neighbour = embed.center_embed.weight, embed.neighbor_embed.weight
        pairs = torch.cartesian_prod(*[torch.arange(embed.num_types, device=centre.device)] * 2).view(-1, 2)
        self.pairs = torch.cat([centre[pairs[:, 0]], neighbour[pairs[:, 1]]], dim=1)
        (self.radial,) = matrices(embed.basis_linear)
        self.two_body = [fast.Matrix(m) for m in matrices(model.scalar_embed_mlp.mlp_module)]
        self.degrees = [2 * n + 1 for n in range(track._env_weighter._num_irreps)]
        (first,) = matrices(model.tensor_embed.env_embed_linear)
        self.first = fast.Matrix(_channels_last(first, channels))
        (projection,) = matrices(track.first_layer_env_embed_projection)
        project, environment = projection[:, :scalars], projection[:, scalars:]
        self.environments = [fast.Matrix(_channels_last(environment, channels))]
        (readout,) = matrices(model.edge_readout.mlp_module)
        readout = readout.split(scalars)
        self.readouts = [project @ readout[0]]  # of the two-body embedding, then of every layer
        self.products, self.hidden, self.scalars = [], [], []
        norm = track.avg_num_neighbors_norm.norm_const
        for n, (product, latent) in enumerate(zip(track.tps, track.latents, strict=True)):
            self.products.append(Product(product, norm))
            enter, *hidden, leave = matrices(latent)
            entering = torch.cat([project @ enter[:scalars], enter[scalars:]])
            self.hidden.append([fast.Matrix(m) for m in (entering, *hidden)])
            if n < len(track.tps) - 1:
                self.scalars.append(fast.Matrix(leave[:, :scalars]))
                self.environments.append(fast.Matrix(_channels_last(leave[:, scalars:], channels)))
                self.readouts.append(readout[n + 1])
            else:
                self.readouts.append(leave @ readout[n + 1])

    def __call__(self, types, edge_index, vectors):
        """Energy of each atom, shape ``(N,)``."""
        arguments = vectors, types[edge_index], edge_index[0], len(types)
        blocks = round(len(vectors) / EDGES[vectors.device.type])
        return Blocks.apply(*arguments, self, blocks) if blocks > 1 else self.energies(*arguments)

    def energies(self, vectors, types, centre, count):
        """Energy of each of so many atoms, shape ``(N,)``.

        Parameters
        ----------
        vectors
            Of the edges, shape ``(E, 3)``, Å.
        types
            Of their centres and neighbours, shape ``(2, E)``.
        centre
            Shape ``(E,)``.
        """
        pairs = self.pairs.index_select(0, types[0] * self.num_types + types[1])
        x = (fast.Radial.apply(vectors, *self.radial_basis) @ self.radial) * pairs
        for matrix in self.two_body[:-1]:
            x = silu(matrix(x))
        x = self.two_body[-1](x)
        harmonics = self.harmonics(vectors)
        tensors = Weighted.apply(harmonics, self.first(x), self.degrees)
        energy, last, features = x @ self.readouts[0], x, [x]
        for n, product in enumerate(self.products):
            around = Weighted.apply(harmonics, self.environments[n](last), self.degrees)
            around = around.new_zeros(count, *around.shape[1:]).index_add(0, centre, around)
            tensors = product(tensors, around, centre)
            enter, *hidden = self.hidden[n]
            last = silu(enter(*features, tensors[:, 0]))
            for matrix in hidden:
                last = silu(matrix(last))
            if n < len(self.scalars):
                features.append(self.scalars[n](last))
                energy = energy.addmm_(features[-1], self.readouts[n + 1])
        energy = energy.addmm_(last, self.readouts[-1])
        total = energy.new_zeros(count, 1).index_add(0, centre, energy)
        return (self.scale * total + self.shift).squeeze(1)


EDGES = {"cpu": 8000, "cuda": 200_000}
"""Of a block of atoms: on a processor more would wait for memory, on a GPU more might not fit."""


class Blocks(torch.autograd.Function):
    """Energies of the atoms, one block of atoms after the other, so that no array is larger than a block's.

    The energy of an atom depends on its own edges alone; its gradient is taken as soon as it is known.
    """

    @staticmethod
    def forward(ctx, vectors, types, centre, count, frozen, blocks):
        """Shape ``(N,)``; the arguments are those of :meth:`Frozen.energies` and a number of blocks."""
        order, ends = centre.argsort(stable=True), torch.bincount(centre, minlength=count).cumsum(0).cpu()
        shares = torch.arange(1, blocks + 1) * len(centre) // blocks
        stops = (torch.searchsorted(ends, shares) + 1).unique()  # behind the last atom
        stops[-1] = count
        gradient, energies, atom = torch.empty_like(vectors), [], 0
        for stop, edges in zip(stops.tolist(), order.tensor_split(ends[stops[:-1] - 1]), strict=True):
            with torch.enable_grad():
                part = vectors.detach()[edges].requires_grad_()
                energy = frozen.energies(part, types[:, edges], centre[edges] - atom, stop - atom)
                (gradient[edges],) = torch.autograd.grad(energy.sum(), part)
            energies.append(energy.detach())
            atom = stop
        ctx.save_for_backward(gradient, centre)
        return torch.cat(energies)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        """Gradient of the vectors from that of the energies."""
        gradient, centre = ctx.saved_tensors
        return gradient * slope[centre, None], *[None] * 5


def _channels_last(matrix, channels):
    """Columns ordered by degree and channel, out of columns ordered by channel and degree."""
    return matrix.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)


class Weighted(torch.autograd.Function):
    """Harmonics of an edge, shape ``(E, D)``, times weights, ``(E, R * U)``: shape ``(E, D, U)``."""

    @staticmethod
    def forward(ctx, harmonics, weights, degrees):
        ctx.degrees = degrees
        ctx.save_for_backward(harmonics, weights)
        out = weights.new_empty(*harmonics.shape, weights.shape[1] // len(degrees))
        of_components = _repeated(weights.split(out.shape[2], 1), degrees)
        for part, y, w in zip(out.unbind(1), harmonics.split(1, 1), of_components, strict=True):
            torch.mul(y, w, out=part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        harmonics, weights = ctx.saved_tensors
        of_weights, channels = torch.empty_like(weights), gradient.shape[2]
        totals = _repeated(of_weights.split(channels, 1), ctx.degrees)
        of_components = _repeated(weights.split(channels, 1), ctx.degrees)
        of_harmonics, before = [], None
        for part, y, w, total in zip(
            gradient.unbind(1), harmonics.split(1, 1), of_components, totals, strict=True
        ):
            if total is before:
                total.addcmul_(part, y)
            else:
                torch.mul(part, y, out=total)
            of_harmonics.append((part * w).sum(1))
            before = total
        return torch.stack(of_harmonics, 1), of_weights, None


def _repeated(parts, degrees):
    """Part n as often as degree n has components."""
    return [part for part, size in zip(parts, degrees, strict=True) for _ in range(size)]


class Product:
    """Tensor product of an edge and its centre: a list of coefficients that are not zero.

    Parameters
    ----------
    contracter
        Of the package.
    factor
        Of what is summed at the centre, shape ``(1, 1)``.
    """

    def __init__(self, contracter, factor):
        paths, diagonal = contracter.num_paths, contracter.w3j_is_ij_diagonal
        coefficients = contracter.w3j if paths > 1 else contracter.w3j[None]
        places, indices = coefficients.nonzero().tolist(), []
        for place in places:
            p, i, j, k = (*place[:2], *place[1:]) if diagonal else place
            indices.append((p, i, j, k, coefficients[tuple(place)].item()))
        columns = sorted({(p, j) for p, _, j, _, _ in indices})
        self.size = contracter.base_dim_out
        self.terms = [(i, columns.index((p, j)), k, value) for p, i, j, k, value in indices]
        self.components = torch.tensor([j for _, j in columns], device=factor.device)
        weights = contracter.weights.view(-1, paths) * factor
        self.weights = weights.T[[p for p, _ in columns]].contiguous()
        pairs = sorted({(i, j) for i, j, _, _ in self.terms})
        self.pairs = torch.tensor(pairs, device=factor.device).T
        sizes = contracter.base_dim1, len(columns)
        self.places = [torch.eye(n).to(factor)[p].T for n, p in zip(sizes, self.pairs, strict=True)]
        self.couplings = factor.new_zeros(self.size, len(pairs))
        for i, j, k, value in self.terms:
            self.couplings[k, pairs.index((i, j))] = value

    def __call__(self, x, around, centre):
        """Products, shape ``(E, components, U)``, of features of edges and those of centres ``(N, D, U)``."""
        weighted = around.index_select(1, self.components) * self.weights
        y = weighted.index_select(0, centre)
        if at_once(x, len(self.couplings.T)):
            return CoupledAtOnce.apply(x, y, self.pairs, *self.places, self.couplings)
        return Coupled.apply(x, y, self.terms, self.size)


def at_once(x, pairs):
    """Whether the products of so many pairs of components are few enough that a GPU is quicker with all at
    once than with an operation for each term, which moves less memory."""
    return x.is_cuda and pairs * x[:, 0].numel() < 2**25


class Coupled(torch.autograd.Function):
    """Sum of products of components (first, second, of the result, coefficient), shape ``(E, size, U)``."""

    @staticmethod
    def forward(ctx, x, y, terms, size):
        ctx.terms = terms
        ctx.save_for_backward(x, y)
        xs, ys = x.unbind(1), y.unbind(1)
        return _sums(x, size, [(k, xs[i], ys[j], value) for i, j, k, value in terms])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        xs, ys, gs = x.unbind(1), y.unbind(1), gradient.unbind(1)
        of_x = _sums(x, x.shape[1], [(i, gs[k], ys[j], value) for i, j, k, value in ctx.terms])
        of_y = _sums(x, y.shape[1], [(j, gs[k], xs[i], value) for i, j, k, value in ctx.terms])
        return of_x, of_y, None, None


class CoupledAtOnce(torch.autograd.Function):
    """The same as :class:`Coupled`, by way of the products of P pairs of components."""

    @staticmethod
    def forward(ctx, x, y, pairs, first, second, couplings):
        """``pairs``: components of ``x`` and ``y``, shape ``(2, P)``; ``first``, ``second``: one where a pair
        has a component, ``(components, P)``; ``couplings``: ``(size, P)``."""
        ctx.save_for_backward(x, y, pairs, first, second, couplings)
        return couplings @ (x.index_select(1, pairs[0]) * y.index_select(1, pairs[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, y, pairs, first, second, couplings = ctx.saved_tensors
        gradient = couplings.T @ gradient
        of_x = first @ (gradient * y.index_select(1, pairs[1]))
        of_y = second @ (gradient * x.index_select(1, pairs[0]))
        return of_x, of_y, *[None] * 4


def _sums(like, size, terms):
    """Sums of products, shape ``(E, size, U)``; a term is a place, two factors ``(E, U)``, a coefficient."""
    out = like.new_empty(len(like), size, like.shape[2])
    outs, begun, zero = out.unbind(1), set(), like.new_zeros(())
    for place, a, b, value in terms:
        before = outs[place] if place in begun else zero
        begun.add(place)
        torch.addcmul(before, a, b, value=value, out=outs[place])
    for place in set(range(size)) - begun:
        outs[place].zero_()
    return out


class Contraction(Contracter):
    """The package's tensor product of an edge and its centre, with a matrix product in place of a sum."""

    @classmethod
    def of(cls, plain):
        """The same product with the same weights."""
        plain.__class__ = cls
        return plain

    def _contract_conv(self, x1, x2, idxs):
        if self.w3j_is_ij_diagonal or not self.path_channel_coupling:
            return super()._contract_conv(x1, x2, idxs)
        weights = torch.einsum(self._weight_w3j_einstr, self.weights, self.w3j).flatten(1, 2)
        outer = x1.unsqueeze(-1) * x2.index_select(0, idxs).unsqueeze(-2)
        return torch.bmm(outer.flatten(2).transpose(0, 1), weights).transpose(0, 1)


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_layers=2,
    l_max=2,
    parity=True,
    num_scalar_features=128,
    num_tensor_features=64,
    two_body_layers=2,
    two_body_width=512,
    latent_layers=2,
    latent_width=1024,
    readout_width=128,
    num_bessels=8,
    bessel_trainable=True,
    polynomial_cutoff=6,
):
    """Allegro (Musaelian et al. 2023; EGraFFBench, Table 12) with an energy of scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Å.
    average_neighbors
        Mean number of neighbours on the training set, which normalises sums over neighbours.
    num_layers, l_max, parity
        Allegro layers, highest degree, whether tensors of both parities.
    num_scalar_features, num_tensor_features
        Channels of the scalar and of the tensor track ("env embed multiplicity").
    two_body_layers, two_body_width
        Hidden layers of the network on the two-body embedding and their width.
    latent_layers, latent_width
        Hidden layers of the scalar network of each layer and their width.
    readout_width
        Width of the one hidden layer of the edge energy, which is linear throughout.
    num_bessels, bessel_trainable, polynomial_cutoff
        Radial basis and the exponent of its envelope.
    """
    hyperparameters = {
        "num_layers": num_layers,
        "l_max": l_max,
        "parity": parity,
        "radial_chemical_embed": {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": num_bessels,
            "bessel_trainable": bessel_trainable,
            "polynomial_cutoff_p": polynomial_cutoff,
        },
        "scalar_embed_mlp_hidden_layers_depth": two_body_layers,
        "scalar_embed_mlp_hidden_layers_width": two_body_width,
        "num_scalar_features": num_scalar_features,
        "num_tensor_features": num_tensor_features,
        "allegro_mlp_hidden_layers_depth": latent_layers,
        "allegro_mlp_hidden_layers_width": latent_width,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": readout_width,
        "readout_mlp_nonlinearity": None,
    }
    common = common_arguments(elements, cutoff, average_neighbors)
    with nequip_state():
        model = AllegroModel(**common, **hyperparameters)
        fast.replace(model, Contracter, Contraction.of)
        return NequIPNetwork(model, elements, None if fast.is_plain() else Frozen)
