"""Is the residual zero for what is equivariant, and large for what is not?"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from egraff_utils import models
from egraff_utils.models import Prediction
from egraff_utils.report import equivariance


class Pulled(torch.nn.Module):
    """Atoms pulled towards one point of the laboratory: energy x, the same force on every atom."""

    cutoff = 5.0

    def forward(self, graph):
        forces = torch.zeros_like(graph.positions)
        forces[:, 0] = 1.0
        return Prediction(-graph.positions[:, 0].sum()[None].double(), forces)


@pytest.fixture
def atoms():
    water = molecule("H2O")
    water.rattle(0.1, seed=0)
    return water


@pytest.fixture
def force_field():
    return equivariance.fresh("equiformer", "tiny", [1, 8])


def test_fresh_weights_come_from_the_seed(force_field):
    state = torch.get_rng_state()
    again, other = (equivariance.fresh("equiformer", "tiny", [1, 8], seed=seed) for seed in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    first, second, third = (next(ff.parameters()) for ff in (force_field, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_rotations_are_rotations():
    matrices = equivariance.rotations(5)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), [np.eye(3)] * 5, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1)
    np.testing.assert_array_equal(matrices, equivariance.rotations(5))


def test_turning_keeps_distances_and_the_cell_along():
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=0)
    other = equivariance.turned(copper, equivariance.rotations(1)[0])
    expected = copper.get_all_distances(mic=True)
    np.testing.assert_allclose(other.get_all_distances(mic=True), expected, atol=1e-10)
    np.testing.assert_allclose(other.positions.mean(0), copper.positions.mean(0))


def test_an_equivariant_model_has_no_residual(force_field, atoms):
    found = equivariance.residual(force_field, atoms, equivariance.rotations(3))
    assert found["force"] < 1e-4
    assert found["energy"] < 1e-4
    assert found["still"] > 0.1


def test_double_precision_leaves_less(force_field, atoms):
    table = equivariance.table({"equiformer": force_field}, atoms, number=2)
    assert table["force, double precision"].item() < 1e-9 < table["force, rotated"].item() < 1e-4
    assert force_field.dtype == torch.float32


def test_a_model_tied_to_the_laboratory_is_found_out(atoms):
    found = equivariance.residual(Pulled(), atoms, equivariance.rotations(3))
    assert found["force"] > 0.5
    assert found["still"] == 0


def test_figure_shows_both_pictures(force_field, atoms):
    figure = equivariance.plot_rotation(force_field, atoms, model="equiformer")
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "Projected x (Å)"
    assert "turned from the left" in right.get_legend_handles_labels()[1]
    plt.close(figure)


def test_without_weights_the_models_are_built_afresh(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    monkeypatch.setattr(models, "NAMES", ("equiformer",))
    what, atoms, fields = equivariance.subject("none")
    assert "not trained" in what
    assert len(atoms) == 9
    assert list(fields) == ["equiformer"]
