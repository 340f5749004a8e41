"""Every row of equal work runs, what is paid once does not count, and workers run as many steps as are asked for."""

from dataclasses import replace

import numpy as np
import pytest

import equal_work


@pytest.mark.parametrize("slug", equal_work.ROWS)
def test_a_row_measures_both_sides(slug):
    row = equal_work.ROWS[slug]
    most = 40 if slug == "double_descent" else 8  # whose plain loop counts in epochs of 40
    row = replace(row, steps=min(most, row.steps), seeds=2)
    measured = equal_work.measure(slug, row, repeats=1)
    assert np.isfinite([measured["plain_ms"], measured["ours_ms"]]).all() and measured["ratio"]


@pytest.mark.parametrize("slug", [slug for slug, row in equal_work.ROWS.items() if row.sets])
def test_a_worker_gets_the_number_of_steps(slug, monkeypatch):
    monkeypatch.setenv("JOBS", "2")
    row = equal_work.ROWS[slug]
    notebook = equal_work.load_definitions(slug, **row.knobs)
    notebook.update(dict.fromkeys(row.sets, 7))
    functions = [f for f in notebook.values() if hasattr(f, "__code__") and f.__module__ == slug]

    def read(names, seeds):  # in a worker
        return [[f.__globals__[n] for f in functions for n in names if n in f.__code__.co_names] for _ in seeds]

    found = equal_work.sweep(read, {"sets": row.sets}, range(2), chunk=1)["sets"]
    assert found[0] and set(found[0] + found[1]) == {7}


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
    rest = replace(row, rest=((60_000, {"BATCH_SIZE": 500}),))  # steps of another batch add to the run
    measured = equal_work.measure("lottery_tickets", rest, repeats=1)
    assert (measured["plain_minutes"], measured["ours_minutes"]) == (9.0, 3.0)


def test_a_notebook_without_a_row_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no row of tsne: must be of .*pooling"):
        equal_work.bench_equal_work(["pooling", "tsne"], tmp_path)
    assert not list(tmp_path.iterdir())
