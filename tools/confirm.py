"""Confirm the committed results after a change of the code that moves no number and no picture.

Results are those of the code that made them, by its digest, and a full run of all notebooks takes hours. A change
that is meant to leave all numbers alone, in the engine say, or of a message in a notebook, can be shown to do so in
minutes: notebooks whose published knobs have not changed are run in a short profile as they are in a revision and
as they are today, on one machine. Where every number is the same to the six digits of a results file, and every
picture to the last byte, the results of the revision's code are confirmed as today's. A change that shows only at
scale would pass: REPRODUCTION.md says which results rest on it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from agreement import read_numbers, read_results
from mnist1d.results import code_digest, write_json
from run_notebooks import ROOT, list_slugs


def list_candidates(old, new, slugs):
    """The notebooks whose results belong to the old code and whose knobs have their old values in both."""
    found = []
    knobs = [json.loads((root / "mnist1d" / "published.json").read_text(encoding="utf-8")) for root in (old, new)]
    for slug in slugs:
        if not (old / "notebooks" / f"{slug}.ipynb").is_file():  # newer than the revision
            continue
        results = read_results(new / "figures" / f"{slug}.json") or {}
        before, after = code_digest(slug, old), code_digest(slug, new)
        is_theirs = before in (results.get("code"), results.get("confirmed", {}).get("code"))
        theirs, ours = (k.get(slug, {}) for k in knobs)
        if is_theirs and before != after and {name: ours.get(name) for name in theirs} == theirs:
            found.append(slug)
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


def confirm(slug, old, new, profile):
    """Mark the results of one notebook if both runs have the same numbers and pictures; whether they have."""
    theirs, ours = (read_results(root / "build" / profile / f"{slug}.json") for root in (old, new))
    if None in (theirs, ours) or theirs["code"] != code_digest(slug, old) or ours["code"] != code_digest(slug, new):
        return False
    if read_numbers(theirs) != read_numbers(ours):
        return False
    if not are_pictures_same(slug, old, new, profile):
        return False
    path = new / "figures" / f"{slug}.json"
    results = read_results(path)
    last = results.get("confirmed", {})
    earlier = [*last.get("earlier", []), *([last["code"]] if last else [])]  # what rests on what
    confirmed = {"code": ours["code"], "profile": profile, "earlier": earlier}
    before = {"slug": results["slug"], "code": results["code"], "confirmed": confirmed}
    write_json(path, before | {k: v for k, v in results.items() if k not in before})
    return True


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="of git: the package that the committed results belong to")
    parser.add_argument("slugs", nargs="*", help="notebooks; by default all")
    parser.add_argument("--profile", choices=["quick", "smoke"], default="quick")
    options = parser.parse_args(arguments)
    known = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{options.revision}^{{commit}}"]
    if subprocess.run(known, check=False, capture_output=True).returncode:
        raise SystemExit(f"revision={options.revision!r}: must be known to git")
    old = ROOT / "build" / "confirm"
    shutil.rmtree(old, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(old)], check=True)
    subprocess.run(["git", "-C", str(old), "checkout", "--quiet", options.revision], check=True)
    slugs = list_candidates(old, ROOT, options.slugs or list_slugs(ROOT))
    if not slugs:
        print("no results of that revision's package are left to confirm")
        return 0
    for root in (old, ROOT):
        run(root, slugs, options.profile)
    outcomes = {slug: confirm(slug, old, ROOT, options.profile) for slug in slugs}
    for slug, same in outcomes.items():
        print(f"{slug}: {'the same numbers and pictures, confirmed' if same else 'not confirmed'}")
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
