"""Do other programs read a trained model as it is? Energies and forces of the packages that read it."""

import os
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from ase.build import molecule
from test_benchmarks_md import liquid

from egraff_utils import export, models, weights
from egraff_utils.__main__ import main
from egraff_utils.config import Key
from egraff_utils.md.calculator import ForceFieldCalculator

COMPILED = ("nequip", "allegro")


def force_field(name, dtype=torch.float64):
    torch.manual_seed(1)
    made = models.build(name, "tiny", (1, 6, 8), dtype=dtype).eval()
    made.set_reference({1: -10.0, 6: -1000.0, 8: -2000.0}, scale=2.0)
    return made


def calculator(name, path):
    """The package's own calculator of a file."""
    if name in ("mace", "botnet"):
        from mace.calculators import MACECalculator

        with redirect_stdout(StringIO()):
            return MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64")
    if name == "torchmd_net":
        from torchmdnet.calculators import TMDNETCalculator

        return TMDNETCalculator(str(path), "cpu", dtype=torch.float64, remove_ref_energy=False)
    from nequip.integrations.ase import NequIPCalculator

    return NequIPCalculator.from_compiled_model(path, chemical_species_to_atom_type_map=True)


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_package_reads_energies_and_forces_as_ours(name, tmp_path):
    ours = force_field(name, torch.float32 if name in COMPILED else torch.float64)
    path = export.export(ours, tmp_path / f"any{export.FORMATS[name]}")
    theirs = calculator(name, path)
    for atoms in (molecule("CH3CH2OH"), liquid()):
        atoms.rattle(0.05, seed=0)
        atoms.info["charge"] = 0
        expected = ForceFieldCalculator(ours)
        forces = expected.get_property("forces", atoms)
        # libraries, and the calculator of TorchMD-Net, work in single precision
        np.testing.assert_allclose(
            theirs.get_property("forces", atoms), forces, atol=1e-5 * np.abs(forces).max()
        )
        energies = [c.get_property("energy", atoms) for c in (theirs, expected)]
        assert energies[0] == pytest.approx(energies[1], abs=1e-5)


def test_the_command_writes_a_committed_training(tmp_path, capsys):
    path = tmp_path / "any.model"
    assert main(["export", "mace", "ethanol", "--campaign", "cpu", "--double", "--output", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    ours, atoms = weights.load(Key("training", "cpu", "ethanol", "mace", 0)), molecule("CH3CH2OH")
    energies = [
        c.get_property("energy", atoms) for c in (calculator("mace", path), ForceFieldCalculator(ours))
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-3)
    assert main(["export", "mace", "ethanol", "--campaign", "none"]) == 1
    assert "egraff train" in capsys.readouterr().err


def test_a_calculator_is_refused(capsys):
    assert main(["export", "gfn1", "ethanol"]) == 2
    assert "gfn1 is an ASE calculator" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown architecture.*'equiformer'"):
        export.export(force_field("equiformer"), tmp_path / "any.model")
    with pytest.raises(ValueError, match=r"any.ckpt: a file of mace ends in .model"):
        export.export(force_field("mace"), tmp_path / "any.ckpt")
    with pytest.raises(ValueError, match=r"libraries of nequip are in single precision; .*float\(\)"):
        export.export(force_field("nequip"), tmp_path / "any.nequip.pt2")
    assert not os.listdir(tmp_path)
