"""Confirm the committed results after a change of the code that moves no number and no picture.

Results are those of the code that made them, by its digest, and a full run of all notebooks takes hours. A change
that is meant to leave all numbers alone, in the engine say, or of a message in a notebook, can be shown to do so in
minutes: notebooks whose published knobs have not changed are run in a short profile as they are in a revision and
as they are today, on one machine. Where every number is the same to the six digits of a results file, and every
picture to the last byte, the results of the revision's code are confirmed as today's. A change that shows only at
scale would pass: REPRODUCTION.md says which results rest on it. Of runs with other seeds only numbers are published,
so they are confirmed where a figure has changed, too.
"""

import argparse
import os
import shutil
import subprocess
import sys

from agreement import read_numbers, read_results
from mnist1d.results import code_digest, write_json
from report import is_again, is_of_code, read_json, write_replication
from run_notebooks import ROOT, list_slugs


def has_same_knobs(slug, old, new):
    theirs, ours = (read_json(root / "mnist1d" / "published.json").get(slug, {}) for root in (old, new))
    return {name: ours.get(name) for name in theirs} == theirs


def list_candidates(old, new, slugs):
    """The notebooks whose results belong to the old code and whose knobs have their old values in both."""
    found = []
    for slug in slugs:
        if not (old / "notebooks" / f"{slug}.ipynb").is_file():  # newer than the revision
            continue
        results = read_results(new / "figures" / f"{slug}.json") or {}
        before, after = code_digest(slug, old), code_digest(slug, new)
        is_theirs = before in (results.get("code"), results.get("confirmed", {}).get("code"))
        if is_theirs and before != after and has_same_knobs(slug, old, new):
            found.append(slug)
    return found


def list_replicates(old, new, slugs):
    """The notebooks whose runs with other seeds belong to the old results and no longer to the new ones."""
    found = []
    for slug, again in read_json(new / "figures" / "replication.json").items():
        theirs, ours = (read_json(root / "figures" / f"{slug}.json") for root in (old, new))
        if slug in slugs and theirs and ours and has_same_knobs(slug, old, new):
            is_theirs = is_of_code(theirs, code_digest(slug, old)) and is_again(theirs, again)
            found += [slug] * (is_theirs and not is_again(ours, again))
    return found


def run(root, slugs, profile):
    """Run notebooks of a checkout, with its own package."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tools")])}
    command = [sys.executable, "tools/run_notebooks.py", "--profile", profile, *slugs]
    subprocess.run(command, check=False, cwd=root, env=environment)  # what has no results is not confirmed


def are_pictures_same(slug, old, new, profile):
    """Whether both runs have drawn every committed picture of a notebook, and alike."""
    for path in (new / "figures").glob(f"{slug}*"):
        if path.suffix in (".png", ".gif"):
            theirs, ours = (root / "build" / profile / path.name for root in (old, new))
            if not (theirs.is_file() and ours.is_file() and theirs.read_bytes() == ours.read_bytes()):
                return False
    return True


def are_numbers_same(slug, old, new, profile):
    """Whether both runs are of the code of their checkouts and have the same numbers."""
    theirs, ours = (read_results(root / "build" / profile / f"{slug}.json") for root in (old, new))
    if None in (theirs, ours) or theirs["code"] != code_digest(slug, old) or ours["code"] != code_digest(slug, new):
        return False
    return read_numbers(theirs) == read_numbers(ours)


def confirm(slug, old, new, profile):
    """Mark the results of one notebook if both runs have the same numbers and pictures; whether they have."""
    if not (are_numbers_same(slug, old, new, profile) and are_pictures_same(slug, old, new, profile)):
        return False
    path = new / "figures" / f"{slug}.json"
    results = read_results(path)
    last = results.get("confirmed", {})
    earlier = [*last.get("earlier", []), *([last["code"]] if last else [])]  # what rests on what
    confirmed = {"code": code_digest(slug, new), "profile": profile, "earlier": earlier}
    before = {"slug": results["slug"], "code": results["code"], "confirmed": confirmed}
    write_json(path, before | {k: v for k, v in results.items() if k not in before})
    return True


def confirm_replicate(slug, old, new, profile):
    """Mark the run of one notebook with other seeds if both runs have the same numbers; whether they have."""
    if not are_numbers_same(slug, old, new, profile):
        return False
    path = new / "figures" / "replication.json"
    replication = read_json(path)
    replication[slug]["confirmed"] = code_digest(slug, new)
    write_replication(path, replication)
    return True


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="of git: the package that the committed results belong to")
    parser.add_argument("slugs", nargs="*", help="notebooks; by default all")
    parser.add_argument("--profile", choices=["quick", "smoke"], default="quick")
    options = parser.parse_args(arguments)
    asked = options.slugs or list_slugs(ROOT)
    if unknown := set(asked) - set(list_slugs(ROOT)):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    known = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{options.revision}^{{commit}}"]
    if subprocess.run(known, check=False, capture_output=True).returncode:
        raise SystemExit(f"revision={options.revision!r}: must be known to git")
    old = ROOT / "build" / "confirm"
    shutil.rmtree(old, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(old)], check=True)
    subprocess.run(["git", "-C", str(old), "checkout", "--quiet", options.revision], check=True)
    slugs, again = list_candidates(old, ROOT, asked), list_replicates(old, ROOT, asked)
    if not slugs + again:
        print("no results of that revision's package are left to confirm")
        return 0
    for root in (old, ROOT):
        run(root, sorted({*slugs, *again}), options.profile)
    outcomes = {f"{slug}: the same numbers and pictures": confirm(slug, old, ROOT, options.profile) for slug in slugs}
    outcomes |= {
        f"{slug}, other seeds: the same numbers": confirm_replicate(slug, old, ROOT, options.profile) for slug in again
    }
    for text, same in outcomes.items():
        print(f"{text}, confirmed" if same else f"{text}? no, not confirmed")
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
