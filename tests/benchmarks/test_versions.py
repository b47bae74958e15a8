"""The program of ``make test-versions``: which releases it installs, and how it writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import versions
from benchmarks.versions import BEGIN, END, TESTS, TORCHLESS, Row, lowest, name_of, requirements, written

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "low"),
    [
        ("torch>=2.10,<3", "torch==2.10"),
        ("onnx-ir>=0.1.10", "onnx-ir==0.1.10"),
        ("lightning>=2.6.1,!=2.6.2,!=2.6.3", "lightning==2.6.1"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_the_lowest_release(line: str, low: str) -> None:
    assert lowest(line) == low


def test_every_dependency_is_installed() -> None:
    """All that the distribution needs has a floor, is installed at both ends and shown, if it reads networks."""
    names = {name_of(line) for line in requirements()}
    assert names >= {
        "click",
        "numpy",
        "onnx",
        "onnxruntime",
        "timm",
        "torch",
        "transformers",
        "PyYAML",
        "pytest",
    }
    assert names >= set(versions.SHOWN)
    assert all("==" in lowest(line) for line in requirements())
    ends = [versions.torch_at(end)[0] for end in versions.ENDS]
    assert ends[0].startswith("torch==") and ends[1].startswith("torch>=")


def test_what_is_run_is_there() -> None:
    assert all((ROOT / path).exists() for path in (*TESTS, *TORCHLESS))
    for path in TORCHLESS:
        files = [ROOT / path] if path.endswith(".py") else [*(ROOT / path).glob("test_*.py")]
        assert files and not any("import torch" in file.read_text() for file in files)


def test_the_table_is_written_again() -> None:
    """A line replaces the line of its environment, those of others stay, and so does the text around."""
    first = written(
        f"before\n{BEGIN}\n{END}\nafter\n",
        [
            Row("3.12", "newest", {"numpy": "2.5"}, "3 passed", True),
            Row("3.11", "lowest", {}, "1 failed", False),
        ],
    )
    assert first.startswith("before\n") and first.endswith("after\n")
    second = written(first, [Row("3.11", "lowest", {"numpy": "1.26"}, "4 passed", True)])
    lines = [line for line in second.splitlines() if line.startswith("| 3.")]
    assert [line.split(" | ")[:2] for line in lines] == [["| 3.11", "lowest"], ["| 3.12", "newest"]]
    assert "1 failed" not in second and "1.26" in lines[0] and "3 passed" in lines[1]
    assert written(second, []) == second


def test_a_python_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    row = versions.row_of("3.13", "lowest", tmp_path / "environment", False)
    assert row.passed is None and "no such Python here" in row.text()
