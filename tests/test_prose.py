"""Does the prose type what a record could say? Superlatives and results in the text of pages are glued."""

import re
from functools import cache

import nbformat
import numpy as np
import pytest
from allowed_in_prose import ALLOWED
from scipy.signal import find_peaks

from egraff_utils import cards, data, paper, paths, readers, structure
from egraff_utils.breaks import FARTHEST_MOVE
from egraff_utils.md.temperature import HEATING_WINDOW
from egraff_utils.report import values
from egraff_utils.report.agreement import PUBLISHED_FRAMES
from egraff_utils.running import batch

CUTOFF = 5.0
"""Cutoff of all presets, Å, which a test below checks."""

SUPERLATIVE = (
    r"\b(?:all six|every (?:model|force field)|no (?:model|force field|atom)|none of|most models|never"
    r"|always|(?:fast|slow|cheap|dear|hard|clean)est|by far|perfectly|cannot be (?:told|distinguished)"
    r"|(?<!at )(?:largest|smallest|longest|shortest|best|worst|lowest|highest|greatest|least|most)"
    r"(?! squares| value at the end))\b"
)
NUMBER = r"(?<![\w.,])[-+]?\d[\d.,]*\d|(?<![\w.,])\d"
WORD = (
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|half an?"
    r"|a hundred|a thousand)\b"
)
UNIT = (
    r"(?:%|meV\b|eV\b|K\b|Å|fs\b|ps\b|ms\b|times\b|thirds\b|femtoseconds\b|picoseconds\b|ångströms?\b"
    r"|seconds?\b|minutes?\b|hours?\b)"
)
RESULT = (
    rf"(?:{NUMBER}|{WORD}) ?{UNIT}"
    rf"|\b\d+ of (?:the )?\d+\b|{WORD} of (?:the )?(?:{WORD}|models|datasets|force fields)\b"
    rf"|{WORD} (?:other )?(?:models|datasets|force fields)\b"
    rf"|correlation\b[^.]{{0,40}}? (?:is|of) (?:{NUMBER})"
)
OF_THE_PAPER = r"\bpaper|\b[Pp]ublished|\bTable|\{cite"
"""Beginning of a phrase by which a sentence says that it tells what others report."""
OF_OURS = r"\b(?:[Oo]urs?|[Ww]e|[Hh]ere)\b"
"""Words by which a sentence tells of this book as well."""
AT = r"\b(?:near|around|at|below|peaks?|before|follow|from)\b"
"""Words before a distance at which a reference has a peak."""
MEASURED = r"\b(?:mean(?! length)|average|averages|averaged|measured|found)\b"
"""Words of a result, which is none of the settings even if it equals one."""

