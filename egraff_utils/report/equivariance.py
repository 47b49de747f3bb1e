r"""Do the forces rotate with the molecule? The equivariance error of a force field is measured and drawn.

For an orthogonal matrix R an equivariant force field obeys :math:`E(Rx) = E(x)` and :math:`F(Rx) = R\,F(x)`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation

from egraff_utils import cards, data, models, records, weights
from egraff_utils.checks.gate import in_double
from egraff_utils.checks.gate.guises import turned
from egraff_utils.config import Key
from egraff_utils.graph import build_graph
from egraff_utils.report import catalogue, look, structures, titles


def subject(campaign, *, seed=0):
    """A molecule and the force fields of a campaign that were trained on it.

    The molecule is the first available test frame of the molecular dataset on which most models have weights.
    If no molecule has weights, it is ethanol, and the models are new tiny ones.

    Parameters
    ----------
    campaign
        Name of a campaign.
    seed
        Seed of the trainings.

    Returns
    -------
    tuple
        Description of the molecule; ``ase.Atoms``; a dict from model name to force field, in the paper's
        order.
    """
    runs = {}
    for record in records.read_all(campaign):
        if record.kind == "training" and record.seed == seed and weights.path(record).is_file():
            runs.setdefault(record.dataset, set()).add(record.model)
    known = [name for name in catalogue.datasets() if name in runs and not cards.dataset(name).pbc]
    known = [name for name in known if catalogue.at_hand(name)]
    if not known:
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=0)
        return "ethanol (models not trained)", atoms, {name: fresh(name, "tiny") for name in models.NAMES}
    name = max(known, key=lambda name: len(runs[name]))
    found = [model for model in models.NAMES if model in runs[name]]
    fields = {model: weights.load(Key("training", campaign, name, model, seed)) for model in found}
    return titles.dataset_title(name), data.load(name, "test")[0], fields


def fresh(name, preset, elements=(1, 6, 8), *, seed=0):
    """A new force field with weights drawn with a seed, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build(name, preset, elements).eval()


def rotations(number, seed=0):
    """Rotation matrices drawn uniformly from all rotations, shape ``(number, 3, 3)``."""
    return Rotation.random(number, rng=np.random.default_rng(seed)).as_matrix()


def predict(force_field, atoms):
    """Energy, eV, and forces, shape ``(N, 3)``, eV/Å, of one structure."""
    prediction = force_field(build_graph(atoms, cutoff=force_field.cutoff))
    return prediction.energy.item(), prediction.forces.double().numpy()


def residual(force_field, atoms, matrices):
    r"""Largest equivariance error over some orthogonal matrices.

    .. math:: \frac{\max |F(Rx) - R\,F(x)|}{\sqrt{\langle F(x)^2 \rangle}}, \qquad \max |E(Rx) - E(x)|

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField`.
    atoms
        Structure of N atoms, positions in Å.
    matrices
        Orthogonal matrices R, shape ``(K, 3, 3)``.

    Returns
    -------
    dict
        ``force``, relative to the root mean square of a force component, dimensionless; ``still``, the same
        for forces that are compared without rotating them, :math:`F(Rx) - F(x)`; ``energy``, eV.
    """
    energy, forces = predict(force_field, atoms)
    scale, failures = np.sqrt((forces**2).mean()), []
    for matrix in matrices:
        other, found = predict(force_field, turned(atoms, matrix))
        moved = np.abs(found - forces @ matrix.T).max() / scale
        failures.append((moved, np.abs(found - forces).max() / scale, abs(other - energy)))
    return dict(zip(("force", "still", "energy"), np.max(failures, axis=0).tolist(), strict=True))


def table(force_fields, atoms, *, number=10, seed=0):
    """Equivariance errors of several force fields under rotations, and under rotations with a reflection.

    Parameters
    ----------
    force_fields
        Name -> :class:`~egraff_utils.models.ForceField`.
    atoms
        Structure, positions in Å.
    number
        Number of rotations.
    seed
        Seed of the rotations.

    Returns
    -------
    pandas.DataFrame
        One row per model. Errors of the force are dimensionless, those of the energy are in meV: ``rotated``,
        ``mirrored``, ``double precision`` (rotated, with the network in double precision), and ``not turned``
        (the value for forces that do not rotate).
    """
    proper, rows = rotations(number, seed), {}
    for name, force_field in force_fields.items():
        turn, mirror = (residual(force_field, atoms, sign * proper) for sign in (1, -1))
        rows[name] = {
            "force, rotated": turn["force"],
            "energy, rotated (meV)": 1000 * turn["energy"],
            "force, mirrored": mirror["force"],
            "energy, mirrored (meV)": 1000 * mirror["energy"],
            "force, double precision": residual(in_double(force_field), atoms, proper)["force"],
            "force, not turned": turn["still"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def plot_rotation(force_field, atoms, *, model):
    """Figure 1, a molecule with its forces, and the same molecule rotated in the plane of the picture.

    The molecule is seen along the direction in which it is flattest. Coloured arrows are the forces of the
    model on the structure shown; black arrows, on the right, are the forces of the left picture, rotated. For
    an equivariant model the two coincide.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField`.
    atoms
        Structure of N atoms, positions in Å.
    model
        Name of the model, for its colour.

    Returns
    -------
    matplotlib.figure.Figure
    """
    view = _flat(atoms)
    matrix = Rotation.from_euler("z", 75, degrees=True).as_matrix()
    left = turned(atoms, view)
    left.positions -= left.positions.mean(0)
    right, forces = turned(left, matrix), predict(force_field, left)[1]
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), sharex=True, sharey=True)
    length = 1.5 / np.linalg.norm(forces, axis=1).max()
    color = look.model_color(model)
    for ax, shown in zip(axes, (left, right), strict=True):
        structures.plot_structure(shown, rotation=(0, 0), ax=ax)
        ax.get_legend().remove()
        found = predict(force_field, shown)[1]
        _arrows(ax, shown, length * found, color=color, width=0.012, label=titles.model_title(model))
    _arrows(
        axes[1], right, length * forces @ matrix.T, color="black", width=0.003, label="turned from the left"
    )
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[1].set_ylabel("")
    return figure


def _flat(atoms):
    """Rotation that brings the longest extent to x and the shortest to z."""
    view = np.linalg.svd(atoms.positions - atoms.positions.mean(0))[2]
    return view * np.sign(np.linalg.det(view))


def _arrows(ax, atoms, lengths, *, color, width, label):
    ax.quiver(
        *atoms.positions[:, :2].T,
        *lengths[:, :2].T,
        color=color,
        width=width,
        angles="xy",
        scale_units="xy",
        scale=1,
        zorder=6,
        label=label,
    )
    ends = atoms.positions[:, :2] + lengths[:, :2]
    ax.update_datalim(ends)
    ax.autoscale_view()
