"""Are frames with cells and masses of their own taken as they are?"""

import numpy as np
import pytest
from test_audit import labelled

from egraff_utils.checks import audit
from egraff_utils.checks.audit.scales import cell_width


def breathing(a):
    """Four copper atoms in a cube of edge ``a``, in their places of a face-centred crystal."""
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return labelled(a * corners, 0.0, np.zeros((4, 3)), "Cu4", cell=3 * [a], pbc=True)


def test_every_frame_has_its_own_cell():
    """The neighbours of a face-centred crystal are a / sqrt(2) away, whatever its first frame was."""
    edges = np.linspace(3.0, 4.4, 8)
    series = audit.Series.of([breathing(a) for a in edges], "file")
    assert series.distances.min(1) == pytest.approx(edges / np.sqrt(2), rel=1e-6)
    assert series.steps == pytest.approx(np.zeros((7, 4, 3)), abs=1e-12)  # strain is no motion
    assert cell_width(series) == pytest.approx(3.0)
    assert cell_width(series[4:]) == pytest.approx(edges[4])


def test_the_open_side_of_a_slab_has_no_images():
    x, sides = [[0, 0, 0], [3.8, 0, 9.5]], [True, True, False]
    series = audit.Series.of([labelled(x, 0.0, None, "Cu2", cell=[4, 4, 10], pbc=sides)])
    assert series.distances[0] == pytest.approx(np.hypot(0.2, 9.5), rel=1e-6)
    assert cell_width(series) == pytest.approx(4)


def test_systems_of_one_file_are_looked_at_one_by_one():
    frames = [breathing(3.6) for _ in range(3)]
    frames[1].set_masses([60] * 4)
    frames[2].pbc = [True, True, False]
    assert [name for name, _ in audit._named(frames, "file")] == ["file Cu4", "file Cu4 (2)", "file Cu4 (3)"]
