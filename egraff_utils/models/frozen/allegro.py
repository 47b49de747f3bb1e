r"""How is Allegro evaluated with frozen weights? In blocks of atoms, with a hand-derived gradient.

An edge :math:`ij` has scalars :math:`x` and a tensor :math:`V` with components :math:`V_a` for every channel.
With radial functions :math:`f` and harmonics :math:`Y` of its vector, an embedding :math:`e` of its two
elements, and linear layers :math:`\phi` with silus between them, the network is

.. math::

    x^0 = \phi_0\!\left( f W \circ e_{z_i z_j} \right), \qquad V^0_a = Y_a\, (x^0 U)_{l(a)}

    \Gamma^n_{i,b} = \sum_{j} Y_b\, (x^n E_n)_{l(b)}, \qquad
    V^{n+1}_c = \sum_{ab} C_{abc}\, V^n_a\, \Gamma^n_{i,b}

    x^{n+1} = \phi_n\!\left( x^0, \dots, x^n, V^{n+1}_0 \right), \qquad
    \epsilon_i = s \sum_j \sum_n x^n R_n + b_{z_i}

In the gradient the three roles of a product are permuted, and a sum over the edges of a centre becomes a row
that each of its edges reads:

.. math::

    \bar V_a = \sum_{bc} C_{abc}\, \Gamma_{i,b}\, \bar V_c, \qquad
    \bar \Gamma_{i,b} = \sum_j \sum_{ac} C_{abc}\, V_a\, \bar V_c

    \overline{(x E)}_l = \sum_{b \in l} Y_b\, \bar \Gamma_{i,b}, \qquad
    \bar Y_b = \bar \Gamma_{i,b} \cdot (x E)_{l(b)}, \qquad
    \bar h = \mathrm{silu}'(h) \circ (\bar y\, W^\top)

The energy of an atom depends only on its own edges. The gradient of a block of atoms is therefore computed
together with its energies, and blocks are distributed to threads (``tried.csv``: "Allegro in blocks of atoms
of 8000 edges", "blocks of atoms shared out among two threads").

Symbols: N atoms, E edges, T elements, B radial functions, S scalars, U channels of the tensor track,
R degrees, D = R^2 harmonics.
"""

from collections.abc import Sequence
from itertools import starmap
from typing import TYPE_CHECKING, NamedTuple

import torch
from allegro.nn import Allegro_Module
from allegro.nn._edgeembed import ProductTypeEmbedding
from allegro.nn._strided import Contracter
from nequip.nn import SequentialGraphNetwork
from torch import Tensor, nn
from torch.nn.functional import silu

from egraff_utils.graph import AtomicGraph
from egraff_utils.models import frozen
from egraff_utils.models.frozen import geometry, operators
from egraff_utils.models.frozen.nequip import matrices, radial_basis

if TYPE_CHECKING:
    from egraff_utils.models.allegro import AllegroNetwork


def freeze(network: "AllegroNetwork") -> "Frozen":
    """:class:`Frozen` of the adapter's network, with its current weights."""
    return Frozen(network.model.model.func, network.types)


def speed_up(network: nn.Module) -> None:
    """Make tensor products run as matrix products; the weights of the modules stay those of the package."""
    for part in network.modules():
        if isinstance(part, Contracter):
            part.__class__ = Contraction


class Contraction(Contracter):
    """The package's tensor product of an edge and its centre, with a matrix product instead of a sum."""

    def _contract_conv(self, x1: Tensor, x2: Tensor, idxs: Tensor) -> Tensor:
        if self.w3j_is_ij_diagonal or not self.path_channel_coupling:
            return super()._contract_conv(x1, x2, idxs)
        weights = torch.einsum(self._weight_w3j_einstr, self.weights, self.w3j).flatten(1, 2)
        outer = x1.unsqueeze(-1) * x2.index_select(0, idxs).unsqueeze(-2)
        return torch.bmm(outer.flatten(2).transpose(0, 1), weights).transpose(0, 1)


