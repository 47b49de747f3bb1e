"""Is the spread of a committee the part of its error that differs from seed to seed?"""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import committee, records
from egraff_utils.report import committees, tables
from egraff_utils.train import TrainConfig, fit


def frames_with(forces):
    frames = []
    for force in forces:
        atoms = Atoms("H" * len(force))
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=force)
        frames.append(atoms)
    return frames


def by_name(metrics):
    return {metric.name: metric.value for metric in metrics}


def test_values_by_hand():
    """Labels 0; members 1 and 3 on the first frame, 2 and 2 on the second, eV/Å."""
    frames = frames_with(np.zeros((2, 1, 3)))
    members = [[np.full((1, 3), value) for value in pair] for pair in ((1.0, 2.0), (3.0, 2.0))]
    metrics, curves = committee.compare(frames, members)
    found = by_name(metrics)
    assert found["members"] == 2
    assert found["committee_mae"] == found["member_mae"] == pytest.approx(2000)
    assert curves["committee_spread"] == pytest.approx([1000 * np.sqrt(2), 0])
    assert curves["committee_error"] == pytest.approx([2000, 2000])
    assert found["spread"] == pytest.approx(1000)
    assert found["spread_share"] == pytest.approx(1 / ((1 + 4 + 9 + 4) / 4))
    assert found["spread_correlation"] is None  # two frames have no order


@pytest.mark.parametrize(("shared", "share"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.1)])
def test_the_share_is_that_of_the_noise(shared, share):
    """Members with independent noise of variance 1, around an error of this size that all have."""
    random = np.random.default_rng(0)
    common = shared * random.normal(size=(50, 40, 3))
    members = common + random.normal(size=(3, 50, 40, 3))
    found = by_name(committee.compare(frames_with(np.zeros((50, 40, 3))), list(members))[0])
    assert found["spread_share"] == pytest.approx(share, rel=0.03)


def test_a_committee_of_trained_seeds_is_judged_once_and_again_with_another_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    cell = {"model": "mace", "dataset": "ethanol_xtb", "campaign": "mine"}
    config = committee.CommitteeConfig(**cell, frames=3, seed=1)
    with pytest.raises(ValueError, match="needs two seeds or more, and 0 is trained.*--seed 0"):
        committee.judge(config)
    for seed in (0, 1):
        assert committee.judge_if_any(config) is None
        fit(TrainConfig(**cell, seed=seed, max_steps=1, progress=False))
    first = committee.judge_if_any(config)
    assert (first.kind, first.seed, first["members"]) == ("committee_test", 0, 2)
    assert first["spread"] > 0
    assert committee.judge(config).provenance["started"] == first.provenance["started"]
    fit(TrainConfig(**cell, seed=2, max_steps=1, progress=False))
    assert committee.judge(config)["members"] == 3


def test_the_table_has_a_row_for_both_sides_only(monkeypatch):
    def record(kind, model, spread):
        metrics = [
            records.Metric.of(name, 2.0 if name == "members" else 0.5)
            for name in ("members", *committees.SHOWN)
        ]
        made = records.Record(kind, "mine", "ethanol", model, 0, {}, metrics)
        made.__dict__["curves"] = {"committee_spread": np.array(spread)}
        return made

    found = [record("committee_test", model, [1.0, 2.0]) for model in ("nequip", "mace")]
    found += [record("committee_benzene", "mace", [2.0, 3.0])]
    values = committees.values(found, "benzene")
    assert values.index.tolist() == [("ethanol", "mace")]
    assert values[committees.APART].tolist() == [0.875]
    assert committees.summary(values) == {
        "seeds-count": 1,
        "seeds-in": "0.50",
        "seeds-out": "0.50",
        "seeds-order-in": "0.50",
        "seeds-order-out": "0.50",
        "seeds-apart": "0.88",
        "seeds-sets": "Ethanol (MD17)",
        "seeds-members": "2",
    }
    nothing = committees.summary(committees.values([], "benzene"))
    assert (nothing["seeds-count"], nothing["seeds-apart"]) == (0, tables.NOT_RUN)
