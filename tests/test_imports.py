"Imports go down only: cli, site, suite, data, core; papers stand beside the suite and never on each other."

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "avpapers"
FLOORS = ("core", "data", "suite", "site", "cli")  # from the ground up
KNOWN_CIRCLES = (  # about to go
    {"avpapers.suite.papers", "avpapers.suite.site"},
)
MODULES = {
    ".".join(("avpapers", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "_modidx.py"
}


def targets(name):
    "Modules of the package that a module imports, at the top or inside a function."
    found, path = set(), MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            found |= {
                f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names
            }
    return {m for m in found if m in MODULES and m != name and m != "avpapers"}


GRAPH = {name: targets(name) for name in MODULES}


def room(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", [m for m in MODULES if room(m)])
def test_imports_go_down(name):
    mine = room(name)
    if mine in FLOORS:
        below = FLOORS[: FLOORS.index(mine) + 1]
    else:
        below = ("core", "data", "suite", mine)
    up = sorted(m for m in GRAPH[name] if room(m) not in below)
    assert not up, f"{name} imports {up}; expected only modules of {', '.join(below)}"


def test_no_circles():
    seen, circles = {}, []

    def walk(module, path):
        if module in path:
            circles.append(path[path.index(module) :])
        elif module not in seen:
            for other in sorted(GRAPH[module]):
                walk(other, [*path, module])
            seen[module] = True

    for module in GRAPH:
        walk(module, [])
    unknown = [" -> ".join([*c, c[0]]) for c in circles if set(c) not in KNOWN_CIRCLES]
    assert not unknown, f"these modules import each other: {unknown}"


def test_there_is_something_to_look_at():
    assert len(GRAPH) > 40 and "avpapers.core.stats" in GRAPH["avpapers.core.benchmark"]
