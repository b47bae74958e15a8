"""The documentation as a site: it builds without a warning, with the help of every command and a search index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "site/reference/cli/index.html").read_text("utf-8")
    assert (
        "elastic-ir lottery find" in commands and "--to-depth" in commands and "<!-- the help" not in commands
    )
    python = (tmp_path / "site/reference/python/index.html").read_text("utf-8")
    assert "elastic_ir.api.stretch" in python and "remap_optimizer_state" in python
    index = json.loads((tmp_path / "site/search/search_index.json").read_text("utf-8"))
    assert len(index["docs"]) > 200


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in listed] == []
