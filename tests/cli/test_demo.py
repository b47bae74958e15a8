"""``elastic-ir demo`` and ``elastic-ir doctor``: what somebody runs first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import elastic_ir as eir
from elastic_ir.cli import doctor
from elastic_ir.cli.demo import STEPS
from elastic_ir.cli.doctor import Package
from tests.cli.test_cli import good, run

README = Path(__file__).parents[2] / "README.md"


def test_the_demo_leaves_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = good("demo", "there")
    for command, _ in STEPS:
        assert f"$ elastic-ir {command}" in text
    assert "depth:      32 -> 56" in text and "the same 200 tensors, byte for byte" in text
    assert "in onnxruntime, from PyTorch" in text
    tour = (
        README.read_text("utf-8").partition("## A tour")[2].partition("```console\n")[2].partition("```")[0]
    )
    assert tour in text  # what README shows is what is printed
    assert Path.cwd() == tmp_path
    made = eir.load(tmp_path / "there" / "model.pt")
    assert made.structure.depth == 32 and abs(made.sparsity() - 0.8) < 1e-3
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "model.pt", "model-depth56.pt", "back.pt", "model-depth56.onnx",
    }  # fmt: skip


def test_the_demo_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = run("demo", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path} is not empty; give another folder, elastic-ir demo FOLDER, or write over the files of an "
        "earlier demo with --force\n"
    )


def test_doctor_lists_what_is_needed() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    rows = {(row["name"], row["extra"]): row for row in found["packages"]}
    assert rows["torch", ""]["fits"] and rows["torch", ""]["wanted"]
    assert ("timm", "timm") in rows and ("pytest", "dev") not in rows
    assert found["devices"].startswith("cpu (") and eir.__version__ in found["elastic-ir"]
    text = run("doctor").stdout
    assert "onnxruntime" in text and "(needed)" in text


def test_doctor_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Package("click", None, ">=8.2", "", False),
        Package("rich", "1.0", ">=13", "", False),
        Package("timm", None, ">=1", "timm", False),
        Package("ray", "1.0", ">=2.54", "ray", False),
    ]
    monkeypatch.setattr(doctor, "packages", lambda: rows)
    result = run("doctor")
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("problem")] == [
        "problem: click is not installed; pip install 'click>=8.2'",
        "problem: rich 1.0 does not fit; pip install 'rich>=13'",
        "problem: ray 1.0 does not fit; pip install 'ray>=2.54'",
    ]


def test_builds_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", fails)
    rows = [Package("torchvision", "0.28", ">=0.25", "torchvision", True)]
    assert list(doctor.problems(rows)) == [
        "the installed torchvision does not fit the installed torch (operator torchvision::nms does not exist); "
        "install a matching pair of builds, both for CPU or both for the same CUDA"
    ]


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "elastic_ir", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"elastic-ir, version {eir.__version__}\n"
