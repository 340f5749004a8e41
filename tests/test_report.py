"""The committed results agree with the registry and the documents; the report on made-up results."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import pytest
import scipy.stats

import report
from mnist1d.claims import CLAIMS, conclude, decide, judge
from notebooks import ROOT

RESULTS = report.read_all(ROOT)


# The committed results


@pytest.mark.parametrize("slug", RESULTS)
def test_results_belong_to_the_registry(slug):
    results = RESULTS[slug]
    assert results["profile"] == "paper" and not results["no_verdict"] and not results["seed_offset"]
    assert results["peak_memory_mib"] < 3072
    expected = {claim_id for claim_id, claim in CLAIMS.items() if claim.slug == slug}
    assert {claim["id"] for claim in results["claims"]} | results["missing"].keys() == expected
    for judged in results["claims"]:
        claim = CLAIMS[judged["id"]]
        stored = judged["statement"], judged["published"], judged["criterion"]
        assert stored == (claim.statement, claim.published, claim.criterion)
        for part in judged["measured"]:
            assert part["bound"] == (claim.bound if isinstance(claim.bound, str) else claim.bound[part["part"]])
            enough = part["kind"] == "exact" or part["n"] >= claim.n
            assert part["outcome"] == (decide(part["bound"], part["interval"]) if enough else "undecided")
        outcomes = [part["outcome"] for part in judged["measured"]]
        assert judged["verdict"] == (conclude(outcomes) if len(outcomes) >= claim.parts else "undecided")


def test_the_published_parameters_are_those_of_the_notebooks():
    published = json.loads((ROOT / "mnist1d" / "published.json").read_text(encoding="utf-8"))
    assert published.keys() == set(report.FIGURES)
    for slug, knobs in published.items():
        assert report.read_parameters(slug) == knobs, f"{slug}: python tools/report.py --parameters accepts its knobs"
    cells = json.loads((ROOT / "mnist1d" / "published_cells.json").read_text(encoding="utf-8"))
    assert cells == {slug: report.list_cells(slug) for slug in report.FIGURES}, "python tools/report.py --parameters"


def test_documents_agree_with_the_results():
    for name, text in report.render(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is out of date: make report"


# Made-up results


@pytest.fixture
def checkout(tmp_path):
    """The documents, one notebook and its results: three claims judged, the others not yet measured."""
    for folder in ("notebooks", "figures"):
        (tmp_path / folder).mkdir()
    for name in ("README.md", "REPRODUCTION.md", "pyproject.toml", "notebooks/lottery_tickets.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "mnist1d", tmp_path / "mnist1d", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "figures", 1.0)
    return tmp_path


def write(folder, sparse, **changes):
    held = [5.0, 5.1, 5.2, 5.3, 5.4]
    claims = [
        judge("lottery.reinit", held),
        judge("lottery.sparse", {"95.2%": [sparse * value for value in held]}),
        judge("lottery.shuffle", [-9.0, 9.0, 1.0, -1.0, 3.0]),
    ]
    missing = {c: "why not" for c, claim in CLAIMS.items() if claim.slug == "lottery_tickets"}
    for claim in claims:
        del missing[claim["id"]]
    code = report.code_digest("lottery_tickets", ROOT)
    results = {"code": code, "seconds": 60, "jobs": 2, "seeds": [0] * 5, "claims": claims, "missing": missing}
    results |= {"profile": "paper", "seed_offset": 0, "no_verdict": "", "numbers": {"x": 1}, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lottery_tickets.json").write_text(json.dumps(results), encoding="utf-8")


def test_the_documents_count_and_show_every_verdict(checkout):
    texts = report.render(checkout)
    impossible = sum(not claim.bound for claim in CLAIMS.values())
    counts = "2 reproduced, 0 partly, 0 not reproduced, 1 undecided"
    rest = f"{impossible} that cannot be measured, {len(CLAIMS) - 3 - impossible} not yet measured"
    assert all(f"{len(CLAIMS)} published claims: {counts}, {rest}." in text for text in texts.values())
    table = texts["REPRODUCTION.md"]
    row = next(line for line in table.splitlines() if line.startswith("| `lottery.reinit`"))
    assert (
        "5.20 [5.00, 5.40], n = 5, p < 1e-6 ✓" in row
        and "**reproduced**" in row
        and CLAIMS["lottery.reinit"].why in row
    )
    row = next(line for line in table.splitlines() if line.startswith("| `shuffle.human`"))
    assert "cannot be measured" in row and CLAIMS["shuffle.human"].why in row
    assert "why not" in next(line for line in table.splitlines() if line.startswith("| `lottery.70`"))
    rows = [line for line in table.splitlines() if line.startswith("| `lottery.") and "lottery_tickets.ipynb" in line]
    signs = "".join("✓" if "**reproduced**" in row else "?" if "**undecided**" in row else "–" for row in rows)
    assert {*signs} == {*"✓?–"} and f"| {signs} |" in texts["README.md"]  # in the same order
    assert report.STALE not in table


def test_results_of_other_code_are_marked_and_counted(checkout):
    write(checkout / "figures", 1.0, code="other")
    assert all(report.STALE in text for text in report.render(checkout).values())
    counted = "Of these 3 were measured before the last change of their code."
    assert all(counted in text for text in report.render(checkout).values())


@pytest.mark.parametrize(
    "changes",
    [{"profile": "quick"}, {"seed_offset": 7}, {"no_verdict": "parameters differ"}],
    ids=lambda c: next(iter(c)),
)
def test_results_that_are_not_published_are_refused(checkout, changes):
    write(checkout / "figures", 1.0, **changes)
    with pytest.raises(ValueError, match=r"figures/lottery_tickets\.json: must be a full run"):
        report.render(checkout)


def test_results_are_of_every_code_that_they_were_confirmed_for():
    r = {"code": "a", "confirmed": {"code": "c", "profile": "smoke", "earlier": ["b"]}}
    assert [report.is_of_code(r, code) for code in "abcd"] == [True, True, True, False]


def test_results_that_rest_on_a_confirmation_are_counted(checkout):
    assert "Of the 1 results files these rest on it: none." in report.render(checkout)["REPRODUCTION.md"]
    code = report.code_digest("lottery_tickets", ROOT)
    write(checkout / "figures", 1.0, code="other", confirmed={"code": code, "profile": "smoke"})
    assert (
        "Of the 1 results files these rest on it: 1 in the smoke profile." in report.render(checkout)["REPRODUCTION.md"]
    )


def test_a_claim_that_no_seed_can_change_is_not_counted_among_second_seeds():
    measured = {name: [{"kind": kind}] for name, kind in (("bench.human", "band"), ("dataset.frozen", "exact"))}
    claims = [
        {"id": i, "verdict": "reproduced", "measured": m}
        for i, m in (measured | {"bench.cnn": [{"kind": "band"}]}).items()
    ]
    r = {"benchmarks": {"code": "a", "claims": claims}}
    assert [c["id"] for c in report.list_current(r, r)["benchmarks"]["claims"]] == ["bench.cnn"]


def test_second_seeds_stand_beside_the_first(checkout, capsys):
    write(checkout / "build" / "replicate", -1.0, seed_offset=1000)
    assert report.main([], checkout) == 0
    saved = json.loads((checkout / "figures" / "replication.json").read_text(encoding="utf-8"))
    assert saved["lottery_tickets"]["seed_offset"] == 1000
    assert saved["lottery_tickets"]["numbers"] == {"x": 1}
    assert saved["lottery_tickets"]["verdicts"]["lottery.sparse"] == {"first": "reproduced", "second": "not reproduced"}
    table = (checkout / "REPRODUCTION.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| `lottery.sparse`"))
    assert "| **reproduced** | **not reproduced**<br>95.2% -5.20 [-5.40, -5.00], n = 5 |" in row
    assert (
        "3 of those that depend on seeds were run again with other seeds and today's code, and 2 keep their verdict; "
        "`lottery.sparse` from reproduced to not reproduced." in (checkout / "README.md").read_text(encoding="utf-8")
    )
    assert (checkout / "figures" / "verdicts.png").stat().st_size > 1000
    write(checkout / "build" / "replicate", -1.0, seed_offset=1000, code="other")  # is shown, and does not count
    assert report.main([], checkout) == 0
    assert "run again with other seeds" not in (checkout / "README.md").read_text(encoding="utf-8")
    assert report.STALE in (checkout / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert report.collect_replication(checkout) and "figures/replication.json" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"seed_offset": 0}, {"seed_offset": 7, "no_verdict": "the quick profile"}])
def test_a_second_run_must_be_one_of_other_seeds_with_verdicts(checkout, changes):
    write(checkout / "build" / "replicate", 1.0, **changes)
    with pytest.raises(ValueError, match=r"replicate/lottery_tickets\.json"):
        report.collect_replication(checkout)


def test_the_table_of_work_shows_ratios_at_equal_work_only(checkout):
    knobs = json.loads((checkout / "mnist1d" / "published.json").read_text(encoding="utf-8"))["lottery_tickets"]
    row = next(
        line for line in report.render(checkout)["README.md"].splitlines() if line.startswith("| lottery_tickets")
    )
    assert f"steps {knobs['STEPS']:,}" in row and re.search(r"\| \d\d% \| 5 \| 2\.0 \| - \| - \|$", row)
    assert "All of it is 0.0 hours on two cores." in report.render(checkout)["README.md"]
    measured = {"ratio": 1.43, "plain_minutes": 43.04, "ours_minutes": 30.1}
    measured = {"lottery_tickets": measured, "another": {**measured, "ratio": 100.0}}  # of a notebook without results
    (checkout / "figures" / "equal_work.json").write_text(json.dumps(measured), encoding="utf-8")
    rows = report.render(checkout)["README.md"].splitlines()
    row = next(line for line in rows if line.startswith("| lottery_tickets"))
    assert row.endswith("| 5 | 2.0 | 1.4 | 43 / 30 |")
    assert next(line for line in rows if line.startswith("| all |")).endswith("| 1.4, geometric mean | |")


def test_the_work_of_older_code_is_not_told_by_the_knobs_of_today():
    results, knobs = {"pooling": report.read_all(ROOT)["pooling"]}, {"pooling": {"STEPS": 77, "SIZES": [1, 2, 3]}}
    row = report.format_times(results, knobs, {})
    assert "steps 77" in row and f"| {77 * 3 / 36_000:.0%} |" in row
    row = report.format_times(results, knobs, {}, stale=["pooling"])
    assert "of older code" in row and "77" not in row


@pytest.mark.parametrize("slug", report.WORK)
def test_the_published_work_is_a_share_of_one(slug):
    """With the published knobs: more of them is more, and none of the formulas needs a knob that is not there."""
    knobs = report.read_json(ROOT / "mnist1d" / "published.json")[slug]
    _, named, measure_share = report.WORK[slug]
    assert set(named) <= set(knobs)
    share = measure_share(knobs)
    more = {name: value * 2 if isinstance(value, int | list) else value for name, value in knobs.items()}
    assert 0 < share < measure_share(more)


def test_p_values_are_those_of_scipy():
    samples = [4.0, 5.0, 6.5, 7.0, 3.0]
    part = judge("pool.low", {"max": samples, "average": samples, "L2": samples})["measured"][0]
    assert part["bound"] == "> 10"
    assert report.format_p(part) == f", p = {scipy.stats.ttest_1samp(samples, 10).pvalue:.1g}"
    hits = [1.0] * 383 + [0.0] * 17
    part = judge("act.shape", hits)["measured"][0]
    assert part["bound"] == "share > 50" and report.format_p(part) == ", p < 1e-6"
    assert report.format_p({**part, "mean": 60.0, "n": 10}) == f", p = {scipy.stats.binomtest(6, 10).pvalue:.1g}"
    band = {"bound": "70 ± 2", "mean": 70.0, "sd": 1.0, "n": 5}
    assert report.format_p(band) == "" and report.format_p({**band, "bound": "> 3", "sd": 0.0}) == ""


def test_the_forest_plot_draws_every_part(checkout):
    results = report.read_all(checkout)
    fig = report.draw_verdicts(results)
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    plt.close(fig)
    assert {"lottery_tickets", "lottery.reinit", "lottery.sparse", "95.2%"} <= set(texts)
    assert sum("n = 5" in text for text in texts) == 3


def test_a_report_without_its_markers_is_an_error():
    with pytest.raises(ValueError, match="<!-- figures -->"):
        report.replace_block("no markers", "figures", "x")
