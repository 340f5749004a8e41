"""Every row of equal work runs, what is paid once does not count, and workers run as many steps as are asked for."""

from dataclasses import replace

import cloudpickle
import numpy as np
import pytest

import equal_work


@pytest.mark.parametrize("slug", equal_work.ROWS)
def test_a_row_measures_both_sides(slug):
    row = equal_work.ROWS[slug]
    row = replace(row, steps=min(40, row.steps), seeds=2)
    measured = equal_work.measure(slug, row, repeats=1)
    assert np.isfinite([measured["plain_ms"], measured["ours_ms"]]).all() and measured["ratio"]


@pytest.mark.parametrize("slug", [slug for slug, row in equal_work.ROWS.items() if row.sets])
def test_a_worker_gets_the_number_of_steps(slug):
    row = equal_work.ROWS[slug]
    notebook = equal_work.load_definitions(slug, **row.knobs)
    notebook.update(dict.fromkeys(row.sets, 7))
    sent = cloudpickle.loads(cloudpickle.dumps({name: f for name, f in notebook.items() if hasattr(f, "__code__")}))
    readers = [f for f in sent.values() if set(row.sets) & set(f.__code__.co_names)]
    assert readers
    for function in readers:
        assert all(function.__globals__.get(name, 7) == 7 for name in row.sets)


def test_what_is_paid_once_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setenv("JOBS", "1")
    monkeypatch.setattr(equal_work.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    row = equal_work.Row(
        plain=lambda notebook, steps: wait(0.5 + 0.006 * steps),
        ours=lambda notebook, seeds, steps: wait(20 + 0.002 * steps * len(seeds)),
        steps=40, published=30_000, work="a step", seeds=4,
    )  # fmt: skip
    measured = equal_work.measure("quickstart", row, repeats=1)
    assert [measured[key] for key in ("plain_ms", "ours_ms", "ratio")] == pytest.approx([6, 2, 3])
    assert (measured["plain_minutes"], measured["ours_minutes"]) == (3.0, 1.0)
