"""Does the heat map of the accuracy page show our force errors over the published ones?"""

import matplotlib.pyplot as plt
import pandas as pd

from egraff_utils.report import accuracy
from egraff_utils.report.accuracy import FORCE
from egraff_utils.report.beside import OURS, PAPER


def test_the_heat_map_has_the_ratio_of_every_cell_with_both_values():
    index = pd.MultiIndex.from_product([["ethanol", "lips", "gete"], ["mace", "nequip"]])
    index.names = ["dataset", "model"]
    columns = pd.MultiIndex.from_tuples([(FORCE, PAPER), (FORCE, OURS)])
    values = [[10, 25], [10, 5], [100, 150], [100, None], [10, None], [10, None]]
    ax = accuracy.plot_ratios(pd.DataFrame(values, index, columns, dtype=float))
    assert [text.get_text() for text in ax.texts] == ["0.5", "2.5", "1.5"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["NequIP", "MACE"]
    assert len(ax.get_yticklabels()) == 2, "GeTe has no value of ours"
    assert "published" in ax.figure.axes[1].get_ylabel()
    assert not list(accuracy.plot_ratios(pd.DataFrame([[None, 1.0]], index[:1], columns, dtype=float)).texts)
    plt.close("all")