class Frozen(frozen.Frozen):
    """Allegro with the weights that it had when it was frozen.

    Parameters
    ----------
    model
        ``SequentialGraphNetwork`` of the package.
    types
        Types of the model, by atomic number.
    """

    def __init__(self, model: SequentialGraphNetwork, types: Tensor) -> None:
        track, energy = model.allegro, model.per_type_energy_scale_shift
        self.scale = energy.scales * model.edge_eng_sum.norm_module.norm_const / 2**0.5
        self.shift, self.types = energy.shifts, types
        embed = model.radial_chemical_embed.type_embed
        self.num_types = embed.num_types
        (radial,) = matrices(embed.basis_linear)
        (first,) = matrices(model.tensor_embed.env_embed_linear)
        *two_body, leave = matrices(model.scalar_embed_mlp.mlp_module)
        self.constants = Constants(
            radial_basis=radial_basis(model, model.radial_chemical_embed.bessel_encode),
            harmonics=geometry.couplings(model.tensor_embed.sh, radial),
            pairs=_pairs(embed),
            radial=radial,
            two_body=[operators.both(m) for m in two_body],
            first=operators.both(_channels_last(first, track.num_tensor_features)),
            products=[Product.of(p, track.avg_num_neighbors_norm.norm_const) for p in track.tps],
            degrees=[n for n in range(track._env_weighter._num_irreps) for _ in range(2 * n + 1)],
            **_scalar_track(track, leave, *matrices(model.edge_readout.mlp_module)),
        )
        self.products_of_edge = sum(weight.numel() for weight in model.parameters())

    def __call__(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`egraff_utils.models.frozen.Frozen.__call__`."""
        types, (centre, neighbour) = self.types[graph.species], graph.edge_index
        pairs = types[centre] * self.num_types + types[neighbour]
        whole = Block(torch.cat([vectors, -vectors]), pairs, centre, len(types))
        threads = self.threads(len(centre))
        blocks, places = _blocks(whole, max(round(len(centre) / EDGES[vectors.device.type]), threads))
        shares = [blocks[n::threads] for n in range(min(threads, len(blocks)))]
        run = starmap if vectors.is_cuda else operators.in_threads
        found = list(run(evaluate, [(self.constants, share) for share in shares]))
        energies, gradient = [], torch.empty_like(whole.vectors)
        for n, edges in enumerate(places):
            energy, gradient[edges] = found[n % threads][n // threads]
            energies.append(energy)
        there, back = gradient.tensor_split(2)
        return (self.scale * torch.cat(energies) + self.shift).squeeze(1), self.scale * (there - back)

    def has_threads(self, graph: AtomicGraph) -> bool:
        """Whether blocks are distributed to several threads."""
        return self.threads(graph.edge_index.shape[1]) > 1

    def threads(self, edges: int) -> int:
        """Number of threads that share the work on a number of edges, all of which is done in them."""
        products = edges * self.products_of_edge
        return max(1, min(operators.threads(), int(products / LEAST))) if self.constants.radial.is_cpu else 1


def _pairs(embed: ProductTypeEmbedding) -> Tensor:
    """Embedding of every pair of elements, shape ``(T * T, S)``."""
    centre, neighbour = embed.center_embed.weight, embed.neighbor_embed.weight
    types = torch.arange(embed.num_types, device=centre.device)
    one, other = torch.cartesian_prod(types, types).view(-1, 2).T
    return torch.cat([centre[one], neighbour[other]], dim=1)


def _scalar_track(track: Allegro_Module, leave: Tensor, readout: Tensor) -> dict[str, list]:
    """Matrices of the layers, a dictionary for :class:`Constants`.

    A linear layer that is not followed by a nonlinearity is multiplied by the next one (``tried.csv``:
    "linear layers without a nonlinearity between them as one").

    Parameters
    ----------
    track
        ``Allegro_Module`` of the package.
    leave
        Matrix from the hidden layer of the two-body embedding to scalars.
    readout
        Matrix from the scalars of all layers to the energy.
    """
    scalars = track.num_scalar_features
    (projection,) = matrices(track.first_layer_env_embed_projection)
    project, environment = projection[:, :scalars], projection[:, scalars:]
    readout = readout.split(scalars)
    latents, leaves, environments, readouts = [], [leave], [environment], [project @ readout[0]]
    for n, latent in enumerate(track.latents, start=1):
        enter, *others = matrices(latent)
        entering = torch.cat([project @ enter[:scalars], enter[scalars:]])
        *hidden, leave = entering, *others
        latents.append([operators.both(m) for m in hidden])
        if n < len(track.latents):
            leaves.append(leave[:, :scalars])
            environments.append(leave[:, scalars:])
            readouts.append(readout[n])
        else:
            readouts.append(leave @ readout[n])
    environments = [_channels_last(m, track.num_tensor_features) for m in environments]
    return {
        "leaves": [operators.both(m) for m in leaves],
        "environments": [operators.both(m) for m in environments],
        "latents": latents,
        "readouts": readouts,
    }


def _channels_last(matrix: Tensor, channels: int) -> Tensor:
    """Matrix with columns sorted by degree, then channel, from columns sorted by channel, then degree."""
    return matrix.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)


class Product(NamedTuple):
    """Tensor product of an edge and its centre, a list of terms with the coefficients that are not zero.

    A term multiplies a component of the edge (role 0) by a component of the centre (role 1) and adds the
    product to a component of the result (role 2). In the gradient the roles are permuted.
    """

    components: torch.Tensor
    """Components of the sums at a centre, one for each component of role 1."""
    weights: torch.Tensor
    """Weights of these components, shape ``(components, U)``."""
    sizes: list[int]
    """Number of components of every role."""
    places: list[list[int]]
    """Component of every role in each term."""
    values: list[float]
    """Coefficients of the terms."""
    indices: torch.Tensor
    """The places as a tensor, shape ``(3, terms)``."""
    sums: list[torch.Tensor]
    """Matrices by role, ``(components, terms)``: the coefficient if a component is in a term, else zero."""

    @classmethod
    def of(cls, contracter: Contracter, factor: torch.Tensor) -> "Product":
        """Product of the package's ``Contracter``, with a factor of the sums at centres, shape ``(1, 1)``."""
        paths, diagonal = contracter.num_paths, contracter.w3j_is_ij_diagonal
        coefficients = contracter.w3j if paths > 1 else contracter.w3j[None]
        terms = []
        for place in coefficients.nonzero().tolist():
            p, i, j, k = (*place[:2], *place[1:]) if diagonal else place
            terms.append((p, i, j, k, coefficients[tuple(place)].item()))
        columns = sorted({(p, j) for p, _, j, _, _ in terms})
        sizes = [contracter.base_dim1, len(columns), contracter.base_dim_out]
        first, last, values = ([term[n] for term in terms] for n in (1, 3, 4))
        places = [first, [columns.index((p, j)) for p, _, j, _, _ in terms], last]
        indices = torch.tensor(places, device=factor.device)
        spread = [torch.eye(n).to(factor)[:, at] for n, at in zip(sizes, indices, strict=True)]
        weights = contracter.weights.view(-1, paths) * factor
        return cls(
            components=indices.new_tensor([j for _, j in columns]),
            weights=weights.T[[p for p, _ in columns]].contiguous(),
            sizes=sizes,
            places=places,
            values=values,
            indices=indices,
            sums=[ones * factor.new_tensor(values) for ones in spread],
        )


class Constants(NamedTuple):
    """Tensor products and matrices of Allegro; lists of two hold a matrix and its transpose."""

    radial_basis: geometry.RadialBasis
    harmonics: list[torch.Tensor]
    """Matrices of :func:`~egraff_utils.models.frozen.geometry.couplings`."""
    pairs: torch.Tensor
    """Embeddings of edges by their elements, shape ``(T * T, S)``."""
    radial: torch.Tensor
    """Matrix from the radial functions, shape ``(B, S)``."""
    two_body: list[list[torch.Tensor]]
    """Hidden layers of the two-body embedding."""
    leaves: list[list[torch.Tensor]]
    """Matrices to scalars, from the last hidden layer of the two-body embedding, then from that of every
    layer but the last."""
    first: list[torch.Tensor]
    """Matrix from the two-body embedding to the weights of the first tensors."""
    environments: list[list[torch.Tensor]]
    """Matrices to the weights of the harmonics around a centre, from the embedding, then as ``leaves``."""
    latents: list[list[list[torch.Tensor]]]
    """Hidden layers of every layer."""
    readouts: list[torch.Tensor]
    """Columns to the energy, from all scalars, and from the last hidden layer of the last layer."""
    products: list[Product]
    degrees: list[int]
    """Degrees of the harmonics."""


class Block(NamedTuple):
    """Some atoms and all their edges."""

    vectors: torch.Tensor
    """Vectors of the edges, shape ``(E, 3)``, Å."""
    pairs: torch.Tensor
    """Rows of ``Constants.pairs``, shape ``(E,)``."""
    centre: torch.Tensor
    """Centres of the edges, shape ``(E,)``."""
    count: int  # type: ignore[assignment]  # a tuple's own, which counts equal values, has no use here
    """Number of atoms, N."""


EDGES = {"cpu": 8000, "cuda": 200_000}
"""Number of edges of a block of atoms. On a CPU, larger blocks would wait for memory; on a GPU, they might
not fit (``tried.csv``: "Allegro in blocks of atoms of 8000 edges")."""


LEAST = 4e7
"""Smallest number of multiplications for which another thread is worth its start (``tried.csv``: "from 4e7
products a thread on")."""


def _blocks(whole: Block, count: int) -> tuple[list[Block], Sequence[Tensor | slice]]:
    """``count`` blocks with about equal numbers of edges, and the indices of their edges in the whole."""
    if count <= 1:
        return [whole], [slice(None)]
    centre, atoms = whole.centre, whole.count
    order, ends = centre.argsort(stable=True), torch.bincount(centre, minlength=atoms).cumsum(0).cpu()
    shares = torch.arange(1, count + 1) * len(centre) // count
    stops = (torch.searchsorted(ends, shares) + 1).unique()  # one past the last atom of each block
    stops[-1] = atoms
    blocks, start, places = [], 0, order.tensor_split(ends[stops[:-1] - 1])
    for stop, edges in zip(stops.tolist(), places, strict=True):
        vectors, pairs, of_edges = (part.index_select(0, edges) for part in whole[:3])
        blocks.append(Block(vectors, pairs, of_edges - start, stop - start))
        start = stop
    return blocks, places


def evaluate(constants: Constants, blocks: list[Block]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Energies of each block's atoms, ``(N, 1)``, and the gradient of their sum with respect to vectors."""
    return [_evaluate(constants, block) for block in blocks]


def _evaluate(of: Constants, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    radial, by_length, directions, lengths = geometry.polar(block.vectors, of.radial_basis)
    parts = geometry.harmonics_by_degree(directions, of.harmonics)
    harmonics = torch.cat(parts, 1)[:, : len(of.degrees)]
    energies, kept = _energies(of, block, radial, harmonics)
    on_radial, on_harmonics = _slopes(of, block, kept, harmonics)
    on_directions = geometry.on_directions(on_harmonics, parts, of.harmonics)
    return energies, geometry.on_vectors(on_radial, on_directions, by_length, directions, lengths)


class Kept(NamedTuple):
    """Intermediate results of a block that the gradient needs; lists run over layers unless noted."""

    embedding: torch.Tensor
    """Embeddings of the elements of the edges, shape ``(E, S)``."""
    before: list[list[torch.Tensor]]
    """Inputs of the nonlinearities, those of the two-body embedding, then those of every layer."""
    weights: list[torch.Tensor]
    """Weights of the first tensors, then of the harmonics around a centre, shape ``(E, R * U)``."""
    tensors: list[torch.Tensor]
    """First tensors, then those of every layer, shape ``(E, components, U)``."""
    around: list[torch.Tensor]
    """Sums at the centres, by which the tensors are multiplied."""


def _energies(
    of: Constants, block: Block, radial: torch.Tensor, harmonics: torch.Tensor
) -> tuple[torch.Tensor, Kept]:
    """Energies of the atoms, and intermediate results for the gradient."""
    embedding, centre = of.pairs.index_select(0, block.pairs), block.centre
    before, hidden = _hidden(radial @ of.radial * embedding, of.two_body)
    x = operators.times(hidden, of.leaves[0][0])
    weights = operators.times(x, of.first[0])
    tensors = _weighted(harmonics, weights, of.degrees)
    around: list[torch.Tensor] = []
    kept, scalars, hidden = Kept(embedding, [before], [weights], [tensors], around), [x], x
    for n, product in enumerate(of.products):
        weights = operators.times(hidden, of.environments[n][0])
        total = _at_centres(_weighted(harmonics, weights, of.degrees), centre, block.count)
        total = total.index_select(1, product.components) * product.weights
        around.append(total.index_select(0, centre))
        tensors = _summed(product, 2, [tensors, around[n], around[n]])
        before, hidden = _hidden(torch.cat(scalars + [tensors[:, 0]], 1), of.latents[n])
        kept.weights.append(weights)
        kept.tensors.append(tensors)
        kept.before.append(before)
        if n + 1 < len(of.products):
            scalars.append(operators.times(hidden, of.leaves[n + 1][0]))
    energy = hidden @ of.readouts[-1]
    for n, x in enumerate(scalars):
        energy.addmm_(x, of.readouts[n])
    return _at_centres(energy, centre, block.count), kept


def _slopes(
    of: Constants, block: Block, kept: Kept, harmonics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the sum of all energies with respect to radial functions and harmonics."""
    centre, layers = block.centre, len(of.products)
    on_harmonics, on_tensors = torch.zeros_like(harmonics), torch.zeros_like(kept.tensors[layers])
    on_scalars = [readout.T for readout in of.readouts[:layers]]
    on_hidden = of.readouts[layers].T.expand(len(centre), -1)
    width = of.pairs.shape[1]
    for n in range(layers - 1, -1, -1):
        product, weights = of.products[n], kept.weights[n + 1]
        slope = _on_hidden(on_hidden, kept.before[n + 1], of.latents[n])
        for k in range(n + 1):
            on_scalars[k] = slope[:, k * width : (k + 1) * width] + on_scalars[k]
        on_tensors[:, 0] += slope[:, (n + 1) * width :]
        parts = [kept.tensors[n], kept.around[n], on_tensors]
        total = _at_centres(_summed(product, 1, parts), centre, block.count) * product.weights
        on_tensors = _summed(product, 0, parts)
        on_around = total.new_zeros([block.count, harmonics.shape[1], total.shape[2]])
        on_around = on_around.index_add_(1, product.components, total).index_select(0, centre)
        on_weights = _on_weights(on_around, harmonics, weights, of.degrees, on_harmonics)
        on_hidden = operators.times(on_weights, of.environments[n][1])
        if n > 0:
            on_hidden += operators.times(on_scalars[n], of.leaves[n][1])
    on_weights = _on_weights(on_tensors, harmonics, kept.weights[0], of.degrees, on_harmonics)
    on_hidden += on_scalars[0]
    on_hidden += operators.times(on_weights, of.first[1])
    slope = _on_hidden(operators.times(on_hidden, of.leaves[0][1]), kept.before[0], of.two_body)
    return (slope * kept.embedding) @ of.radial.T, on_harmonics


def _at_centres(x: torch.Tensor, centre: torch.Tensor, count: int) -> torch.Tensor:
    """Sums over the edges of each centre."""
    return x.new_zeros([count] + list(x.shape[1:])).index_add_(0, centre, x)


def _hidden(x: torch.Tensor, layers: list[list[torch.Tensor]]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Inputs of the nonlinearities of all layers, and the output of the last one."""
    before: list[torch.Tensor] = []
    for layer in layers:
        before.append(operators.times(x, layer[0]))
        x = silu(before[-1])
    return before, x


def _on_hidden(
    slope: torch.Tensor, before: list[torch.Tensor], layers: list[list[torch.Tensor]]
) -> torch.Tensor:
    """Gradient with respect to the input of the layers, from that of their output."""
    for n in range(len(layers) - 1, -1, -1):
        slope = operators.times(operators.silu_backward(slope, before[n]), layers[n][1])
    return slope


def _weighted(harmonics: torch.Tensor, weights: torch.Tensor, degrees: list[int]) -> torch.Tensor:
    """Harmonics of edges, ``(E, D)``, times weights of the degrees, ``(E, R * U)``, shape ``(E, D, U)``."""
    parts = weights.chunk(degrees[-1] + 1, 1)
    out = weights.new_empty([len(weights), len(degrees), parts[0].shape[1]])
    for n, degree in enumerate(degrees):
        torch.mul(parts[degree], harmonics[:, n : n + 1], out=out[:, n])
    return out


def _on_weights(
    slope: torch.Tensor,
    harmonics: torch.Tensor,
    weights: torch.Tensor,
    degrees: list[int],
    on_harmonics: torch.Tensor,
) -> torch.Tensor:
    """Gradient with respect to the weights of :func:`_weighted`.

    The gradient with respect to the harmonics is added to ``on_harmonics``.
    """
    on_weights = torch.empty_like(weights)
    parts, totals = weights.chunk(degrees[-1] + 1, 1), on_weights.chunk(degrees[-1] + 1, 1)
    before = -1
    for n, degree in enumerate(degrees):
        part, y = slope[:, n], harmonics[:, n : n + 1]
        if degree == before:
            totals[degree].addcmul_(part, y)
        else:
            torch.mul(part, y, out=totals[degree])
        before = degree
        on_harmonics[:, n] += (part * parts[degree]).sum(1)
    return on_weights


def _summed(product: Product, role: int, parts: list[torch.Tensor]) -> torch.Tensor:
    """Sums over terms of the products of the other two roles, at the components of ``role``.

    The result has shape ``(E, components, U)``. ``parts`` are the arrays of all roles; that of ``role`` is
    not read.
    """
    one, other = (role + 1) % 3, (role + 2) % 3
    x, y = parts[one], parts[other]
    if at_once(x, len(product.values)):
        products = x.index_select(1, product.indices[one]) * y.index_select(1, product.indices[other])
        return product.sums[role] @ products
    out = x.new_empty([len(x), product.sizes[role], x.shape[2]])
    outs, xs, ys, zero = out.unbind(1), x.unbind(1), y.unbind(1), x.new_zeros([])
    begun = [False for _ in outs]
    for n, value in enumerate(product.values):
        place = product.places[role][n]
        before = outs[place] if begun[place] else zero
        a, b = xs[product.places[one][n]], ys[product.places[other][n]]
        torch.addcmul(before, a, b, value=value, out=outs[place])
        begun[place] = True
    for place, done in enumerate(begun):
        if not done:
            outs[place].zero_()
    return out


def at_once(x: torch.Tensor, terms: int) -> bool:
    """Whether the terms are so few that a GPU is faster with all their products at once.

    One operation for each term moves less memory (``tried.csv``: "products of components by three matrices").
    """
    return x.is_cuda and terms * x[:, 0].numel() < 2**25
