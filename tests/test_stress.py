"""Virials of LiPS20: its second card differs from that of the book in nothing else, and they are learnt."""

import pytest

from egraff_utils import accuracy, cards, data, models
from egraff_utils.train import TrainConfig, fit


def test_the_card_with_virials_has_the_frames_of_the_other():
    card, other = cards.dataset("lips20_stress"), cards.dataset("lips20")
    assert {"train", "val", "test"} < set(card.splits)
    for name, split in card.splits.items():
        assert split == other.split(name)
        assert card.conditions(name) == other.conditions(name)
    added = {key: file for key, file in card.files.items() if other.files.get(key) != file}
    assert sorted(added) == sorted(f"{part.source}/virial" for part in card.split("train").parts)
    for field in ("elements", "units", "reference_energies", "cell", "reader"):
        assert getattr(card, field) == getattr(other, field)


@pytest.mark.data
def test_every_frame_has_a_virial_which_the_card_of_the_book_leaves_out():
    splits = {name: data.load("lips20_stress", name) for name in ("val", "test")}
    data.check_stress("lips20_stress", splits)
    with pytest.raises(ValueError, match="lips20/val: frame 0 .* has no stress"):
        data.check_stress("lips20", {"val": data.load("lips20", "val")})


@pytest.mark.data
@pytest.mark.slow
def test_the_stress_of_lips20_is_learnt(tmp_path, monkeypatch):
    """After as many steps, its error is much smaller with the virials than without."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    frames = data.thinned(data.load("lips20_stress", "test"), 10)
    errors = {}
    for weight in (0.0, 100.0):
        training = {"virial_weight": weight, "batch_size": 2}
        config = TrainConfig("mace", "lips20_stress", preset="tiny", max_steps=200, training=training)
        record = fit(config)
        found = accuracy.stress_errors(models.load(record.path.with_suffix(".safetensors")), frames)
        errors[weight], zero = (metric.value for metric in found)
    assert errors[100.0] < 0.7 * min(errors[0.0], zero)
