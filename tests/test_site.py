"The site: badges, sidebar, links, the resolver that stands in for Quarto, and a small build from end to end."

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avpapers.site import badges, browser, links, render, resolve, stage
from avpapers.suite import project
from avpapers.suite.paper import load_paper, standing_papers
from avpapers.suite.papers import collection, papers_html, papers_table, synced

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = badges.site_notebooks(ROOT)


# ---------------------------------------------------------------- what is committed


def test_badges_and_install_cells_are_up_to_date():
    assert badges.sync_badges(check=True, root=ROOT) == [], "run: avpapers docs --badges"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_badge_matches_the_address(name):
    first = project.read_notebook(NBS / name)["cells"][0]["source"]
    s = project.settings(ROOT)
    for link in re.findall(r'href="(https://colab[^"]*)"', first):
        assert (
            link
            == f"https://colab.research.google.com/github/{s['user']}/{s['repo']}/blob/{s['branch']}/nbs/{name}"
        )
    if name.split("/")[0] in collection():
        assert first.count("Open in Colab") == 1


def sidebar(contents):
    for entry in contents:
        if isinstance(entry, dict):
            yield from ([entry["href"]] if "href" in entry else [])
            yield from sidebar(entry.get("contents", []))
        else:
            yield entry


def test_sidebar_lists_every_notebook_once():
    listed = list(sidebar(render.site_config(ROOT)["website"]["sidebar"]["contents"]))
    assert not [n for n in NOTEBOOKS if n not in listed], "add them to _quarto.yml"
    assert not [n for n in listed if n not in NOTEBOOKS], (
        "_quarto.yml lists notebooks that do not exist"
    )
    assert not [n for n in listed if listed.count(n) > 1 and n != "adding_a_paper.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_between_notebooks(name):
    for c in project.read_notebook(NBS / name)["cells"]:
        if c["cell_type"] == "markdown":
            text = re.sub(r"^(`{3,}).*?^\1`*\s*$|`[^`\n]+`", "", c["source"], flags=re.S | re.M)
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                if not re.match(r"[a-z]+:|#|/", link):
                    assert (NBS / name).parent.joinpath(link.partition("#")[0]).exists(), (
                        f"{name}: {link} leads nowhere"
                    )


def test_references_parse_and_name_every_paper():
    entries = resolve.read_bibliography(NBS / "references.bib")
    for p in map(load_paper, standing_papers()):
        entry = entries[p.citation]
        assert p.venue.endswith(entry.fields["year"]) and resolve.reference_html(entry)
        assert p.arxiv == entry.fields.get("eprint", "")


def test_menus_and_readme_are_made_from_the_papers():
    "`avpapers docs --sync` would change nothing."
    for path, text in synced(ROOT).items():
        assert path.read_text(encoding="utf8") == text, path.name


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_key_is_known(name):
    nb = stage.stage_notebook(project.read_notebook(NBS / name))
    resolve.resolve(
        nb,
        entries=resolve.read_bibliography(NBS / "references.bib"),
        folder=(NBS / name).parent,
        name=name,
    )


def test_papers_table_needs_no_ledger(tmp_path):
    assert len(papers_table(tmp_path)) == 10 and "in preparation" in papers_html(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records/ledger.json").write_text(
        json.dumps({"claims": [{"paper": "skiprnn", "verdict": "reproduced", "tier": "cpu"}]})
    )
    assert papers_table(tmp_path)["Verdicts"].iloc[0] == "1 reproduced"


# ---------------------------------------------------------------- badges


CONFIG = {"user": "someone", "repo": "fork", "branch": "dev", "version": "9.9.9"}


def test_badge_follows_settings_and_is_idempotent():
    nb = {
        "cells": [
            project.cell("# T\n\n> s\n\nText."),
            project.cell("#| default_exp a", "code"),
            project.cell("x", "code"),
        ]
    }
    once = badges.with_badge(nb, "skiprnn/02_model.ipynb", config=CONFIG)
    assert "someone/fork/blob/dev/nbs/skiprnn/02_model.ipynb" in once["cells"][0]["source"]
    assert "someone/fork@dev" in once["cells"][2]["source"]
    moved = badges.with_badge(once, "skiprnn/02b_model.ipynb", config=CONFIG)
    assert len(moved["cells"]) == 4 and moved["cells"][0]["source"].count("colab-badge") == 1
    assert badges.with_badge(moved, "skiprnn/02b_model.ipynb", config=CONFIG) == moved
    with pytest.raises(badges.SiteError, match="first cell"):
        badges.with_badge({"cells": [project.cell("no title")]}, "a/b.ipynb", config=CONFIG)


def test_entries_stand_before_their_own_source():
    def entry(name):
        return project.cell(f"#| output: asis\nshow_doc({name})", "code", name=name)

    fold = '#| code-fold: show\n#| code-summary: "Exported source"\n'

    def source(*names):
        text = fold + "\n".join(f"def {n}(): pass" for n in names)
        return project.cell(text, "code", name="+".join(names))

    nb = {
        "cells": [
            entry("c"),
            source("a", "b", "c"),
            entry("b"),
            entry("a"),
            entry("d"),
            source("d"),
            source("_e"),
        ]
    }
    for paper in (True, False):
        once = stage.tidy_entries(nb, paper=paper)
        assert [c["id"] for c in once["cells"]] == ["a", "b", "c", "a+b+c", "d", "d", "_e"]
        assert stage.tidy_entries(once, paper=paper) == once
        assert ["fold" in c["source"] for c in once["cells"] if "def" in c["source"]] == (
            [False, False, True] if paper else [True] * 3
        )
        nb = {
            "cells": [
                entry("c"),
                source("a", "b", "c"),
                entry("b"),
                entry("a"),
                entry("d"),
                source("d"),
                source("_e"),
            ]
        }


# ---------------------------------------------------------------- resolver


@pytest.fixture
def entries(tmp_path):
    (tmp_path / "r.bib").write_text(
        "@article{ada2020, title={On {RNN}s}, author={L{\\'o}pez, Ada and Bo, Cy}, journal={J}, "
        "year={2020}, doi={10.1/x}}\n"
        "@misc{many2021, title={T}, author={A, A and B, B and C, C}, year={2021}, eprint={2101.00001}}\n"
    )
    return resolve.read_bibliography(tmp_path / "r.bib")


def resolved(entries, *cells, **kwargs):
    cells = [project.cell(c) if isinstance(c, str) else c for c in cells]
    return resolve.resolve({"cells": cells}, entries=entries, **kwargs)["cells"]


def test_citations(entries):
    out = resolved(
        entries, "As @ada2020 say [see @many2021, sec. 2; -@ada2020], and @ada2020 [p. 3]."
    )
    assert out[0]["source"] == (
        "As [López and Bo (2020)](#ref-ada2020) say (see [A et al. 2021, sec. 2](#ref-many2021); "
        "[2020](#ref-ada2020)), and [López and Bo (2020, p. 3)](#ref-ada2020)."
    )
    assert out[1]["source"].count("csl-entry") == 2 and "https://doi.org/10.1/x" in out[1]["source"]


def test_references_go_where_the_page_wants_them(entries):
    out = resolved(entries, "@ada2020", "## Bibliography\n\n::: {#refs}\n:::", "Versions")
    assert len(out) == 3 and "csl-entry" in out[1]["source"] and "{#refs}" not in out[1]["source"]


@pytest.mark.parametrize(
    "text",
    [
        "write to ada@example.org",
        "`@patch` and ``x @ada2020``",
        "```python\n@ada2020\n```",
        "$a_@ada2020$ and $$b @fig-x$$",
        "<a href='@ada2020'>x</a>",
        "[x](https://a.b/@ada2020)",
        "https://a.b/@someone",
        "a list [x, y] and [link](u.ipynb)",
    ],
)
def test_what_is_left_alone(entries, text):
    assert resolved(entries, text)[0]["source"] == text


def test_cross_references(entries):
    figure = {
        **project.cell('#| label: fig-a\n#| fig-cap: "Loss $x$, after @ada2020"\nplot()', "code"),
        "outputs": [],
    }
    out = resolved(
        entries,
        "See @fig-b, @fig-a, @eq-one, @tbl-t and @sec-s.",
        figure,
        "$$\nx = 1\n$$ {#eq-one}",
        "![A map](m.png){#fig-b}",
        "| a |\n|---|\n| 1 |\n\n: Numbers {#tbl-t}",
        "## Why {#sec-s}",
    )
    assert out[0]["source"] == (
        "See [Figure 2](#fig-b), [Figure 1](#fig-a), [Equation 1](#eq-one), [Table 1](#tbl-t) and [“Why”](#sec-s)."
    )
    assert 'fig-cap: "Figure 1: Loss \\\\(x\\\\), after López and Bo (2020)"' in out[1]["source"]
    assert "\\tag{1}" in out[2]["source"] and "::: {#eq-one}" in out[2]["source"]
    assert (
        out[3]["source"].startswith("![Figure 2: A map]")
        and ": Table 1: Numbers {#tbl-t}" in out[4]["source"]
    )


def test_embed(entries, tmp_path):
    other = {
        "cells": [
            {
                **project.cell("#| label: fig-far\n#| fig-cap: Far\nplot()", "code"),
                "outputs": [{"output_type": "display_data", "data": {}}],
            }
        ]
    }
    (tmp_path / "other.ipynb").write_text(project.notebook_text(other))
    out = resolved(
        entries,
        "Before.\n\n{{< embed other.ipynb#fig-far >}}\n\nAfter, see @fig-far.",
        folder=tmp_path,
    )
    assert [c["cell_type"] for c in out] == ["markdown", "code", "markdown"]
    assert "echo" in out[1]["source"] and "Figure 1: Far" in out[1]["source"] and out[1]["outputs"]
    with pytest.raises(badges.SiteError, match="no cell labeled fig-none"):
        resolved(entries, "{{< embed other.ipynb#fig-none >}}", folder=tmp_path)


@pytest.mark.parametrize(
    "text", ["@nobody1999", "[@nobody1999; @ada2020]", "@fig-none", "see @tbl-none"]
)
def test_unknown_keys_name_page_and_key(entries, text):
    key = re.search(r"@(nobody1999|\w+-none)", text)[0]
    with pytest.raises(badges.SiteError, match=f"skiprnn/x.ipynb.*{key}"):
        resolved(entries, text, name="skiprnn/x.ipynb")


def test_label_twice(entries):
    with pytest.raises(badges.SiteError, match="page: label eq-a is used twice"):
        resolved(entries, "$$x$$ {#eq-a}", "$$y$$ {#eq-a}")


# ---------------------------------------------------------------- outputs of a run


def test_outputs_of_other_code_are_refused():
    old, run = ({"cells": [project.cell(text, "code")]} for text in ("1 + 1", "1 + 2"))
    with pytest.raises(badges.SiteError, match="run it again"):
        stage.with_outputs(old, run, name="x.ipynb")


def test_banner_only_for_runs():
    assert stage.add_run_banner({"metadata": {}}) == ""
    assert "tier `gpu`" in stage.add_run_banner(
        {"metadata": {"papermill": {"parameters": {"tier": "gpu"}}}}
    )


# ---------------------------------------------------------------- a build


QUARTO = """project: {type: website}
website:
  sidebar: {style: docked, contents: [index.ipynb, skiprnn/02_model.ipynb]}
  page-footer: {left: '<span class="build">x</span>'}
format: {html: {theme: {light: cosmo, dark: darkly}, css: styles.css, html-math-method: katex}}
bibliography: references.bib
"""


@pytest.fixture
def clone(tmp_path):
    "A clone with two pages, below a folder with a dot, which nbdev alone would skip."
    root = tmp_path / ".dotted" / "clone"
    (root / "nbs/skiprnn").mkdir(parents=True)
    for name in ("settings.ini", "nbs/_quarto.yml", "nbs/styles.css", "nbs/references.bib"):
        shutil.copy(ROOT / name, root / name)
    (root / "_quarto.yml").write_text(QUARTO)
    index = [
        project.cell(
            "# Start\n\n> Here.\n\nIntro.\n\nGo to [the model](skiprnn/02_model.ipynb#gate).",
            name="a",
        )
    ]
    model = [
        project.cell("# Model\n\n> There.\n\nText.", name="a"),
        project.cell("## Gate\n\nAfter @campos2018skip, back [home](../index.ipynb).", name="b"),
        project.cell("1 + 1", "code", name="c"),
    ]
    meta = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    for name, cells in (("index", index), ("skiprnn/02_model", model)):
        (root / f"nbs/{name}.ipynb").write_text(
            project.notebook_text(
                {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}
            )
        )
    return root


def test_build(clone):
    first = render.build(engine="smalldocs", root=clone)
    assert first.pages == 2 and first.broken == [] and first.warnings == [] and first.fresh
    start, model = ((clone / "_docs" / p).read_text() for p in ("index.html", "skiprnn/model.html"))
    assert 'href="skiprnn/model.html#gate"' in start and "Intro." in start
    assert (
        "Campos et al. (2018)" in model
        and 'id="ref-campos2018skip"' in model
        and 'href="../index.html"' in model
    )
    assert f"avpapers {project.settings(clone)['version']}" in start
    assert {
        e["href"].partition("#")[0] for e in json.loads((clone / "_docs/search.json").read_text())
    } == {"index.html", "skiprnn/model.html"}
    assert "02_model" not in (clone / "_docs/sitemap.xml").read_text()
    assert not render.build(engine="smalldocs", root=clone).fresh

    # a run's outputs replace the committed ones, and the page says so
    run = project.read_notebook(clone / "nbs/skiprnn/02_model.ipynb")
    run["metadata"]["papermill"] = {
        "parameters": {"tier": "cpu"},
        "end_time": "2026-11-22T10:00:00",
    }
    run["cells"][2]["outputs"] = [
        {
            "output_type": "execute_result",
            "execution_count": 1,
            "metadata": {},
            "data": {"text/plain": "forty-two"},
        }
    ]
    (clone / "_runs/skiprnn").mkdir(parents=True)
    (clone / "_runs/skiprnn/02_model.ipynb").write_text(project.notebook_text(run))
    second = render.build(clone / "_runs", engine="smalldocs", root=clone)
    page = (clone / "_docs/skiprnn/model.html").read_text()
    assert (
        second.fresh
        and second.from_run == 1
        and "forty-two" in page
        and "run-banner" in page
        and "2026-11-22" in page
    )

    # an unknown key stops the build, and the old site stays
    nb = project.read_notebook(clone / "nbs/index.ipynb")
    nb["cells"].append(project.cell("After @nobody1999."))
    (clone / "nbs/index.ipynb").write_text(project.notebook_text(nb))
    with pytest.raises(badges.SiteError, match="@nobody1999"):
        render.build(clone / "_runs", engine="smalldocs", root=clone)
    assert (clone / "_docs/skiprnn/model.html").read_text() == page


def test_without_katex_the_network_address_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    (tmp_path / "docs/sub").mkdir(parents=True)
    page = tmp_path / "docs/sub/a.html"
    page.write_text(
        '<script src="https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.js"></script>'
    )
    assert links.offline_maths(tmp_path / "docs") == "cdn" and "cdn.jsdelivr" in page.read_text()
    monkeypatch.setattr(links, "copy_katex", lambda target: True)
    assert (
        links.offline_maths(tmp_path / "docs") == "offline"
        and 'src="../site_libs/katex/katex.min.js"' in page.read_text()
    )


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="engine: got 'hugo'"):
        render.build(engine="hugo")
    with pytest.raises(FileNotFoundError, match="project: got"):
        project.find_project(tmp_path)
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(badges.SiteError, match="not a site"):
        render.build(out=tmp_path, engine="smalldocs", root=ROOT)


