"""A clone whose symbolic links git has written as text files, as on Windows: it installs, runs and is tested as any.

The three links in ``elastic_ir/`` then hold ``../cli``, ``../frontends`` and ``../passes``. The clone is a real one, of
what is committed; nothing is fetched from a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("cli", "frontends", "passes")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a clone of the repository"
    ),
]


def run(*command: object, cwd: Path) -> str:
    """What a command prints; nothing of this repository is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    path = tmp_path / "clone"
    run("git", "clone", "-q", "--no-local", "-c", "core.symlinks=false", ROOT, path, cwd=tmp_path)
    for name in LINKED:
        assert (path / "elastic_ir" / name).read_text() == f"../{name}"
        assert not (path / "elastic_ir" / name).is_symlink()
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment's Python that sees the libraries which this one sees, and no ElasticIR."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    own = sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "env")})
    Path(own, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(sysconfig.get_path("scripts", "venv", {"base": str(tmp_path / "env")})) / "python"


@pytest.mark.parametrize("how", [[], ["-e"]], ids=["installed", "editable"])
def test_it_installs_and_runs(how: list[str], clone: Path, python: Path, tmp_path: Path) -> None:
    quiet = ("-q", "--disable-pip-version-check", "--no-index", "--no-build-isolation", "--no-deps")
    run(python, "-m", "pip", "install", *quiet, *how, clone, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import elastic_ir, elastic_ir.frontends, elastic_ir.passes as p; print(elastic_ir.__file__, p.__file__)"
    files = run(python, "-c", code, cwd=elsewhere).split()
    assert all(Path(file).is_relative_to(clone if how else tmp_path / "env") for file in files)
    program = python.with_name("elastic-ir")
    assert "nm-project" in run(program, "passes", "--names", cwd=elsewhere)
    assert "nm-project" in run(python, "-m", "elastic_ir", "passes", "--names", cwd=clone)


def test_it_runs_and_is_tested_where_it_lies(clone: Path, python: Path) -> None:
    """Without any installation."""
    assert "nm-project" in run(python, "-m", "elastic_ir", "passes", "--names", cwd=clone)
    out = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "tests/passes/infra/test_pipeline.py", "tests/architecture/test_wheel.py", "-m", "not slow", cwd=clone,
    )  # fmt: skip
    assert " passed" in out and "failed" not in out


def test_its_wheel_and_its_source_distribution_are_whole(clone: Path, python: Path, tmp_path: Path) -> None:
    """The wheel is built from the source distribution."""
    listed = run(
        "git", "ls-files", "elastic_ir/*.py", *(f"{name}/*.py" for name in LINKED), cwd=clone
    ).split()
    modules = {name if name.startswith("elastic_ir/") else f"elastic_ir/{name}" for name in listed}
    run(python, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", clone, cwd=tmp_path)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".py")} == modules
    [source] = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(source) as tar:
        held = {member.name.partition("/")[2] for member in tar if member.isfile()}
    assert set(listed) <= held
