"""The tutorial's example package works installed; tests/docs/test_pages.py runs the tutorial."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"


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
