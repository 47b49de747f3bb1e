"""Is the state of a table what the records say?"""

import re

import nbformat
import pandas as pd

from egraff_utils import paper, paths, records
from egraff_utils.report import where


def test_a_table_is_measured_cell_by_cell(monkeypatch):
    heads = pd.MultiIndex.from_product([["WF (%)", "JSD as published (nats)"], ["paper", "ours"]])
    values = pd.DataFrame([[1.0, 2.0, 3.0, None], [None, 5.0, 7.0, 8.0]], columns=heads)
    monkeypatch.setattr(where.beside, "paper_values", lambda frame, number: values)
    assert where.filled(pd.DataFrame([1]), "2") == (2, 3)  # a cell that was not published does not count


def test_without_records_nothing_is_measured():
    assert set(where.states(records.read("no such campaign")).values()) == {"not measured"}


def test_every_table_and_figure_has_a_line():
    notebook = nbformat.read(paths.ROOT / "notebooks" / "report" / "where.ipynb", as_version=4)
    lines = re.findall(
        r"^\| (Table|Tables|Figure) (\S+?)(?: to (\d+))? \|",
        "\n".join(c.source for c in notebook.cells),
        re.M,
    )
    found = {kind[:5]: set() for kind, _, _ in lines}
    for kind, first, last in lines:
        number = int(re.match(r"\d+", first)[0])
        found[kind[:5]] |= set(range(number, int(last or number) + 1))
    assert found == {"Table": set(range(1, 20)), "Figur": set(range(1, 10))}


def test_tables_of_results_are_known_to_the_paper():
    assert all(len(paper.table(number)) for number in where.MEASURED if number != "7b")