def test_two_notebooks_of_one_address():
    with pytest.raises(badges.SiteError, match="same address"):
        links.page_addresses(["a/01_x.ipynb", "a/02_x.ipynb"])


def test_light_to_import():
    heavy = ("torch", "nbdev", "pandas", "numpy", "smalldocs")
    imports = "import sys, avpapers.cli, avpapers.site.browser, avpapers.site.render"
    code = f"{imports}; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        ).stdout.strip()
        == "[]"
    )


# ---------------------------------------------------------------- links, browser


def test_check_links(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><a href="#x">1</a><a href="b.html#y">2</a><img src="no.png"><a href="https://a.b">3</a>'
    )
    (tmp_path / "b.html").write_text('<a href="../out.html">1</a><a href="a.html#x">2</a>')
    assert [(p, link) for p, link, _ in links.check_links(tmp_path)] == [
        ("a.html", "b.html#y"),
        ("a.html", "no.png"),
        ("b.html", "../out.html"),
    ]


@pytest.mark.skipif(not browser.find_browser(), reason="no Chromium or Chrome here")
def test_browser_check(tmp_path):
    (tmp_path / "bad.html").write_text(
        '<!doctype html><div style="width:600px">wide</div><script>nowhere()</script><script src="no.js"></script>'
    )
    (tmp_path / "good.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><pre style="overflow-x:auto;max-width:300px">'
        + "x" * 999
        + "</pre>"
    )
    problems = "\n".join(browser.browser_check(tmp_path))
    assert (
        "bad.html at 390 px" in problems
        and "nowhere is not defined" in problems
        and "no.js (404)" in problems
    )
    assert "good.html" not in problems and "1280" not in problems
