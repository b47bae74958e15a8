"""Damaged files of twelve formats by the hundred: the command line reads each, or refuses it in one plain line.

Each is read in a process forked from one that has everything imported. What is held: the exit code is 0, 1 or 2;
nothing says "unexpected", and no name reaches the terminal as anything but text; nothing is left behind, and no source
is changed; it takes at most ten seconds and 300 MB; and what was written is what torch or safetensors reads of the
source. ``make fuzz`` does the same to 1,500 of each format (``MUTANTS``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import elastic_ir
from tests.fuzz.mutants import mutant
from tests.fuzz.seeds import FORMATS

ROOT = Path(elastic_ir.__file__).resolve().parents[1]
MUTANTS = int(os.environ.get("MUTANTS", "100"))


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    """The process that has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz.worker"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    assert json.loads(process.stdout.readline()) == "ready"
    yield process
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMATS))
def test_damaged_files(form: str, warm: subprocess.Popen[str], tmp_path: Path) -> None:
    assert warm.stdin is not None and warm.stdout is not None
    warm.stdin.write(json.dumps([form, 0, MUTANTS, 1, str(tmp_path)]) + "\n")
    warm.stdin.flush()
    found: list[dict[str, Any]] = [json.loads(warm.stdout.readline()) for _ in range(MUTANTS)]
    assert [line["number"] for line in found] == list(range(MUTANTS))
    wrong = [
        f"{form} {line['number']}: {line['command']}: {'; '.join(line['defects'])}\n{line['output'][-500:]}"
        for line in found
        if line["defects"]
    ]
    assert not wrong, f"{len(wrong)} of {MUTANTS}\n" + "\n\n".join(wrong[:10])
    codes = Counter(line["code"] for line in found)
    assert codes[1] > MUTANTS // 4  # the mutations do damage
    assert sum(line["written"] for line in found) >= MUTANTS // 50  # and not always


@pytest.mark.slow
def test_a_number_always_gives_the_same_mutant() -> None:
    for form in ("state", "config", "recipe", "masks", "gguf", "dcp"):
        made = [mutant(form, number) for number in range(4)]
        assert made == [mutant(form, number) for number in range(4)]
        assert len({case.command for case in made} | {str(case.files) for case in made}) > 4
