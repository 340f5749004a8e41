"""Every row of equal work runs, and both sides do what its row says."""

from dataclasses import replace

import pytest

import equal_work


@pytest.mark.parametrize("slug", equal_work.ROWS)
def test_a_row_measures_both_sides(slug):
    row = equal_work.ROWS[slug]
    row = replace(row, steps=min(40, row.steps), seeds=2)
    measured = equal_work.measure(slug, row, repeats=1)
    assert measured["plain_ms"] > 0 and measured["ratio"] == measured["plain_ms"] / measured["ours_ms"]
    assert measured["plain_minutes"] == round(measured["plain_ms"] * row.published / 6e4, 1)
