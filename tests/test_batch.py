"""Does a notebook run whole or not at all, and a campaign end to end?"""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import nbformat
import pytest
from jupyter_client.connect import LocalPortCache
from nbformat.v4 import new_code_cell, new_notebook, new_output
from papermill import engines

from egraff_utils import campaign, paths, records
from egraff_utils import campaign as campaigns
from egraff_utils.__main__ import main
from egraff_utils.running import batch, naming, pages

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


@pytest.mark.parametrize("kept", ["cards.model", "TrainConfig", "glue_all", "{{training"])
def test_a_copied_training_notebook_that_names_two_models_is_refused(workplace, kept, monkeypatch):
    monkeypatch.setattr(naming, "NOTEBOOKS", workplace)
    notebook = workplace / "training" / "mine.ipynb"
    notebook.parent.mkdir()
    shutil.copy(paths.ROOT / "notebooks" / "training" / "nequip.ipynb", notebook)
    copy = nbformat.read(notebook, as_version=4)
    copy.cells[0].source = copy.cells[0].source.replace("NequIP", "mine")
    for cell in copy.cells:
        cell.metadata.pop("mystnb", None)
        cell.source = cell.source.replace("TrainConfig(card.name", 'TrainConfig("nequip"')
    missed = [
        index for index, cell in enumerate(copy.cells) if kept in cell.source and "nequip" in cell.source
    ]
    assert missed
    for index in set(range(len(copy.cells))) - set(missed):
        copy.cells[index].source = copy.cells[index].source.replace("nequip", "mine")
    nbformat.write(copy, notebook)
    text = f"mine.ipynb is of the model 'mine', but names 'nequip' in cell {', '.join(map(str, missed))}, "
    with pytest.raises(ValueError, match=text):
        batch.execute(notebook, workplace / "out.ipynb")
    assert not list(workplace.rglob("out*"))


@pytest.mark.parametrize("where", ["training", "elsewhere"])
def test_a_copy_in_which_one_place_was_missed_is_refused(workplace, monkeypatch, where):
    """Places are labels, headings, captions, glued values and code; prose may compare models."""
    monkeypatch.setattr(naming, "NOTEBOOKS", workplace)
    text = (paths.ROOT / "notebooks" / "training" / "mace.ipynb").read_text()
    places = [
        found.span()
        for found in re.finditer(
            r'(?<=training-)mace|MACE(?= \w+ \w+ in|.* on the val)|(?<=model\(\\")mace', text
        )
    ]
    assert len(places) > 15
    copy = workplace / where / "nequip.ipynb"
    copy.parent.mkdir()
    for missed in [None, *places]:
        changed = text
        for start, end in reversed([place for place in places if place != missed]):
            new = "NequIP" if text[start:end] == "MACE" else "nequip"
            changed = f"{changed[:start]}{new}{changed[end:]}"
        copy.write_text(changed)
        if missed is None:
            naming.check_names(copy)
            assert naming.model_of(copy) == "nequip"
            continue
        with pytest.raises(ValueError, match="is of the model '.*', but names '.*' in cell"):
            naming.check_names(copy)


def test_a_failure_is_that_of_the_model_in_the_code(workplace):
    notebook = write_notebook(workplace / "training" / "nequip.ipynb", 'TrainConfig("mace", dataset); 1 / 0')
    with pytest.raises(RuntimeError, match="ZeroDivisionError|NameError"):
        batch.execute(notebook, workplace / "o.ipynb", quiet=True)
    assert [record.model for record in records.read_all("demo")] == ["mace"]


def test_a_training_notebook_elsewhere_may_have_any_name_but_has_one_model(workplace):
    source = 'cards.model("mace"); TrainConfig("{}", dataset); glue_all("training-mace-", {{}})'
    naming.check_names(write_notebook(workplace / "a.ipynb", source.format("mace")))
    with pytest.raises(ValueError, match="of the model 'mace', but names 'botnet' in cell 1,"):
        naming.check_names(write_notebook(workplace / "a.ipynb", source.format("botnet")))


def test_command_line_refuses_with_status_2(workplace, capsys):
    notebook = write_notebook(workplace / "training" / "mace.ipynb")
    assert main(["run", str(notebook), str(workplace / "o.ipynb"), "-p", "datset", "lips"]) == 2
    assert "did you mean 'dataset'" in capsys.readouterr().err