FROM_CARDS = {
    "24 times smaller": lambda: PUBLISHED_FRAMES["lips"] / cards.dataset("lips").split("train").frames,
    "0.24 ps": lambda: (
        cards.dataset("gete").split("test").frames * cards.dataset("gete").time_ordered["test"] / 1000
    ),
    "an edge of 7.5 Å": lambda: 2 * cards.dataset("copper_emt").generate["lattice_constant"],
    "a cube of 20 Å": lambda: readers.BOX,
    "562 K for ethanol": lambda: 500 * (3 * 9) / (3 * 9 - 3),
    "thermostat needs 2 ps": lambda: 1 / 0.491,
    "temperature over 100 fs": lambda: HEATING_WINDOW,
    "field of 25 Å": lambda: reach("botnet"),
    "field of 10 Å": lambda: reach("mace"),
    "below 111 %": lambda: paper.table(19).wf_percent.max(),
    "3 to 8 of the 1000": lambda: min(copies()),
    "8 of the 1000": lambda: max(copies()),
    "ends at about 3.3 Å": lambda: end_of_rdf("copper_emt"),
    "ends the curve near 3.3 Å": lambda: end_of_rdf("copper_emt"),
}
"""Phrase with a number -> what it is, from cards, published tables or records."""
FROM_FRAMES = {
    "-17,660 eV": lambda: energy("3bpa"),
    "-17,636 eV": lambda: energy("aspirin"),
    "near -9400 eV": lambda: energy("acac"),
    "near -4200 eV": lambda: energy("ethanol"),
    "-358 eV": lambda: energy("lips"),
    "-106,482 eV": lambda: table_13("lips"),
    "cube of 19.1 Å": lambda: edge("gete"),
    "box of 50 Å": lambda: edge("3bpa"),
    "is a 50 Å cube": lambda: edge("acac"),
}
"""Phrase with a number -> what it is, from the frames of the data."""
FORCES = {
    "Nitrogen and carbon, in rings, feel the largest forces": ("3bpa", "CN", "HO"),
    "Carbon and oxygen feel the largest forces": ("aspirin", "CO", "H"),
    "carbon feels the largest forces": ("ethanol", "C", "HO"),
    "Hydrogens feel the smallest forces but, being light, the largest accelerations": ("ethanol", "CO", "H"),
    "Carbon, with three or four stiff bonds, feels the largest forces": ("salicylic_acid", "C", "HO"),
    "hydrogen the smallest, though": ("salicylic_acid", "CO", "H"),
}
"""Phrase -> dataset, and elements each of which feels larger forces in the mean than each of the others."""
FORBIDDEN = {
    r"model is to blame": "a true force field that shares the noise of its reference has no violation",
    r"what a perfect model has in": "the row of the reference with noise of its own is a rerun",
    r"independent runs? ": "runs from the same starts are reruns, those from others independent trajectories",
}
"""Pattern of a phrase that was false -> why."""
PAGES = sorted(batch.NOTEBOOKS.glob("*/*.ipynb"))
TEXTS = ("intro", "method", "glossary", "run", "use_model", "add_model", "add_dataset")
TEXTS = [paths.ROOT / "README.md", *[paths.ROOT / "book" / f"{name}.md" for name in TEXTS]]


def sentences(text):
    """Sentences of prose without titles, code, formulas and links; a glued value is left as ``{glue}``."""
    left_out = r"(?ms)^\(sec-[^\n]*$|^\(sec-.*?\?$|^#.*?$|```.*?```|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)"
    text = re.sub(left_out, " ", text)
    text = re.sub(r"\{cite[^`]*`[^`]*`", "{cite}", text)
    text = re.sub(r"(\{[\w:]+\})?`[^`]*`", lambda role: "{glue}" if role[1] == "{glue:text}" else " ", text)
    return re.split(r"(?<=[.:;?])\s+", re.sub(r"\s+", " ", text))


def number(text):
    """Value of a typed number, nan for one that is spelled."""
    found = re.match(NUMBER, text)
    return float(found[0].replace(",", "")) if found else float("nan")


@cache
def published():
    """All numbers of the published tables, without their signs."""
    found = [paper.table(n).select_dtypes("number").to_numpy(float).ravel() for n in paper.tables()]
    return np.abs(np.concatenate(found))


def is_published(claim):
    """Whether a value with its unit stands in the published tables, rounded as the prose has it."""
    unit = re.search(UNIT, claim)
    if unit is None or unit[0] in ("times", "thirds"):
        return False
    step = 10.0 ** -len(re.match(NUMBER, claim)[0].partition(".")[2]) if re.match(NUMBER, claim) else 0
    return bool((abs(published() - number(claim)) <= step / 2).any())


@cache
def settings(dataset=None):
    """Values that the card of a dataset states, by default all cards, and those of the rules, by unit."""
    known = cards.datasets()
    chosen = [cards.dataset(name) for name in ([dataset] if dataset in known else known)]
    found = {"K": set(), "Å": set(), "fs": set()}
    for card in chosen:
        stages = card.generate.get("stages", [])
        found["K"] |= {card.temperature, *card.temperatures.values()}
        found["K"] |= {stage["temperature"] for stage in stages if "temperature" in stage}
        found["fs"] |= {card.timestep, *card.timesteps.values(), *card.time_ordered.values()}
        found["fs"] |= {stage["stride"] * card.timestep for stage in stages}
    rules = (structure.BOND_TOLERANCE, structure.RDF_TOLERANCE, structure.RDF_RANGE, FARTHEST_MOVE)
    found["Å"] = {*rules, structure.MINIMUM_DISTANCE, structure.MAXIMUM_DISTANCE, CUTOFF}
    return found


def is_setting(claim, dataset=None):
    """Whether a value with its unit is stated by the card of a dataset or by a rule."""
    unit = re.search(UNIT, claim)
    return unit is not None and number(claim) in settings(dataset).get(unit[0], ())


