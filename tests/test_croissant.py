"""Is the metadata of a dataset what Croissant 1.0 asks for, and does it say what the card says?"""

import json

import pytest

from egraff_utils import cards, croissant
from egraff_utils.__main__ import main

REQUIRED = {
    "sc:Dataset": {
        "@context",
        "conformsTo",
        "name",
        "description",
        "license",
        "url",
        "creator",
        "datePublished",
    },
    "cr:FileObject": {"@id", "name", "contentUrl", "encodingFormat"},
    "cr:RecordSet": {"@id", "name", "field"},
    "cr:Field": {"@id", "name", "description", "dataType", "source"},
}
"""Type -> what docs.mlcommons.org/croissant/docs/croissant-spec.html requires; SHA-256 is tested below."""


def nodes(value):
    """All parts of the metadata that have a type."""
    if isinstance(value, dict):
        yield from [value] if "@type" in value else []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from nodes(part)


@pytest.mark.parametrize("name", [*cards.datasets(), cards.EXAMPLE])
def test_every_card_gives_what_the_specification_requires(name):
    card, found = cards.dataset(name), croissant.metadata(name)
    typed = [node for node in nodes({**found, "@context": None}) if node["@type"] in REQUIRED]
    assert all(REQUIRED[node["@type"]] <= set(node) for node in typed)
    known = [node["@id"] for node in typed if "@id" in node]
    assert len(known) == len(set(known))
    sources = [node["source"]["fileObject"]["@id"] for node in typed if "source" in node]
    assert set(sources) <= set(card.files)
    assert bool(sources) == bool(card.files)
    hashes = {node["@id"]: node.get("sha256") for node in found["distribution"]}
    told = {key: file.hash.split(":") for key, file in card.files.items() if file.hash}
    assert all(hashes[key] == (digest if kind == "sha256" else None) for key, (kind, digest) in told.items())


def test_fields_have_the_units_of_the_files_and_come_from_the_right_one():
    (solid,) = [part for part in croissant.metadata("lips20")["recordSet"] if part["name"] == "frames-S"]
    sources = {field["name"]: field["source"]["fileObject"]["@id"] for field in solid["field"]}
    roles = {"numbers": "type", "positions": "coord", "cell": "box", "energy": "energy", "forces": "force"}
    assert sources == {name: f"S/{role}" for name, role in roles.items()}
    (ours,) = croissant.metadata("benzene")["recordSet"]
    told = {field["name"]: field["description"] for field in ours["field"]}
    assert "cell" not in told
    assert told["forces"].endswith("kcal/mol/Å")


def test_authors_are_readable_and_a_file_is_written(tmp_path, capsys):
    assert main(["data", "croissant", "ethanol", "--output", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert "Schütt, Kristof T." in [person["name"] for person in found["creator"]]
    assert main(["data", "croissant", "ethanol"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["data", "croissant", "ethanoll"]) == 2


@pytest.mark.parametrize("name", ["ethanol", "benzene", "lips", cards.EXAMPLE])
def test_the_library_of_the_format_accepts_it(name):
    mlcroissant = pytest.importorskip("mlcroissant")
    read = mlcroissant.Dataset(jsonld=croissant.metadata(name))  # raises for metadata that is not valid
    assert {part.id for part in read.metadata.record_sets} >= {
        f"frames-{cards.dataset(name).splits['test'].parts[0].source}"
    }
