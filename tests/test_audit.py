"""Checks of the data against planted defects and known ensembles."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import audit, data


def springs(temperature, *, stretch=1.0, count=4000):
    """Frames of atoms tied to each other by springs of rest length zero, sampled exactly."""
    rng, atoms, stiffness = np.random.default_rng(0), 4, 2.0
    spread = np.sqrt(units.kB * temperature / (stiffness * atoms))
    for _ in range(count):
        x = rng.normal(0, spread, (atoms, 3))
        x -= x.mean(axis=0)
        frame = Atoms("C4", stretch * x)
        forces = -stiffness * atoms * stretch * x
        frame.calc = SinglePointCalculator(frame, energy=0.0, forces=forces)
        yield frame


def test_virial_temperature_of_an_exact_sample():
    assert audit.virial_temperature(list(springs(300))).mean() == pytest.approx(300, rel=0.03)


def test_virial_temperature_tells_frames_of_another_potential():
    assert audit.virial_temperature(list(springs(300, stretch=1.2))).mean() > 400


def test_virial_temperature_refuses_a_crystal():
    with pytest.raises(ValueError, match="molecule"):
        audit.virial_temperature([Atoms("Cu", cell=[2, 2, 2], pbc=True)])


@pytest.mark.data
def test_acac_frames_do_not_belong_to_their_labels():
    aspirin = audit.virial_temperature(data.load("aspirin", "train"))
    acac = audit.virial_temperature(data.load("acac", "test"))
    assert aspirin.mean() == pytest.approx(500, abs=4 * aspirin.std() / np.sqrt(len(aspirin)))
    assert acac.mean() < -2000
