"""Do the interactive plots say what the records say, in the terms of plotly?"""

import numpy as np
import pandas as pd
import plotly.graph_objects
import pytest

from egraff_utils.report import interactive, question


@pytest.fixture
def cells():
    index = pd.MultiIndex.from_product([["lips", "gete"], ["mace", "nequip"]], names=["dataset", "model"])
    columns = [[10.0, 20, 30, 40], [1.0, 2, 3, 4], [0.5, 1, np.nan, 3], [2.0, 3, np.nan, 5]]
    levels = [[1.5, 1.5, np.nan, np.nan], [2.5, 2.5, np.nan, np.nan], [False, True, False, False]]
    return pd.DataFrame(dict(zip(question.COLUMNS, columns + levels, strict=True)), index=index)


def test_a_point_names_its_cell_values_and_page(cells):
    plot = interactive.scatter({"wf": cells, "fv": cells[:0]})
    figure = plotly.graph_objects.Figure(plot)  # refuses what plotly does not know
    nequip = figure.data[0]
    assert nequip.name == "NequIP"
    lines = (
        "<b>NequIP on LiPS</b>",
        "Force MAE 20 meV/Å",
        "WF 2 % (95 %: 1 to 3)",
        "Saturation (1.5 to 2.5), reached",
    )
    assert nequip.text[0].split("<br>") == list(lines)
    assert nequip.text[1].endswith("<br>WF 4 % (95 %: 3 to 5)")
    assert list(nequip.customdata) == ["../rollout/lips.html", "../rollout/gete.html"]
    assert [symbol.endswith("-open") for symbol in nequip.marker.symbol] == [True, False]
    assert list(figure.data[1].error_y.array) == [1, 0]
    assert [(box.y0, box.y1) for box in figure.layout.shapes] == [(1.5, 2.5)]


def test_a_list_chooses_the_metric(cells):
    figure = plotly.graph_objects.Figure(interactive.scatter({"wf": cells, "stable_fraction": cells}))
    first, second = figure.layout.updatemenus[0].buttons
    assert [trace.visible for trace in figure.data] == [True, True, False, False]
    assert first.args[0]["visible"] == [not other for other in second.args[0]["visible"]]
    assert figure.layout.yaxis.type == "log"
    assert second.args[1]["yaxis.type"] == "linear"
    assert interactive.scatter({})["data"] == []
