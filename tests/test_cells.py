"""Does a campaign end with all its cells, whatever happened on the way?"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from egraff_utils import campaign, cards, paths, records
from egraff_utils.__main__ import egraff, main
from egraff_utils.config import Key
from egraff_utils.report import titles
from egraff_utils.running import batch, cells, pages

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Folder with a space, an accent and what a shell would run in its name."""
    folder = tmp_path / "mes données $(touch ran)"
    monkeypatch.setenv("EGRAFF_RESULTS", str(folder / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(folder / "runs"))
    folder.mkdir()
    return folder


def test_an_unknown_task_is_refused_before_anything_runs(workplace, capsys):
    text = (paths.ROOT / "params" / "tiny.yml").read_text()
    path = workplace / "mine.yml"
    path.write_text(text + "ood: {benzin: [ethanol_xtb]}\n")
    assert main(["campaign", "run", str(path)]) == 2
    assert "benzin" in capsys.readouterr().err
    path.write_text(text + "ood: {benzene: [ethanol]}\n")
    with pytest.raises(ValueError, match="unknown dataset of the task benzene of mine 'ethanol'"):
        campaign.load(str(path))


OWN_TASK = """description: d
datasets: [ethanol_xtb]
models: [mace]
ood:
  methane: {datasets: [ethanol_xtb], target: other.yml}
"""


def write_own_task(folder, *, elements="[1, 6]", text=OWN_TASK):
    """A campaign with a task of its own, and the card of the set of frames that models are put to."""
    card = "name: other\nsystem: molecule\ntemperature: 300\ntimestep: 0.5\nfiles: {all: other.xyz}\n"
    (folder / "other.yml").write_text(f"{card}elements: {elements}\nsplits: {{test: all}}\n")
    (folder / "mine.yml").write_text(text)
    return folder / "mine.yml"


def test_a_task_of_your_own_needs_no_notebook(workplace):
    path = write_own_task(workplace)
    settings = campaign.load(path)
    (cell,) = [cell for cell in cells.cells(settings) if cell.output.parts[-3] == "ood"]
    assert cell.output.parts[-2:] == ("methane", "ethanol_xtb-mace-s0.ipynb")
    assert cell.notebook == batch.NOTEBOOKS / "yours" / "shift.ipynb"
    asked = cell.parameters(settings)
    assert (asked["target"], asked["split"]) == (str(workplace / "other.yml"), "test")
    assert set(asked) <= set(batch.parameters_of(cell.notebook))
    batch.check_parameters(cell.notebook, asked)
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", str(path), "--dry-run"]
    plan = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT, check=False)
    assert plan.returncode == 0, plan.stderr
    assert "task" in plan.stdout + plan.stderr
    campaign.keep(path)
    path.unlink()
    kept = campaign.load("mine").ood["methane"]
    assert kept.target == str(campaign.kept_path("mine").with_name("other.yml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elements": "[1, 7]"}, "mine.yml:5: ood.methane: other holds N, which ethanol_xtb does not"),
        ({"text": OWN_TASK.replace("target: other.yml", "split: hot")}, "split of ethanol_xtb 'hot'"),
        ({"text": OWN_TASK.replace("target: other.yml", "split: test")}, "is no shift of itself"),
        ({"text": OWN_TASK.replace("target: other.yml", "target: elsewhere.yml")}, "elsewhere.yml"),
    ],
)
def test_a_task_of_your_own_that_does_not_fit_is_refused(workplace, changes, message):
    path = write_own_task(workplace, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        campaign.load(path)


OWN_DATA = """description: d
datasets: [sets/water-1.yml, ethanol_xtb]
models: [mace]
overrides: {H2O-v1: {training: {max_steps: 7}}}
checks: {gate: [H2O-v1]}
"""


def test_a_dataset_of_your_own_is_given_by_its_card(workplace):
    card = workplace / "sets" / "water-1.yml"
    card.parent.mkdir()
    card.write_text(
        "name: H2O-v1\nsystem: molecule\ntemperature: 300\ntimestep: 0.5\nelements: [1, 8]\n"
        "files: {all: water.xyz}\nsplits: {train: all, val: all, test: all}\n"
    )
    path = workplace / "mine.yml"
    path.write_text(OWN_DATA)
    settings = campaign.load(path)
    training, rollout, gate = [c for c in cells.cells(settings) if c.dataset == "H2O-v1"]
    assert rollout.notebook == batch.NOTEBOOKS / "yours" / "rollout.ipynb"
    assert gate.output.name == "H2O-v1-mace-s0.ipynb"
    for cell in (training, rollout, gate):
        asked = cell.parameters(settings)
        assert asked["dataset"] == str(card)
        batch.check_parameters(cell.notebook, asked)
        assert batch.failure_key(cell.notebook, asked).dataset == "H2O-v1"
    assert training.parameters(settings)["max_steps"] == 7
    assert cells.cells(settings, ["ethanol_xtb"])[1].notebook.stem == "ethanol_xtb"
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", str(path), "--dry-run"]
    plan = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT, check=False)
    assert plan.returncode == 0, plan.stderr
    for folder in ("datasets", "rollout"):
        name = "H2O-v1.ipynb" if folder == "datasets" else rollout.output.name
        made = paths.runs() / "mine" / folder / name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
    campaign.keep(path)
    shown = pages.campaign_pages("mine")
    assert {"yours/dataset", "yours/rollout"} <= set(shown)
    card.unlink()
    for registered in (cards._registered, cards._dataset_files):  # as in a new process
        registered.pop("H2O-v1")
    assert cards.dataset("H2O-v1").elements == [1, 8]
    assert campaign.load("mine").datasets == ("H2O-v1", "ethanol_xtb")
    path.write_text(OWN_DATA.replace("ethanol_xtb]", "sets/water-1.yml]"))
    card.write_text(campaign.kept_path("mine").with_name("water-1.yml").read_text())
    with pytest.raises(ValueError, match="two datasets of the name H2O-v1"):
        campaign.load(path)


