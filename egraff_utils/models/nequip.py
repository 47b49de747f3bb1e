"""NequIP: messages are equivariant features times a learnt radial weight (package ``nequip``)."""

import os
from contextlib import contextmanager
from typing import NamedTuple

import e3nn
import torch
from ase.data import chemical_symbols
from e3nn import o3
from lightning.pytorch.utilities.seed import isolate_rng
from nequip.data import AtomicDataDict
from nequip.model import NequIPGNNModel
from nequip.nn import ConvNetLayer, InteractionBlock
from nequip.nn._tp_scatter_base import TensorProductScatter
from nequip.nn.mlp import DeepLinearMLP
from nequip.utils.global_state import set_global_state
from torch import nn
from torch.nn.functional import silu

from egraff_utils import fast


class NequIPNetwork(nn.Module):
    """A model of the nequip family, given our edges and edge vectors instead of positions and a cell.

    Parameters
    ----------
    model
        ``nequip`` graph model built with ``do_derivatives=False``.
    elements
        Atomic numbers, in the order of the model's types.
    freeze
        ``freeze(model, types)`` gives a :class:`~egraff_utils.fast.Frozen` with the model's present weights.
        It is evaluated while the weights are frozen and kept from call to call.
    """

    def __init__(self, model, elements, freeze=None):
        super().__init__()
        self.model, self._freeze, self._frozen = model, freeze, fast.Kept(model)
        types = torch.full((len(chemical_symbols),), -1)
        types[elements] = torch.arange(len(elements))
        self.register_buffer("types", types, persistent=False)

    def as_frozen(self):
        """:class:`~egraff_utils.fast.Frozen` with the present weights; None while these can change."""
        return self._freeze and self._frozen.get(self._make)

    def _make(self):
        return self._freeze(self.model.model.func, self.types)

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        data = {
            AtomicDataDict.POSITIONS_KEY: graph.positions.to(vectors.dtype),  # read for their number only
            AtomicDataDict.ATOM_TYPE_KEY: self.types[graph.species],
            AtomicDataDict.EDGE_INDEX_KEY: graph.edge_index,
            AtomicDataDict.EDGE_VECTORS_KEY: vectors,
        }
        return self.model(data)[AtomicDataDict.PER_ATOM_ENERGY_KEY].squeeze(-1).to(vectors.dtype)


class Frozen(fast.Frozen):
    """NequIP with the weights that it has now, features with their channels last.

    What depends on lengths and directions is evaluated for one direction of every pair of atoms, and linear
    layers are one matrix for each kind of features, the self connection with one part for each element.

    Parameters
    ----------
    model
        ``SequentialGraphNetwork`` of the package.
    types
        Of the model, by atomic number.
    """

    def __init__(self, model, types):
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
            geometry=fast.Geometry(
                radial_basis=radial_basis(model, model.bessel_encode, model.factor.factor),
                couplings=fast.couplings(model.spharm.sh, embedding),
                size=model.spharm.sh.irreps_out.dim,
                networks=fast.RadialNetworks.of(networks, messages),
            ),
            layers=layers,
            elements=elements,
            near=near,
            own=own,
            readout=readout * energy.scales,
            shift=energy.shifts,
        )

    def __call__(self, graph, vectors):
        """See :meth:`egraff_utils.fast.Frozen.__call__`."""
        types = self.types.index_select(0, graph.species)
        return fast.compiled(evaluate, vectors.device)(self.constants, vectors, graph.edge_index, types)


def _messages(layer, like):
    product = layer.conv.tp_scatter.tp
    return fast.Messages(product, _kinds(product.irreps_out.simplify()), like)


def _layer(layer, messages, embedding):
    """:class:`Layer` from a ``ConvNetLayer`` of the package, its messages and the embedding of elements."""
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
        leave=[fast.both(torch.cat(_targets(leave, middle, outputs, ir), dim=1)) for ir in kinds],
        around=[_kinds(middle).index(ir) for ir in kinds],
        before=[_kinds(inputs).index(ir) if own[0] and ir in _kinds(inputs) else -1 for ir in kinds],
        dims=[ir.dim for ir in kinds],
        factors=[act.cst for act in gate.act_scalars.acts],
        odd=[ir.p < 0 for _, ir in gate.irreps_scalars],
    )


class Layer(NamedTuple):
    """Constants of a layer; T elements, U channels."""

    sums: fast.Sums
    sizes: list[int]
    """Numbers that an atom gets of every kind of messages."""
    enter: list[torch.Tensor]
    """From each kind of features, ``(T * U)`` rows, to what neighbours see and an atom keeps."""
    leave: list[list[torch.Tensor]]
    """From messages to each kind of new features, scalars with all gates of their kind, see `fast.both`."""
    around: list[int]
    """Kind of messages that each kind of new features is made of."""
    before: list[int]
    """Kind of features of which an atom keeps its part, or -1."""
    dims: list[int]
    """Components of the new features."""
    factors: list[float]
    """Of the nonlinearity of each kind of scalars."""
    odd: list[bool]
    """Whether it is that of odd scalars, tanh in place of silu."""


