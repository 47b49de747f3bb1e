"""Does a notebook run whole or not at all, and a campaign end to end?"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.connect import LocalPortCache
from nbformat.v4 import new_code_cell, new_notebook, new_output

from egraff_utils import campaign, paths, records
from egraff_utils.config import Key
from egraff_utils.running import batch

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
WRITE_ADDRESS = """from pathlib import Path
from ipykernel.connect import get_connection_info
Path({!r}).write_text(get_connection_info(unpack=True)["ip"])
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    return tmp_path


def write_notebook(path, *sources):
    parameters = 'campaign: str = "demo"  # c\ndataset: str = "lips"  # d\nseed: int = 0  # s'
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def test_unknown_parameter_is_refused_before_anything_runs(workplace):
    marker, output = workplace / "ran", workplace / "out" / "mace.ipynb"
    notebook = write_notebook(workplace / "training" / "mace.ipynb", f"open({str(marker)!r}, 'w').close()")
    with pytest.raises(ValueError, match="'sede'; did you mean 'seed'"):
        batch.execute(notebook, output, parameters={"sede": 1})
    assert not marker.exists()
    assert not output.parent.exists()


def test_command_line_refuses_with_status_2(workplace, capsys):
    notebook = write_notebook(workplace / "training" / "mace.ipynb")
    assert batch.main(["run", str(notebook), str(workplace / "o.ipynb"), "-p", "datset", "lips"]) == 2
    assert "did you mean 'dataset'" in capsys.readouterr().err


def test_a_failed_notebook_leaves_a_record_and_no_output(workplace):
    notebook = write_notebook(workplace / "training" / "mace.ipynb", "raise KeyError('no such thing')")
    output = workplace / "out" / "mace.ipynb"
    with pytest.raises(RuntimeError, match="no such thing"):
        batch.execute(notebook, output, parameters={"campaign": "test", "seed": 3}, quiet=True)
    assert [path.name for path in output.parent.iterdir()] == ["mace.failed.ipynb"]
    record = records.load(Key("failure", "test", "lips", "mace", 3).path)
    assert record.status == "failed"
    assert "no such thing" in record.message


def test_a_notebook_that_cannot_begin_fails_with_its_own_reason(workplace):
    notebook = workplace / "plain.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), notebook)
    with pytest.raises(RuntimeError, match="No kernel name found"):
        batch.execute(notebook, workplace / "out.ipynb", quiet=True)


def test_success_removes_metadata_noise_and_an_old_failure(workplace):
    source = "import sys\nprint('kept')\nprint('a bar', file=sys.stderr)\nobject()"
    notebook = write_notebook(workplace / "training" / "mace.ipynb", source)
    output = workplace / "mace.ipynb"
    batch._record_failure(notebook, {}, RuntimeError("before"))
    batch.execute(notebook, output, parameters={"seed": 0}, quiet=True)
    made = nbformat.read(output, as_version=4)
    assert "papermill" not in made.metadata
    assert made.cells[1].id == "injected-parameters"
    assert "remove-cell" in made.cells[1].metadata.tags
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in made.cells)
    stream, result = made.cells[2].outputs
    assert stream.text == "kept\n"
    assert result.data["text/plain"] == "<object>"
    assert not list((workplace / "results").rglob("*.json"))


