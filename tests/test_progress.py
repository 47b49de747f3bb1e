"""Does the status of a campaign count its records, and tell the time left?"""

import json

import pytest

from egraff_utils import campaign, records
from egraff_utils.__main__ import main
from egraff_utils.running import batch, cells, progress


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for variable in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    return tmp_path


def test_status_counts_records_and_tells_the_time_left(workplace, capsys):
    file = workplace / "mine.yml"
    file.write_text(
        "description: d\ndatasets: [lips]\nmodels: [mace, nequip]\ntraining: {max_seconds: 600}\n"
        "checks: {gate: [lips]}\njobs: 1\n"
    )
    mine = campaign.load(file)
    trained, run, failed, _, gated, _ = cells.cells(mine)
    for made in (trained, run):  # an executed notebook without its record is nothing
        made.output.parent.mkdir(parents=True)
        made.output.touch()
    record = records.Record("training", "mine", "lips", "mace", 0, {"max_seconds": 600.0, "preset": "small"})
    record.provenance = {"wall_time": 712.0}
    records.write(record)
    batch.record_failure(failed.notebook, failed.parameters(mine), OSError("no space"))
    with batch.alone(gated.output):
        assert main(["campaign", "status", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "1 done, 1 running, 1 waiting" in shown
    assert "1 failed, 2 waiting" in shown
    assert "time left: 12 min for 1 cells; 4 of 5 cells have neither a limit of time nor" in shown
    assert "failed: training/nequip.ipynb, lips-nequip-s0: OSError: no space" in shown


def test_status_takes_no_record_of_another_budget(workplace):
    file = workplace / "mine.yml"
    file.write_text("description: d\ndatasets: [lips]\nmodels: [mace]\ntraining: {max_seconds: 60}\n")
    records.write(records.Record("training", "mine", "lips", "mace", 0, {"max_seconds": 600.0}))
    assert progress.of(str(file)).table().loc["lips", "mace"] == "2 waiting"
    assert progress.of("cpu").time_left() != "every cell is done", "these are not the committed records"


@pytest.mark.parametrize("name", ["cpu_smooth", "calculators"])
def test_committed_records_are_a_finished_campaign(workplace, name, monkeypatch):
    monkeypatch.delenv("EGRAFF_RESULTS")
    assert progress.of(name).time_left() == "every cell is done"


def test_the_plan_of_a_campaign_says_what_is_left(workplace):
    mine = campaign.load("gpu")
    plan = {"budget": 3600.0, "jobs": 1, "budgets": {}}
    for dataset in mine.datasets:
        plan["budgets"][dataset] = {"training": {"max_seconds": 60.0}, "rollout": {"max_seconds": 40.0}}
    campaign.plan_path("gpu").parent.mkdir(parents=True)
    campaign.plan_path("gpu").write_text(json.dumps(plan))
    found = {cell.output.parent.name: time for cell, time in progress.of("gpu").seconds().items()}
    assert found["training"] == 60 + 8
    assert found["rollout"] == 20 + 8, "half of what it may take, and the notebook"


def test_reports_of_an_unfinished_campaign_do_not_end_at_one_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path))
    tried = []

    def execute(notebook, output, **_):
        tried.append(notebook.stem)
        if notebook.stem == "cost":
            raise OSError("no space left on device")

    monkeypatch.setattr(cells.batch, "execute", execute)
    monkeypatch.setattr(cells.pages, "reports", lambda _: ["cost", "leaderboard"])
    tiny = campaign.load("tiny")
    assert (cells._reports_of_what_there_is(tiny), tried) == (0, []), "where no job could start"
    output = cells.cells(tiny)[0].output
    output.parent.mkdir(parents=True)
    output.touch()
    assert (cells._reports_of_what_there_is(tiny), tried) == (1, ["cost", "leaderboard"])
    assert "report/cost could not be made: no space left" in capsys.readouterr().err