@pytest.mark.parametrize("name", ["demo", "cpu"])
def test_snakemake_plans_every_cell(name, workplace):
    settings = campaign.load(name)
    protocols = sum(len(settings.protocols(dataset)) for dataset, _, _ in settings.cells())
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", name, "--dry-run"]
    plan = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT, check=False)
    assert plan.returncode == 0, plan.stderr
    reports = len(pages.reports(settings)) + 1  # and the target that asks for them
    total = len(settings.datasets) + len(settings.cells()) + protocols + len(settings.task_cells()) + reports
    assert f"total {total}" in " ".join((plan.stdout + plan.stderr).split())


HEAD = """campaign: str = "demo"  # c
dataset: str = "lips"  # d
model: str = "mace"  # m
preset: str = "small"  # p
seed: int = 0  # s
device: str = "cpu"  # d
threads: int = 1  # t
protocol: str = "corrected"  # p
replicas: int = 1  # r
steps: int = 1  # s
max_seconds: float = None  # s
max_steps: int = None  # s
max_epochs: int = None  # s
train_max_seconds: float = None  # s
train_max_steps: int = None  # s
train_max_epochs: int = None  # s"""
RECORD = """from egraff_utils import records
from egraff_utils.config import Key
made = records.Outcome([records.Metric("force_mae", 1.0, "meV/Å")])
records.stored_or_made(Key("{kind}", campaign, "lips", {model}), {{}}, lambda: made)
"""
KILLED_ONCE = """import os, signal
from pathlib import Path
from egraff_utils import paths
if not (paths.runs() / "tried").exists():
    (paths.runs() / "tried").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def project(workplace):
    """A copy of the project whose notebooks compute nothing, and whose campaign has two models."""
    folder = workplace / "project"
    others = shutil.ignore_patterns("share", "__pycache__")
    shutil.copytree(paths.ROOT / "egraff_utils", folder / "egraff_utils", ignore=others)
    shutil.copy(paths.ROOT / "Snakefile", folder)
    (folder / "params").mkdir()
    (folder / "params" / "book.yml").write_text("reference: mine\nbeside: []\npages: {report/all: {}}\n")
    sources = {
        "datasets/lips": "1",
        "training/mace": RECORD.format(kind="training", model="'mace'"),
        "training/nequip": KILLED_ONCE + RECORD.format(kind="training", model="'nequip'"),
        "rollout/lips": RECORD.format(kind="rollout", model="model"),
        "report/all": "from egraff_utils import records\nlen(records.read(campaign))",
    }
    for name, source in sources.items():
        path = folder / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = HEAD if name.startswith("rollout") else HEAD.replace('model: str = "mace"  # m\n', "")
        head = new_code_cell(taken, metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[head, new_code_cell(source)], metadata=KERNEL), path)
    (workplace / "mine.yml").write_text("description: d\ndatasets: [lips]\nmodels: [mace, nequip]\n")
    return folder


@pytest.mark.slow
def test_lost_cells_are_run_again_wherever_the_project_lies(project, workplace, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(project))
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", str(workplace / "mine.yml")]
    runs, results = workplace / "runs" / "mine", workplace / "results" / "mine"

    def run():
        return subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)

    first = run()
    assert first.returncode == 1, first.stderr
    assert "2 of 4 cells are missing" in first.stdout
    assert (results / "failure_training" / "lips-nequip-s0.json").is_file()
    assert (runs / "report" / "all.ipynb").is_file(), "reports are made of what there is"
    again = run()
    assert again.returncode == 0, again.stderr
    assert not list(results.glob("failure*/*"))
    made = sorted(path.relative_to(runs).as_posix() for path in runs.glob("[rt]*/*.ipynb"))
    assert made[-4:] == [
        f"{k}/lips-{m}-s0.ipynb" for k in ("rollout", "training") for m in ("mace", "nequip")
    ]

    lost = results / "rollout" / "lips-mace-s0.json"
    lost.unlink()
    (results / "training" / "lips-nequip-s0.json").write_text("")
    (runs / "rollout" / "lips-nequip-s0.ipynb").write_text("")
    third = run()
    assert third.returncode == 0, third.stderr
    assert "lips-nequip-s0.ipynb cannot be used" in third.stderr
    assert lost.is_file()
    assert json.loads((runs / "rollout" / "lips-nequip-s0.ipynb").read_text())["cells"]
    assert records.load(results / "training" / "lips-nequip-s0.json")["force_mae"] == 1
    assert not list(workplace.rglob("ran")), "the name of a folder was run as a command"


def test_a_campaign_of_any_place_is_found_by_its_name_once_it_ran(workplace):
    file = workplace / "mine.yml"
    file.write_text("description: é\ndatasets: [lips]\nmodels: [mace]\n")
    with pytest.raises(ValueError, match="unknown campaign 'mine'"):
        campaign.load("mine")
    assert titles.budget("mine") == "campaign mine: settings not in params"
    campaign.keep(file)
    assert campaign.load("mine") == campaign.load(file)
    assert titles.budget("mine").startswith("campaign mine: preset small, the published number of epochs")


def test_cards_of_one_file_name_are_refused_as_their_copies_would_be_one_file(workplace):
    for name in ("a", "b"):
        (workplace / name).mkdir()
        (workplace / name / "card.yml").write_text(
            f"name: {name}\nsystem: molecule\ntemperature: 300\ntimestep: 0.5\nelements: [1, 8]\n"
            "files: {all: water.xyz}\nsplits: {train: all, val: all, test: all}\n"
        )
    file = workplace / "mine.yml"
    file.write_text("description: d\ndatasets: [a/card.yml, b/card.yml]\nmodels: [mace]\n")
    with pytest.raises(ValueError, match=r"mine.yml: copies .* two files there would be card.yml; give each"):
        campaign.keep(file)
    assert not list((workplace / "results").rglob("*.yml"))


def test_a_cell_whose_process_was_killed_leaves_a_failure(workplace):
    file = workplace / "mine.yml"
    file.write_text("description: d\ndatasets: [lips]\nmodels: [mace]\n")
    mine = campaign.load(file)
    wanted = cells.cells(mine)
    with paths.written(wanted[1].output) as partial:
        left = partial.with_name(partial.name.replace(f"-{os.getpid()}-", "-999999999-"))
    left.touch()
    wanted[1].output.unlink()
    cells._record_killed(mine, wanted)
    (record,) = records.read_all("mine")
    assert (record.kind, "the process was killed" in record.message) == ("failure_rollout", True)
    assert not left.exists()


def test_a_cell_that_was_killed_on_another_node_leaves_a_failure(workplace):
    file = workplace / "mine.yml"
    file.write_text("description: d\ndatasets: [lips]\nmodels: [mace]\n")
    mine = campaign.load(file)
    wanted = cells.cells(mine)
    for cell in wanted[:2]:
        left = cell.output.with_name(f".{cell.output.stem}.node17.org-4711-0123abcd.partial.ipynb")
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
    with batch.alone(wanted[0].output):  # another campaign runs it
        cells._record_killed(mine, wanted)
    (record,) = records.read_all("mine")
    assert (record.kind, "the process was killed" in record.message) == ("failure_rollout", True)
    assert left.exists()


WRONG = [
    (["campaign", "run", "cpuu"], 2, "did you mean 'cpu'"),
    (["campaign", "plan", "cpu"], 2, "give one, such as --budget 25m"),
    (["campaign", "run", "cpu", "--jobs", "0"], 2, "--jobs"),
    (["leaderboard", "nothing"], 2, "egraff campaign run nothing"),
    (["data", "check", "etanol"], 2, "did you mean 'ethanol'"),
    (["run", "nothing.ipynb"], 2, "unknown notebook"),
    (["rollout", "mace", "ethanol", "--campaign", "nothing"], 1, "egraff train mace ethanol"),
    (["train", "mace", "nofile.yml"], 2, "there is no file "),
    (["train", "nofile.yml", "ethanol"], 2, "nofile.yml; correct its path"),
    (["data", "check", "sub/frames.xyz"], 2, "as there is no folder "),
    (["trian"], 2, "No such command"),
]


@pytest.mark.parametrize(("words", "status", "remedy"), WRONG)
def test_wrong_input_ends_in_one_line_with_a_remedy(workplace, words, status, remedy, capsys):
    assert main(words) == status
    said = capsys.readouterr().err.strip().splitlines()
    assert remedy in said[-1]
    assert said[-1].startswith(("error: ", "Error: "))


ENDS = {
    "built": ([], True, "The book with these results: index.html"),
    "not asked for": (["--no-book"], True, "As a book: egraff book --campaign tiny"),
    "not installed": ([], False, "No book was built, as jupyter-book is not installed: pip install"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_campaign_ends_with_its_leaderboard_and_its_book(workplace, end, monkeypatch, capsys):
    words, installed, last = ENDS[end]
    page = pages.report_page("tiny")
    page.parent.mkdir(parents=True)
    page.touch()
    (workplace / "jupyter-book").write_text("") if installed else None
    monkeypatch.setattr(cells, "run_campaign", lambda name, **_: 0)
    monkeypatch.setattr(cells, "leaderboard_text", lambda name: f"leaderboard of {name}")
    monkeypatch.setattr(pages, "jupyter_book", lambda: workplace / "jupyter-book")
    monkeypatch.setattr(pages, "build_book", lambda name: "index.html")
    assert main(["campaign", "run", "tiny", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("leaderboard of tiny\n\nIn full: ")
    assert said.splitlines()[-1].startswith(last)
    assert main(["campaign", "run", "tiny", "--dry-run"]) == 0
    assert not capsys.readouterr().out


CARDS = [
    "datasets: [sub/none.yml]\nmodels: [mace]",
    "datasets: [lips]\nmodels: [sub/none.yml]",
    "datasets: [lips]\nmodels: [mace]\nood: {far: {datasets: [lips], target: sub/none.yml}}",
]


@pytest.mark.parametrize("text", CARDS)
def test_a_card_that_a_campaign_misses_is_named_by_its_path(workplace, text, capsys):
    (workplace / "sub").mkdir()
    (workplace / "mine.yml").write_text(f"description: d\n{text}\n")
    assert main(["campaign", "status", str(workplace / "mine.yml")]) == 2
    assert f"there is no file {workplace}/sub/none.yml; correct" in capsys.readouterr().err
    (workplace / "sub" / "nine.yml").touch()
    assert main(["campaign", "status", str(workplace / "mine.yml")]) == 2
    assert f"did you mean {workplace}/sub/nine.yml?" in capsys.readouterr().err


def test_a_campaign_that_has_not_begun_is_no_mistake(workplace, capsys):
    assert main(["leaderboard", "tiny"]) == 0
    assert capsys.readouterr().out == "campaign tiny has no records; make them: egraff campaign run tiny\n"


def test_datasets_are_listed_and_checked(workplace, capsys):
    assert main(["data", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == cards.datasets()
    assert main(["data", "check", "copper_emt"]) == 0
    assert "DatasetCard copper_emt" in capsys.readouterr().out


def commands(group, name=()):
    for verb, command in group.commands.items():
        yield from commands(command, (*name, verb)) if hasattr(command, "commands") else [(*name, verb)]


def test_every_verb_has_help_with_an_example_and_imports_little(capsys):
    for words in commands(egraff):
        assert main([*words, "--help"]) == 0
        assert f"  egraff {' '.join(words)}" in capsys.readouterr().out
    code = "import sys, egraff_utils.__main__ as m; m.main(['--help']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


SLOW_TO_STOP = """import time
try:
    print('up', flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    print('clean')"""


def test_an_interrupted_command_is_waited_for():
    words = f"[sys.executable, '-c', {SLOW_TO_STOP!r}]"
    outer = f"import sys; from egraff_utils.running import cells; cells.run_to_the_end({words})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", outer], text=True, **pipes)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "clean\n"
    assert process.returncode


def test_jobs_ask_for_times_from_their_budgets(workplace):
    words = [sys.executable, "-m", "snakemake", "-n", "--executor", "dryrun", "--cores", "1"]
    words += ["--config", "campaign=tiny", "--snakefile", str(paths.ROOT / "Snakefile")]
    words += ["--directory", str(workplace)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "runtime=31" in said, "half an hour, and twice 20 s"


def test_runs_of_the_tiny_campaign_can_be_compared_bit_by_bit():
    """A limit of time takes part in the learning rate, so that a crowded machine trains to other weights."""
    given = campaign.load("tiny").training_parameters("ethanol_xtb", "mace", 0)
    assert (given["max_steps"], given["max_seconds"]) == (10, None)


@pytest.mark.slow
def test_a_tiny_campaign_survives_kill_and_ends(workplace):
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", "tiny", "--no-book"]
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
    board = json.loads(pages.report_page("tiny").read_text())
    assert any("every cell of the campaign" in str(cell.get("outputs")) for cell in board["cells"])
    text = cells.leaderboard_text("tiny")
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


def test_further_seeds_may_take_the_steps_of_the_first(tmp_path):
    (tmp_path / "mine.yml").write_text(
        "description: d\ndatasets: [ethanol]\nmodels: [mace, nequip]\ntraining: {max_seconds: 300}\n"
        "overrides: {ethanol: {seeds: [3, 4], further_steps: {mace: 50}}}\n"
    )
    mine = campaign.load(tmp_path / "mine.yml")
    limits = {
        (model, seed): [
            mine.training_parameters("ethanol", model, seed)[k] for k in ("max_seconds", "max_steps")
        ]
        for model in ("mace", "nequip")
        for seed in (3, 4)
    }
    timed, counted = [300, None], [None, 50]
    assert limits == {("mace", 3): timed, ("mace", 4): counted, ("nequip", 3): timed, ("nequip", 4): timed}
    assert mine.rollout_parameters("ethanol", "mace", 4, "corrected")["train_max_steps"] == 50


def test_further_seeds_of_the_reference_take_the_steps_of_the_first():
    cpu = campaign.load("cpu")
    for dataset, override in cpu.overrides.items():
        for model, steps in override.further_steps.items():
            first = records.load(Key("training", "cpu", dataset, model).path)
            assert first["steps"] == steps
