"""The repository agrees with itself: requirements, notebooks, addresses, results and documents."""

import ast
import re
import shutil
import subprocess

import pytest

import colab
import oldest
import report
import run_notebooks
from mnist1d.claims import CLAIMS
from notebooks import ROOT, read_notebook

SLUGS = run_notebooks.list_slugs(ROOT)
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
RESULTS = report.read_all(ROOT)


def version_tuple(text):
    return tuple(int(part) for part in re.findall(r"\d+", text))


def list_files():
    """The files of this checkout that git knows, or all of a source distribution."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        return [name for name in names if (ROOT / name).is_file()]
    made = {"build", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "mnist1d.egg-info"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if not made & set(path.parts)]


def test_pins_lie_within_the_ranges_and_name_the_same_packages():
    dependencies = oldest.list_dependencies(PYPROJECT, leave_out=("playground",))
    ranges = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", dependency).groups() for dependency in dependencies)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins.keys() == ranges.keys()
    for name, low in ranges.items():
        assert version_tuple(pins[name]) >= version_tuple(low)
    assert pins["torch"] == "2.13.0"


def test_one_version_stands_everywhere():
    version = re.search(r'^version = "(.+)"$', PYPROJECT, flags=re.M)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def is_text_without_encoding(call):
    """Whether an ast.Call opens a text file in the locale's encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named or None in named:
        return False
    if name in ("read_text", "write_text"):
        return not (name == "read_text" and call.args)
    if name == "open" and isinstance(call.func, ast.Name):
        mode = named.get("mode", call.args[1] if len(call.args) > 1 else ast.Constant("r"))
        return isinstance(mode, ast.Constant) and "b" not in mode.value
    return False


FOLDERS = "mnist1d/**", "tools", "tests", "records", "playground", "."
SOURCES = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_text_files_are_utf_8_on_every_system(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and is_text_without_encoding(node)]
    assert not lines, f"{path.name}, lines {lines}: name the encoding"


@pytest.mark.parametrize(
    ("code", "found"),
    [("open('x')", True), ("open('x', 'w')", True), ("open('x', 'rb')", False), ("p.read_text()", True),
     ("p.write_text('x')", True), ("p.write_text('x', encoding='utf-8')", False), ("p.read_bytes()", False)],
)  # fmt: skip
def test_what_opens_text_in_the_locale_is_found(code, found):
    assert is_text_without_encoding(ast.parse(code).body[0].value) == found


def test_environment_holds_python_pip_and_the_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    dependencies = re.findall(r"^ +- (.+)$", text.split("dependencies:")[1], flags=re.M)
    assert dependencies == ["python=3.11", "pip", "pip:", "-r requirements.txt", "-e ."]


def test_lower_bounds_do_not_exceed_what_colab_ships():
    shipped = {"torch": "2.11", "numpy": "2.1.3", "scipy": "1.16.3", "scikit-learn": "1.6.1", "matplotlib": "3.10"}
    for name, version in shipped.items():
        low = re.search(rf'"{name}>=([\d.]+)"', PYPROJECT)[1]
        assert version_tuple(low) <= version_tuple(version), name


