"""Bond lengths and bond angles against ASE, and their divergences against values worked out by hand."""

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards, metrics, structure
from egraff_utils.checks import floors
from egraff_utils.md import analysis, averages
from egraff_utils.md.dynamics import Trajectory
from egraff_utils.md.rollout import RolloutConfig
from egraff_utils.records import Record
from egraff_utils.report import windows
from egraff_utils.structure import bonded

NAMES = ("bond_jsd", "angle_jsd")


def water(length=0.97, angle=104.5, other=0.97):
    """A water molecule from its two bond lengths (Å) and its angle (degrees)."""
    turned = np.radians(angle)
    return Atoms("OH2", [[0, 0, 0], [length, 0, 0], [other * np.cos(turned), other * np.sin(turned), 0]])


def labelled(frames):
    for atoms in frames:
        atoms.set_cell(3 * [20.0])
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((len(atoms), 3)))
    return frames


def measured(reference, replicas, stable=None):
    """Metrics by name, and curves, of replicas of as many frames against a reference."""
    positions = np.array([[atoms.positions for atoms in replica] for replica in replicas], np.float32)
    count, frames = positions.shape[:2]
    ones = np.ones((count, frames))
    last = np.array(stable or [frames - 1] * count)
    causes = ["bond" if end < frames - 1 else "" for end in last]
    trajectory = Trajectory(
        np.arange(frames), positions, np.ones_like(positions), -ones, 300 * ones, 300 * ones[..., None],
        last, causes, np.full(frames - 1, 0.01),
    )  # fmt: skip
    index = np.arange(frames)[None].repeat(count, 0) % len(reference)
    against = analysis.Reference.from_frames(labelled(reference), index, contiguous=False)
    found, curves = analysis.measure(trajectory, reference[0], against, timestep=1.0, steps=frames - 1)
    return {metric.name: metric for metric in found}, curves


@pytest.mark.parametrize("name", ["H2O", "CH3CH2OH", "C6H6", "C2H2"])
def test_lengths_and_angles_are_those_of_ase(name):
    atoms = molecule(name)
    pairs = structure.bonds(atoms)
    triples = structure.angles(pairs)
    lengths = [float(atoms.get_distance(i, j)) for i, j in pairs]
    assert structure.bond_lengths(atoms.positions, pairs) == pytest.approx(lengths)
    assert structure.bond_angles(atoms.positions, triples) == pytest.approx(atoms.get_angles(triples))
    degree = np.bincount(pairs.ravel())
    assert len(triples) == sum(n * (n - 1) // 2 for n in degree) == len({tuple(t) for t in triples})


def test_the_distribution_of_a_molecule_of_known_lengths_and_angle():
    """O-H of 0.97 and 1.01 Å, 104.5 degrees: bins 23 and 25 of 0.02 Å from 0.5 Å, bin 52 of 2 degrees."""
    atoms = water(0.97, 104.5, other=1.01)
    found = structure.bonded_distributions(atoms.positions[None], atoms.numbers, structure.bonds(atoms))
    assert {int(b): float(found["bonds"][0, b]) for b in found["bonds"][0].nonzero()[0]} == {23: 0.5, 25: 0.5}
    assert found["angles"][0].nonzero()[0].tolist() == [52]


def test_kinds_are_apart_and_weigh_as_many_bonds_as_they_have():
    rng, atoms = np.random.default_rng(0), molecule("CH3CH2OH")
    pairs = structure.bonds(atoms)
    kinds = structure.bonded_kinds(atoms.numbers, pairs)["bonds"]
    assert kinds == ["C-C", "C-O", "H-C", "H-O"]
    near, far = (atoms.positions + w * rng.normal(size=(200, 9, 3)) for w in (0.02, 0.05))
    p, q = (structure.bonded_distributions(x, atoms.numbers, pairs)["bonds"].mean(0) for x in (near, far))
    assert p.reshape(4, -1).sum(1) == pytest.approx(np.array([1, 1, 5, 1]) / 8)
    each = [metrics.jsd(*pair) for pair in zip(p.reshape(4, -1), q.reshape(4, -1), strict=True)]
    assert metrics.jsd(p, q) == pytest.approx(np.average(each, weights=[1, 1, 5, 1]))


def test_every_bond_counts_however_long_it_is():
    atoms = Atoms("OH2", [[0, 0, 0], [0.3, 0, 0], [-7.0, 0, 0]])
    found = structure.bonded_distributions(atoms.positions[None], atoms.numbers, [[0, 1], [0, 2]])
    assert found["bonds"][0].nonzero()[0].tolist() == [0, len(bonded.BOND_EDGES) - 2]
    assert found["angles"][0, -1] == 1  # 180 degrees
    with pytest.raises(ValueError, match="not finite from frame 0"):
        structure.bonded_distributions(atoms.positions[None] * np.nan, atoms.numbers, [[0, 1]])


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        ([water()], 2),
        ([molecule("N2")], 1),
        ([Atoms("Ar")], 0),
        ([bulk("Cu")], 0),
        ([water(), water(other=2.5)], 1),  # a bond that the reference itself breaks
    ],
)
def test_what_is_bonded(frames, count):
    pairs = structure.intact_bonds(frames)
    assert pairs.shape == (count, 2)
    found = structure.bonded_distributions(frames[0].positions[None], frames[0].numbers, pairs)
    assert list(found) == ["bonds", "angles"][: count if count < 2 else 2]


