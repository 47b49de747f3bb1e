"""Is a model of an installed package found by its name, and a broken one left out with a warning?"""

import sys
import warnings

import pytest
import yaml
from test_pretrained import CARD, MODULE

from egraff_utils import campaign, cards, models, options
from egraff_utils.report import titles
from egraff_utils.running import cells

POINTS = """[egraff_utils.models]
spring = spring_package.network:build_network
copper = spring_package.network:Copper
mace = spring_package.network:build_network
gone = no_such_package.network:build_network
bare = spring_package.network:build_network
"""
CALCULATOR = "\n\nfrom ase.calculators.emt import EMT as Copper\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a network, a calculator and three models that cannot be used."""
    (tmp_path / "spring_package").mkdir()
    (tmp_path / "spring_package" / "network.py").write_text(MODULE + CALCULATOR)
    card = {key: value for key, value in CARD.items() if key not in ("name", "builder")}
    (tmp_path / "spring_package" / "spring.yml").write_text(yaml.safe_dump(card | {"title": "Spring"}))
    (tmp_path / "spring_package" / "copper.yml").write_text("elements: [29]\nsystems: [bulk]\n")
    about = tmp_path / "spring-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spring-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cards, "_registered_models", {})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("spring_package")]:
        del sys.modules[name]


def test_a_package_offers_a_network_and_a_calculator(package):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cards.model("spring")
    assert (found.name, found.builder) == ("spring", "spring_package.network.build_network")
    assert "spring_package.network" not in sys.modules, "nothing was built yet"
    assert {"spring", "copper"} < set(options.models())
    assert (titles.model_title("spring"), cards.model_spelling("spring")) == ("Spring", "spring")
    assert cells.training_notebook("spring").parts[-2:] == ("yours", "training.ipynb")
    assert cards.is_calculator("copper")
    assert models.build("spring", "finetune", [1]).network.length.item() == pytest.approx(1.1)
    assert ", code " in models.version("spring")
    file = package / "mine.yml"
    file.write_text("description: d\ndatasets: [copper_emt]\nmodels: [copper]\n")
    assert campaign.load(file).calculators == ["copper"]


def test_what_cannot_be_used_is_named_and_left_out(package):
    with pytest.warns(UserWarning, match="is left out") as caught:
        assert set(cards.offered_models()) == {"spring", "copper"}
    said = sorted(str(warning.message) for warning in caught)
    reasons = ["bare.yml", "No module named 'no_such_package'", "its name is taken by another model"]
    for name, reason, text in zip(("bare", "gone", "mace"), reasons, said, strict=True):
        assert text.startswith(f"the model {name} that spring-package offers is left out: ")
        assert reason in text
    assert not cards.model("mace").file
    with pytest.raises(ValueError, match="unknown model 'sprin'; did you mean 'spring'"):
        cards.model("sprin")
