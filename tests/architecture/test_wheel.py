"""The wheel contains the whole library and nothing else.

A subpackage that pyproject.toml does not list is silently missing from the wheel, while everything still works from the
repository; therefore the tests build the wheel and check its contents.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("cli", "frontends", "passes")


def modules_of_the_tree() -> set[str]:
    """Every Python file of the library by its path in the package."""
    own = ROOT / "elastic_ir"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in own.rglob("*.py")
        if path.relative_to(own).parts[0] not in LINKED
    }
    for folder in LINKED:
        files |= {f"elastic_ir/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    return files


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {path.rpartition("/")[0].replace("/", ".") for path in modules_of_the_tree()}
    assert set(settings["packages"]) == packages
    assert {settings["package-dir"][f"elastic_ir.{folder}"] for folder in LINKED} == set(LINKED)


@pytest.mark.parametrize("folder", LINKED)
def test_the_links_are_relative(folder: str) -> None:
    link = ROOT / "elastic_ir" / folder
    # a clone without symbolic links has a text file in the place of each
    assert (os.readlink(link) if link.is_symlink() else link.read_text("utf-8")) == f"../{folder}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build/ folder left in the repository would put deleted files into it."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("elastic_ir", *LINKED, "tests"):
        shutil.copytree(
            ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [built] = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    contents = {name for name in names if ".dist-info/" not in name}
    data = {
        "py.typed", "passes/infra/recipe.schema.json", "pictures/page.html", "training/studies/study.schema.json",
    }  # fmt: skip
    assert contents == modules_of_the_tree() | {f"elastic_ir/{name}" for name in data}
    assert {name.split("/")[0] for name in contents} == {"elastic_ir"}


@pytest.mark.slow
def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    assert wheel.name == "elastic_ir-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = {name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist()
                if ".dist-info/" in name}  # fmt: skip
    assert "License-Expression: Apache-2.0" in info["METADATA"]
    assert "Requires-Python: >=3.11" in info["METADATA"]
    assert "elastic-ir = elastic_ir.cli:main" in info["entry_points.txt"]
    assert "Apache License" in info["LICENSE"]


@pytest.mark.slow
def test_the_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import elastic_ir, elastic_ir.passes, elastic_ir.frontends, elastic_ir.cli, elastic_ir.zoo, elastic_ir.emit;"
        "print(elastic_ir.__file__, elastic_ir.passes.__file__)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    package = tmp_path / "elastic_ir"
    assert result.stdout.split() == [str(package / "__init__.py"), str(package / "passes" / "__init__.py")]
