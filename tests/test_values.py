"""Do the values of a page reach its prose, and do checks of its records find what is wrong?"""

from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from nbformat.v4 import new_code_cell, new_notebook

from egraff_utils import cards
from egraff_utils.breaks import Break, Cause
from egraff_utils.records import Metric, Record
from egraff_utils.report import accuracy, pages, simulations, values
from egraff_utils.report.comparison import mean_rank_correlation
from egraff_utils.running import batch


def record(kind="rollout", curves=None, **metrics):
    made = Record(kind, "demo", "ethanol", "mace", 0, metrics=[Metric(n, v, "1") for n, v in metrics.items()])
    made.__dict__["curves"] = curves or {}
    return made


@pytest.mark.parametrize(
    ("form", "expected"),
    [(None, {"a": 2.0, "b": "word", "c": 0.5}), (".1f", {"a": "2", "b": "word", "c": "0.5"})],
)
def test_numbers_are_glued_as_floats_or_by_their_format(monkeypatch, form, expected):
    glued = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: value}))
    table = pd.DataFrame().style
    given = {"a": np.int64(2), "b": "word", "c": np.float32(0.5), "table": table}
    values.glue_all("page-", given, form, forms={"a": ".0f"} if form else None)
    assert glued == {f"page-{name}": value for name, value in expected.items()} | {"page-table": table}
    assert type(glued["page-a"]) in (float, str)


def test_a_missing_number_has_a_name(monkeypatch):
    glued = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: value}))
    values.glue_all("", {"number": None})
    values.glue_all("", {"text": None, "nan": float("nan")}, ".1f")
    assert np.isnan(glued["number"])
    assert glued["text"] == glued["nan"] == "no value"


def test_a_rollout_that_reaches_its_floor():
    time = np.array([0.0, 10.0, 20.0, 30.0])
    fv = np.array([[0.0, 0.2, 0.9, 0.9], [0.0, 0.8, 0.9, np.nan]])
    made = record(curves={"time": time, "fv": fv, "deviation": np.array([[0.0, 1.0, 2.0, 3.0]] * 2)})
    found = pages.following_values(made, record("floor", fv=0.5))
    assert found["arrival"] == "after 20 fs"  # the geometric mean at 10 fs is 0.4, below 0.45
    assert (found["time"], found["deviation"]) == (30.0, 3.0)
    assert np.isnan(found["rmsd-reference"])
    assert pages.following_values(made, record("floor", fv=2.0))["arrival"] == "at no time"


@pytest.mark.parametrize(("level", "words"), [(0.5, "for 15 fs, until"), (2.0, "to the end, 20 fs, with")])
def test_how_long_a_live_reference_is_followed_and_how_warm_both_are(level, words):
    fv = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    made = record(curves={"time": np.arange(0, 30, 10.0), "fv": fv})
    made.parameters = {"temperature": 500, "replicas": 2, "friction": 5e-3}
    found = pages.live_values(made, record(temperature=584.0), record("floor", fv=level))
    assert found["followed"].startswith(words)
    assert found["rerun"] == "584 K"
    assert found["relaxation"] == "2036 fs"
    assert pages.live_values(made, None, record("floor", fv=level))["rerun"] == "no value"


def test_displacement_over_that_of_the_reference():
    curves = {"rmsd": np.array([[0.0, 1.0, 4.0]]), "rmsd_reference": np.array([[0.0, 2.0, np.nan]])}
    assert simulations.relative_displacement(record(curves=curves)) == 0.5


def test_the_largest_difference_is_that_of_the_mean_over_replicas():
    curves = {"rdf_r": np.array([1.0, 2.0]), "rdf_reference": np.array([4.0, 0.0])}
    curves["rdf"] = np.array([[4.0, 0.0], [4.0, 2.0]])
    assert simulations.largest_difference(record(curves=curves)) == (0.25, 2.0)


def test_errors_by_half_of_the_time_and_by_the_end():
    curves = {"seconds": np.array([1.0, 5.0, 6.0, 10.0]), "val_force_mae": np.array([9.0, 5.0, 7.0, 3.0])}
    assert accuracy.errors_on_the_way(record("training", curves)) == (5.0, 3.0)


def test_rank_correlation_within_datasets():
    index = pd.MultiIndex.from_product([["a", "b"], list("xyz")], names=["dataset", "model"])
    first = pd.Series([1.0, 2, 3, 10, 20, 30], index)
    assert mean_rank_correlation(first, pd.Series([1.0, 2, 3, 6, 5, 4], index)) == pytest.approx(0)
    assert np.isnan(mean_rank_correlation(first, pd.Series(np.nan, index)))


