"""The page of a report, and what it takes to be one: self-contained, of its sources, deaf to names as mark-up.

The tests in a browser are in ``report/e2e``; they run here where Node, the page's libraries and Chromium are.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.cli.demo import make_ticket
from elastic_ir.pictures.page import Report
from elastic_ir.pictures.schema import Document
from tests.cli.test_cli import good, run

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "report"
PAGE = ROOT / "elastic_ir" / "pictures" / "page.html"
BAD = "<img src=x onerror=alert(1)>"


def document_in(page: str) -> Document:
    """What a page holds, as its script reads it."""
    found = re.search(r'<script id="document" type="application/octet-stream">([^<]*)</script>', page)
    assert found is not None
    return cast(Document, json.loads(zlib.decompress(base64.b64decode(found[1]))))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's ticket, and the same stretched."""
    folder = tmp_path_factory.mktemp("files")
    make_ticket(folder / "model.pt")
    eir.save(eir.stretch(eir.load(folder / "model.pt"), to_depth=56), folder / "deep.pt", check=False)
    return folder


def bare(path: Path, layers: int, name: str = "layers.{}.weight") -> Path:
    """A file of names and small tensors."""
    save_file({name.format(i): np.full((4, 4), i, np.float32) for i in range(layers)}, path)
    return path


# -- the built page ----------------------------------------------------------------------------------------------------


def test_the_page_is_built_from_the_sources_beside_it() -> None:
    names = ["index.html", "package-lock.json", "vite.config.ts", "scripts/package.mjs"]
    names += [f"src/{path.name}" for path in (SOURCES / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{(SOURCES / name).read_text('utf-8')}\0".encode())
    found = re.search(r"sources with the hash (\w+)", PAGE.read_text("utf-8"))
    assert found is not None and found[1] == digest.hexdigest(), "build the page anew: make report"


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own() -> None:
    page = PAGE.read_text("utf-8").partition("<!-- The script above")[0]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    for kind, tag in (("script", "script"), ("style", "style")):
        body = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(body) == 1
        digest = base64.b64encode(hashlib.sha256(body[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=[\"']", page.partition("<script>")[0])


def test_the_licences_of_what_is_bundled_go_along() -> None:
    page = PAGE.read_text("utf-8")
    for name in json.loads((SOURCES / "package.json").read_text())["dependencies"]:
        assert re.search(rf"^{re.escape(name)} [\d.]+$", page, re.MULTILINE), name
    assert page.count("Permission is hereby granted") >= 3


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]


# -- the command and the functions -------------------------------------------------------------------------------------


def test_the_command_writes_a_page(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "r.html"
    assert good("report", "deep.pt", "--against", "model.pt", "-o", str(out)).startswith(
        f"wrote:      {out} ("
    )
    page = out.read_text()
    document = document_in(page)
    assert [network["label"] for network in document["networks"]] == ["model.pt", "deep.pt"]
    assert "<title>CifarResNet \u00b7 ElasticIR</title>" in page
    assert out.stat().st_size < 3_000_000


def test_without_a_name_the_page_stands_beside_the_source(files: Path) -> None:
    good("report", str(files / "model.pt"), "--no-values")
    made = files / "model.html"
    document = document_in(made.read_text())
    assert all(weight["values"] is None for weight in document["networks"][0]["weights"])
    made.unlink()


def test_the_document_is_written_as_json(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    good("report", str(files / "deep.pt"), "-o", str(out))
    assert json.loads(out.read_text())["schema"] == 1


def test_a_graph_and_a_notebook(files: Path, tmp_path: Path) -> None:
    source = eir.load(files / "model.pt")
    deeper = eir.stretch(source, to_depth=44)
    made = deeper.report(against=source)
    assert repr(made) == "<Report of model.pt and model.pt; save(path) writes it>"
    shown = made._repr_html_()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', shown)
    assert frame is not None and html.unescape(frame[1]) == made.html
    assert made.save(tmp_path / "r.html").read_text() == made.html
    again = eir.report(deeper, source)
    assert again.html == made.html


def test_functions_take_what_the_command_takes(files: Path, tmp_path: Path) -> None:
    made = eir.report(files / "deep.pt", files / "model.pt", tmp_path / "r.html")
    assert isinstance(made, Report) and (tmp_path / "r.html").is_file()
    assert [network["depth"] for network in made.document["networks"]] == [32, 56]
    assert str(files) not in json.dumps(made.document)  # where it was made is nobody's business


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt", "-o", "r.png"], "r.png names no report; use .html, or .json for its document alone"),
        (["missing.pt", "-o", "r.html"], "missing.pt does not exist"),
    ],
)
def test_bad_names(arguments: list[str], message: str) -> None:
    result = run("report", *arguments)
    assert result.exit_code == 1 and message in result.stderr


def test_names_cannot_leave_the_document(tmp_path: Path) -> None:
    source = bare(tmp_path / "bad.safetensors", 4, f"</script>{BAD}." + "{}.weight")
    page = eir.report(source).html
    assert BAD not in page and page.count("<script") == PAGE.read_text("utf-8").count("<script")


# -- in a browser ------------------------------------------------------------------------------------------------------

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("node") and CHROMIUM and (SOURCES / "node_modules").is_dir()),
    reason="needs Node, Chromium, and the libraries of report/ (make report)",
)
def test_the_page_in_a_browser(files: Path, tmp_path: Path) -> None:
    """Limits of time are four times what they are by hand, since other tests run beside this one."""
    eir.report(files / "deep.pt", files / "model.pt", tmp_path / "pair.html")
    eir.report(files / "deep.pt", out=tmp_path / "alone.html")
    source = eir.load(bare(tmp_path / "long.safetensors", 500))
    eir.report(eir.stretch(source, to_units=1000), source, tmp_path / "thousand.html")
    eir.report(bare(tmp_path / "bad.safetensors", 4, f"{BAD}." + "{}.weight"), out=tmp_path / "hostile.html")
    result = subprocess.run(
        ["node", "--test", "e2e/"],
        cwd=SOURCES,
        env={**os.environ, "REPORT_PAGES": str(tmp_path), "CHROMIUM": str(CHROMIUM), "REPORT_PATIENCE": "4"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert re.search(r"# pass 1[0-9]", result.stdout) and "# fail 0" in result.stdout