def test_there_is_a_notebook_for_every_figure_and_claim():
    assert set(SLUGS) == set(report.FIGURES) and {claim.slug for claim in CLAIMS.values()} <= set(SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_notebook_keeps_the_skeleton(slug):
    cells = read_notebook(slug)
    code = [(source, tags) for kind, source, tags in cells if kind == "code"]
    repository = report.read_repository(ROOT)
    badge = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{slug}.ipynb"
    assert badge in cells[0][1] and cells[1][1].startswith("# ")
    assert code[0][0] == colab.GUARD.replace("@REPOSITORY@", repository).rstrip("\n")
    assert [tags for _, tags in code].count(["parameters"]) == 1
    for source, tags in code:
        assert len(source.splitlines()) <= 40  # more are two cells
        assert ("SMOKE =" in source or "pick(" in source) == (tags == ["parameters"])
    whole = "\n".join(source for source, _ in code)
    assert "%pip" not in whole and re.search(rf'save_figure\(\s*fig, "{slug}"[,)]', whole)
    assert re.search(rf'save_results\(\s*"{slug}"', whole)
    assert any(
        kind == "markdown" and re.search(r"^## (Takeaways|Where to go on)", source, re.M) for kind, source, _ in cells
    )
    for forbidden in ("sys.path", "drive.mount", "except:", "TAKEAWAYS", "READING", "MINUTES", "TODO"):
        assert forbidden not in "\n".join(source for _, source, _ in cells)
    assert run_notebooks.WIDGET not in (ROOT / "notebooks" / f"{slug}.ipynb").read_text(encoding="utf-8")


def test_the_workflow_of_figures_runs_every_notebook():
    text = (ROOT / ".github" / "workflows" / "figures.yml").read_text(encoding="utf-8")
    assert re.findall(r"^          - (\w+)$", text, flags=re.M) == SLUGS


@pytest.mark.parametrize("name", ["README.md", "REPRODUCTION.md"])
def test_every_picture_of_a_document_has_alternative_text(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    pictures = re.findall(r"<img [^>]*>|!\[[^\]]*\]\([^)]*\)", text)
    assert pictures and all(re.search(r'alt="[^"]{5,}"|!\[[^\]]{5,}\]', picture) for picture in pictures)


def test_every_text_has_the_same_line_ends_on_every_system():
    lines = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "* text=auto eol=lf" in lines


@pytest.mark.parametrize("slug", SLUGS)
def test_knobs_are_used(slug):
    cells = read_notebook(slug)
    (parameters,) = [source for _, source, tags in cells if tags == ["parameters"]]
    rest = "\n".join(source for kind, source, tags in cells if kind == "code")
    names = {node.id for node in ast.walk(ast.parse(parameters)) if isinstance(node, ast.Name) and node.id.isupper()}
    unused = [name for name in names if len(re.findall(rf"\b{name}\b", rest)) < 2]
    assert not unused


def test_package_imports_in_one_direction():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in readme if line.startswith("The package is read in this order")]
    order, package = re.findall(r"`(\w+)`", line), ROOT / "mnist1d"
    assert set(order) == {path.stem for path in package.glob("[!_]*.py")} | {"engine"}
    for i, module in enumerate(order):
        paths = [package / f"{module}.py"] if module != "engine" else package.glob("engine/*.py")
        source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        top = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
        for later in order[i + 1 :]:
            assert not any(re.search(rf"mnist1d(\.| import .*\b){later}\b", line) for line in top), (module, later)


def test_one_address_and_it_can_be_restamped(tmp_path):
    for name in list_files():
        if name.startswith("mnist1d/") or not name.endswith((".toml", ".md", ".cff", ".ipynb")):
            continue
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changed = colab.restamp(tmp_path, "someone/elsewhere")
    assert {"pyproject.toml", "README.md", *(f"{slug}.ipynb" for slug in SLUGS)} <= set(changed)
    left = [path for path in tmp_path.rglob("*.*") if report.read_repository(ROOT) in path.read_text(encoding="utf-8")]
    assert not left and report.read_repository(tmp_path) == "someone/elsewhere"


# The committed results


def test_every_notebook_has_its_results_and_pictures():
    assert set(RESULTS) == set(SLUGS)
    for slug in SLUGS:
        assert all((ROOT / "figures" / f"{slug}.{kind}").is_file() for kind in ("png", "pdf"))


def test_every_picture_is_drawn_by_a_notebook_or_a_tool():
    drawn = {"verdicts", "lottery_control"}  # by make report, make lottery_control
    for slug in SLUGS:
        code = "\n".join(source for kind, source, _ in read_notebook(slug) if kind == "code")
        drawn |= {slug, *re.findall(r'save_figure\(\s*fig, "(\w+)"', code)}
    left = [path.name for path in (ROOT / "figures").iterdir() if path.suffix != ".json" and path.stem not in drawn]
    assert not left


def test_files_are_small_and_say_nothing_of_this_machine():
    for name in list_files():
        content = (ROOT / name).read_bytes()
        limit = 600_000 if name.startswith(("figures/", "notebooks/")) else 100_000
        assert len(content) <= limit, name
        assert b"/" + b"work/" not in content and b"/ro" + b"ot/" not in content, name