def test_a_failed_notebook_leaves_a_record_and_no_output(workplace):
    notebook = write_notebook(workplace / "training" / "mace.ipynb", "raise KeyError('no such thing')")
    output = workplace / "out" / "mace.ipynb"
    with pytest.raises(RuntimeError, match="no such thing"):
        batch.execute(notebook, output, parameters={"campaign": "test", "seed": 3}, quiet=True)
    assert sorted(path.name for path in output.parent.iterdir()) == [".mace.lock", "mace.failed.ipynb"]
    (record,) = records.read_all("test")
    assert record.key == ("failure_training", "test", "lips", "mace", 3)
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
    batch.record_failure(notebook, {}, RuntimeError("before"))
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


def test_a_notebook_is_found_by_its_name(workplace, capsys):
    assert batch.located("yours/dataset") == (batch.NOTEBOOKS / "yours" / "dataset.ipynb").resolve()
    assert main(["run", "yours/datset"]) == 2
    assert "did you mean 'yours/dataset'?" in capsys.readouterr().err


def test_run_key_takes_identity_from_the_file_and_the_rest_from_parameters():
    key = batch.run_key(batch.NOTEBOOKS / "rollout" / "lips.ipynb", {"model": "nequip", "seed": 2})
    assert key == {"campaign": "demo", "dataset": "lips", "model": "nequip", "seed": 2}


def test_page_parameters_are_those_of_the_campaigns_own_run():
    demo = campaign.load("demo")
    parameters = pages.page_parameters("training/mace", {"dataset": "ethanol"}, demo)
    assert parameters == demo.training_parameters(demo.datasets[0], "mace", 0)
    parameters = pages.page_parameters("rollout/copper_emt", {"model": "nequip"}, demo)
    assert parameters == demo.rollout_parameters("copper_emt", "nequip", 0, "corrected")


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
        pages.make_pages(["rollout/gold"])


def test_contents_without_missing_pages(tmp_path):
    (tmp_path / "here.md").touch()
    toc = "root: here\n  - file: here\n  - file: gone  # comment\n"
    assert pages._existing_pages(toc, tmp_path) == "root: here\n  - file: here\n"
    titled = "  - file: gone\n    title: Gone\n  - file: here\n    title: Here\n"
    assert pages._existing_pages(titled, tmp_path) == "  - file: here\n    title: Here\n"


TYPES = 'campaign: str = "demo"\nsteps: int = 5\nrate: float = None\nlong: bool = False\nbeside: list = []'


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *[("campaign", text, text) for text in ("2025", "1e3", "007", "on", "2026-01-01", "null", "é b")],
        *[("steps", "1e3", 1000), ("rate", "1e-3", 1e-3), ("rate", "None", None), ("rate", "null", None)],
        *[("long", "true", True), ("long", "False", False), ("beside", "[a, b]", ["a", "b"])],
    ],
)
def test_parameters_have_the_types_of_the_notebook(tmp_path, name, text, value):
    file = tmp_path / "a.ipynb"
    head = new_code_cell(TYPES, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[head], metadata=KERNEL), file)
    assert batch.typed(file, {name: text}) == {name: value}
    _, *words = shlex.split(batch.words({name: value}))
    assert batch.typed(file, dict([words])) == {name: value}


@pytest.mark.parametrize("text", ["three", "1.5", "on"])
def test_a_parameter_of_another_type_is_refused(workplace, text):
    notebook = write_notebook(workplace / "training" / "mace.ipynb")
    with pytest.raises(ValueError, match=f"seed of mace.ipynb is of type int; '{text}' is none"):
        batch.typed(notebook, {"seed": text})


def test_a_notebook_that_succeeds_forgets_its_own_failure_only(workplace):
    notebook = write_notebook(workplace / "rollout" / "lips.ipynb", "protocol = 'corrected'")
    for protocol in ("corrected", "as_coded"):
        batch.record_failure(notebook, {"protocol": protocol, "model": "mace"}, OSError("no /home/me/a.npz"))
    assert [record.message for record in records.read_all("demo")] == ["OSError: no a.npz"] * 2
    batch.failure_key(notebook, {"model": "mace"}).path.unlink()
    assert [record.kind for record in records.read_all("demo")] == ["failure_as_coded_rollout"]


def test_a_failure_that_cannot_be_recorded_does_not_hide_the_reason(workplace, monkeypatch):
    def full(record):
        raise OSError("no space left on device")

    monkeypatch.setattr(records, "write", full)
    notebook = write_notebook(workplace / "training" / "mace.ipynb", "raise KeyError('the reason')")
    with pytest.raises(RuntimeError, match="the reason.*could not be recorded: OSError: no space left"):
        batch.execute(notebook, workplace / "o.ipynb", quiet=True)


