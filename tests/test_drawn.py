"""Does the CSV of a figure hold what is drawn, under the names of its legend?"""

import base64
import gzip
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils.report import drawn, look, structures


@pytest.fixture
def figure():
    made, _ = plt.subplots(ncols=2)
    yield made
    plt.close(made)


def test_points_have_the_names_of_the_legend(figure):
    left, right = figure.axes
    left.plot([1, 2], [3, 4], color=look.model_color("mace"))
    left.axvline(1.5)  # not data
    left.fill_between([0, 1], [0, 1])
    right.plot(5, 6, "s", color=look.model_color("nequip"))
    right.plot(8, 9, "o", color=look.model_color("nequip"))
    right.bar([0], [7], label="bars")
    left.set_title("LiPS")
    figure.supxlabel("Time (fs)")
    handles = look.model_handles(["mace", "nequip"]) + [
        plt.Line2D([], [], color="0.5", marker=marker, label=label)
        for marker, label in (("s", "GeTe"), ("o", "LiPS"))
    ]
    figure.legend(handles=handles)
    found = drawn.points(figure)
    rows = found[["panel", "series", "x label", "x", "y"]].to_numpy().tolist()
    assert rows == [
        ["LiPS", "MACE", "Time (fs)", 1, 3],
        ["LiPS", "MACE", "Time (fs)", 2, 4],
        ["panel 2", "NequIP, GeTe", "Time (fs)", 5, 6],
        ["panel 2", "NequIP, LiPS", "Time (fs)", 8, 9],
        ["panel 2", "bars", "Time (fs)", 0, 7],
    ]


@pytest.mark.parametrize(("most", "every"), [(40_000, 1), (2_000, 4)])
def test_an_output_keeps_as_many_points_of_a_long_line_as_fit(figure, monkeypatch, most, every):
    monkeypatch.setattr(drawn, "MOST", most)
    figure.axes[0].plot(np.arange(1000), np.sin(np.arange(1000)))
    figure.axes[1].plot([0, 1], [0, 1])
    kept = drawn.further(figure, {"data": [1]})
    assert kept[drawn.PLOTLY] == {"data": [1]}
    assert kept[drawn.CSV]["every"] == every
    found = pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(kept[drawn.CSV]["gzip"]))))
    assert found.groupby("line").x.apply(list).tolist() == [[*range(0, 1000, every)], [0, 1]]


def test_distributions_of_energies_have_their_points(figure):
    frames = {}
    for split, energies in {"train": np.arange(40.0), "test": np.arange(40.0) + 100}.items():
        frames[split] = [Atoms("H2") for _ in energies]
        for atoms, energy in zip(frames[split], energies, strict=True):
            atoms.calc = SinglePointCalculator(atoms, energy=2 * energy)
    structures.plot_energies(frames, ax=figure.axes[0])
    found = drawn.points(figure)
    assert found.groupby("series", sort=False).size().to_dict() == {"train": 40, "test": 40}
    test = found[found.series == "test"]
    assert np.average(test.x, weights=test.y) == pytest.approx(100_000), "meV above the mean of train"
    assert (test.y.sum() * np.diff(test.x).mean()) == pytest.approx(1)
