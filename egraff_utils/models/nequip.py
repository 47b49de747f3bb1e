"""NequIP: messages are equivariant features times a learnt radial weight (package ``nequip``)."""

import os
from contextlib import contextmanager

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
        ``freeze(model)`` gives a function of types, edges and edge vectors with the model's present weights,
        which can be differentiated once. It is evaluated while the weights are frozen and kept from call to
        call.
    """

    def __init__(self, model, elements, freeze=None):
        super().__init__()
        self.model, self._freeze, self._frozen = model, freeze, fast.Kept(model)
        types = torch.full((len(chemical_symbols),), -1)
        types[elements] = torch.arange(len(elements))
        self.register_buffer("types", types, persistent=False)

    def has_threads(self, graph):
        """Whether the work on a graph is shared out among threads here, not by the operators of torch."""
        if not hasattr(self._freeze, "threads") or self.training or not self._frozen.are_frozen():
            return False
        return self._frozen.get(self._make).threads(graph.edge_index.shape[1]) > 1

    def forward(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        types = self.types[graph.species]
        if self._freeze and not self.training and self._frozen.are_frozen():
            return self._frozen.get(self._make)(types, graph.edge_index, vectors)
        data = {
            AtomicDataDict.POSITIONS_KEY: graph.positions.to(vectors.dtype),  # read for their number only
            AtomicDataDict.ATOM_TYPE_KEY: types,
            AtomicDataDict.EDGE_INDEX_KEY: graph.edge_index,
            AtomicDataDict.EDGE_VECTORS_KEY: vectors,
        }
        return self.model(data)[AtomicDataDict.PER_ATOM_ENERGY_KEY].squeeze(-1).to(vectors.dtype)

    @torch.no_grad()
    def _make(self):
        return self._freeze(self.model.model.func)


class Frozen:
    """NequIP with the weights that it has now, features with their channels last.

    What depends on lengths and directions is evaluated for one direction of every pair of atoms, and linear
    layers are one matrix for each kind of features, the self connection with one part for each element.

    Parameters
    ----------
    model
        ``SequentialGraphNetwork`` of the package.
    """

    def __init__(self, model):
        energy, embedding = model.per_type_energy_scale_shift, model.type_embed.embed_module.weight
        self.radial_basis = radial_basis(model, model.bessel_encode, model.factor.factor)
        self.harmonics = fast.Harmonics(model.spharm.sh, embedding)
        self.one_hot = torch.eye(len(embedding)).to(embedding)[:, None, :, None]
        layers = [part for part in model.children() if isinstance(part, ConvNetLayer)]
        self.layers = [Layer(layer, embedding) for layer in layers]
        networks = [matrices(layer.conv.edge_mlp) for layer in layers]
        self.radial_networks = fast.RadialNetworks.of(networks, [layer.messages for layer in self.layers])
        self.near, self.own = self.layers[0].prepare([embedding.unsqueeze(1)], self.one_hot)
        (readout,) = matrices(model.per_atom_energy_readout.mlp_module)
        self.readout, self.shift = readout * energy.scales, energy.shifts

    def __call__(self, types, edge_index, vectors):
        """Energy of each atom, shape ``(N,)``."""
        vectors = vectors[: len(vectors) // 2]  # the other direction says nothing new
        pairs = edge_index[:, : len(vectors)].T
        edges = pairs.flip(1).flatten(), pairs.flatten()
        radial, directions = fast.Polar.apply(vectors, *self.radial_basis)
        harmonics = self.harmonics(directions)
        one_hot, near, *own = (x.index_select(0, types) for x in (self.one_hot, self.near, *self.own))
        features = None
        all_weights, _ = fast.radial_weights(self.radial_networks, radial)
        for layer, weights in zip(self.layers, all_weights, strict=True):
            if features is not None:
                near, own = layer.prepare(features, one_hot)
            features = layer(near, own, harmonics, weights, edges)
        return torch.addmm(self.shift, features[0].squeeze(1), self.readout).squeeze(1)


class Layer:
    """A ``ConvNetLayer`` of the package with frozen weights; T elements, U channels.

    Parameters
    ----------
    layer
        Of the package.
    embedding
        Of the elements, for the self connection, shape ``(T, U)``.
    """

    def __init__(self, layer, embedding):
        block, gate, product = layer.conv, layer.equivariant_nonlin, layer.conv.tp_scatter.tp
        inputs, middle = product.irreps_in1, product.irreps_out.simplify()
        self.channels, self.acts = inputs[0].mul, gate.act_scalars.acts
        self.messages = fast.Messages(product, [ir for _, ir in middle], embedding)
        near = block.linear_1(_eye(inputs, embedding)) * block.avg_num_neighbors_norm.norm_const
        own = [()] * len(embedding)
        if block.sc is not None:
            own = [gate.sc(block.sc(_eye(inputs, row), row.expand(inputs.dim, -1))) for row in embedding]
        outputs = gate.irreps_scalars, gate.irreps_gates, gate.irreps_gated
        self.enter = []
        for _, ir in inputs:
            there = _channels(near, inputs, inputs, ir)
            rows = [torch.cat([there, *_targets(dense, inputs, outputs, ir)], dim=1) for dense in own]
            self.enter.append(torch.cat(rows))
        leave = gate.sc(block.linear_2(_eye(middle, embedding)))
        if self.messages.scalar:
            leave = [self.messages.on_rows(matrix) for matrix in leave]
            middle = o3.Irreps([(len(leave[0]), middle[0].ir)])
        self.leave = []
        for _, ir in (*gate.irreps_scalars, *gate.irreps_gated):
            matrix = fast.Matrix(torch.cat(_targets(leave, middle, outputs, ir), dim=1))
            before = _kinds(inputs).index(ir) if own[0] and ir in _kinds(inputs) else None
            self.leave.append((matrix, ir.dim, _kinds(middle).index(ir), before))

    def prepare(self, features, one_hot):
        """Features for neighbours, ``(N, D, U)``, and what goes from an atom to itself, a list of kinds.

        Parameters
        ----------
        features
            A list of kinds, each of shape ``(N, 2l + 1, U)``.
        one_hot
            Elements of the atoms, shape ``(N, 1, T, 1)``.
        """
        if one_hot.shape[2] > 1:
            features = [(one_hot * x.unsqueeze(2)).flatten(2) for x in features]
        both = [x @ matrix for x, matrix in zip(features, self.enter, strict=True)]
        near, own = zip(*[x.tensor_split([self.channels], dim=2) for x in both], strict=True)
        return torch.cat(near, dim=1), own

    def __call__(self, near, own, harmonics, weights, edges):
        """New features of the atoms, a list of kinds.

        Parameters
        ----------
        near, own
            What :meth:`prepare` gives.
        harmonics, weights
            Of one direction of every pair.
        edges
            Neighbour and centre of both, two of shape ``(E,)``.
        """
        around = self.messages(near, harmonics, weights, edges).split(self.messages.sizes, dim=1)
        kinds = []
        for matrix, dim, n, before in self.leave:
            rows = around[n].reshape(len(near) * dim, -1)
            plus = None if before is None else own[before].flatten(0, 1)
            kinds.append(matrix(rows, plus=plus).view(len(near), dim, -1))
        return self._gated(kinds)

    def _gated(self, kinds):
        """Activated scalars, which gates follow, and other kinds, each times its gate."""
        scalars, gates = [], []
        for act, x in zip(self.acts, kinds, strict=False):
            first, *others = act(x).split(self.channels, dim=2)
            scalars.append(first)
            gates += others
        return scalars + [gate * x for gate, x in zip(gates, kinds[len(scalars) :], strict=True)]


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