KILL = "import os, signal\nos.kill({}, signal.{})"
WAYS = {"kernel": KILL.format("os.getpid()", "SIGKILL"), "time": KILL.format("os.getppid()", "SIGTERM")}


def run_apart(notebook, output):
    """``egraff run`` in a process of its own."""
    words = [sys.executable, "-m", "egraff_utils", "run", str(notebook), str(output), "--quiet"]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_ended_leaves_a_failure(workplace, way):
    source = WAYS[way] + "\nimport time\ntime.sleep(60)"
    notebook = write_notebook(workplace / "training" / "mace.ipynb", source)
    run = run_apart(notebook, workplace / "o.ipynb")
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("error: mace.ipynb failed")
    (record,) = records.read_all("demo")
    assert (
        record.message
        == {
            "kernel": "DeadKernelError: Kernel died",
            "time": "Terminated: the process was terminated, as at the end of the time of a job",
        }[way]
    )


def test_an_interrupted_run_leaves_no_failure_and_no_output(workplace):
    source = KILL.format("os.getppid()", "SIGINT") + "\nimport time\ntime.sleep(60)"
    notebook = write_notebook(workplace / "training" / "mace.ipynb", source)
    run = run_apart(notebook, workplace / "o.ipynb")
    assert run.returncode == 130
    assert run.stderr.splitlines()[-1] == "stopped; the same command continues from here"
    assert not records.read_all("demo")
    assert not list(workplace.glob("*.ipynb"))


def test_two_runs_of_a_cell_follow_one_another(workplace, capfd):
    output = workplace / "out.ipynb"
    with batch.alone(output):
        assert batch.is_running(output)
        other = threading.Thread(target=lambda: batch.alone(output).__enter__())
        other.start()
        other.join(0.5)
        assert other.is_alive()
    other.join(10)
    assert "out.ipynb is being made by another process" in capfd.readouterr().err


def test_a_report_of_an_empty_campaign_says_so(workplace):
    notebook = write_notebook(workplace / "report" / "board.ipynb", "[][0]")
    page = batch.execute(notebook, workplace / "o.ipynb", parameters={"campaign": "nothing"}, quiet=True)
    assert "Campaign `nothing` has no records yet" in page.read_text()
    records.write(records.Record("training", "some", "lips", "mace", 0))
    with pytest.raises(RuntimeError, match="IndexError"):
        batch.execute(notebook, workplace / "p.ipynb", parameters={"campaign": "some"}, quiet=True)


def test_a_campaign_without_a_file_is_what_its_records_show():
    found = [
        records.Record("training", "mine", "lips", model, seed, {"preset": "tiny"})
        for model in ("mace", "nequip")
        for seed in (0, 3)
    ]
    campaign = campaigns.of_records("mine", [*found, records.Record("gate", "mine", "gete", "allegro", 0)])
    assert (campaign.datasets, campaign.models, campaign.seeds) == (("lips",), ("mace", "nequip"), (0, 3))
    assert campaign.preset == "tiny"
    assert campaigns.of_records("demo", found) == campaigns.load("demo")
    with pytest.raises(ValueError, match="unknown campaign 'mine'"):
        campaigns.of_records("mine", [])


def test_a_failure_alone_shows_which_run_is_wanted():
    failed = records.Record(
        "failure_training", "mine", "water", "mace", 2, {"preset": "tiny"}, status="failed"
    )
    assert campaigns.of_records("mine", [failed]).cells() == [("water", "mace", 2)]


def test_sockets_of_killed_processes_are_swept():
    left = Path(tempfile.mkdtemp(prefix="kernel-999999999-", dir="/tmp"))
    with batch.kernel_sockets():
        assert not left.exists()


def test_a_crowded_machine_fails_no_cell(workplace, monkeypatch):
    """Four seconds without output, the default, failed a simulation that had ended well."""
    waited = []

    class Client(engines.PapermillNotebookClient):
        def execute(self, **options):
            waited.append(self.iopub_timeout)
            return super().execute(**options)

    monkeypatch.setattr(engines, "PapermillNotebookClient", Client)
    notebook = write_notebook(workplace / "training" / "mace.ipynb")
    batch.execute(notebook, workplace / "o.ipynb", quiet=True)
    assert waited[0] > 60
