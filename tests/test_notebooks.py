"How every notebook is written: short cells, imports apart, each step introduced, nothing noisy in the outputs."

import ast
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"
NOTEBOOKS = sorted(
    p.relative_to(NBS).as_posix()
    for p in NBS.rglob("*.ipynb")
    if not any(q[0] in "._" for q in p.relative_to(NBS).parts)
)
QUIET = re.compile(r"^#\|\s*(hide|eval: false|default_exp)", re.M)


def cells(name):
    found = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found]


def lines(source):
    "Lines of code: directives and blank lines do not count."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in source.split("\n"))


def parsed(c):
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", c["source"], flags=re.M))
    except SyntaxError:
        return ast.Module([], [])


def imports_only(c):
    body = parsed(c).body
    guard = [
        n for n in body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"
    ]
    return bool(body) and all(
        isinstance(n, (ast.Import, ast.ImportFrom)) or n in guard for n in body
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_long_cell(name):
    long = [
        (c["id"], n)
        for c in cells(name)
        if c["cell_type"] == "code" and (n := lines(c["source"])) > 60
    ]
    assert not long, f"{name}: split these cells, none may be over 60 lines: {long}"


def test_most_cells_are_short():
    sizes = sorted(
        lines(c["source"]) for n in NOTEBOOKS for c in cells(n) if c["cell_type"] == "code"
    )
    middle, most = sizes[len(sizes) // 2], sizes[len(sizes) * 9 // 10]
    assert middle <= 8 and most <= 20, (middle, most)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_lines_are_within_100(name):
    "A sentence in quotes that the formatter cannot break may be a little longer; captions are one line."
    long = []
    for c in cells(name):
        for line in c["source"].split("\n") if c["cell_type"] == "code" else ():
            limit = 120 if re.search(r"""["']""", line) else 100
            if len(line) > limit and not line.startswith("#|"):
                long.append((c["id"], line.strip()[:60]))
    assert not long or name.endswith("09_kernels_gpu.ipynb"), f"{name}: wrap {long}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_imports_have_a_cell_of_their_own(name):
    "The site runs every cell that imports: one that also computes would compute again."
    mixed = []
    for c in cells(name):
        if (
            c["cell_type"] == "code"
            and "#| export" not in c["source"]
            and not re.search(r"eval:\s*false", c["source"])
        ):
            kinds = {type(n) for n in ast.walk(parsed(c))}
            if kinds & {ast.Import, ast.ImportFrom} and kinds & {ast.Expr, ast.Assign}:
                mixed.append(c["id"])
    assert not mixed, f"{name}: these cells import and compute: {mixed}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_step_is_introduced(name):
    "A sentence comes before a step; a definition and its first use may share one."
    found, run = [], 0
    for c in cells(name):
        if c["cell_type"] != "code":
            run = 0
        elif not (QUIET.search(c["source"]) or imports_only(c)):
            run += 1
            if run > 2:
                found.append(
                    c["source"]
                    .strip()
                    .split("\n")[0 if not c["source"].startswith("#|") else -1][:60]
                )
    assert not found, f"{name}: say in a sentence what comes: {found}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opening(name):
    first = cells(name)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n\n> \S.*", first["source"]), (
        f"{name}: open with '# Title' and '> summary'"
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_clean(name):
    "No warnings, progress bars, tracebacks or paths of one machine among the saved outputs."
    for c in cells(name):
        for output in c.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr", (
                f"{name}: cell {c['id']} has an error or a warning in its output"
            )
            text = json.dumps(
                [v for k, v in output.get("data", {}).items() if k.startswith("text")]
                + [output.get("text", "")]
            )
            assert not re.search(r"/(home|root|tmp|work|Users)/\w|it/s\]", text), (
                f"{name}: cell {c['id']} shows a path or a progress bar"
            )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_directives_are_bare(name):
    "With a colon nbdev exports nothing, and says so only in a warning."
    bad = [
        c["id"]
        for c in cells(name)
        if c["cell_type"] == "code"
        and re.search(r"^#\|\s*(export\w*|default_exp|hide):", c["source"], re.M)
    ]
    assert not bad, f"{name}: write '#| export' without a colon: {bad}"
