"""Which frames of a dataset does a rollout start from, and with which is it compared?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from egraff_utils import cards, data
from egraff_utils.config import AS_CODED
from egraff_utils.md.calculator import difference

if TYPE_CHECKING:  # which imports this module
    from egraff_utils.md.rollout import RolloutConfig


def reference_of(card: cards.DatasetCard, *, split: str = "test") -> list[Atoms]:
    """Frames that a rollout starts from and is compared with, a list of ``ase.Atoms``.

    If the split is ordered in time, only the frames after its last jump are returned.

    Raises
    ------
    ValueError
        If the frames are not copies of one system, which all replicas and their reference are.
    """
    skipped = card.first_contiguous.get(split, 0)
    frames = data.checked(card, (split,))[split][skipped:]
    check_alike(frames, f"{card.name}/{split}", skipped)
    return frames


def check_alike(frames: Sequence[Atoms], where: str, skipped: int = 0) -> None:
    """Reject frames that are not copies of one system; ``where`` is ``dataset/split``.

    Raises
    ------
    ValueError
        The message names the first frame that differs, in what, and the remedy.
    """
    for index, atoms in enumerate(frames):
        if unlike := difference(atoms, frames[0]):
            raise ValueError(
                f"{where}: frame {index + skipped} {unlike} like frame {skipped}; replicas "
                "need frames of one composition, cell, periodicity and masses. Name a split for each in the "
                f"card, with `subset_of: [{where.rpartition('/')[2]}]`"
            )


def start_frames(config: RolloutConfig, total: int, *, ordered: bool) -> list[int]:
    """Indices of the starting frames of the replicas, among ``total`` frames.

    With ``as_coded`` these are the first frames. With ``corrected`` they are equally spaced; in a
    time-ordered split they lie in its first half, so that the reference continues after every start, and
    between its two ends, so that every start has both neighbours for its velocities: one-sided differences
    miss the kinetic energy by 3 to 10 %.

    Raises
    ------
    ValueError
        If there are fewer frames than replicas.

    Examples
    --------
    >>> from egraff_utils.md.rollout import RolloutConfig
    >>> start_frames(RolloutConfig("mace", "ethanol", replicas=4), 1000, ordered=True)
    [1, 125, 250, 375]
    """
    ends = int(ordered and config.protocol != AS_CODED)
    inside, replicas = total - 2 * ends, config.replicas
    if inside < replicas:
        where = " between two others" * ends
        raise ValueError(
            f"{replicas} replicas need as many frames{where}; {config.split} has {max(inside, 0)}; "
            "ask for fewer replicas, or give the split more frames in the card"
        )
    if config.protocol == AS_CODED:
        return list(range(replicas))
    span = inside // 2 if ordered and inside // 2 >= replicas else inside
    return [ends + replica * span // replicas for replica in range(replicas)]


def match_frames(
    first: Sequence[int], steps: Sequence[int] | np.ndarray, timestep: float, *, interval: float, total: int
) -> np.ndarray:
    """Indices of the reference frames at the times of the recorded steps, -1 where there is none.

    Parameters
    ----------
    first
        Frame at which each replica starts, shape ``(R,)``.
    steps
        Recorded steps, shape ``(T,)``.
    timestep, interval
        Timestep of the rollout, and time between two reference frames, fs.
    total
        Number of reference frames.

    Returns
    -------
    ndarray
        Shape ``(R, T)``, int.

    Examples
    --------
    >>> match_frames([0, 3], [0, 1, 2, 3, 4], 0.5, interval=1.0, total=5)
    array([[ 0, -1,  1, -1,  2],
           [ 3, -1,  4, -1, -1]])
    """
    ahead = np.asarray(steps) * timestep / interval
    whole = np.rint(ahead).astype(int)
    index = np.asarray(first)[:, None] + whole
    return np.where((np.abs(ahead - whole) < 1e-6) & (index < total), index, -1)