class Constants(NamedTuple):
    """What :func:`evaluate` needs beside the vectors of edges."""

    geometry: fast.Geometry
    layers: list[Layer]
    elements: torch.Tensor
    """Rows of one for each, shape ``(T, 1, T, 1)``."""
    near: torch.Tensor
    """What neighbours see in the first layer, by element, shape ``(T, D, U)``."""
    own: list[torch.Tensor]
    """What an atom of an element keeps in the first layer, a list of kinds."""
    readout: torch.Tensor
    shift: torch.Tensor
    """Energy of each element."""


def evaluate(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of the atoms, shape ``(N,)``, and the gradient of their sum by the vectors of pairs."""
    energies, shared, of_layers = _energies(of, vectors, edge_index, types)
    return energies, _gradient(of, shared, of_layers)


def _energies(
    of: Constants, vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor
) -> tuple[torch.Tensor, list[list[torch.Tensor]], list[list[list[torch.Tensor]]]]:
    """Energies of the atoms, and for :func:`_gradient` what is kept, also of each layer."""
    harmonics, weights, kept = fast.of_pairs(of.geometry, vectors)
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
        given = fast.Given(near, harmonics, weights[n], neighbour, centre)
        total, products = fast.messages(layer.sums, given)
        kinds = _leave(layer, total, own)
        features, activated = _gated(layer, kinds)
        of_layers.append([products, kinds, activated])
    energy = torch.addmm(of.shift, features[0].squeeze(1), of.readout).squeeze(1)
    return energy, kept + [[harmonics, neighbour, centre, one_hot], weights, nears], of_layers


def _gradient(
    of: Constants, shared: list[list[torch.Tensor]], of_layers: list[list[list[torch.Tensor]]]
) -> torch.Tensor:
    """Gradient of the sum of all energies by the vectors, from what was kept."""
    edges, weights, nears = shared[3:]
    harmonics, neighbour, centre, one_hot = edges
    on_harmonics = torch.zeros_like(harmonics)
    on_weights: list[torch.Tensor] = []
    on_features = [of.readout.T.expand(len(one_hot), -1).unsqueeze(1)]
    for n in range(len(of.layers) - 1, -1, -1):
        layer = of.layers[n]
        products, kinds, activated = of_layers[n]
        on_kinds = _on_gated(layer, on_features, kinds, activated)
        given = fast.Given(nears[n], harmonics, weights[n], neighbour, centre)
        wanted = torch.zeros_like(nears[n]) if n > 0 else None
        on_total = _on_messages(layer, on_kinds)
        found = fast.on_messages(layer.sums, given, products, on_total, wanted, on_harmonics)
        on_weights.insert(0, found)
        if wanted is not None:
            on_features = _on_entered(layer, wanted, on_kinds, of.layers[n - 1].dims, one_hot)
    return fast.on_pairs(of.geometry, on_harmonics, on_weights, shared[:3])


def _enter(
    of: Layer, features: list[torch.Tensor], one_hot: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What neighbours see, ``(N, D, U)``, and what an atom keeps, of kinds of features ``(N, 2l + 1, U)``."""
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
    """Gradient of the features from those of what :func:`_enter` gave; ``dims`` are their components."""
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
        x = fast.times(rows, matrix[0]).view(len(total), of.dims[n], -1)
        found.append(x if of.before[n] < 0 else x + own[of.before[n]])
    return found


def _on_messages(of: Layer, on_kinds: list[torch.Tensor]) -> torch.Tensor:
    """Gradient of the messages from that of what :func:`_leave` gave."""
    atoms = len(on_kinds[0])
    on_total = on_kinds[0].new_zeros([atoms, sum(of.sizes)])
    parts = on_total.split(of.sizes, 1)
    for n, matrix in enumerate(of.leave):
        slope = fast.times(on_kinds[n].flatten(0, 1), matrix[1])
        parts[of.around[n]].copy_(slope.view(atoms, -1))
    return on_total


def _gated(of: Layer, kinds: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """New features, and activated scalars with the gates behind them."""
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
    """Gradient of what went into :func:`_gated`."""
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
            on_scalars.append(fast.silu_backward(slope, kinds[n]))
    return on_scalars + on_gated


def _targets(dense, irreps, outputs, ir):
    """Parts of matrices from irreps to scalars, gates and gated, of a kind; none where there is none."""
    parts = zip(dense, outputs, strict=False)
    return [_channels(matrix, irreps, columns, ir) for matrix, columns in parts if ir in _kinds(columns)]


def _kinds(irreps):
    return [kind for _, kind in irreps]


def _channels(matrix, rows, columns, ir):
    """The part of a matrix between irreps that goes from a kind to the same, for one component."""
    part = [irreps.slices()[_kinds(irreps).index(ir)] for irreps in (rows, columns)]
    return matrix[tuple(part)][:: ir.dim, :: ir.dim].contiguous()


def _eye(irreps, like):
    return torch.eye(irreps.dim).to(like)


def radial_basis(model, basis, factor=1.0):
    """:class:`~egraff_utils.fast.RadialBasis` of a model with a basis of the package and a factor."""
    cutoff = 1 / model.edge_norm._rmax_recip.item()
    roots = basis.bessel_weights * (torch.pi / cutoff)
    return fast.RadialBasis(roots, float(factor * cutoff / torch.pi), cutoff, float(basis.cutoff.p))


def matrices(mlp):
    """Scaled weights of a ``ScalarMLPFunction``: of every layer, or their product if it is linear."""
    if isinstance(mlp.mlp, DeepLinearMLP):
        return [torch.linalg.multi_dot(list(mlp.mlp.weights)) * mlp.mlp.alpha]
    return [layer.weight * layer.alpha for layer in mlp.mlp if hasattr(layer, "weight")]


class Scatter(nn.Module):
    """``TensorProductScatter`` by way of :class:`~egraff_utils.fast.Convolution`."""

    def __init__(self, plain):
        super().__init__()
        self.tp = fast.Convolution(plain.tp)

    def forward(self, x, edge_attr, edge_weight, edge_dst, edge_src):
        """Messages of all neighbours; the arguments are the package's."""
        return self.tp(x, edge_attr, edge_weight, (edge_src, edge_dst))


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_layers=6,
    l_max=2,
    num_features=32,
    parity=True,
    num_bessels=8,
    bessel_trainable=True,
    polynomial_cutoff=6,
    radial_layers=3,
    radial_width=64,
):
    """NequIP (Batzner et al. 2022; EGraFFBench, Table 11) with an energy of scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Å.
    average_neighbors
        Mean number of neighbours on the training set, which normalises sums over neighbours.
    num_layers, l_max, num_features, parity
        Interaction blocks, highest degree, channels of every degree, whether features of both parities.
    num_bessels, bessel_trainable, polynomial_cutoff
        Radial basis and the exponent of its envelope.
    radial_layers, radial_width
        Hidden layers of the radial network and their width.
    """
    hyperparameters = {
        "num_layers": num_layers,
        "l_max": l_max,
        "parity": parity,
        "num_features": num_features,
        "num_bessels": num_bessels,
        "bessel_trainable": bessel_trainable,
        "polynomial_cutoff_p": polynomial_cutoff,
        "radial_mlp_depth": radial_layers,
        "radial_mlp_width": radial_width,
    }
    common = common_arguments(elements, cutoff, average_neighbors)
    with nequip_state():
        model = NequIPGNNModel(**common, **hyperparameters)
        if l_max > 1:  # with scalars and vectors alone the package trains as fast
            fast.replace(model, TensorProductScatter, Scatter)
        if not fast.is_plain():
            for block in model.modules():
                if isinstance(block, InteractionBlock):
                    fast.share_directions(block.edge_mlp)
        return NequIPNetwork(model, elements, None if fast.is_plain() else Frozen)


def common_arguments(elements, cutoff, average_neighbors):
    """Arguments that NequIP and Allegro share; the weights' seed is drawn from torch's generator."""
    return {
        "seed": int(torch.randint(2**31, ())),
        "model_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "type_names": [chemical_symbols[z] for z in elements],
        "r_max": float(cutoff),
        "avg_num_neighbors": float(average_neighbors),
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": 0.0,
        "do_derivatives": False,
    }


@contextmanager
def nequip_state():
    """The global state that nequip's builders demand, for the duration of a ``with`` block.

    Setting it seeds every random generator, makes float64 torch's default type and touches the environment,
    and building resets e3nn's code generation; all of that is put back.
    """
    dtype, optimization = torch.get_default_dtype(), e3nn.get_optimization_defaults().copy()
    sharing, environment = torch.multiprocessing.get_sharing_strategy(), dict(os.environ)
    try:
        with isolate_rng():
            set_global_state()
            yield
    finally:
        for key in set(os.environ) - set(environment):
            del os.environ[key]
        os.environ.update(environment)
        torch.multiprocessing.set_sharing_strategy(sharing)
        e3nn.set_optimization_defaults(jit_script_fx=optimization["jit_script_fx"])
        e3nn.set_optimization_defaults(jit_mode=optimization["jit_mode"])
        torch.set_default_dtype(dtype)
