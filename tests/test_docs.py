"""The Python in docs/ runs as printed, every page as a script of its own, and links lead to files."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = ("# TransformerLens", "# nnsight")
"""First lines of blocks in the words of other libraries: these are parsed, not run."""

WARNINGS = [
    "-Werror",
    *(f"-Wdefault:Error {doing} persistent compilation cache" for doing in ("reading", "writing")),
]
"""As in the suite: what another process still writes is compiled anew, and JAX says so."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.stem)
def test_snippets_run(page, tmp_path):
    ours = []
    for block in blocks(page):
        ast.parse(block)
        ours += [] if block.startswith(OTHERS) else [block]
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(ours), encoding="utf-8")
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), **os.environ}
    command = [sys.executable, *WARNINGS, str(script)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).is_file(), link


def test_every_test_that_a_promise_names_is_there():
    named = set(re.findall(r"test_\w+\.py", (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")))
    assert len(named) > 40
    assert named <= {file.name for file in (ROOT / "tests").rglob("test_*.py")}


def test_the_page_of_public_names_is_current():
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "python -m docs.api"
    for package in api.PACKAGES:
        modules = {"bench", "interp", "metrics", "stats", "tree"}
        names = set(sys.modules[package].__all__) - modules - {"__version__"}
        assert not {name for name in names if f"### {package}.{name}\n" not in api.page()}
