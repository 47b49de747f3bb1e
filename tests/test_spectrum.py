"""Vibrational spectra against frequencies by hand and by ASE, and their divergences in rollouts."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from egraff_utils import structure
from egraff_utils.md import analysis
from egraff_utils.md.dynamics import Trajectory
from egraff_utils.records import Record
from egraff_utils.report import vibrations, windows
from egraff_utils.structure.spectrum import PER_CM

TIME = np.arange(1001.0)  # fs


def vibrating(*lines):
    """Positions (T, N, 3) of atoms that vibrate along x, each with a (wavenumber, amplitude)."""
    x = np.stack([a * np.sin(2 * np.pi * TIME * nu / PER_CM) for nu, a in lines], axis=1)
    return np.stack([x, 0 * x + 2.0 * np.arange(len(lines)), 0 * x], axis=-1)


def test_atoms_of_equal_kinetic_energy_have_equal_shares():
    """m (a nu)^2 is 1 for both: an atom of 1 u at 2000 / cm, one of 16 u at 1000 / cm, half as wide."""
    spectrum = structure.vibrational_spectrum(
        vibrating((2000, 1.0), (1000, 0.5)), [1, 16], interval=1, window=500
    )
    nu = structure.wavenumbers(500, 1)
    shares = [spectrum[abs(nu - centre) < 300].sum() for centre in (1000, 2000)]
    assert spectrum.sum() == pytest.approx(1)
    assert shares == pytest.approx([0.5, 0.5], abs=0.01)  # less by (omega dt)^2 / 12 at 2000 / cm


def test_a_molecule_vibrates_at_the_frequency_of_ase(tmp_path):
    atoms = Atoms("N2", [[0, 0, 0], [1.1, 0, 0]], calculator=EMT())
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"))
    vibrations.run()
    expected = vibrations.get_frequencies()[-1].real
    atoms.positions += [[-0.005, 0, 0], [0.005, 0, 0]]
    path = []
    run = VelocityVerlet(atoms, 0.2 * units.fs)
    run.attach(lambda: path.append(atoms.positions.copy()))
    run.run(5000)
    spectrum = structure.vibrational_spectrum(path, atoms.get_masses(), interval=0.2, window=2500)
    nu = structure.wavenumbers(2500, 0.2)
    assert expected > 500
    assert nu[spectrum.argmax()] == pytest.approx(expected, abs=nu[1])


def test_too_few_frames_and_still_atoms_have_no_spectrum():
    options = {"masses": [1.0], "interval": 1, "window": 500}
    short = structure.vibrational_spectrum(vibrating((1000, 1.0))[:500], **options)
    still = structure.vibrational_spectrum(np.ones((600, 1, 3)), **options)
    assert len(short) == len(still) == len(structure.wavenumbers(500, 1))
    assert not short.any()
    assert not still.any()


def measured(paths, reference, *, stable=1000, stride=1, timestep=1.0):
    """Record of replicas with the given positions against a reference that is every `stride`-th frame."""
    positions = np.stack(paths).astype(np.float32)
    count, frames, size = positions.shape[:3]
    ones = np.ones((count, frames))
    trajectory = Trajectory(
        np.arange(frames), positions, np.ones_like(positions), -ones, 300 * ones, 300 * ones[..., None],
        np.array([stable] * count), ["bond" if stable < 1000 else ""] * count, np.full(frames - 1, 0.01),
    )  # fmt: skip
    atoms = [Atoms(f"H{size}", x, cell=[20] * 3) for x in reference[::stride]]
    for frame in atoms:
        frame.calc = SinglePointCalculator(frame, energy=-1.0, forces=np.ones((size, 3)))
    index = np.where(np.arange(frames) % stride, -1, np.arange(frames) // stride)[None].repeat(count, 0)
    against = analysis.Reference.from_frames(atoms, index, contiguous=True)
    metrics, curves = analysis.measure(trajectory, atoms[0], against, timestep=timestep, steps=1000)
    record = Record("rollout", "test", "water", "mine", 0, {"steps": 1000}, metrics)
    record.__dict__["curves"] = curves
    return record


LINE = [(1000, 1.0), (2000, 1.0)]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (LINE, 0),
        ([(1000, 2.0), (2000, 2.0)], 0),  # hotter, but not stiffer
        ([(3000, 1.0), (4000, 1.0)], np.log(2)),
    ],
)
def test_divergences_of_a_rollout_by_hand(lines, expected, stride):
    found = measured([vibrating(*lines)] * 2, vibrating(*LINE), stride=stride)
    assert found["spectrum_jsd"] == pytest.approx(expected, abs=2e-3)
    metric = found.metric("spectrum_jsd")
    assert metric.n == 2
    assert metric.low <= metric.value <= metric.high
    assert found.curves["spectrum_wavenumbers"][1] == pytest.approx(PER_CM / 500)


def test_a_replica_that_broke_within_its_first_window_has_no_value():
    assert measured([vibrating(*LINE)] * 2, vibrating(*LINE), stable=400)["spectrum_jsd"] is None
    assert measured([vibrating(*LINE)] * 2, vibrating(*LINE), stable=600)["spectrum_jsd"] < 1e-3


def test_a_short_run_and_a_cut_one_have_no_spectrum():
    short = measured([vibrating(*LINE)] * 2, vibrating(*LINE), timestep=0.1)
    whole = measured([vibrating(*LINE)] * 2, vibrating(*LINE))
    cut = windows.within(whole, 500)
    assert "spectrum_jsd" in {metric.name for metric in whole.metrics}
    assert "spectrum_jsd" not in {metric.name for found in (short, cut) for metric in found.metrics}


def test_the_page_says_who_is_beyond_a_perfect_model():
    """Bands at 3000 and 3100 / cm of a reference at 3000, whose replicas scatter a little."""
    base = measured([vibrating((3000, 1.0))] * 2, vibrating((3000, 1.0)))
    off = measured([vibrating((3100, 1.0))] * 2, vibrating((3000, 1.0)))
    records = [replace(base, model="reference"), replace(off, model="mace"), replace(base, model="nequip")]
    for record, source in zip(records, (base, off, base), strict=True):
        record.__dict__["curves"] = source.curves
    mixed = 0.9 * base.curves["spectrum"] + 0.1 * off.curves["spectrum"]
    varied = np.stack([base.curves["spectrum"][0], mixed[0]])
    records[0].__dict__["curves"] = base.curves | {"spectrum": varied}
    found = vibrations.table(records)
    assert [model for _, model in found.index] == ["nequip", "mace", "reference"]
    assert (found[vibrations.BAND] - found[vibrations.EXPECTED]).to_list() == pytest.approx(
        [0, 100, 0], abs=8
    )
    said = vibrations.values([found])
    assert (said["count"], said["datasets"], said["beyond"]) == ("2", "1", "1 of 2")
    assert 80 < float(said["shift"].partition(" to ")[2]) < 120
    assert said["saturated"] == "1 of 2"
    assert 0 < float(said["perfect"]) < float(said["saturation"])
    figure = vibrations.spectrum_grid(records)
    assert len(figure.axes[0].lines) == 3
    assert vibrations.values([vibrations.table([])])["count"] == "0"


def test_a_perfect_model_has_the_scatter_of_its_replicas():
    """Of three replicas one vibrates elsewhere: each is compared with the mean, (2/3, 1/3)."""
    near = (np.log(6 / 5) + 2 / 3 * np.log(4 / 5) + 1 / 3 * np.log(2)) / 2  # of (1, 0) from that mean
    far = (np.log(3 / 2) + np.log(2) / 3) / 2  # of (0, 1)
    expected = (2 * near + far) / 3
    assert vibrations.scatter(np.eye(2)[[0, 0, 1]]) == pytest.approx(expected)
    assert vibrations.scatter(np.eye(2)[[0, 0]]) == 0
    assert np.isnan(vibrations.scatter(np.zeros((2, 2))))


def test_saturation_is_the_divergence_of_unrelated_runs():
    """Three replicas of the reference, of which one vibrates elsewhere: ln 2 for it, less for the others."""
    one, other = [vibrating((nu, 1.0)) for nu in (1000, 3000)]
    found = measured([one, one, other], one)
    found = replace(found, model="reference")
    spectra = np.eye(2)[[0, 0, 1]]
    apart = (np.log(4 / 3) + 0.5 * np.log(2 / 3) + 0.5 * np.log(2)) / 2  # of (1, 0) from (1/2, 1/2)
    expected = (2 * apart + np.log(2)) / 3
    assert vibrations.independent(spectra) == pytest.approx(expected)
    found.__dict__["curves"] = measured([one, one, other], one).curves
    table = vibrations.table([found])
    assert table[vibrations.SATURATION].item() == pytest.approx(expected, abs=3e-3)
    assert np.isnan(vibrations.independent(spectra[:1]))
    assert np.isnan(vibrations.independent(0 * spectra))
