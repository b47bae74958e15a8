"""The tutorial's Python runs as it stands, its pass loads from a file, and the example package works installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from elastic_ir.cli.app import elastic_ir

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "writing-passes.md"
PLUGIN = ROOT / "examples" / "plugin"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    script = tmp_path / "tutorial.py"
    script.write_text("\n\n".join(blocks()))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(blocks()) == 10


def test_the_tutorial_s_pass_is_listed_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_ir.passes._loaded", {})
    (tmp_path / "drop_sparse.py").write_text("\n".join([blocks()[2], blocks()[0], blocks()[1]]))
    told = CliRunner().invoke(
        elastic_ir, ["passes", "--load-pass", str(tmp_path / "drop_sparse.py"), "drop-sparse"]
    )
    assert told.exit_code == 0, told.output
    listed = [line.rstrip() for line in told.output.splitlines()]
    page = PAGE.read_text()
    for line in listed:
        assert line in page


@pytest.mark.slow
def test_the_example_package(tmp_path: Path) -> None:
    """Installed into a folder of its own, without the network, it is found by its entry point."""
    source, target = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(PLUGIN, source)  # building leaves files behind
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=120)
    code = f"""
import sys
sys.path[:0] = [{str(target)!r}, {str(ROOT)!r}]
import pytest
from elastic_ir.passes import registered
assert registered()["drop-sparse"].__module__ == "elastic_ir_drop_sparse"
options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
sys.exit(pytest.main([*options, {str(source / "tests")!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
