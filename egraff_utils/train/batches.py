"""How do frames reach the device? Batches of graphs and labels, in an order that a resumed run repeats."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from ase import Atoms

from egraff_utils.data import strain_derivative
from egraff_utils.graph import build_graph, collate
from egraff_utils.train import compiled
from egraff_utils.train.compiled import Batch


class Batches:
    """Batches of one split; their graphs are built once.

    With a seed, the order of epoch k is the k-th permutation of that seed. Iteration starts at the batch that
    follows ``steps_done()`` steps, so a resumed run sees the same batches as an uninterrupted one.
    """

    def __init__(
        self,
        frames: Sequence[Atoms],
        size: int,
        *,
        cutoff: float,
        device: str,
        seed: int | None = None,
        steps_done: Callable[[], int] = lambda: 0,
        virials: bool = False,
    ) -> None:
        self.samples = [_sample(atoms, cutoff, device, virials) for atoms in frames]
        self.size, self.seed, self.steps_done = min(size, len(frames)), seed, steps_done
        self.sizes = np.array([compiled.sizes(sample.graph) for sample in self.samples])

    def __len__(self) -> int:
        return math.ceil(len(self.samples) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = divmod(self.steps_done(), len(self)) if self.seed is not None else (0, 0)
        order = self._order(epoch) if self.seed is not None else np.arange(len(self.samples))
        for k in range(first, len(self)):
            yield _join([self.samples[i] for i in order[k * self.size : (k + 1) * self.size]])

    def _order(self, epoch: int) -> np.ndarray:
        """Order of the samples in an epoch.

        If their numbers of atoms differ, every batch takes one sample from each size class, so that all
        batches have about the same number of edges.
        """
        random = np.random.default_rng([self.seed, epoch])  # type: ignore[arg-type]  # called with a seed
        order = random.permutation(len(self.samples))
        _, atoms, pairs = self.sizes.T
        if np.ptp(atoms) == 0:
            return order
        last, others = np.split(order, [len(order) % self.size])
        classes = others[np.argsort(pairs[others], kind="stable")].reshape(self.size, -1)
        return np.concatenate([random.permutation(random.permuted(classes, axis=1).T).ravel(), last])

    def shape(self) -> compiled.Shape:
        """:class:`~egraff_utils.train.compiled.Shape` of the largest batch of any epoch, ghost included."""
        _, atoms, pairs = self.sizes.T
        step = len(pairs) // self.size if np.ptp(atoms) else 1  # from one size class to the next
        largest = self.size, atoms.max() * self.size, np.sort(pairs)[::-step][: self.size].sum()
        same = np.ptp(self.sizes, axis=0).max() == 0 and len(self.samples) % self.size == 0
        return compiled.Shape(*(int(n) + (not same and k < 2) for k, n in enumerate(largest)))

    def state_dict(self) -> dict:
        """Empty, as the step count gives the position; Lightning expects this method of resumable loaders."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore, see :meth:`state_dict`."""


def _sample(atoms: Atoms, cutoff: float, device: str, virials: bool) -> Batch:
    graph = build_graph(atoms, cutoff, dtype=torch.float32).to(device)
    energy = torch.tensor([atoms.get_potential_energy()], dtype=torch.float64, device=device)
    forces = torch.tensor(atoms.get_forces(), dtype=torch.float32, device=device)
    if not virials:
        return Batch(graph, energy, forces)
    virial = torch.tensor(strain_derivative(atoms)[None], dtype=torch.float64, device=device)
    return Batch(graph, energy, forces, virial)


def _join(samples: Sequence[Batch]) -> Batch:
    graphs, *labels, virials = zip(*samples, strict=True)
    energies, forces = map(torch.cat, labels)
    return Batch(collate(graphs), energies, forces, None if virials[0] is None else torch.cat(virials))
