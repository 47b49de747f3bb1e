"""Which room may import which, and how large a file may be."""

import ast
import re

import pytest

from egraff_utils import paths

PACKAGE = paths.ROOT / "egraff_utils"
MODELS, FROZEN = PACKAGE / "models", PACKAGE / "models" / "frozen"
SEAM = "egraff_utils.models.frozen"
INTERNALS = {f"{SEAM}.{path.stem}" for path in FROZEN.glob("*.py")}
ADAPTERS = [path for path in MODELS.glob("*.py") if path.stem not in ("__init__", "equiformer")]


def files(*folders):
    return [
        pytest.param(p, id=str(p.relative_to(paths.ROOT))) for f in folders for p in sorted(f.rglob("*.py"))
    ]


def imported(path):
    """Names of all modules that a file imports, at its top or in a function, with what it takes of them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def lines(path):
    return len(path.read_text().splitlines())


def test_imports_are_seen(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("import a.b\ndef f():\n    from c import d as e\n")
    assert imported(path) == {"a.b", "c", "c.d"}


@pytest.mark.parametrize("path", files(MODELS))
def test_models_know_no_report(path):
    assert not [name for name in imported(path) if name.startswith("egraff_utils.report")]


@pytest.mark.parametrize("path", files(PACKAGE, paths.ROOT / "benchmarks"))
def test_frozen_networks_are_reached_by_their_seam_alone(path):
    if path.parent != FROZEN:
        assert not imported(path) & INTERNALS


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_adapters_are_short_and_know_nothing_of_speed(path):
    assert lines(path) <= 150
    assert SEAM not in imported(path)


@pytest.mark.parametrize("path", files(MODELS))
def test_reasons_are_rows_of_what_was_tried(path):
    """``tried.csv: "some words", "other words"`` in a comment or docstring: each stands in that table."""
    tried = (paths.ROOT / "benchmarks" / "tried.csv").read_text().replace('""', '"')
    text = re.sub(r"\s+(# )?", " ", path.read_text())
    for quoted in re.findall(r'tried\.csv(?:``)?: ((?:"[^"]+"(?:, )?)+)', text):
        for words in re.findall(r'"([^"]+)"', quoted):
            assert words in tried


@pytest.mark.parametrize("path", files(FROZEN))
def test_frozen_networks_open_with_their_equations(path):
    assert lines(path) <= 500
    assert ".. math::" in ast.get_docstring(ast.parse(path.read_text()))
