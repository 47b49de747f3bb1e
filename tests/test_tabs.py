"""Tabs of all models on the page of one of them."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from egraff_utils import records
from egraff_utils.records import Metric, Record
from egraff_utils.report import tabs


def rollout(model, *, dataset="ethanol", kind="rollout", seed=0, fv=0.5):
    time, r = np.arange(5.0), np.linspace(0, 3, 20)
    curves = {"time": time, "fv": np.full((2, 5), fv), "temperature": np.full((2, 5), 300.0)}
    curves |= {"rdf_r": r, "rdf": np.ones((2, 20)), "rdf_reference": np.ones(20)}
    parameters = {"temperature": 300.0}
    record = Record(kind, "test", dataset, model, seed, parameters, [Metric.of("fv", fv)])
    record.__dict__["curves"] = curves
    return record


def test_every_model_of_the_cell_has_a_tab_and_the_own_one_is_open(monkeypatch):
    own = rollout("mace", fv=0.25)
    others = [rollout("nequip"), rollout("reference"), own]
    others += [
        rollout("allegro", dataset="aspirin"),
        rollout("botnet", seed=1),
        rollout("botnet", kind="gate"),
    ]
    monkeypatch.setattr(records, "read_all", lambda campaign: others)
    html = tabs.every_model(own).data
    labels = re.findall(r"<label[^>]*>([^<]*)</label>", html)
    assert labels == ["NequIP", "MACE", "Reference, own noise"]
    assert re.findall(r'id="([^"]*)" checked', html) == ["ethanol-rollout-mace"]
    assert html.count("FV 0.25") == 1
    assert html.count("FV 0.5") == 2
    pictures = re.findall(r'alt="([^"]+)" src="data:image/png;base64,([^"]+)"', html)
    assert [alt.split(" of ")[1] for alt, _ in pictures] == [f"{label} on Ethanol" for label in labels]
    for _, data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


@pytest.mark.parametrize("left_out", [(), ("rdf",), ("rdf", "temperature")])
def test_a_record_alone_has_one_tab_and_a_pooled_one_fewer_panels(left_out, monkeypatch):
    own = rollout("<b>")
    for name in left_out:
        (own.curves if name == "rdf" else own.parameters).pop(name)
    monkeypatch.setattr(records, "read_all", lambda campaign: [])
    html = tabs.every_model(own).data
    assert "<b>" not in html
    assert html.count("<input") == 1
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
    assert picture.width == pytest.approx((3 - len(left_out)) * 3.2 * 80, abs=2)


def results(campaign, cells):
    rows = [("rollout", dataset, model, "wf", 0.5) for dataset, model in cells]
    frame = pd.DataFrame(rows, columns=["kind", "dataset", "model", "metric", "value"])
    return frame.assign(path=f"{campaign}/rollout")


def test_a_table_has_a_tab_for_each_campaign_but_not_for_a_few_simulations(monkeypatch):
    cells = [("ethanol", model) for model in ("mace", "nequip", "allegro", "botnet", "equiformer")]
    known = {"day": results("day", cells), "gpu": results("gpu", cells[:1]), "empty": results("empty", [])}
    monkeypatch.setattr(records, "read", known.get)
    asked = []

    def table(rows, beside=()):
        asked.append((rows.path.iloc[0], list(beside)))
        return pd.DataFrame({"WF": rows.value}).style.set_uuid("wf")

    html = tabs.every_campaign(table, results("cpu", cells), ["day", "gpu", "empty"]).data
    assert asked == [("cpu/rollout", ["gpu"]), ("day/rollout", [])]
    assert re.findall(r"<label[^>]*>([^<]*)</label>", html) == ["cpu", "day"]
    assert re.findall(r'id="([^"]*)" checked', html) == ["wf-cpu"]
    assert re.findall(r'<table id="([^"]*)"', html) == ["T_wf-cpu", "T_wf-day"]
    alone = tabs.every_campaign(table, results("cpu", cells), ["gpu"]).data
    assert "<label" not in alone
    assert 'id="T_wf"' in alone
