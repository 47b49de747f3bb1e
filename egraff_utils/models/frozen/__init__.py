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

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec

import torch

from egraff_utils.models.frozen import operators

_plain = ContextVar("plain", default=False)


@contextmanager
def plain(wanted=True):
    """Context in which new force fields evaluate their networks as the upstream packages do, if wanted."""
    token = _plain.set(wanted)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain():
    """Whether this is a block of :func:`plain`."""
    return _plain.get()


def speed_up(network):
    """Change the evaluation of a network while its weights are trained, in place.

    The names and shapes of its weights stay the same. Nothing is changed in a block of :func:`plain`, or if
    this package does not handle the network.
    """
    engine = None if _plain.get() else _engine(network)
    if engine is not None:
        engine.speed_up(network)


def freezer(network):
    """:class:`Freezer` of a network; None in a block of :func:`plain`, or if no engine can freeze it."""
    engine = None if _plain.get() else _engine(network)
    return Freezer(network) if hasattr(engine, "freeze") else None


def _engine(network):
    """Module of this package with the name of the module that defines the network's class, or None."""
    room, _, name = type(network).__module__.rpartition(".")
    if room not in (__name__, __name__.rpartition(".")[0]) or find_spec(f"{__name__}.{name}") is None:
        return None
    return import_module(f"{__name__}.{name}")


class Frozen:
    """A network with the weights that it had when it was frozen."""

    def __call__(self, graph, vectors):
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

    def has_threads(self, graph):
        """Whether the engine itself, instead of torch's operators, distributes the work to threads."""
        return False

    @contextmanager
    def evaluation(self, graph):
        """Context for a call, without autograd, and with one torch thread if the engine has its own."""
        with operators.one_thread() if self.has_threads(graph) else nullcontext(), torch.inference_mode():
            yield


class Kept:
    """Cache of a quantity computed from the weights of modules, which is valid while these are frozen.

    A copy of it is empty.
    """

    def __init__(self, *modules):
        self._modules, self._owners = modules, None
        self._state = self._made = None

    def __reduce__(self):
        return type(self), self._modules

    @property
    def weights(self):
        """All parameters, a list; it is made once, as searching modules takes longer than a small layer."""
        if self._owners is None:
            parts = [part for module in self._modules for part in module.modules()]
            self._owners = [part._parameters for part in parts if part._parameters]
        return [weight for owner in self._owners for weight in owner.values() if weight is not None]

    def get(self, make):
        """``make()``, or its last result if the weights are the same; None if the weights can change."""
        state = [(weight.requires_grad, weight.data_ptr(), weight._version) for weight in self.weights]
        if state != self._state:
            if any(wants for wants, *_ in state):
                self._state = self._made = None  # they may change without a new version, as fused steps do
                return None
            with torch.no_grad():
                self._state, self._made = state, make()
        return self._made


class Freezer(Kept):
    """Function that returns the :class:`Frozen` of a network, made on first use and when weights changed."""

    def __call__(self):
        """:class:`Frozen` with the current weights; None while these can change."""
        return self.get(self._freeze)

    def _freeze(self):
        (network,) = self._modules
        return _engine(network).freeze(network)