HALF = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
"""Divergence of (1/2, 1/2) from (1, 0)."""


@pytest.mark.parametrize(
    ("moved", "bond", "angle"),
    [
        (water(), 0, 0),
        (water(other=1.1), HALF, 0),
        (water(1.1, other=1.1), np.log(2), 0),
        (water(angle=110.5), 0, np.log(2)),
    ],
)
def test_divergences_of_a_rollout_by_hand(moved, bond, angle):
    found, curves = measured([water()] * 20, [[moved] * 20, [moved] * 20])
    assert found["bond_jsd"].value == pytest.approx(bond, abs=1e-6)
    assert found["angle_jsd"].value == pytest.approx(angle, abs=1e-6)
    assert found["bond_jsd"].low <= found["bond_jsd"].value <= found["bond_jsd"].high
    assert (found["bond_jsd"].n, found["bond_jsd"].unit) == (2, "nats")
    assert curves["bonds_blocks"].shape == (2, averages.BLOCKS, 150)
    assert curves["bonds_kinds"].tolist() == ["H-O"]


def test_frames_after_a_break_and_after_a_window_do_not_count():
    halves = [water()] * 10 + [water(1.2, other=1.2)] * 10
    broken, _ = measured([water()] * 20, [halves, halves], stable=[9, 9])
    assert broken["bond_jsd"].value == pytest.approx(0, abs=1e-6)
    found, curves = measured([water()] * 20, [halves, halves])
    assert found["bond_jsd"].value == pytest.approx(HALF, abs=1e-6)
    parameters = {"steps": 19}
    record = Record("rollout", "test", "water", "mine", 0, parameters, list(found.values()))
    record.__dict__["curves"] = curves
    assert windows.within(record, 10)["bond_jsd"] == pytest.approx(0, abs=1e-6)


def test_a_solid_and_an_older_record_have_no_such_metric():
    atoms = bulk("Cu", cubic=True) * 3
    rng = np.random.default_rng(0)
    frames = [atoms.copy() for _ in range(4)]
    for frame in frames:
        frame.positions += 0.05 * rng.normal(size=frame.positions.shape)
    solid = [frame.copy() for frame in frames]
    found, curves = measured(frames, [solid])
    assert "wf" in found
    assert not set(NAMES) & set(found)
    assert not any(name.startswith(("bonds", "angles")) for name in curves)
    metric = metrics_of(frames)
    assert "floor_wf" in metric
    assert not {f"floor_{name}" for name in NAMES} & set(metric)


def metrics_of(frames):
    return {metric.name: metric.value for metric in floors.noise_floors(labelled(frames))}


@pytest.fixture
def vibrating(tmp_path, monkeypatch):
    """A dataset of water molecules in no order: lengths 0.97 +- 0.03 Å, angles 104 +- 5 degrees."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    rng = np.random.default_rng(0)
    draws = [104, 0.97, 0.97] + rng.normal(size=(200, 3)) * [5, 0.03, 0.03]
    frames = labelled([water(one, angle, other) for angle, one, other in draws])
    ase.io.write(tmp_path / "water.xyz", frames, format="extxyz")
    card = {"name": "vibrating", "system": "molecule", "elements": [1, 8], "temperature": 300,
            "timestep": 1.0, "reader": "extxyz", "files": {"all": "water.xyz"},
            "splits": {split: {"source": "all"} for split in ("train", "val", "test")}}  # fmt: skip
    (tmp_path / "vibrating.yml").write_text(yaml.safe_dump(card))
    return cards.dataset(tmp_path / "vibrating.yml").name, frames


def test_levels_of_a_molecule(vibrating):
    """Saturated below a frozen frame, and that below atoms anywhere, which share nothing: ln 2."""
    dataset, frames = vibrating
    config = RolloutConfig("any", dataset, campaign="test", replicas=2, steps=50)
    reference, frozen, gas, einstein = floors.of_rollout(config)
    halves = metrics_of(frames)
    for name in NAMES:
        level = reference.metric(name)
        assert 0 < level.low < level.value < level.high < frozen[name]
        assert 0.5 < halves[f"floor_{name}"] / level.value < 2  # of 100 and 100 frames, not of 50 and 200
        assert level.value < einstein[name] < frozen[name]
    assert gas["bond_jsd"] == pytest.approx(np.log(2), rel=1e-3)
    assert frozen["angle_jsd"] < gas["angle_jsd"] < np.log(2)
