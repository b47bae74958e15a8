"""The tutorial's Python runs as it stands, and its format works on the command line once a package offers it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "writing-formats.md"
MODULE = "# npz_format.py\n"


def blocks(kind: str = "python") -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The tutorial's package as it is installed: its module, and its entry point beside it."""
    site = tmp_path / "site"
    info = site / "npz_format-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "npz_format.py").write_text("\n\n".join(text for text in blocks() if text.startswith(MODULE)))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npz-format\nVersion: 1.0\n")
    table = blocks("toml")[0].replace('[project.entry-points."elastic_ir.formats"]', "[elastic_ir.formats]")
    (info / "entry_points.txt").write_text(table.replace('"', ""))
    return site


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python beside the package, which its test has to itself."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, cwd=site.parent,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "COLUMNS": "120"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_tutorial_runs_and_its_commands_with_it(package: Path) -> None:
    assert len(blocks()) == 6
    script = package.parent / "use.py"
    script.write_text("\n\n".join(text for text in blocks() if not text.startswith(MODULE)))
    done = run(package, str(script))
    assert done.returncode == 0, done.stderr

    commands = re.findall(r"^\$ elastic-ir (.*)$", blocks("console")[0], flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = run(package, "-m", "elastic_ir.cli", *command.split())
        assert done.returncode == 0, done.stderr
    with np.load(package.parent / "resnet56.npz") as arrays:
        assert arrays["layer3.8.conv2.weight"].shape == (64, 64, 3, 3)
        assert arrays["elastic_ir/mask/layer1.0.conv1.weight"].dtype == bool
        assert not arrays["layer1.0.conv1.weight"][~arrays["elastic_ir/mask/layer1.0.conv1.weight"]].any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not an .npz file, or damaged (File is not a zip file)"),
        (b"PK\x03\x04" + bytes(50), "is not an .npz file, or damaged (File is not a zip file)"),
        (None, "does not exist"),
    ],
)
def test_the_tutorial_s_reader_says_what_is_wrong(package: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (package.parent / "a.npz").write_bytes(content)
    done = run(package, "-m", "elastic_ir.cli", "inspect", "a.npz")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: a.npz {said}\n"
