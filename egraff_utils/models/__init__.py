"""What do the six force fields share? A network gives an energy per atom; :class:`ForceField` does the rest.

The module named after an architecture builds its network with ``build_network``. The network is called as
``network(graph, vectors)`` with an :class:`~egraff_utils.graph.AtomicGraph` and its edge vectors, shape
``(E, 3)``, Å; it returns one dimensionless energy per atom, shape ``(N,)``. :func:`register` adds an
architecture from outside.
"""

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egraff_utils import allocator, cards, paths, records, schema
from egraff_utils.graph import AtomicGraph
from egraff_utils.models import frozen

NAMES = ("nequip", "allegro", "botnet", "mace", "equiformer", "torchmd_net")
LARGE = 10_000
"""Numbers in a parameter above which :func:`round_large` rounds it."""
_registered: dict[str, tuple[Callable, cards.ModelCard, str]] = {}
"""Name of a registered architecture -> its ``build_network``, its card, the hash of its code at that time."""


class Prediction(NamedTuple):
    """What a force field predicts for a graph."""

    energy: Tensor
    """Potential energy of each structure, shape ``(S,)``, float64, eV."""
    forces: Tensor
    """Forces, shape ``(N, 3)``, eV/Å."""


class ForceField(nn.Module):
    r"""A network with reference energies and an energy scale; its forces are derivatives of its energy.

    .. math:: E = \sum_i \left( E_0(z_i) + s\, \epsilon_i \right), \qquad
              F_i = -\frac{\partial E}{\partial x_i}

    The sum is taken in float64, since float32 cannot hold the -17,660 eV of a molecule to better than 2 meV.
    The derivative is taken with respect to the edge vectors, so the forces of all architectures follow from
    one rule.
    """

    known: Tensor
    reference_energies: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        elements: Sequence[int],
        *,
        cutoff: float = 5.0,
        build_arguments: dict | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.elements = sorted(int(z) for z in elements)
        self.cutoff = float(cutoff)
        self.build_arguments = build_arguments or {}
        self._freezer, self._plain = frozen.freezer(network), frozen.is_plain()
        known = torch.zeros(len(chemical_symbols), dtype=torch.bool)
        known[self.elements] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("reference_energies", torch.zeros(len(chemical_symbols), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network, which ``float``, ``double`` and ``to`` change."""
        return next(p.dtype for p in self.network.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ForceField":
        """Convert all tensors, as torch's ``to`` does; reference energies and scale stay in float64."""
        before, energies, scale = self.dtype, self.reference_energies, self.scale
        super()._apply(fn, recurse)
        self.reference_energies, self.scale = energies.to(self.known.device), scale.to(self.known.device)
        if self.dtype != before and self.build_arguments:
            self._rebuild_network()
        return self

    def _rebuild_network(self) -> None:
        """Replace the network by one built in today's type, whose parameters are the same objects.

        Some networks hold types that torch does not convert, and all hold constants, which are built anew
        instead of being converted, so that they are exact in float64.
        """
        self.build_arguments = self.build_arguments | {"dtype": str(self.dtype)}
        with torch.random.fork_rng(), frozen.plain(self._plain):
            network = _rebuild(self.build_arguments).network.to(self.known.device).train(self.training)
        network.load_state_dict(_learnt(self.network.state_dict(), network), strict=False)
        for name, parameter in self.network.named_parameters(remove_duplicate=False):
            owner, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(owner), own_name, parameter)
        self.network, self._freezer = network, self._freezer and frozen.freezer(network)

    def set_reference(self, energies: Mapping[int, float], scale: float = 1.0) -> None:
        """Set the reference energies, a mapping from atomic number to eV, and the energy scale, eV."""
        for z, energy in energies.items():
            self.reference_energies[z] = energy
        self.scale.fill_(scale)

    def forward(self, graph: AtomicGraph) -> Prediction:
        """Energies and forces of a graph, :class:`Prediction`.

        Raises
        ------
        ValueError
            If the graph holds an element that the model was not built for, or its edges are not ordered by
            direction.
        """
        return self._prediction(graph, *self._evaluated(graph))

    def with_virials(self, graph: AtomicGraph) -> tuple[Tensor, Tensor, Tensor]:
        r"""Energies and forces as of :meth:`forward`, and the derivatives of the energies by a strain.

        The energy depends on positions and cell through the vectors of pairs alone, so that

        .. math:: \frac{\partial E}{\partial \varepsilon_{ab}}
                  = \sum_{\text{pairs}} \frac{\partial E}{\partial r_a} r_b ,

        which is symmetric, as the energy does not change under rotations. Over the volume it is the stress in
        the sign of ASE: positive where the crystal would shrink.

        Returns
        -------
        energy, forces, virials : Tensor
            Shapes ``(S,)``, eV; ``(N, 3)``, eV/Å; ``(S, 3, 3)``, float64, eV.
        """
        atomic, on_pairs = self._evaluated(graph)
        return *self._prediction(graph, atomic, on_pairs), self._virials(on_pairs, graph)

    def _evaluated(self, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
        """Energies of the atoms without unit, and the gradient with respect to the vectors of pairs."""
        # Both conditions are joined in one tensor, so that a GPU is waited for only once.
        if not self.known[graph.species].all() & _both_directions(graph.edge_index):
            self.check_elements(graph.species)
            raise ValueError(
                "edge e + E/2 is not the reverse of edge e; make graphs with graph.build_graph, "
                "graph.collate or graph.SkinList, which order them so"
            )
        network = None if self.training else self.as_frozen()
        if network is None:
            return self._by_autograd(graph)
        with network.evaluation(graph):
            return network(graph, graph.pair_vectors().to(self.dtype))

    def as_frozen(self) -> frozen.Frozen | None:
        """The form of the network written for speed, a ``models.frozen.Frozen``.

        It is None while the weights can change, and for a network that has no such form.
        """
        return self._freezer() if self._freezer else None

    @torch.enable_grad()
    def differentiated(self, graph: AtomicGraph, *, virials: bool = False) -> tuple[Tensor, ...]:
        """:class:`Prediction` by autograd, or with virials the result of :meth:`with_virials`.

        The control flow depends on no value in the graph, so this method can be compiled.
        """
        atomic, on_pairs = self._by_autograd(graph)
        prediction = self._prediction(graph, atomic, on_pairs)
        return (*prediction, self._virials(on_pairs, graph)) if virials else prediction

    @torch.enable_grad()
    def _by_autograd(self, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
        vectors = graph.edge_vectors().to(self.dtype).detach().requires_grad_()
        atomic = self.network(graph, vectors)
        there, back = self._edge_gradient(atomic, vectors).tensor_split(2)
        return atomic if self.training else atomic.detach(), there - back

    def _prediction(self, graph: AtomicGraph, atomic: Tensor, on_pairs: Tensor) -> Prediction:
        energies = self.scale * atomic.double() + self.reference_energies[graph.species]
        energy = energies.new_zeros(graph.num_structures).index_add(0, graph.structure, energies)
        return Prediction(energy, self._forces(on_pairs, graph) * self.scale.to(on_pairs.dtype))

    def _edge_gradient(self, atomic: Tensor, vectors: Tensor) -> Tensor:
        if not atomic.requires_grad:  # the graph has no edges and the energy uses no parameter
            return torch.zeros_like(vectors)
        options = {"create_graph": self.training, "allow_unused": True, "materialize_grads": True}
        (gradient,) = torch.autograd.grad(atomic, vectors, torch.ones_like(atomic), **options)
        return gradient

    @staticmethod
    def _forces(on_pairs: Tensor, graph: AtomicGraph) -> Tensor:
        """Forces, minus the gradient with respect to positions; the vector of a pair is ``x_j - x_i``."""
        centre, neighbour = graph.edge_index[:, : len(on_pairs)]
        zero = on_pairs.new_zeros(len(graph.positions), 3)
        return zero.index_add(0, centre, on_pairs).index_add(0, neighbour, -on_pairs)

    def _virials(self, on_pairs: Tensor, graph: AtomicGraph) -> Tensor:
        gradient = self.scale * on_pairs.double()
        products = gradient.unsqueeze(2) * graph.pair_vectors().double().unsqueeze(1)
        owner = graph.structure[graph.edge_index[0, : len(on_pairs)]]
        virials = products.new_zeros(graph.num_structures, 3, 3).index_add(0, owner, products)
        return (virials + virials.mT) / 2  # rounding apart it is symmetric

    def check_elements(self, species: Tensor) -> None:
        """Raise ``ValueError`` naming the first element that the model was not built for."""
        unknown = species[~self.known[species]]
        if len(unknown):
            symbol, known = chemical_symbols[int(unknown[0])], [chemical_symbols[z] for z in self.elements]
            raise ValueError(
                f"the model was not trained on {symbol}; it knows {', '.join(known)}. Take frames of these "
                f"elements, or train it on frames with {symbol}"
            )

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def __repr__(self) -> str:
        name = self.build_arguments.get("name", type(self.network).__name__)
        symbols = "".join(chemical_symbols[z] for z in self.elements)
        return f"ForceField({name}, {symbols}, cutoff={self.cutoff} Å, {self.num_parameters():,} parameters)"


def _learnt(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Tensors of a state without the constants of a network, which are equal up to single precision."""
    constants = dict(network.named_buffers())
    same = [name for name in state if name in constants and _close(constants[name], state[name])]
    return {name: value for name, value in state.items() if name not in same}


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6)


def _both_directions(edge_index: Tensor) -> Tensor:
    """Whether the second half of the edges is the first half reversed, a boolean tensor of shape ``()``."""
    there, back = edge_index.tensor_split(2, dim=1)
    if there.shape != back.shape:
        return edge_index.new_zeros((), dtype=torch.bool)
    return (there == back.flip(0)).all()


def register(name: str, build_network: Callable[..., nn.Module], card: cards.ModelCard) -> None:
    """Add an architecture, so that campaigns and notebooks can name it.

    Models are trained anew when the file that defines ``build_network`` has changed, or, for a function
    defined in a notebook, when what it uses there has changed. After a change elsewhere, raise ``version`` of
    the card.

    Parameters
    ----------
    name
        Name as used in campaign files.
    build_network
        ``build_network(elements, *, cutoff, average_neighbors, **hyperparameters) -> nn.Module``.
    card
        Its :class:`~egraff_utils.model_card.ModelCard`.

    Raises
    ------
    ValueError
        If the name is that of a model of the project, or is no name of a model.
    """
    cards.check_free(name)
    _registered[schema.check_model_name(name)] = (build_network, card, records.digest(_code(build_network)))


def card(name: str) -> cards.ModelCard:
    """:class:`~egraff_utils.model_card.ModelCard` of a built-in or registered architecture."""
    return _registered[name][1] if name in _registered else cards.model(name)


def version(name: str) -> str:
    """Version of the network of an architecture, a text that changes when the network does.

    It holds the package and version of the card and, for an architecture from outside, the hash of its code.

    >>> version("mace")
    'mace-torch 0.3.16, version 1'
    """
    text = f"{card(name).package}, version {card(name).version}"
    if name in _registered:
        return f"{text}, code {_registered[name][2]}"
    return f"{text}, code {records.digest(_code(_builder(name)))}" if card(name).file else text


def _code(build_network):
    """Source of the module that defines a function, and of the function.

    Where there is no file, as in a notebook, the bytecode of everything that the function uses there.
    """
    try:
        return [inspect.getsource(inspect.getmodule(build_network)), inspect.getsource(build_network)]
    except (OSError, TypeError):
        found, todo = {}, [build_network]
    for thing in todo:  # the list grows during the loop
        own = getattr(thing, "__module__", None) == build_network.__module__
        if own and (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__qualname__ not in found:
            found[thing.__qualname__], named = _bytecode(thing)
            todo += named
    return found


def _bytecode(thing):
    """Bytecode and constants of a function or class as text, and the objects that it names."""
    codes, named, defaults = [], dict(vars(thing)), None
    if inspect.isfunction(thing):
        codes, defaults = [thing.__code__], [thing.__defaults__, thing.__kwdefaults__]
        for code in codes:  # the list grows by the nested functions
            codes += filter(inspect.iscode, code.co_consts)
        named = {n: thing.__globals__.get(n) for code in codes for n in code.co_names}
    constants = [k for code in codes for k in code.co_consts if not inspect.iscode(k)]
    constants = [sorted(k, key=repr) if isinstance(k, frozenset) else k for k in constants]
    plain = {n: v for n, v in named.items() if isinstance(v, bool | int | float | str) and n[:2] != "__"}
    text = [[code.co_code.hex(), code.co_names] for code in codes] + [plain]
    text.append(re.sub(" at 0x[0-9a-f]+", "", repr((defaults, constants))))
    methods = [getattr(v, "fget", getattr(v, "__func__", v)) for v in named.values()]
    return text, [*getattr(thing, "__bases__", ()), *methods]


def build(
    name: str,
    preset: str = "paper",
    elements: Iterable[int] = (1, 6, 8),
    *,
    dtype: torch.dtype = torch.float32,
    **overrides: object,
) -> ForceField:
    """A new force field, whose initial weights are drawn from torch's global generator.

    Parameters
    ----------
    name
        Architecture, one of :data:`NAMES` or a registered one.
    preset
        One of its card; those that all shipped models have: :func:`~egraff_utils.cards.presets`.
    elements
        Atomic numbers of the elements that the model covers.
    dtype
        Floating-point type of the network.
    overrides
        Keyword arguments of ``build_network`` that replace the preset's values.

    Raises
    ------
    ValueError
        If the name, the preset or an override is unknown.
    """
    allocator.keep_freed_memory()
    elements = sorted({int(z) for z in elements})
    hyperparameters = {"average_neighbors": 10.0, **card(name).network(preset)}
    for key in overrides:
        if key not in hyperparameters:
            raise cards.unknown(f"hyperparameter of {name}", key, hyperparameters)
    hyperparameters |= overrides
    with default_dtype(dtype):
        network = _built(name, elements, hyperparameters)
        frozen.speed_up(network)
        network = network.to(dtype)
    arguments = {"name": name, "preset": preset, "elements": elements, "dtype": str(dtype), **overrides}
    return ForceField(network, elements, cutoff=hyperparameters["cutoff"], build_arguments=arguments)


def save(ff: ForceField, path: Path | str) -> None:
    """Write the weights (safetensors) and, beside them as JSON, the arguments of :func:`build`.

    Buffers that :func:`build` creates anew are not written: the constants of MACE's contractions take 40
    times as much space as its parameters. Parameters that half precision holds exactly, as after
    :func:`round_large`, take half the space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        constants = dict(_rebuild(ff.build_arguments).named_buffers())
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in ff.state_dict().items()}
    tensors = {
        key: value
        for key, value in tensors.items()
        if key not in constants or not torch.equal(value, constants[key])
    }
    for name, _ in ff.named_parameters():
        half = tensors[name].half()
        tensors[name] = half if torch.equal(half.to(tensors[name].dtype), tensors[name]) else tensors[name]
    with paths.written(path.with_suffix(".build.json")) as temporary:
        temporary.write_text(json.dumps(ff.build_arguments, indent=1) + "\n")
    with paths.written(path) as temporary:
        save_file(tensors, temporary)


@torch.no_grad()
def round_large(ff: ForceField, dtype: torch.dtype = torch.float16) -> None:
    """Round parameters with more than :data:`LARGE` numbers, in place, to values that a type can represent.

    The type of the parameters does not change. Smaller parameters are left as they are: for one NequIP on
    ethanol this rounding moved the force error of 300 test frames from 9.395 to 9.394 meV/Å and the energy
    error from 3.34 to 3.33 meV, whereas rounding all parameters increased the former by 4 % and doubled the
    latter on the whole test set.
    """
    for parameter in ff.parameters():
        if parameter.numel() > LARGE:
            parameter.copy_(parameter.to(dtype))


def load(path: Path | str, *, device: torch.device | str = "cpu") -> ForceField:
    """The force field stored by :func:`save`, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If the weights or their build arguments are missing; the message names the file.
    ValueError
        If the file lacks a parameter of the model, or holds a tensor that the model does not have.
    """
    path = Path(path)
    for file in (path, path.with_suffix(".build.json")):
        if not file.is_file():
            raise FileNotFoundError(f"no weights: {file} does not exist; train the model first")
    ff = _rebuild(json.loads(path.with_suffix(".build.json").read_text()))
    found = ff.load_state_dict(load_file(path), strict=False)
    wrong = [name for name, _ in ff.named_parameters() if name in found.missing_keys] + found.unexpected_keys
    if wrong:
        raise ValueError(
            f"{path} does not fit its build arguments: {', '.join(wrong[:3])}; train the model anew"
        )
    return ff.to(device).eval()


def _rebuild(arguments: dict) -> ForceField:
    return build(**{**arguments, "dtype": getattr(torch, arguments["dtype"].removeprefix("torch."))})


def _built(name: str, elements: list[int], hyperparameters: dict) -> nn.Module:
    try:
        return _builder(name)(elements, **hyperparameters)
    except ModuleNotFoundError as error:
        package = card(name).package.replace(" ", "==")
        text = f"{name} needs the package {error.name}: run pip install --no-deps {package}"
        raise RuntimeError(text) from error


def _builder(name: str) -> Callable[..., nn.Module]:
    if name in _registered:
        return _registered[name][0]
    if name in NAMES:
        return importlib.import_module(f"egraff_utils.models.{name}").build_network
    module, _, function = (card(name).builder or "").rpartition(".")
    if not module:
        raise ValueError(f"{name} has no network: its card has no builder")
    return getattr(importlib.import_module(module), function)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Context in which ``dtype`` is torch's default floating-point type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