@cache
def peaks(dataset):
    """Distances at which g(r) of a reference has a peak, over all pairs or those of two elements, Å."""
    found = []
    for path in sorted((paths.ROOT / "results").glob(f"*/rollout/{dataset}-*-s0.npz"))[:1]:
        with np.load(path) as curves:
            if "rdf_reference" in curves:
                for g in (curves["rdf_reference"], *curves["rdf_partial_reference"]):
                    found += [curves["rdf_r"][find_peaks(g, prominence=0.05 * g.max())[0]]]
    return np.concatenate(found) if found else np.array([])


def is_peak(claim, dataset):
    """Whether a length is that of a peak of the reference of a page, to a tenth of an ångström."""
    return claim.endswith("Å") and bool((abs(peaks(dataset) - number(claim)) <= 0.1).any())


def reach(model):
    """Receptive field of the published network of a model, Å."""
    network = cards.model(model).presets["paper"]["network"]
    return network["cutoff"] * network["num_interactions"]


def copies():
    """Numbers of copies of test frames in the training frames of the molecules of MD17."""
    names = ("ethanol", "aspirin", "naphthalene", "salicylic_acid")
    return [len(part.drop) for name in names for part in cards.dataset(name).split("train").parts]


def end_of_rdf(dataset):
    """Distance at which g(r) of a dataset ends, Å."""
    path = next((paths.ROOT / "results").glob(f"*/rollout/{dataset}-*.npz"))
    with np.load(path) as curves:
        r = curves["rdf_r"]
    return r[-1] + (r[1] - r[0]) / 2


@cache
def frames(dataset):
    """Test frames of a dataset."""
    return data.load(dataset, "test")


def energy(dataset):
    """Mean potential energy of the test frames, eV."""
    return np.mean([atoms.get_potential_energy() for atoms in frames(dataset)])


def edge(dataset):
    """Length of a cell vector, Å."""
    return frames(dataset)[0].cell.lengths()[0]


def table_13(dataset):
    """Sum of the published energies of the atoms of a frame, eV."""
    listed = paper.table(13).set_index("parameter").value["E_0s"]
    energies = {int(z): float(e) for z, e in re.findall(r"(\d+):(-[\d.]+)", listed)}
    return sum(energies[z] for z in frames(dataset)[0].numbers)


def mean_force(dataset, element):
    """Mean norm of the force on atoms of an element, eV/Å."""
    chosen = [symbol == element for symbol in frames(dataset)[0].get_chemical_symbols()]
    return np.mean([np.linalg.norm(atoms.get_forces()[chosen], axis=1) for atoms in frames(dataset)])


def typed(text, dataset=None):
    """Claims of a text that no glued value, no setting, no published value and no allowed phrase excuses."""
    found = []
    for sentence in sentences(text):
        rest = sentence
        for phrase in (*FROM_CARDS, *FROM_FRAMES, *FORCES, *ALLOWED):
            rest = rest.replace(phrase, " ")
        claims = re.findall(RESULT, rest)
        if not re.search(MEASURED, rest):
            claims = [
                c
                for c in claims
                if not (is_setting(c, dataset) or re.search(AT, rest) and is_peak(c, dataset))
            ]
        of_paper = re.search(OF_THE_PAPER, sentence) and not re.search(OF_OURS, sentence)
        if of_paper:
            claims = [c for c in claims if not ("{cite}" in sentence or is_published(c))]
        elif "{glue}" not in rest:
            claims += re.findall(SUPERLATIVE, rest, re.IGNORECASE)
        found += [f"{', '.join(claims)}: {sentence.strip()}"] if claims else []
    return found


def prose(path):
    """Text of a page, of a notebook that of its markdown cells and of the paragraphs that cells tell."""
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source if cell.cell_type == "markdown" else values.told(cell.source) for cell in cells]
    return values.FIELD.sub(r"{glue:text}`\1`", "\n\n".join(filter(None, texts)))


