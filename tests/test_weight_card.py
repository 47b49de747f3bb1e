"""Does the card of a file of weights say what its record, its dataset and the file say?"""

import hashlib
import shutil

import pytest
import yaml

from egraff_utils import cards, paths, records
from egraff_utils.__main__ import main

FILES = sorted((paths.ROOT / "results").glob("*/training/*.safetensors"))


def card(capsys, *words):
    assert main(["models", "card", *words]) == 0
    _, head, body = capsys.readouterr().out.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    monkeypatch.delenv("EGRAFF_RESULTS", raising=False)


def test_a_card_has_what_the_record_has(capsys, tmp_path):
    file = paths.ROOT / "results" / "cpu" / "training" / "lips-mace-s0.safetensors"
    record = records.load(file.with_suffix(".json"))
    head, body = card(capsys, "cpu", "lips", "mace", "0")
    assert (head["license"], head["datasets"]) == ("mit", ["lips"])
    (result,) = head["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]}["force_mae"] == record["force_mae"]
    force = record.metric("force_mae")
    assert (
        f"| `force_mae` | {force.value:.4g} meV/Å | {force.low:.4g} to {force.high:.4g} | {force.n} |" in body
    )
    assert f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" in body
    for text in ("at most 300 s", "637 steps", record.provenance["commit"], cards.dataset("lips").licence):
        assert text in body
    written = tmp_path / "README.md"
    assert main(["models", "card", "cpu", "lips", "mace", "--output", str(written)]) == 0
    assert written.read_text().endswith(body)


@pytest.mark.parametrize("campaign", sorted({file.parts[-3] for file in FILES}))
def test_all_weights_have_a_card(campaign, capsys):
    for file in (file for file in FILES if file.parts[-3] == campaign):
        record = records.load(file.with_suffix(".json"))
        head, body = card(capsys, campaign, record.dataset, record.model, str(record.seed))
        assert len(head["metrics"]) >= 3
        assert "None" not in body
        assert "nan" not in body.split()


def test_a_card_can_be_loaded_as_it_says(capsys, tmp_path, monkeypatch):
    _, body = card(capsys, "xtb", "ethanol_xtb", "mace")
    for ending in (".safetensors", ".build.json"):
        shutil.copy(paths.ROOT / "results/xtb/training" / f"ethanol_xtb-mace-s0{ending}", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(body.split("```python\n")[1].split("```")[0], names)
    assert names["calc"].implemented_properties


def test_what_was_not_trained_has_no_card(capsys):
    assert main(["models", "card", "cpu", "lips", "emt"]) == 2
    assert "train the model: egraff train emt lips --campaign cpu --seed 0" in capsys.readouterr().err
    assert main(["models", "card", "calculators", "ethanol_xtb", "gfn1"]) == 2
    assert "has no weights beside it" in capsys.readouterr().err
