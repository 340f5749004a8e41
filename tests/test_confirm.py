"""Results are confirmed where the old and the new code give the same numbers and pictures, and nowhere else."""

import json

import pytest

import confirm
import report
from mnist1d.results import code_digest
from notebooks import ROOT


def write_checkout(root, gain, cell="data = translate(x)", **knobs):
    """A checkout of one notebook and a package of one function."""
    for folder in ("notebooks", "figures", "mnist1d", "build/quick"):
        (root / folder).mkdir(parents=True)
    (root / "mnist1d" / "transform.py").write_text(f"def translate(x):\n    return {gain} * x\n", encoding="utf-8")
    (root / "mnist1d" / "published.json").write_text(json.dumps({"pooling": {"STEPS": 6000} | knobs}), encoding="utf-8")
    cells = [{"cell_type": "code", "source": [cell], "metadata": {}}]
    (root / "notebooks" / "pooling.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return root


def write_results(root, folder, **results):
    (root / folder / "pooling.json").write_text(json.dumps({"slug": "pooling", **results}), encoding="utf-8")


@pytest.fixture
def checkouts(tmp_path):
    """Two packages that differ, the results of the older one, and a quick run of each with the same numbers."""
    old, new = write_checkout(tmp_path / "old", "2"), write_checkout(tmp_path / "new", "2.0")
    write_results(new, "figures", profile="paper", code=code_digest("pooling", old), numbers={"a": 1.5})
    for root, seconds in ((old, 1), (new, 2)):
        numbers = {"a": [1.0, 2.0], "seconds": seconds, "ms_a_step": {"CNN": 3 * seconds}}
        write_results(root, "build/quick", code=code_digest("pooling", root), numbers=numbers)
        (root / "build" / "quick" / "pooling.png").write_bytes(b"a picture")
    (new / "figures" / "pooling.png").write_bytes(b"the full picture")
    return old, new


def read(root):
    return json.loads((root / "figures" / "pooling.json").read_text(encoding="utf-8"))


def test_equal_numbers_confirm(checkouts):
    old, new = checkouts
    assert confirm.list_candidates(old, new, ["pooling"]) == ["pooling"]
    before = read(new)
    assert confirm.confirm("pooling", old, new, "quick")
    after = read(new)
    expected = {"code": code_digest("pooling", new), "profile": "quick", "earlier": []}
    assert after.pop("confirmed") == expected and after == before
    assert confirm.list_candidates(new, new, ["pooling"]) == []  # nothing has changed since then


def test_a_misspelt_notebook_is_no_success(capsys):
    with pytest.raises(SystemExit) as ended:
        confirm.main(["HEAD", "poolign"])
    assert ended.value.code and "no such notebook: poolign" in capsys.readouterr().err


def test_what_a_confirmation_rests_on_is_kept(checkouts):
    old, new = checkouts
    middle = {"code": code_digest("pooling", old), "profile": "smoke", "earlier": ["first"]}
    write_results(new, "figures", profile="paper", code="another", confirmed=middle, numbers={"a": 1.5})
    assert confirm.confirm("pooling", old, new, "quick")
    assert read(new)["confirmed"]["earlier"] == ["first", code_digest("pooling", old)]


def test_other_numbers_or_runs_of_other_code_do_not(checkouts):
    old, new = checkouts
    before = read(new)
    for code, numbers in ((code_digest("pooling", new), {"a": [1.0, 2.5]}), ("another", {"a": [1.0, 2.0]})):
        write_results(new, "build/quick", code=code, numbers=numbers)
        assert not confirm.confirm("pooling", old, new, "quick")
    (new / "build/quick/pooling.json").unlink()
    assert not confirm.confirm("pooling", old, new, "quick")
    assert read(new) == before


def test_a_notebook_that_the_revision_does_not_have_is_no_candidate(checkouts):
    old, new = checkouts
    (old / "notebooks" / "pooling.ipynb").unlink()
    assert confirm.list_candidates(old, new, ["pooling"]) == []


def test_another_picture_does_not_confirm(checkouts):
    old, new = checkouts
    (new / "build" / "quick" / "pooling.png").write_bytes(b"another picture")
    assert not confirm.confirm("pooling", old, new, "quick")
    (new / "build" / "quick" / "pooling.png").write_bytes(b"a picture")
    (new / "figures" / "pooling_curves.png").write_bytes(b"drawn in the full profile alone")
    assert not confirm.confirm("pooling", old, new, "quick")


def test_runs_with_other_seeds_need_the_same_numbers_alone(checkouts):
    old, new = checkouts
    first = code_digest("pooling", old)
    write_results(old, "figures", profile="paper", code="before", confirmed={"code": first}, numbers={"a": 1.5})
    write_results(new, "figures", profile="paper", code=code_digest("pooling", new), numbers={"a": 1.5})
    path = new / "figures" / "replication.json"
    path.write_text(json.dumps({"pooling": {"code": "before", "numbers": {"a": 1.6}}}), encoding="utf-8")
    assert confirm.list_replicates(old, new, ["tsne"]) == []
    assert confirm.list_replicates(old, new, ["pooling"]) == ["pooling"]
    (new / "build" / "quick" / "pooling.png").write_bytes(b"another picture")
    assert confirm.confirm_replicate("pooling", old, new, "quick")
    again = json.loads(path.read_text(encoding="utf-8"))["pooling"]
    assert again == {"code": "before", "numbers": {"a": 1.6}, "confirmed": code_digest("pooling", new)}
    assert report.is_again(read(new), again) and confirm.list_replicates(old, new, ["pooling"]) == []


def test_other_numbers_do_not_confirm_runs_with_other_seeds(checkouts):
    old, new = checkouts
    write_results(new, "build/quick", code=code_digest("pooling", new), numbers={"a": [1.0, 2.5]})
    assert not confirm.confirm_replicate("pooling", old, new, "quick")
    assert not (new / "figures" / "replication.json").exists()


def test_another_knob_or_results_of_other_code_are_no_candidates(checkouts, tmp_path):
    old, _ = checkouts
    for name, knobs, candidates in (("more", {"BLOCKS": 20}, ["pooling"]), ("other", {"STEPS": 3000}, [])):
        new = write_checkout(tmp_path / name, "2.0", cell="data = translate(3 * x)", **knobs)
        write_results(new, "figures", profile="paper", code=code_digest("pooling", old), numbers={})
        assert confirm.list_candidates(old, new, ["pooling"]) == candidates
    new = write_checkout(tmp_path / "newest", "2.0")
    write_results(new, "figures", profile="paper", code="of long ago", numbers={})
    assert confirm.list_candidates(old, new, ["pooling"]) == []


def test_an_unknown_revision_is_an_error(capfd):
    with pytest.raises(SystemExit, match=r"^revision='no such': must be known to git"):
        confirm.main(["no such"])
    assert (ROOT / "figures").is_dir()
