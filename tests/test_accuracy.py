"""Errors on frames that a force field was not trained for, against values worked out by hand."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import accuracy, cards, data, models
from egraff_utils.accuracy import TransferConfig


def frame(symbols, energy, force=None, source="a"):
    atoms = Atoms(symbols, np.arange(3 * len(Atoms(symbols)), dtype=float).reshape(-1, 3))
    results = {} if force is None else {"forces": np.full((len(atoms), 3), force)}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, **results)
    atoms.info["source"] = source
    return atoms


def test_offsets_are_removed_within_each_composition():
    frames = [frame("H2", 1.0, 0.1), frame("H2", 2.0, 0.1), frame("O2", 5.0, -0.2)]
    predicted = np.array([11.0, 14.0, 4.0])  # off by 10, 12 and -1 eV
    found, curves = accuracy.compare(frames, predicted, [np.zeros((2, 3))] * 3)
    values = {metric.name: metric.value for metric in found}
    assert values["energy_mae"] == pytest.approx(23 / 3 * 1000)
    assert values["energy_offset"] == pytest.approx(21 / 3 * 1000)
    assert values["energy_mae_shifted"] == pytest.approx(2 / 3 * 1000)  # -1, 1 and 0 eV
    assert values["energy_mae_per_atom"] == pytest.approx(23 / 6 * 1000)
    assert values["force_mae"] == pytest.approx(400 / 3) == values["zero_force_mae"]
    np.testing.assert_allclose(curves["force_error"], [100, 100, 200])
    assert list(curves["composition"]) == ["H2", "H2", "O2"]


def test_frames_without_forces_have_no_force_error():
    found, curves = accuracy.compare([frame("H2", 1.0)], np.array([1.5]), [np.zeros((2, 3))])
    assert "force_mae" not in [metric.name for metric in found]
    assert "force_error" not in curves


def test_thinning_takes_equally_spaced_frames_of_every_source():
    frames = [frame("H", k, source="a" if k < 9 else "b") for k in range(11)]
    kept = [atoms.get_potential_energy() for atoms in data.thinned(frames, 3)]
    assert kept == [0, 4, 8, 9, 10]


def test_a_model_without_weights_names_the_command_that_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="egraff train mace ethanol_xtb --campaign demo"):
        accuracy.errors(TransferConfig("mace", "ethanol_xtb"))


def test_an_element_that_was_not_trained_on_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    carbon = models.build("mace", "tiny", [1, 6])
    with pytest.raises(ValueError, match="not trained on O"):
        accuracy.errors(TransferConfig("mace", "ethanol_xtb"), force_field=carbon)


def test_the_record_is_taken_up_again_until_the_weights_change(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    force_field = models.build("torchmd_net", "tiny", cards.dataset("copper_emt").elements)
    config = TransferConfig("torchmd_net", "ethanol_xtb", target="copper_emt", frames=4)
    first = accuracy.errors(config, force_field=force_field)
    assert first.path.parent.name == "errors_copper_emt"
    assert first.metric("energy_mae").n == 4
    assert accuracy.errors(config, force_field=force_field).provenance == first.provenance
    other = models.build("torchmd_net", "tiny", [29], cutoff=4.0)
    assert accuracy.errors(config, force_field=other)["energy_mae"] != first["energy_mae"]


def test_compositions_of_different_errors_do_not_widen_the_interval():
    draws = np.random.default_rng(0)
    names = np.repeat(["Li", "S"], 400)
    values = np.where(names == "Li", 10.0, 500.0) + draws.normal(size=800)
    low, high = accuracy.interval(values, names)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(800), rel=0.15)