def test_a_notebook_runs_though_its_ports_are_taken_and_the_temporary_folder_is_deep(workplace, monkeypatch):
    deep = workplace / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    notebook = write_notebook(workplace / "training" / "mace.ipynb", WRITE_ADDRESS.format(str(deep / "ip")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(LocalPortCache, "find_available_port", lambda *_: port)
        batch.execute(notebook, workplace / "out.ipynb", quiet=True)
    assert not Path((deep / "ip").read_text()).parent.exists(), "sockets left behind"


def test_nbval_reaches_kernels_as_the_batch_does(workplace):
    shutil.copy(batch.NOTEBOOKS / "conftest.py", workplace)
    for name in ("first", "second"):
        write_notebook(workplace / f"{name}.ipynb", WRITE_ADDRESS.format(str(workplace / name)))
    words = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", str(workplace)]
    run = subprocess.run(words, capture_output=True, text=True, cwd=workplace, check=False)
    assert run.returncode == 0, run.stdout
    first, second = (Path((workplace / name).read_text()) for name in ("first", "second"))
    assert first.parent.name.startswith("kernel-")
    assert first != second
    assert not any(path.parent.exists() for path in (first, second)), "sockets left behind"


def test_clean_drops_widgets():
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
    notebook = new_notebook(cells=[new_code_cell("", outputs=[widget])], metadata={"widgets": {}})
    assert batch.clean(notebook).cells[0].outputs == []
    assert "widgets" not in notebook.metadata


def test_run_key_takes_identity_from_the_file_and_the_rest_from_parameters():
    key = batch.run_key(batch.NOTEBOOKS / "rollout" / "lips.ipynb", {"model": "nequip", "seed": 2})
    assert key == {"campaign": "demo", "dataset": "lips", "model": "nequip", "seed": 2}


def test_page_parameters_are_those_of_the_campaigns_own_run():
    demo = campaign.load("demo")
    parameters = batch.page_parameters("training/mace", {"dataset": "ethanol"}, demo)
    assert parameters == demo.training_parameters(demo.datasets[0], "mace", 0)
    parameters = batch.page_parameters("rollout/copper_emt", {"model": "nequip"}, demo)
    assert parameters == demo.rollout_parameters("copper_emt", "nequip", 0, "corrected")


def test_an_unknown_task_is_refused_before_anything_runs(workplace, capsys):
    text = (paths.ROOT / "params" / "tiny.yml").read_text()
    path = workplace / "mine.yml"
    path.write_text(text + "ood: {benzin: [ethanol_xtb]}\n")
    assert batch.main(["campaign", str(path)]) == 2
    assert "benzin" in capsys.readouterr().err
    path.write_text(text + "ood: {benzene: [ethanol]}\n")
    with pytest.raises(ValueError, match="unknown dataset of the task benzene of mine 'ethanol'"):
        campaign.load(str(path))


def test_tasks_have_the_length_of_the_datasets_own_rollouts():
    settings = campaign.load("cpu")
    assert ("ood", "benzene", "aspirin", "mace", 0) in settings.task_cells()
    assert ("ood", "benzene", "acac", "mace", 0) not in settings.task_cells()
    parameters = batch.task_parameters("ood/lips20_crystals", settings, "lips20", "mace", 0)
    own = settings.rollout_parameters("lips20", "mace", 0, "corrected")
    assert parameters["dataset"] == "lips20"
    assert {name: parameters[name] for name in ("replicas", "steps")} == {
        name: own[name] for name in ("replicas", "steps")
    }


def test_unknown_page_is_refused():
    with pytest.raises(ValueError, match="rollout/gold"):
        batch.make_pages(["rollout/gold"])


def test_contents_without_missing_pages(tmp_path):
    (tmp_path / "here.md").touch()
    toc = "root: here\n  - file: here\n  - file: gone  # comment\n"
    assert batch._existing_pages(toc, tmp_path) == "root: here\n  - file: here\n"


@pytest.mark.parametrize("name", ["demo", "cpu"])
def test_snakemake_plans_every_cell(name, workplace):
    settings = campaign.load(name)
    protocols = sum(len(settings.protocols(dataset)) for dataset, _, _ in settings.cells())
    words = [sys.executable, "-m", "egraff_utils", "campaign", name, "--dry-run"]
    plan = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT, check=False)
    assert plan.returncode == 0, plan.stderr
    reports = len(batch.reports()) + 1  # and the target that asks for them
    total = len(settings.datasets) + len(settings.cells()) + protocols + len(settings.task_cells()) + reports
    assert f"total {total}" in " ".join((plan.stdout + plan.stderr).split())


@pytest.mark.slow
def test_a_tiny_campaign_survives_kill_and_ends(workplace):
    words = [sys.executable, "-m", "egraff_utils", "campaign", "tiny"]
    first = subprocess.Popen(words, cwd=paths.ROOT, start_new_session=True)
    trained = workplace / "results" / "tiny" / "training"
    deadline = time.monotonic() + 300
    while not list(trained.glob("*.json")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    stored = {path: path.read_bytes() for path in trained.glob("*.json")}
    assert stored
    subprocess.run(words, cwd=paths.ROOT, check=True)
    assert {path: path.read_bytes() for path in stored} == stored, "a finished training ran again"
    frame = records.read("tiny")
    made = {"training", "rollout", "rollout_as_coded", "floor", "floor_as_coded"}
    assert set(frame.kind) == made | {"dataset", "audit"}
    assert set(frame.status) <= {"complete", "unstable"}
    board = json.loads(batch.report_page("tiny").read_text())
    assert any("every cell of the campaign" in str(cell.get("outputs")) for cell in board["cells"])
    text = batch.leaderboard_text("tiny")
    assert "MACE" in text
    assert "TorchMD-NET" in text
    again = subprocess.run(words, cwd=paths.ROOT, check=True, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_dataset_may_have_seeds_of_its_own(tmp_path):
    text = (
        "description: d\ndatasets: [ethanol, lips]\nmodels: [mace]\noverrides: {ethanol: {seeds: [0, 1]}}\n"
    )
    (tmp_path / "mine.yml").write_text(text)
    cells = campaign.load(tmp_path / "mine.yml").cells()
    assert cells == [("ethanol", "mace", 0), ("ethanol", "mace", 1), ("lips", "mace", 0)]
