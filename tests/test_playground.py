"""The page of the generator's knobs, run here without a browser: `make playground CHECK=1` drives one."""

import json
import subprocess
import sys

import pytest

import mnist1d
from notebooks import ROOT

RUN = """
import json, runpy, sys, warnings
warnings.simplefilter("error")
sys.modules["torch"] = None  # the page has none
outputs, defined = runpy.run_path(sys.argv[1])["app"].run()
figures = [o for o in outputs if type(o).__name__ == "Figure"]
lines = sum(len(ax.lines) for figure in figures for ax in figure.axes)
print(json.dumps([defined["knobs"].value, defined["data"]["x"].shape, lines, defined["VERSION"], outputs[-1].text]))
"""


@pytest.fixture(scope="module")
def page():
    command = [sys.executable, "-c", RUN, str(ROOT / "playground" / "playground.py")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_its_knobs_begin_at_the_frozen_dataset(page):
    knobs = page[0]
    frozen = mnist1d.get_dataset_args(as_dict=True)
    assert len(knobs) == 7 and knobs == {name: frozen[name] for name in knobs}


def test_it_draws_three_signals_of_every_digit_without_torch(page):
    _, shape, lines, version, sentence = page
    assert shape == [500, 40] and lines == 30 and version == mnist1d.__version__
    assert "<strong>38%</strong>" in sentence  # of 500 signals; what the frozen dataset's generator gives
