"""Are the notebooks in the shape that pages need? Read, not run."""

import importlib.util
import re
from collections import Counter
from unittest.mock import Mock

import nbformat
import pytest

from egraff_utils import campaign, cards, paths
from egraff_utils.report import values
from egraff_utils.running import batch, naming, pages
from egraff_utils.running import cells as running

NOTEBOOKS = sorted(path for path in batch.NOTEBOOKS.glob("*/*.ipynb"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in NOTEBOOKS]


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_every_notebook_is_a_page_and_the_reverse():
    assert set(NAMES) == set(pages.pages()["pages"])


def test_every_model_has_a_training_notebook():
    stems = {path.stem for path in NOTEBOOKS if path.parent.name == "training"}
    assert stems == {*cards.models(), "calculator"}


def test_nbval_runs_each_notebook_once_in_its_days():
    spec = importlib.util.spec_from_file_location("conftest_of_notebooks", batch.NOTEBOOKS / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    runs = Counter()
    for day in range(6):
        items = [Mock(path=path) for path in NOTEBOOKS]
        conftest.skip_of_other_days(items, 739_001 + day)
        runs.update(NAMES[k] for k, item in enumerate(items) if not item.add_marker.called)
    assert runs == {name: 6 // conftest.DAYS.get(name.partition("/")[0], 1) for name in NAMES}


def test_stripped(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


def test_one_parameters_cell_that_readers_do_not_see(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.metadata.tags for cell in tagged] == [["parameters", "remove-cell"]]
    assert all(": " in line and "  # " in line for line in tagged[0].source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_names_one_model(path):
    naming.check_names(path)


def test_begins_with_a_label_and_a_question(notebook):
    label, title = notebook.cells[0].source.splitlines()[:2]
    assert label.startswith("(sec-")
    assert title.startswith("# ")
    assert title.endswith("?")
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall("^# ", prose, re.MULTILINE)) == 1


def test_cell_ids_are_words(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(name.replace("-", "").isalpha() for name in ids)


def test_small(notebook):
    """A heading and the paragraph that is told under it count as one cell, and no lines of code."""
    told = [cell.cell_type == "code" and values.told(cell.source) is not None for cell in notebook.cells]
    heads = [cell.cell_type == "markdown" for cell in notebook.cells]
    split = sum(head and below for head, below in zip(heads, told[1:], strict=False))
    code = [c.source for c, *text in zip(notebook.cells, heads, told, strict=True) if not any(text)]
    assert len(notebook.cells) >= 14
    assert len(notebook.cells) - split <= 30
    assert sum(len(source.splitlines()) for source in code) <= 120


def test_paragraphs_with_values_are_told(notebook):
    """The role that glues shows as it is typed where a notebook is opened in Lab."""
    assert not [cell.id for cell in notebook.cells if "{glue:" in cell.source]
    for cell in notebook.cells:
        if cell.cell_type == "code" and values.told(cell.source) is not None:
            assert cell.metadata == {"tags": ["remove-input"], "jupyter": {"source_hidden": True}}
            assert re.search(r"^tell\(r?\"\"\"\n.*\n\"\"\"\)$", cell.source, re.DOTALL | re.MULTILINE)


def test_figure_labels_are_unique_and_carry_the_page():
    labels = {}
    for name, path in zip(NAMES, NOTEBOOKS, strict=True):
        for cell in nbformat.read(path, as_version=4).cells:
            if figure := cell.metadata.get("mystnb", {}).get("figure"):
                other = labels.get(figure["name"])
                assert other is None, f"{figure['name']} in {name} and {other}"
                assert path.stem in figure["name"]
                assert figure["caption"].endswith(".")
                labels[figure["name"]] = name


@pytest.mark.parametrize("name", campaign.names())
def test_notebooks_take_what_their_campaign_sets(name):
    settings = campaign.load(name)
    for dataset, model, seed in settings.cells():
        known = batch.parameters_of(running.training_notebook(model))
        assert set(settings.training_parameters(dataset, model, seed)) <= set(known)
        known = batch.parameters_of(batch.NOTEBOOKS / "rollout" / f"{dataset}.ipynb")
        for protocol in settings.protocols(dataset):
            assert set(settings.rollout_parameters(dataset, model, seed, protocol)) <= set(known)


def test_notebooks_of_one_campaign_agree_on_a_training():
    """Else one that runs beside another would move away the weights that it uses."""
    trainings = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        values = {}
        for cell in cells:
            if "parameters" in cell.metadata.get("tags", []):
                exec(cell.source, values)
        if {"seed", "preset"} <= set(values):
            key = values["campaign"], values.get("dataset", path.stem), values.get("model", path.stem)
            start = "" if "max_steps" in values else "train_"
            limits = [values[f"{start}max_{unit}"] for unit in ("seconds", "steps", "epochs")]
            trainings.setdefault((*key, values["seed"]), {})[path.stem] = values["preset"], *limits
    assert len(trainings) >= 18
    assert not {key: found for key, found in trainings.items() if len(set(found.values())) > 1}


def test_no_notebook_reaches_outside(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    for bad in ("sys.path", "!pip", "../data", "filterwarnings", str(paths.ROOT)):
        assert bad not in text