@pytest.mark.parametrize("path", [*PAGES, *TEXTS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_result_is_typed(path):
    found = typed(prose(path), path.stem)
    advice = "glue what a record says, say less, or allow the phrase with its reason"
    assert not found, "\n".join([advice, *found])


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.parent.name == "datasets"], ids=lambda p: p.stem
)
def test_the_page_of_a_dataset_answers_its_question_first(path):
    cells = nbformat.read(path, as_version=4).cells
    result = next(values.told(cell.source) for cell in cells if cell.id == "result")
    answer = sentences(values.FIELD.sub("", result).removeprefix("**Result.**"))[0]
    assert "zero-force-mae" in result
    assert "mean absolute force" not in answer, "what all pages say stands behind the answer"


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_was_false_is_not_said_again(pattern):
    pages = [path for path in [*PAGES, *TEXTS] if re.search(pattern, re.sub(r"\s+", " ", prose(path)))]
    assert not pages, FORBIDDEN[pattern]


@pytest.mark.parametrize(
    "sentence",
    [
        "It is the fastest of the six per step.",
        "No atom changes its neighbours in that time.",
        "The cold start multiplies the errors by 9 %.",
        "Judge the slope of the first fifty femtoseconds: later values are the same for every force field.",
        "The first points are the worst of the six.",
        "The mean temperature is 860 K.",
        "The rank correlation is 0.71.",
        "49 of 102 values are saturated.",
        "Bonds are 0.02 Å longer.",
        "Training frames cover 5.6 ps.",
        "MACE is the best model on ethanol.",
        "The least error is that of MACE.",
        "A step takes 12 ms.",
        "The energy lies 3.1 eV higher.",
        "Making it takes half a minute.",
        "It takes about three minutes of one core.",
        "It holds on four datasets.",
        "In three of the five it does.",
        "Ours are 1.7 times the published.",
        "Table 3 has values of which ours are 63 %.",
        "The published error is 7.77 meV.",
        "The mean temperature of the frames is 500 K.",
    ],
)
def test_a_typed_claim_is_found(sentence):
    assert typed(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "The fastest is {glue:text}`name`, by {glue:text}`ratio` times.",
        "The published values reach 111 %.",
        "Under it stands the 95 % interval.",
        "The published values lie at 0.7 ps {cite}.",
        "The simulations run at 520 K.",
        "A molecule has broken once a bond is off by more than 0.5 Å.",
    ],
)
def test_what_is_glued_or_allowed_or_the_papers_passes(sentence):
    assert not typed(sentence)


def test_every_allowed_phrase_is_used():
    text = re.sub(r"\s+", " ", " ".join(map(prose, [*PAGES, *TEXTS])))
    phrases = [*FROM_CARDS, *FROM_FRAMES, *FORCES, *ALLOWED]
    assert not [phrase for phrase in phrases if phrase not in text]
    assert not [
        phrase for phrase in ALLOWED if not re.search(f"{RESULT}|{SUPERLATIVE}", phrase, re.IGNORECASE)
    ]


def holds(phrase, value):
    """Whether the number of a phrase is a value, rounded to a digit that is not zero or to its decimals."""
    claim = re.search(NUMBER, phrase)[0].replace(",", "")
    zeros = len(claim) - len(claim.rstrip("0")) if "." not in claim else 0
    step = 10.0 ** (zeros - len(claim.partition(".")[2]))
    return abs(float(claim) - value) <= step / 2


@pytest.mark.parametrize("phrase", FROM_CARDS)
def test_numbers_of_cards_and_records(phrase):
    assert holds(phrase, FROM_CARDS[phrase]())


def test_the_compositions_that_are_colder():
    card = cards.dataset("lips20")
    temperatures = [card.conditions(name)[0] for name in card.parts("test")]
    assert (sum(t < 3000 for t in temperatures), len(temperatures)) == (3, 5)


@pytest.mark.data
@pytest.mark.parametrize("phrase", FROM_FRAMES)
def test_numbers_of_frames(phrase):
    assert holds(phrase, FROM_FRAMES[phrase]())


@pytest.mark.data
@pytest.mark.parametrize("phrase", FORCES)
def test_elements_that_feel_the_largest_forces(phrase):
    dataset, larger, smaller = FORCES[phrase]
    assert min(mean_force(dataset, e) for e in larger) > max(mean_force(dataset, e) for e in smaller)


@pytest.mark.parametrize("name", cards.models())
def test_the_cutoff_of_all_presets(name):
    known = [preset["network"].get("cutoff") for preset in cards.model(name).presets.values()]
    assert set(known) <= {CUTOFF}
