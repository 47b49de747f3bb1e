"""What does a training step cost once it is compiled? The loss and gradients of a batch become one function.

The step is traced once to a graph of operators: the network, the forces as the gradient of its energies, the
loss, and the gradient of the loss with respect to every weight. That graph needs no autograd any more and is
passed to ``torch.compile``. Its shapes are fixed, since the compiler cannot handle sizes that depend on data.
Every batch is therefore padded with a ghost structure, which has its own atoms and edges and is left out of
the loss.
"""

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import pad

from egraff_utils import paths
from egraff_utils.graph import AtomicGraph, collate

if TYPE_CHECKING:
    from egraff_utils.models import ForceField

GHOST_VECTOR = (0.594, 0.4752, 0.6336)
"""Vector of the edges of a ghost, in cutoffs. At its length, 0.99, envelopes are almost zero, so that the
sums over its many edges stay small."""

AGREEMENT = 1e-3
"""Largest difference of compiled results from those by operators, relative to the largest of these.

In float32, rounding gives 3e-5 at most, for Equiformer on LiPS.
"""


class Batch(NamedTuple):
    """Structures with their labels."""

    graph: AtomicGraph
    energy: Tensor
    """Energies, shape ``(S,)``, eV, float64."""
    forces: Tensor
    """Forces, shape ``(N, 3)``, eV/Å."""
    virials: Tensor | None = None
    """Derivatives of the energies by a strain, shape ``(S, 3, 3)``, eV, float64, if they are trained."""


class Shape(NamedTuple):
    """Numbers of structures, atoms and pairs to which every batch is padded."""

    structures: int
    atoms: int
    pairs: int

    def holds(self, graph: AtomicGraph) -> bool:
        """Whether a ghost can pad a graph to this shape."""
        structures, atoms, pairs = self._missing(graph)
        return (structures, atoms, pairs) == (0, 0, 0) or (structures > 0 and atoms > 0 and pairs >= 0)

    def fill(self, graph: AtomicGraph, cutoff: float) -> AtomicGraph:
        """The graph padded with a ghost structure, whose first atom is its own neighbour along all edges."""
        structures, atoms, pairs = self._missing(graph)
        if not structures:
            return graph
        new = graph.positions.new_zeros
        shifts = (new(3) + new(3).new_tensor(GHOST_VECTOR) * cutoff).expand(pairs, 3)
        ghost = AtomicGraph(
            positions=new(atoms, 3),
            species=graph.species[:1].expand(atoms),
            edge_index=graph.edge_index.new_zeros(2, 2 * pairs),
            shifts=torch.cat([shifts, -shifts]),
            structure=graph.structure.new_zeros(atoms),
            cells=new(structures, 3, 3),
        )
        return collate([graph, ghost])

    def _missing(self, graph: AtomicGraph) -> tuple[int, ...]:
        return tuple(wanted - there for wanted, there in zip(self, sizes(graph), strict=True))


def sizes(graph: AtomicGraph) -> tuple[int, int, int]:
    """Numbers of structures, atoms and pairs of a graph."""
    return graph.num_structures, len(graph.positions), graph.edge_index.shape[1] // 2


WRAPPED = 4000
"""Largest number of operators of a graph for which the code that calls the kernels is compiled too. This
makes a network of three layers a tenth faster, but for one of six layers the C++ compiler takes ten
minutes."""


