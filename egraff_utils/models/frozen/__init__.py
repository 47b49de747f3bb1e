r"""How are the networks of the adapters evaluated fast? Other code needs only this module of the package.

.. math::

    \epsilon_i = f_i(\{r_{jk}\}), \qquad
    g_{jk} = \frac{\partial}{\partial r_{jk}} \sum_i \epsilon_i, \qquad
    F_j = \sum_k \left( g_{jk} - g_{kj} \right)

With frozen weights, as in a simulation, an engine computes the energies of the atoms together with the
gradient of their sum with respect to the edge vectors. The gradient is derived by hand, as autograd would
take time to record every operator and could not reuse intermediate results of the forward pass. While weights
are trained, a network keeps its autograd, and only parts of it are evaluated differently. Results equal those
of the upstream packages up to rounding.

A module of this package is named after the adapter whose networks it handles, and has two functions:
``freeze(network)`` returns a :class:`Frozen` with the current weights, and ``speed_up(network)`` changes the
evaluation of a network in training. An architecture without such a module is evaluated by its adapter, and so
is one without ``freeze`` while its weights are frozen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph
from egraff_utils.models.frozen import operators

Made = TypeVar("Made")
_plain = ContextVar("plain", default=False)


@contextmanager
def plain(wanted: bool = True) -> Iterator[None]:
    """Context in which new force fields evaluate their networks as the upstream packages do, if wanted."""
    token = _plain.set(wanted)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether this is a block of :func:`plain`."""
    return _plain.get()


def speed_up(network: nn.Module) -> None:
    """Change the evaluation of a network while its weights are trained, in place.

    The names and shapes of its weights stay the same. Nothing is changed in a block of :func:`plain`, or if
    this package does not handle the network.
    """
    engine = None if _plain.get() else _engine(network)
    if engine is not None:
        engine.speed_up(network)


def freezer(network: nn.Module) -> "Freezer | None":
    """:class:`Freezer` of a network; None in a block of :func:`plain`, or if no engine can freeze it."""
    engine = None if _plain.get() else _engine(network)
    return Freezer(network) if hasattr(engine, "freeze") else None


def _engine(network: nn.Module) -> ModuleType | None:
    """Module of this package with the name of the module that defines the network's class, or None."""
    room, _, name = type(network).__module__.rpartition(".")
    if room not in (__name__, __name__.rpartition(".")[0]) or find_spec(f"{__name__}.{name}") is None:
        return None
    return import_module(f"{__name__}.{name}")


class Frozen:
    """A network with the weights that it had when it was frozen."""

    def __call__(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of the atoms, and the gradient of their sum.

        Parameters
        ----------
        graph
            :class:`~egraff_utils.graph.AtomicGraph`.
        vectors
            Vectors of the first half of its edges (:meth:`~egraff_utils.graph.AtomicGraph.pair_vectors`),
            shape ``(E / 2, 3)``, Å.

        Returns
        -------
        tuple
            Dimensionless energies, shape ``(N,)``, and the gradient with respect to the vectors, shape
            ``(E / 2, 3)``, 1/Å. The second half of the edges is the first reversed, so the gradient of a pair
            is the sum of the contributions of both directions.
        """
        raise NotImplementedError

    def has_threads(self, graph: AtomicGraph) -> bool:
        """Whether the engine itself, instead of torch's operators, distributes the work to threads."""
        return False

    @contextmanager
    def evaluation(self, graph: AtomicGraph) -> Iterator[None]:
        """Context for a call, without autograd, and with one torch thread if the engine has its own."""
        with operators.one_thread() if self.has_threads(graph) else nullcontext(), torch.inference_mode():
            yield


class Kept(Generic[Made]):
    """Cache of a quantity computed from the weights of modules, which is valid while these are frozen.

    A copy of it is empty.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules
        self._owners: list[dict[str, nn.Parameter | None]] | None = None
        self._state: list[tuple[bool, int, int]] | None = None
        self._made: Made | None = None

    def __reduce__(self) -> tuple[type["Kept[Made]"], tuple[nn.Module, ...]]:
        return type(self), self._modules

    @property
    def weights(self) -> list[nn.Parameter]:
        """All parameters, a list; it is made once, as searching modules takes longer than a small layer."""
        if self._owners is None:
            parts = [part for module in self._modules for part in module.modules()]
            self._owners = [part._parameters for part in parts if part._parameters]
        return [weight for owner in self._owners for weight in owner.values() if weight is not None]

    def get(self, make: Callable[[], Made]) -> Made | None:
        """``make()``, or its last result if the weights are the same; None if the weights can change."""
        state = [(weight.requires_grad, weight.data_ptr(), weight._version) for weight in self.weights]
        if state != self._state:
            if any(wants for wants, *_ in state):
                self._state = self._made = None  # they may change without a new version, as fused steps do
                return None
            with torch.no_grad():
                self._state, self._made = state, make()
        return self._made


class Freezer(Kept[Frozen]):
    """Function that returns the :class:`Frozen` of a network, made on first use and when weights changed."""

    def __call__(self) -> Frozen | None:
        """:class:`Frozen` with the current weights; None while these can change."""
        return self.get(self._freeze)

    def _freeze(self) -> Frozen:
        (network,) = self._modules
        return _engine(network).freeze(network)
