"""Does survival count what broke, and nothing else? Curves by hand, breaks, last frames."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ase import Atoms

from egraff_utils.breaks import Break, Cause
from egraff_utils.records import Metric, Record
from egraff_utils.report import last_frames, lifetimes, survival


def rollout(breaks=(), stable=(100, 100), *, kind="rollout", model="mace", steps=100, asked=100, **more):
    dataset, split = more.pop("dataset", "ethanol"), more.pop("split", "test")
    given = {"steps": asked, "timestep": 0.5, "temperature": 500.0, "split": split, "replicas": len(stable)}
    status = more.pop("status", "unstable" if breaks else "complete")
    metrics = [Metric("steps", steps, "1")]
    record = Record(kind, "demo", dataset, model, 0, given, metrics, status, breaks=list(breaks))
    record.__dict__["curves"] = {"stable_step": np.array(stable), **more}
    return record


# -- the estimator, by hand


def test_kaplan_meier_by_hand():
    # at risk 6, 5, 4, 3: one failure at 1, one censored at 2, two failures at 3, one censored at 4 and 4
    steps, broke = [1, 2, 3, 3, 4, 4], [True, False, True, True, False, False]
    ends, fraction, low, high = lifetimes.kaplan_meier(steps, broke)
    assert list(ends) == [0, 1, 2, 3, 4]
    assert fraction == pytest.approx([1, 5 / 6, 5 / 6, 5 / 12, 5 / 12])
    greenwood = 1 / (6 * 5) + 2 / (4 * 2)
    width = 1.959964 * np.sqrt(greenwood) / abs(np.log(5 / 12))
    assert (low[-1], high[-1]) == pytest.approx(((5 / 12) ** np.exp(width), (5 / 12) ** np.exp(-width)))


def test_without_failures_the_interval_is_the_exact_one():
    _, fraction, low, high = lifetimes.kaplan_meier([10] * 5, [False] * 5)
    assert list(fraction) == list(high) == [1, 1]
    assert low[-1] == pytest.approx(0.025 ** (1 / 5))  # 0.478: five sound runs do not prove much
    _, fraction, low, high = lifetimes.kaplan_meier([1, 2], [True, True])
    assert (fraction[-1], low[-1]) == (0, 0)
    assert high[-1] == pytest.approx(1 - 0.025**0.5)


def test_the_interval_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        spans, limits = rng.exponential(1.0, 30), rng.uniform(0.5, 2.0, 30)
        ends, _, low, high = lifetimes.kaplan_meier(np.minimum(spans, limits), spans < limits)
        at = np.searchsorted(ends, np.log(2), side="right") - 1
        covered += low[at] <= 0.5 <= high[at]
    assert 0.93 <= covered / 1000 <= 0.98


def test_restricted_mean_is_the_area():
    mean, low, high = lifetimes.restricted_mean([2, 6, 10], [True, True, False], 10)
    assert mean == pytest.approx(2 + 4 * 2 / 3 + 4 / 3)
    assert 0 <= low < mean < high <= 10
    with pytest.raises(ValueError, match="limit"):
        lifetimes.restricted_mean([2, 6], [True, False], 10)
    assert lifetimes.restricted_mean([2, 6], [True, True], 10)[0] == pytest.approx(4)


def test_log_rank_by_hand():
    # a breaks at 1 and 2, b is sound: hazards 1/4 at 1 and 1/3 at 2
    found = lifetimes.log_rank([1, 2, 3, 3], [True, True, False, False], list("aabb"))
    assert list(found.table.broke) == [2, 0]
    assert found.table.expected["a"] == pytest.approx(1 / 4 + (1 / 4 + 1 / 3))
    assert found.table.expected.sum() == pytest.approx(2)
    assert found.p == pytest.approx(1 / 3, abs=0.02)  # 2 of the 6 labellings are as uneven
    assert lifetimes.log_rank([3, 3], [False, False], list("ab")).p == 1


def test_log_rank_keeps_strata_apart():
    steps, broke = [1, 1, 1, 9, 9, 9], [True] * 3 + [False] * 3  # the model that ran on the hard set only
    strata = ["hard"] * 3 + ["easy"] * 3
    assert lifetimes.log_rank(steps, broke, list("aaabbb"), strata).p == 1
    assert lifetimes.log_rank(steps, broke, list("aaabbb")).p < 0.2


def test_log_rank_rejects_at_its_level():
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b"], 10)
    draws = np.minimum(rng.exponential(1.0, (200, 20)), 1.0)
    p = np.array([lifetimes.log_rank(x, x < 1, groups, permutations=400).p for x in draws])
    assert 0.01 <= (p <= 0.05).mean() <= 0.10


def table_of_trainings(chances, replicas=5, seed=0):
    """Replicas of one dataset, of trainings whose replicas break with a chance, (model, seed) -> chance."""
    rng, rows = np.random.default_rng(seed), []
    for (model, training), chance in chances.items():
        for replica, broke in enumerate(rng.random(replicas) < chance):
            row = {"model": model, "seed": training, "replica": replica, "broke": bool(broke)}
            rows.append(row | {"step": 10 if broke else 100, "kind": "rollout", "dataset": "lips"})
    return pd.DataFrame(rows).assign(composition="", setting=survival.HOME)


def test_a_training_that_breaks_does_not_make_two_like_architectures_differ():
    broken = table_of_trainings({("mace", 0): 1, ("mace", 1): 1, ("nequip", 0): 0, ("nequip", 1): 0})
    overall, pairs = survival.compare_models(broken)
    assert overall.p == pytest.approx(1 / 3, abs=0.02)  # 2 of the 6 ways to share four trainings
    assert pairs.p[0] == pytest.approx(1 / 3, abs=0.02)
    once = broken[broken.seed == 0]
    assert survival.compare_models(once)[0].p == pytest.approx(2 / 252, abs=0.005)  # of these weights


def test_trainings_that_scatter_are_told_apart_at_the_level_of_the_test():
    rng, found = np.random.default_rng(2), []
    for draw in range(100):
        chances = {(m, s): rng.choice([0.0, 1.0]) for m in ("mace", "nequip", "botnet") for s in range(3)}
        table = table_of_trainings(chances, seed=draw)
        found.append(survival.compare_models(table, permutations=400)[0].p)
    assert (np.array(found) <= 0.05).mean() <= 0.1


def test_a_unit_has_one_group():
    with pytest.raises(ValueError, match="unit"):
        lifetimes.log_rank([1, 2], [True, True], ["a", "b"], units=["x", "x"])


# -- the records


@pytest.mark.parametrize(("broken", "found"), [(9, False), (10, True)])
def test_breaks_that_tell_two_of_fifteen_pairs_apart(broken, found):
    assert lifetimes.fewest_breaks(15) == 10
    strata = np.repeat(np.arange(10), 6)
    models = np.tile(["a"] * 3 + ["b"] * 3, 10)
    broke = np.array([i % 6 == 0 and i // 6 < broken for i in range(60)])
    steps = np.where(broke, 10, 100)
    assert (lifetimes.log_rank(steps, broke, models, strata).p * 15 < 0.05) is found


def test_the_share_that_is_found_in_four_of_five_cases():
    broken = np.random.default_rng(0).binomial(45, lifetimes.detectable_share(45, 15), size=10_000)
    assert (broken >= 10).mean() == pytest.approx(0.8, abs=0.02)
    table = survival.replicas([rollout(model=model) for model in ("mace", "nequip")])
    text = survival.could_be_told(table, {survival.HOME: survival.compare_models(table)[1]})
    assert text == f"{survival.HOME} never, of 2 replicas"


def test_breaks_and_ends():
    breaks = [Break(1, 30, 15.0, Cause.CONTACT), Break(4, 7, 3.5, Cause.CONTACT_OR_ESCAPE)]
    table = survival.replicas([rollout(breaks, (80, 30, 80, 80, 7), steps=80)])
    assert list(table.end) == ["time up", "broke", "time up", "time up", "broke"]
    assert list(table.cause) == ["", Cause.CONTACT, "", "", Cause.CONTACT_OR_ESCAPE]
    assert list(table.time) == [40.0, 15.0, 40.0, 40.0, 3.5]
    assert not table.isna().any(axis=None)


def test_compositions_count_once():
    names = np.array(["Li", "Li", "Li2S", "Li2S"])
    pooled = rollout([Break(3, 5, 2.5, "contact")], (100, 100, 100, 5), dataset="lips20", composition=names)
    pooled.parameters |= {"temperature": None, "timestep": None}
    parts = [
        rollout(kind="rollout_Li", dataset="lips20", split="Li"),
        rollout([Break(1, 5, 2.5, "contact")], (100, 5), kind="rollout_Li2S", dataset="lips20", split="Li2S"),
    ]
    alone, together = survival.replicas([pooled]), survival.replicas([pooled, *parts])
    for table in (alone, together):
        assert list(table.composition) == list(names)
        assert list(table.broke) == [False, False, False, True]
        assert set(table.kind) == {"rollout"}
    assert list(alone.temperature) == [2010.0, 2010.0, 1770.0, 1770.0]  # of the card
    assert len(survival.replicas(parts)) == 4


def test_a_failed_run_is_no_broken_simulation():
    failed = Record("failure", "demo", "ethanol", "nequip", 0, status="failed", message="OSError: no network")
    failed.parameters = {"notebook": "rollout/ethanol.ipynb", "replicas": 2}
    training = Record(
        "failure", "demo", "ethanol", "botnet", 0, {"notebook": "training/botnet.ipynb"}, status="failed"
    )
    table = survival.replicas([rollout(), failed, training])
    assert len(table) == 2
    counts = survival.survivors(table).loc[(survival.HOME, "ethanol")]
    assert counts[["mace", "nequip", "botnet"]].to_list() == ["2 of 2", "not run", "not run"]
    assert last_frames.failure_table(table).empty
    (lost,) = survival.failed_runs([rollout(), failed, training]).itertuples()
    assert (lost.Model, lost.Message) == ("NequIP", "OSError: no network")


def test_settings():
    assert survival.setting("rollout_600K", "acac") == "hotter"
    assert survival.setting("rollout_benzene", "ethanol") == "another molecule"
    assert survival.setting("rollout_Li3P", "lips20") == "other compositions"
    assert survival.setting("rollout_as_coded", "ethanol") == survival.AS_CODED


def test_nothing_gives_empty_tables_and_figures():
    empty = survival.replicas([])
    assert survival.survivors(empty).empty
    assert survival.lengths(empty).empty
    assert last_frames.failure_table(empty).empty
    assert survival.compare_models(empty)[0].p == 1
    survival.survival_grid(empty), survival.survival_grid(empty, "dataset"), last_frames.failure_grid([])
    plt.close("all")


def test_models_are_compared_where_both_ran():
    sound = [rollout(stable=[100] * 8, model="mace")]
    broken = rollout([Break(r, 9, 4.5, "bond") for r in range(8)], [9] * 8, model="nequip", steps=10)
    overall, pairs = survival.compare_models(survival.replicas([*sound, broken]))
    assert overall.p < 0.01
    assert pairs.loc[0, ["first", "second"]].to_list() == ["nequip", "mace"]
    lengths = survival.lengths(survival.replicas([*sound, broken])).loc[survival.HOME]
    assert lengths.loc["mace", "mean"] == 1
    assert lengths.loc["nequip", ["valid", "mean"]].to_list() == pytest.approx([0, 0.09])


# -- the last frames


WATER = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def frames_of(atoms, moved, step):
    """Two frames in which one atom moves by `step` along x."""
    positions = np.stack([atoms.positions] * 2)
    positions[0, moved, 0] -= step
    return positions


def test_the_stretched_bond_is_found():
    atoms = WATER.copy()
    atoms.positions[1, 0] += 0.4
    found = last_frames.offender(frames_of(atoms, 1, 0.15), WATER, Cause.BOND, (0, 1), WATER.positions[None])
    assert found.atoms == (0, 1)
    assert found.name == "O-H bond"
    assert (found.length, found.usual) == pytest.approx((1.36, 0.96))


def test_a_proton_that_changes_its_oxygen_is_told_from_a_broken_bond():
    atoms = Atoms("OHO", [[0, 0, 0], [1.0, 0, 0], [2.5, 0, 0]])
    last = atoms.copy()
    last.positions[1, 0] = 1.45
    found = last_frames.offender(frames_of(last, 1, 0.1), atoms, Cause.BOND, (0, 1))
    assert found.name == f"O-H bond, {last_frames.MOVED_ON} O"


def test_the_closest_pair_and_the_lost_atom_are_named():
    box = Atoms("LiLiS", [[0.1, 0, 0], [7.6, 0, 0], [4, 0, 0]], cell=[8, 8, 8], pbc=True)
    found = last_frames.offender(np.stack([box.positions] * 2), box, Cause.CONTACT, (0, 1))
    assert found.atoms == (0, 1)
    assert found.length == pytest.approx(0.5)
    assert found.name == "Li-Li contact"
    away = WATER.copy()
    away.positions[2] = [0, 2.9, 0]
    positions = frames_of(away, 2, 0.2)
    lost = last_frames.offender(positions, WATER, Cause.CONTACT_OR_ESCAPE, (2,))
    assert (lost.atoms, lost.name) == ((2,), "H atom, to the nearest")
    assert lost.length == pytest.approx(2.9)
    jumped = last_frames.offender(positions, WATER, Cause.MOVE, (2,))
    assert jumped.length == pytest.approx(0.2)
    assert last_frames.offender(positions, WATER, Cause.STRUCTURE, ()) is None


@pytest.mark.data
def test_a_failure_is_drawn_with_its_offender():
    from egraff_utils import data

    atoms = data.load("ethanol", "test")[0]
    positions = np.stack([atoms.positions] * 10)
    h = int(np.flatnonzero(atoms.numbers == 1)[0])
    c = int(np.argsort(atoms.get_distances(h, range(9)))[1])
    positions[:, h] += 0.45 * (atoms.positions[h] - atoms.positions[c])
    positions[-1, h] += 0.05 * (atoms.positions[h] - atoms.positions[c])
    energy = np.tile(np.sin(np.arange(101)), (2, 1))
    energy[1, 21:] = np.nan
    energy[1, 20] = 50.0
    record = rollout(
        [Break(1, 20, 10.0, "bond", (h, c))],
        (100, 20),
        broken=np.array([1]),
        last_positions=positions[None],
        last_energy=energy[None, 1, 11:21],
        energy=energy,
        temperature=np.where(np.isnan(energy), np.nan, 750.0),
    )
    kept = last_frames.failures([record])
    assert kept[0].warmth == pytest.approx(1.5)
    assert kept[0].rise > 10
    assert set(last_frames.offender_of(kept[0]).atoms) == {h, c}
    text = last_frames.failure_table(survival.replicas([record]), kept)
    assert "bond" in text["Where"][0]
    figure = last_frames.failure_grid(kept)
    rings = [p for p in figure.axes[0].patches if p.get_edgecolor()[0] > 0.8 and not p.get_fill()]
    assert len(rings) == 2
    plt.close("all")


def test_the_most_broken_are_named_by_what_they_ran_on():
    rows = [("mace", "ethanol", "another molecule", 0)] * 3 + [("mace", "ethanol", survival.HOME, 1)]
    table = pd.DataFrame(rows, columns=["model", "dataset", "setting", "seed"]).assign(broke=True)
    sound = table.assign(seed=2, broke=False)
    most = "MACE on Ethanol → another molecule, seed 0 (3 of 3) and MACE on Ethanol, seed 1 (1 of 1)"
    assert survival.most_broken(pd.concat([sound, table])) == most
    assert survival.most_broken(sound) == "none"


def test_a_failure_names_its_seed():
    record = rollout([Break(1, 20, 10.0, "bond")], (100, 20))
    record.seed = 2
    shown = last_frames.failure_table(survival.replicas([record]))
    assert shown[["Model", "Seed", "Replica"]].to_numpy().tolist() == [["MACE", 2, 1]]


def test_tests_of_several_settings_are_corrected_for_their_number():
    def compared(p, *pairs):
        return SimpleNamespace(p=p), pd.DataFrame({"p": pairs})

    found = {
        "hotter": compared(0.01, 0.2),
        "another molecule": compared(0.03, 0.04),
        "as coded": compared(1.0),
    }
    tests, pairs = ({name: each[place] for name, each in found.items()} for place in (0, 1))
    assert survival.adjusted(tests) == pytest.approx(
        {"hotter": 0.03, "another molecule": 0.06, "as coded": 1}
    )
    start = "After Holm's correction over the settings the models"
    blind = "; which pairs differ these few replicas do not tell"
    assert survival.differ(tests, pairs) == f"{start} differ on hotter (p = 0.03){blind}"
    pairs["hotter"].p = 0.01
    assert survival.differ(tests, pairs) == f"{start} differ on hotter (p = 0.03)"
    tests["hotter"].p = 0.02
    assert survival.differ(tests, pairs) == f"{start} are told to differ on none of them"


def test_every_setting_has_its_test():
    sound = [rollout(stable=[100] * 8, model="mace", kind=kind) for kind in ("rollout", "rollout_as_coded")]
    breaks = [Break(r, 9, 4.5, "bond") for r in range(8)]
    broken = rollout(breaks, [9] * 8, model="nequip", steps=10)
    tests, pairs = survival.compare_settings(survival.replicas([*sound, broken]))
    assert list(tests) == list(pairs) == [survival.HOME, survival.AS_CODED]
    assert survival.differ(tests, pairs).startswith(
        "After Holm's correction over the settings the models differ on"
    )
    assert survival.adjusted(tests)[survival.HOME] == pytest.approx(2 * tests[survival.HOME].p)
