"""Trainings of a campaign side by side, in one call."""

import pytest

from benchmarks import sprint
from egraff_utils import records

CAMPAIGN = """
description: d
datasets: [copper_emt]
models: [mace, torchmd_net]
preset: tiny
training: {max_seconds: 5, max_steps: 3}
"""


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    (tmp_path / "mine.yml").write_text(CAMPAIGN)
    return str(tmp_path / "mine.yml")


def test_budgets_that_do_not_fit_are_refused_before_anything_is_trained(campaign):
    with pytest.raises(ValueError, match=r"2 trainings, 1 at a time, have -15 s each of 1 minutes"):
        sprint.run(campaign, minutes=1, jobs=1)


@pytest.mark.slow
def test_records_and_weights_are_copied(campaign, tmp_path):
    found = sprint.run(campaign, minutes=8, jobs=2, out=tmp_path / "out")
    assert [records.load(path)["steps"] for path in found] == [3, 3]
    copied = {path.name for path in (tmp_path / "out" / "mine" / "training").iterdir()}
    for model in ("mace", "torchmd_net"):
        stem = f"copper_emt-{model}-s0"
        assert {f"{stem}.{end}" for end in ("json", "npz", "safetensors", "build.json")} <= copied
