"""Damaged ONNX files by the thousand: each is refused in one plain line or read, in little time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import elastic_ir

ROOT = Path(elastic_ir.__file__).resolve().parents[1]
MEMORY = 1 << 10  #: MiB that a process may take in all


def outcomes(numbers: range, folder: Path) -> list[dict[str, Any]]:
    """What came of the mutants of these numbers, each process beginning behind the one that ended the last."""
    found: list[dict[str, Any]] = []
    first = numbers.start
    while first < numbers.stop:
        words = [str(first), str(numbers.stop), str(numbers.step), str(folder)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.frontends.onnx.fuzz_worker", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += [line for line in lines if "number" in line]
        if done.returncode == 0:
            break
        assert lines, done.stderr
        last = lines[-1].get("begun", lines[-1].get("number"))
        end = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        found.append({"number": last, "found": "defect", "defect": end, "took": 0.0, "peak": 0})
        first = last + numbers.step
    assert [line["number"] for line in found] == list(numbers)
    return found


def check(numbers: range, folder: Path) -> None:
    found = outcomes(numbers, folder)
    defects = [f"{line['number']}: {line['defect'] or line['found']}" for line in found if line["defect"]]
    assert not defects, "\n\n".join(defects[:5])
    assert max(line["took"] for line in found) < 10
    assert max(line["peak"] for line in found) < MEMORY
    counts = Counter(line["found"].partition(":")[0] for line in found)
    assert counts["SourceError"] > len(found) // 4  # the mutations do damage
    assert counts["stretched, written"] > len(found) // 50  # and not always


@pytest.mark.slow
def test_two_hundred_damaged_files(tmp_path: Path) -> None:
    check(range(0, 2000, 10), tmp_path)


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    check(range(2000), tmp_path)
