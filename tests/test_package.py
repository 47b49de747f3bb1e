"""Is the installed package whole, and does it write where its user is?"""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from egraff_utils import models, paths

LINES = (paths.ROOT / "requirements.txt").read_text().splitlines()
PINNED = [Requirement(line) for line in LINES if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the content of the wheel, as pip would install it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "build.cfg").write_text(f"[build]\nbuild_base = {folder / 'build'}\n")
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    settings = os.environ | {"DIST_EXTRA_CONFIG": str(folder / "build.cfg")}
    subprocess.run([*words, paths.ROOT], check=True, capture_output=True, env=settings)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_an_installed_package_plans_a_campaign_and_writes_to_the_current_folder(installed, tmp_path):
    there = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EGRAFF_")}
    words = [sys.executable, "-P", "-m", "egraff_utils", "campaign", "run", "tiny", "--dry-run"]
    options = {"cwd": tmp_path, "env": kept | {"PYTHONPATH": str(installed)}, "text": True}
    plan = subprocess.run(words, capture_output=True, check=False, **options)
    assert plan.returncode == 0, plan.stderr
    assert "rollout_as_coded" in plan.stdout + plan.stderr
    assert (tmp_path / "runs" / "tiny").is_dir()
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == there
    bench = subprocess.run([*words[:4], "bench"], capture_output=True, check=False, **options)
    assert bench.returncode == 2
    assert "clone the project" in bench.stderr


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["notebooks/**/*.ipynb", "params/*.yml"])
def test_every_notebook_and_campaign_is_installed(installed, pattern):
    ours, theirs = (
        {path.relative_to(root) for path in root.glob(pattern) if ".ipynb_checkpoints" not in path.parts}
        for root in (paths.ROOT, installed / "egraff_utils" / "share")
    )
    assert ours == theirs
    assert ours


def test_pinned_versions_are_those_of_the_lock_and_within_the_ranges_of_the_package():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    extras = sum(project["optional-dependencies"].values(), [])
    ranges = {r.name.lower(): r for r in map(Requirement, project["dependencies"] + extras)}
    lock = (paths.ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    for pinned in PINNED:
        version = str(pinned.specifier).removeprefix("==")
        assert f"\n{pinned.name.lower().replace('_', '-')}=={version} " in "\n" + lock
        if pinned.name.lower() in ranges:
            assert ranges[pinned.name.lower()].specifier.contains(version), pinned


LOCKS = ("requirements.lock", "requirements-cuda.lock")
BUILD = "requirements-build.lock"


def test_what_torch_asks_for_is_locked_with_hashes():
    locks = "\n".join((paths.ROOT / name).read_text() for name in LOCKS)
    pinned = re.findall(r"^([\w.-]+)==([\w.+]+) .*\\\n +--hash=sha256:", locks, re.MULTILINE)
    assert len(pinned) == len(re.findall("^[^ #\n]", locks, re.MULTILINE))
    locked = dict(pinned)
    for asked in map(Requirement, requires("torch")):
        if asked.marker is None or asked.marker.evaluate({"extra": ""}):
            assert asked.specifier.contains(locked[asked.name.lower().replace("_", "-")]), asked


def test_set_up_installs_nothing_without_a_hash():
    """The last step only checks what is there, and that of the project itself takes no dependencies."""
    text = (paths.ROOT / "Makefile").read_text().replace("\\\n", " ")
    steps = re.findall(r"pip install (.*)", text.partition("\n.venv/installed:")[2].partition("\nlock:")[0])
    assert len(steps) == 5
    checked = ("--require-hashes", "--no-index", "--no-build-isolation --no-deps -e .")
    assert all(any(words in step for words in checked) for step in steps), steps
    tools, packages = (next(s for s in steps if f"-r {name}" in s) for name in (BUILD, LOCKS[0]))
    assert steps.index(tools) < steps.index(packages)
    assert "--no-build-isolation" in packages, "isolated builds fetch tools without hashes"


def test_tools_that_build_source_packages_are_locked_with_hashes():
    """Those that the build of the four source packages of the lock asks for, in the versions of the lock."""
    locked, tools = ((paths.ROOT / name).read_text() for name in (LOCKS[0], BUILD))
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+) \\\n +--hash=sha256:", tools, re.MULTILINE))
    assert {"setuptools", "wheel", "setuptools-scm"} <= pinned.keys()
    assert len(pinned) == len(re.findall("^[^ #\n]", tools, re.MULTILINE))
    for name, version in pinned.items():
        assert f"\n{name}==" not in locked or f"\n{name}=={version} " in locked


def test_a_missing_upstream_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "egraff_utils.models.mace", None)
    with pytest.raises(
        RuntimeError, match=r"mace needs the package .*pip install --no-deps mace-torch==0\.3"
    ):
        models.build("mace", preset="tiny", elements=[1])
