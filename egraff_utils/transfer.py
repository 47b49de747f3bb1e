"""How accurate is a force field on frames it was not trained for? Its errors on a shifted set of frames."""

from dataclasses import dataclass

import numpy as np
import torch

from egraff_utils import cards, data, records, weights
from egraff_utils.config import Config, Kind
from egraff_utils.errors import compare, predict


@dataclass(frozen=True)
class TransferConfig(Config):
    """One trained model and the shifted frames on which its errors are taken."""

    model: str
    dataset: str
    """Dataset that the model was trained on."""
    campaign: str = "demo"
    seed: int = 0
    """Seed of the training."""
    split: str = "test"
    target: str | None = None
    """Dataset that the split belongs to, if it is not the one trained on."""
    frames: int | None = None
    """Largest number of frames of every composition, equally spaced; ``None`` takes all."""
    device: str = "cpu"
    threads: int = 1

    @property
    def kind(self):
        """:class:`~egraff_utils.config.Kind` ``errors`` with the name of the shift."""
        return Kind("errors", shift=cards.shift(self.split, self.target) or "test")


def errors(config, *, force_field=None):
    """Errors of a trained force field on a shifted set of frames.

    The energy zero of a model is fitted to its training set. On other molecules or compositions the raw
    energy error is mostly a constant, which does not affect simulations. It is therefore reported separately,
    and the error is reported again with the mean of each composition removed.

    Parameters
    ----------
    config
        :class:`TransferConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``errors_<shift>``, with the metrics and curves of `errors.compare`. A stored record is returned
        if it was made with the same weights and frames.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the frames hold an element that the model was not trained on, or a name is unknown.
    """
    frames = _thinned(data.load(config.target or config.dataset, config.split), config.frames)
    digests = {
        "weights": weights.digest(config, force_field),
        "data": records.digest(*[array for a in frames for array in (a.positions, a.get_potential_energy())]),
    }

    def make():
        torch.set_num_threads(config.threads)
        trained = (force_field or weights.load(config)).to(config.device)
        return records.Outcome(*compare(frames, *predict(trained, frames)))

    return records.run(config, make, **digests)


def _thinned(frames, most):
    """At most ``most`` frames of every source, equally spaced."""
    if most is None:
        return frames
    by_source = {}
    for atoms in frames:
        by_source.setdefault(atoms.info["source"], []).append(atoms)
    return [
        part[i]
        for part in by_source.values()
        for i in np.unique(np.linspace(0, len(part) - 1, min(most, len(part))).astype(int))
    ]