class Step:
    """Loss of a batch and its gradients, compiled for one shape.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField` in training mode, whose weights are read at every call.
    errors
        Function ``errors(batch, prediction, real)`` that returns the errors of energies, forces and, if they
        are trained, virials, a scalar each; ``real``, shape ``(S,)``, is one for structures and zero for
        ghosts.
    shape
        :class:`Shape` of the batches.
    virials
        Whether virials are trained.
    """

    def __init__(
        self,
        force_field: "ForceField",
        errors: Callable[..., tuple[Tensor, ...]],
        shape: Shape,
        *,
        virials: bool = False,
    ) -> None:
        self.network, self.cutoff = _Unchecked(force_field, virials), force_field.cutoff
        self.terms = 3 if virials else 2
        self.errors, self.shape = errors, shape
        named = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        self.weights = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        self.constants = {name: tensor for name, tensor in named.items() if not tensor.requires_grad}
        self.function: Callable[..., tuple[Tensor, ...]] | None = None
        self.seconds = 0.0

    def compile(self, batch: Batch) -> None:
        """Compile for batches of the shape, such as this one; ``seconds`` holds the processor time it took.

        Raises
        ------
        ArithmeticError
            If errors or gradients of the batch differ from those of the same function operator by operator.
        Exception
            Any error of the compiler, for instance if there is no C++ compiler.
        """
        before = _processor_time()
        arguments = self._arguments(batch, [1.0] * self.terms)
        with _caches():
            graph = make_fx(lambda *given: self._written_down(*given))(*arguments)
            options: dict[str, str | int | bool | Callable] = {
                "cpp_wrapper": len(graph.graph.nodes) < WRAPPED,
                "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,  # all batches have one shape
            }
            self.function = torch.compile(graph, dynamic=False, fullgraph=True, options=options)
            with torch.no_grad():
                made = self.function(*arguments)
        _must_agree(made, self._written_down(*arguments), self.terms)
        self.seconds = _processor_time() - before

    def __call__(self, batch: Batch, factors: Sequence[float]) -> tuple:
        """Errors of each term, and gradients of their weighted sum with respect to the weights."""
        with torch.no_grad():
            found = self.function(*self._arguments(batch, factors))  # type: ignore[misc]  # compiled by now
        return *found[: self.terms], found[self.terms :]

    def _arguments(
        self, batch: Batch, factors: Sequence[float]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        filled = self.shape.fill(batch.graph, self.cutoff)
        ghosts = filled.num_structures - batch.graph.num_structures
        energy = pad(batch.energy, (0, ghosts))
        forces = pad(batch.forces, (0, 0, 0, len(filled.positions) - len(batch.forces)))
        real = pad(torch.ones_like(batch.energy), (0, ghosts))
        virials = [] if batch.virials is None else [pad(batch.virials, (0, 0, 0, 0, 0, ghosts))]
        inputs = [*filled, energy, forces, *virials, real, real.new_tensor(factors)]
        return list(self.weights.values()), list(self.constants.values()), inputs

    @torch.enable_grad()
    def _written_down(
        self, weights: list[Tensor], constants: list[Tensor], inputs: list[Tensor]
    ) -> tuple[Tensor, ...]:
        named = zip([*self.weights, *self.constants], [*weights, *constants], strict=True)
        graph, (*labels, real, factors) = AtomicGraph(*inputs[:6]), inputs[6:]
        prediction = functional_call(self.network, dict(named), (graph,))
        errors = self.errors(Batch(graph, *labels), prediction, real)
        loss = factors[0] * errors[0]
        for factor, error in zip(factors[1:], errors[1:], strict=True):
            loss = loss + factor * error
        return *errors, *torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


class _Unchecked(nn.Module):
    """A force field evaluated by autograd, without checks that depend on values in its graph."""

    def __init__(self, force_field: "ForceField", virials: bool) -> None:
        super().__init__()
        self.force_field, self.virials = force_field, virials

    def forward(self, graph: AtomicGraph) -> tuple[Tensor, ...]:
        return self.force_field.differentiated(graph, virials=self.virials)


def _must_agree(made: Sequence[Tensor], plain: Sequence[Tensor], terms: int) -> None:
    """Raise ArithmeticError if compiled results are not those by operators, the errors and the gradients.

    The compiler can be wrong without a word (``tried.csv``: "one block").
    """
    for name, ours, right in (
        ("errors", made[:terms], plain[:terms]),
        ("gradients", made[terms:], plain[terms:]),
    ):
        largest = max(float(b.detach().abs().max()) for b in right)
        apart = max(float((a - b).detach().abs().max()) for a, b in zip(ours, right, strict=True))
        if not apart <= AGREEMENT * largest:
            raise ArithmeticError(f"compiled {name} differ by {apart:.1e} of {largest:.1e}")


@contextmanager
def _caches() -> Iterator[None]:
    """Let the compiler keep its files in the project's cache folder, where later runs find them."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    given = os.environ.get(name)
    os.environ[name] = given or str(paths.cache() / "inductor")
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]


def _processor_time() -> float:
    """Processor time of this process and of its finished child processes, s."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)
