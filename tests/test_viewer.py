"""Is the view self-contained? No network, no id, nothing unescaped, the same text twice; and it draws."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from egraff_utils.report import viewer

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

ACTIONS = """
<script>
const roots = [...document.querySelectorAll(".structure-viewer")], results = [];
const after = (act) => new Promise((done) => { act(); setTimeout(done, 300); });
const picture = (root) => root.querySelector("canvas").toDataURL();
const blank = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.every((v) => !v);
const key = (canvas, name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
(async () => {
  await after(() => {});
  const names = ["canvas", "select", "button", "input"];
  const [canvas, pick, play, slider] = names.map((name) => roots[0].querySelector(name));
  results.push(roots.every((root) => !blank(root.querySelector("canvas"))));
  results.push(play.hidden && slider.hidden);
  const first = picture(roots[0]), other = picture(roots[1]);
  for (const name of ["ArrowLeft", "+"]) {
    await after(() => key(canvas, name));
    results.push(picture(roots[0]) !== first);
    await after(() => key(canvas, "0"));
    results.push(picture(roots[0]) === first);
  }
  results.push(picture(roots[1]) === other);  // the other viewer of the page did not move
  await after(() => { pick.value = 1; pick.dispatchEvent(new Event("change")); });
  results.push(!slider.hidden && slider.max === "2" && picture(roots[0]) !== first);
  await after(() => play.click());
  results.push(+slider.value > 0 && play.textContent === "Pause");
  document.title = JSON.stringify(results);
})();
</script>
"""


@pytest.fixture
def structures():
    copper = bulk("Cu", cubic=True).repeat(2)
    frames = [molecule("CH3CH2OH") for _ in range(3)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
    return {"copper": copper, "ethanol": frames}


def _data(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html.data).group(1))


def test_asks_for_nothing_from_outside(structures):
    html = viewer.show(structures).data
    assert not re.search(r"https?:|\bimport\b|fetch\(|XMLHttp|\bsrc=|\bid=", html)


def test_the_same_structures_give_the_same_text(structures):
    assert viewer.show(structures).data == viewer.show(structures).data


def test_coordinates_are_whole_hundredths(structures):
    stored = _data(viewer.show(structures))["structures"][1]
    positions = np.array(stored["frames"]).reshape(3, -1, 3) * viewer.RESOLUTION
    expected = np.array([atoms.positions for atoms in structures["ethanol"]])
    np.testing.assert_allclose(positions, expected - expected[0].mean(0), atol=0.51 * viewer.RESOLUTION)
    assert [stored["symbols"][kind] for kind in stored["kinds"]] == list(structures["ethanol"][0].symbols)


def test_a_periodic_structure_is_in_its_cell():
    copper = bulk("Cu", cubic=True)
    copper.positions += 0.3
    outside = copper.copy()
    outside.positions += 2 * copper.cell[0]
    stored, folded = (_data(viewer.show(atoms))["structures"][0] for atoms in (copper, outside))
    assert stored == folded
    lengths = np.diff(np.array(stored["edges"]).reshape(12, 2, 3), axis=1)
    np.testing.assert_allclose(np.linalg.norm(lengths, axis=2), 361, atol=1)


def test_molecules_have_no_cell():
    atoms = molecule("H2O", vacuum=5.0)
    assert _data(viewer.show(atoms))["structures"][0]["edges"] == []


def test_colours_and_radii_of_the_elements():
    assert _data(viewer.show(Atoms("Cu")))["elements"] == {"Cu": ["#c88033", 132]}


def test_names_are_escaped(structures):
    name = '"</script><b>&'
    html = viewer.show({name: structures["copper"]}, label=name).data
    assert "<b>" not in html
    assert html.count("</script>") == 2
    assert _data(viewer.show({name: structures["copper"]}))["structures"][0]["text"].startswith(name)


def test_nothing_to_show():
    with pytest.raises(ValueError, match="no structures"):
        viewer.show({})
    with pytest.raises(ValueError, match="no frames in the trajectory 'a'"):
        viewer.show({"a": []})


def test_frames_of_different_atoms_are_no_trajectory():
    with pytest.raises(ValueError, match="frame 1 of '' is OH2, frame 0 is CH4"):
        viewer.show([molecule("CH4"), molecule("H2O")])


def test_the_program_is_small_and_packaged():
    program = viewer.PROGRAM.read_text()
    assert len(program.splitlines()) < 150
    assert "</script" not in program


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_draws_turns_and_plays_in_a_browser(structures, tmp_path):
    page = tmp_path / "page.html"
    views = viewer.show(structures).data, viewer.show(structures["ethanol"]).data
    head = "<meta charset='utf-8'><script>requestAnimationFrame = (act) => setTimeout(act, 0)</script>"
    page.write_text(f"<!doctype html>{head}{''.join(views)}{ACTIONS}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [BROWSER, *flags, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, "the page's program did not come to its end"
    assert json.loads(title.group(1)) == [True] * 9
