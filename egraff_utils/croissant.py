"""How do other programs learn what a dataset holds? Its card as metadata in the format Croissant 1.0."""

from __future__ import annotations

import mimetypes

from egraff_utils import cards, files, paths

VERSION = "http://mlcommons.org/croissant/1.0"
TERMS = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes "
    "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "separator source subField transform"
)
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{name: f"cr:{name}" for name in TERMS.split()},
}
"""The context that the specification recommends, by which names have their meaning."""
FIELDS = {
    "numbers": ("sc:Integer", "Atomic numbers, shape (N,)"),
    "positions": ("sc:Float", "Positions, shape (N, 3), in {length}"),
    "cell": ("sc:Float", "Cell vectors as rows, shape (3, 3), in {length}"),
    "energy": ("sc:Float", "Potential energy, in {energy}"),
    "forces": ("sc:Float", "Forces, shape (N, 3), in {forces}"),
}
"""Field of a frame of N atoms -> its type and meaning, with the units of the file."""
FILES = {"numbers": "type", "positions": "coord", "cell": "box", "energy": "energy", "forces": "force"}
"""Field -> role of its file where a source has several files."""


def metadata(dataset: str) -> dict:
    """Metadata of a dataset, whose JSON is Croissant's JSON-LD.

    A source of the card is a record set with one record per frame; which frames a split takes stands in the
    description. What the card does not state is left out: the SHA-256 of a file that it identifies by a git
    blob, and the files and records of a dataset that is generated here.

    Parameters
    ----------
    dataset
        Name of a dataset, or path of a card.

    Raises
    ------
    ValueError
        If there is no card of this name.
    FileNotFoundError
        If the card has no hash of a file that is not here.

    Examples
    --------
    >>> found = metadata("ethanol")
    >>> found["name"], [part["@id"] for part in found["recordSet"]]
    ('Ethanol (MD17)', ['frames-train', 'frames-val', 'frames-test'])
    """
    card = cards.dataset(dataset)
    sources = dict.fromkeys(part.source for split in card.splits.values() for part in split.parts)
    found = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": card.title,
        "alternateName": card.name,
        "description": _description(card),
        "license": card.licence or None,
        **_publication(card.citation),
        "distribution": [_file(card, key) for key in card.files],
        "recordSet": [_frames(card, source) for source in sources if card.files_of(source)],
    }
    return {key: value for key, value in found.items() if value is not None}


def _description(card):
    lines = [f"Frames with energies and forces, {card.system}.", *card.notes]
    for name, split in card.splits.items():
        sources = ", ".join(dict.fromkeys(part.source for part in split.parts))
        frames = f"{split.frames} frames" if split.frames else "Frames"
        lines.append(f"Split {name}: {frames} of {sources}" + f"; {split.note}" * bool(split.note))
    return "\n".join(lines)


def _publication(citation):
    """What the bibliography says of the authors, the year, the address and how to cite."""
    from pybtex.database import parse_file
    from pybtex.richtext import Text

    entry = parse_file(paths.ROOT / "book" / "references.bib").entries.get(citation)
    if entry is None:
        return {"citeAs": citation or None}
    names = [str(Text.from_latex(str(person))) for person in entry.persons["author"]]
    homes = {"doi": "https://doi.org/", "url": "", "eprint": "https://arxiv.org/abs/"}
    addresses = (home + entry.fields[key] for key, home in homes.items() if key in entry.fields)
    return {
        "citeAs": entry.to_string("bibtex").strip(),
        "url": next(addresses, None),
        "creator": [{"@type": "sc:Person", "name": name} for name in names],
        "datePublished": entry.fields.get("year"),
    }


def _file(card, key):
    path, (kind, _, digest) = card.files[key].path, files.identity(card, key).partition(":")
    found = {
        "@type": "cr:FileObject",
        "@id": key,
        "name": path,
        "contentUrl": card.url(key) or path,
        "encodingFormat": mimetypes.guess_type(path)[0] or "application/octet-stream",
    }
    return found | ({"sha256": digest} if kind == "sha256" else {})


def _frames(card, source):
    fields = [name for name in FIELDS if name != "cell" or card.pbc]
    return {
        "@type": "cr:RecordSet",
        "@id": f"frames-{source}",
        "name": f"frames-{source}",
        "description": f"One record per frame of the source {source}.",
        "field": [_field(card, source, name) for name in fields],
    }


def _field(card, source, name):
    kind, meaning = FIELDS[name]
    units = {"forces": "{energy}/{length}".format(**card.units)} | card.units
    found = {
        "@type": "cr:Field",
        "@id": f"frames-{source}/{name}",
        "name": name,
        "description": meaning.format(**units),
        "dataType": kind,
        "repeated": name != "energy",
    }
    keys, role = card.files_of(source), f"{source}/{FILES[name]}"
    key = role if role in keys else keys[0]
    return found | {"source": {"fileObject": {"@id": key}, "extract": {"fileProperty": "content"}}}
