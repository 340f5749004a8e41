"""The check of the speedrun's rows."""

import json
import runpy

import numpy as np
import pytest
import torch

import records
from notebooks import ROOT

ROW = """
import torch
TARGET = 94

def train(x, y, seed):
    torch.manual_seed(seed)
    return lambda x: torch.randint(10, (len(x),))
"""


@pytest.fixture
def row(tmp_path):
    path = tmp_path / "row.py"
    path.write_text(ROW, encoding="utf-8")
    return path


def test_a_row_is_measured_on_the_split_that_is_asked_for(row):
    whole, test = records.load_splits(validate=False)
    part, held = records.load_splits(validate=True)
    assert [len(a[0]) for a in (whole, test, part, held)] == [4000, 1000, 3200, 800]
    target, accuracy, seconds = records.measure(row, range(3), part, held)
    assert target == 94 and len(seconds) == 3 and (accuracy < 20).all()


def test_a_row_that_fails_is_an_error_and_leaves_nothing(row, capsys):
    assert records.main([str(row)]) == 1
    assert "must be below 0.01" in capsys.readouterr().out and not row.with_suffix(".json").exists()
    assert records.main(["--validate", str(row)]) == 0


def test_a_row_that_holds_is_kept(row, capsys):
    row.write_text(ROW.replace("94", "5"), encoding="utf-8")
    assert records.main([str(row)]) == 0
    kept = json.loads(row.with_suffix(".json").read_text(encoding="utf-8"))
    assert kept["target"] == 5 and len(kept["accuracy"]) == 10 and "above 5" in capsys.readouterr().out
    assert "| 5 | [row](row.py) |" in (row.parent / "README.md").read_text(encoding="utf-8")


def test_what_keeps_a_row_from_counting_is_said(row):
    accuracy = np.linspace(94.5, 95.5, 10)
    assert not records.judge(row, 94, accuracy)
    assert "p = " in records.judge(row, 95, accuracy)
    assert "9 seeds" in records.judge(row, 94, accuracy[1:])
    row.write_text(ROW + 60 * "#\n", encoding="utf-8")
    assert "lines" in records.judge(row, 94, accuracy)


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("*.py")), ids=lambda path: path.stem)
def test_rows_run_and_are_short(path):
    namespace = runpy.run_path(str(path))
    assert namespace["TARGET"] in (94, 96, 98) and len(path.read_text(encoding="utf-8").splitlines()) < 60
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    predict = namespace["train"](x, torch.arange(100) % 10, 0)
    assert predict(x).shape == (100,)
