"""Do the oracles give what they stored, and is a made dataset made once and the same each time?"""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from egraff_utils import cards, data, reference

STAGES = [
    {"frames": 2, "stride": 2, "friction": 0.01, "temperature": 900},
    {"frames": 3, "stride": 2, "friction": 0.005, "split": "train"},
    {"frames": 4, "stride": 1, "friction": 0.0005, "split": "test"},
]


@pytest.fixture(params=["ethanol_xtb", "copper_emt"])
def tiny(request, tmp_path, monkeypatch):
    """A made dataset of a few frames, in a folder of its own."""
    monkeypatch.setenv("EGRAFF_GENERATED", str(tmp_path))
    card = cards.dataset(request.param)
    splits = {name: cards.Split([cards.Part(name)]) for name in ("train", "test")}
    plan = {**card.generate, "stages": STAGES}
    return dataclasses.replace(card, splits=splits, generate=plan)


def test_stored_labels_are_the_oracles(tiny):
    frames = data.load(tiny, "test")
    assert len(frames) == 4
    copy = frames[2].copy()
    copy.calc = reference.calculator(tiny)
    assert copy.get_potential_energy() == pytest.approx(frames[2].get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(copy.get_forces(), frames[2].get_forces(), atol=1e-3)


def test_a_dataset_without_an_oracle_is_not_made(tiny):
    with pytest.raises(ValueError, match="its card has no oracle"):
        reference.make_dataset(dataclasses.replace(tiny, oracle=None))


@pytest.mark.parametrize(("velocities", "ratio"), [({}, 1), ({"velocities": "rescaled"}, 4 / 3)])
def test_a_trajectory_begins_at_its_temperature(velocities, ratio, monkeypatch):
    """The mean over draws for four atoms; datasets that began too hot say so in their cards."""
    begun = []
    monkeypatch.setattr(reference, "_run_stage", lambda atoms, *_: begun.append(atoms))
    stages = [{"frames": 1, "stride": 1, "friction": 0.01}]
    recipe = {"bulk": "Cu", "lattice_constant": 3.6, "repeat": 1, "stages": stages, **velocities}
    for seed in range(300):
        plan = {**recipe, "seed": seed}
        reference._simulate(dataclasses.replace(cards.dataset("copper_emt"), generate=plan))
    kelvin = [2 * atoms.get_kinetic_energy() / (9 * units.kB) for atoms in begun]
    assert np.mean(kelvin) == pytest.approx(1800 * ratio, abs=4 * 1800 * ratio * np.sqrt(2 / 9 / 300))


def test_what_began_too_hot_is_discarded_for_ten_relaxation_times():
    """Of the datasets that the project makes, whose frames are those of committed records."""
    for card in map(cards.dataset, cards.datasets()):
        lasted = 0.0
        for stage in card.generate.get("stages", []):
            if "split" in stage:
                break
            lasted += stage["frames"] * stage["stride"] * card.timestep * stage["friction"]
        assert lasted >= 10 or card.generate.get("velocities") != reference.RESCALED, card.name


def _edit(path):
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"test_energy": arrays["test_energy"] + 1}))


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-99]), _edit])
def test_lost_or_torn_it_is_made_again_and_the_same(tiny, lose):
    path = reference.make_dataset(tiny)
    first = dict(np.load(path))
    assert set(json.loads(path.with_suffix(".json").read_text())) == {
        "dataset",
        "parameters",
        "versions",
        "frames",
    }
    lose(path)
    for name, values in np.load(reference.make_dataset(tiny)).items():
        np.testing.assert_array_equal(values, first[name])


def test_a_live_reference_that_was_changed_is_made_again(tmp_path, capsys):
    made = []

    def make(path):
        made.append(path)
        np.savez(path, forces=np.zeros(3))

    path = tmp_path / "new" / "live.npz"
    for _ in range(2):
        assert reference.made_once(path, make) == path
    assert len(made) == 1
    np.savez(path, forces=np.ones(3))  # a whole archive, but another
    reference.made_once(path, make)
    assert len(made) == 2
    assert not np.load(path)["forces"].any()
    assert "live.npz cannot be used (it was changed after it was made)" in capsys.readouterr().err
    assert sorted(file.name for file in path.parent.glob("l*.[nj]*")) == [
        "live.json",
        "live.npz",
        "live.npz.unreadable",
    ]


def test_a_file_that_did_not_change_is_hashed_once(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(reference, "digest", lambda path: hashed.append(path) or "same")
    for _ in range(4):
        reference.made_once(tmp_path / "f.npz", lambda path: np.savez(path, a=np.zeros(3)))
    assert len(hashed) == 2  # when it was written, and when it was first found


def test_made_once_by_two_at_once(tiny, monkeypatch):
    calls = []

    def simulate(card):
        calls.append(card)
        return {"numbers": np.array([29])}

    monkeypatch.setattr(reference, "_simulate", simulate)
    threads = [threading.Thread(target=reference.make_dataset, args=(tiny,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_stored_velocities_are_used_and_agree(tiny):
    frames = data.load(tiny, "test")
    stored = reference.velocities(frames, 2, tiny.timestep)
    bare = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in frames]
    differences = reference.velocities(bare, 2, tiny.timestep)
    np.testing.assert_array_equal(stored, frames[2].get_velocities())
    # the friction of the scheme leaves a difference of second order in the step
    assert np.abs(stored - differences).max() < 0.25 * np.abs(stored).max()


def test_velocities_cross_the_boundary():
    frames = [Atoms("H", [[x, 0, 0]], cell=[5, 5, 5], pbc=True) for x in (4.8, 4.9, 0.0, 0.1)]
    for i in range(4):
        np.testing.assert_allclose(reference.velocities(frames, i, 1.0) * units.fs, [[0.1, 0, 0]], atol=1e-12)
    with pytest.raises(IndexError, match="frame 4 of 4"):
        reference.velocities(frames, 4, 1.0)
    with pytest.raises(ValueError, match="one frame"):
        reference.velocities(frames[:1], 0, 1.0)


def test_no_oracle():
    with pytest.raises(ValueError, match="lips cannot be run here"):
        reference.calculator(cards.dataset("lips"))