def test_values_of_own_frames_without_a_reference_to_run():
    texts = pages.labelled_values(record(oracle_force_mae=None), record("training", force_mae=10.0))
    assert set(texts.values()) == {"no value"}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("fv", 1.5),
        ("jsd", -0.1),
        ("bond_jsd", 0.7),
        ("stable_fraction", 2.0),
        ("time", None),
        ("status", None),
    ],
)
def test_an_impossible_rollout_is_refused(name, bad):
    good = {"fv": 0.5, "jsd": None, "stable_fraction": 1.0}
    pages.check_rollout(record(curves={"time": np.arange(3)}, **good))
    made = record(curves={"time": -np.arange(3) if name == "time" else np.arange(3)}, **(good | {name: bad}))
    made.status = "failed" if name == "status" else "complete"
    with pytest.raises(AssertionError):
        pages.check_rollout(made)


def frame(x, push=0.0):
    atoms = Atoms("CCOHHHHHH", np.arange(27.0).reshape(9, 3) + x)
    forces = np.ones((9, 3)) * push
    forces[0], forces[1] = 1 + push, -1 + push
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    return atoms


def test_frames_that_break_the_card_are_refused():
    card = cards.dataset("ethanol")
    pages.check_frames(card, {"train": [frame(0)], "test": [frame(1)]})
    for train, test, message in (
        (frame(1), frame(1), "in two splits"),
        (Atoms("Ar", [[0, 0, 0]]), frame(1), "elements"),
        (frame(0), frame(1, push=0.5), "sum to zero"),
    ):
        with pytest.raises(AssertionError, match=message):
            pages.check_frames(card, {"train": [train], "test": [test]})


@pytest.fixture
def page(monkeypatch):
    """What a page shows, paragraph by paragraph, and its kernel, new."""
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: None)
    monkeypatch.setattr(values, "_known", {})
    monkeypatch.setattr(values, "_paragraphs", [])
    shown = []

    def display(text, display_id):
        assert display_id  # else nothing can be written into it later
        place = len(shown)
        shown.append(text.data)
        return SimpleNamespace(update=lambda new: shown.__setitem__(place, new.data))

    monkeypatch.setattr(values, "display", display)
    return shown


def test_a_paragraph_gets_its_values_when_they_are_computed(page):
    values.tell("\n**Result.** Wrong by {{page-error:.1f}} meV/Å, {{page-what}}, {{other:.0f}}.\n")
    values.tell("No value, $\\frac{1}{2}$ {cite:p}`a`.")
    assert page[0] == "**Result.** Wrong by … meV/Å, …, …."
    values.glue_all("page-", {"error": 12.34, "what": "a word"})
    assert page[0] == "**Result.** Wrong by 12.3 meV/Å, a word, …."
    values.glue_all("", {"other": None})
    assert page[0].endswith("a word, no value.")
    values.tell("Again {{page-error:.2f}}.")
    assert page[1:] == ["No value, $\\frac{1}{2}$ {cite:p}`a`.", "Again 12.34."]


def test_a_paragraph_is_written_into_the_executed_page(tmp_path):
    first = 'from egraff_utils.report.values import glue_all, tell\ntell("Wrong by {{p-e:.1f}} eV.")'
    cells = [new_code_cell(source) for source in (first, "2 + 2", 'glue_all("p-", {"e": 0.26})')]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "page.ipynb")
    batch.execute(tmp_path / "page.ipynb", tmp_path / "out.ipynb", quiet=True)
    (shown,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs
    assert shown.data["text/markdown"] == "Wrong by 0.3 eV."


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('from a import tell\n\ntell(r"""\nA $\\alpha$ {{a:.1f}}.\n""")', "A $\\alpha$ {{a:.1f}}."),
        ("fit(config)", None),
        ("foretell(1)", None),
    ],
)
def test_the_text_that_a_cell_tells(source, text):
    assert values.told(source) == text


def test_a_rollout_page_says_how_many_replicas_stayed():
    known = dict.fromkeys([name.replace("-", "_") for name in pages.ROLLOUT], 1.0)
    made = record(**known | {"steps": 10.0})
    made.parameters, made.breaks = {"replicas": 2}, [Break(1, 2, 20.0, Cause.CONTACT)]
    found = pages.rollout_values(made, record(force_mae=1.0), record("floor", wf=1.0, fv=1.0))
    assert found["stayed"] == "1 of 2 replicas"
