"""``passes --new`` and ``passes --schema``: what somebody begins from who writes a pass or a recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import ROOT, bad, good


@pytest.mark.slow
def test_a_new_pass_passes_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = good("passes", "--new", "trim-last")
    assert "--load-pass trim_last.py --passes trim-last" in text
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_trim_last.py"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout
    assert "trim_last.py exists already; choose another name" in bad("passes", "--new", "trim-last")


@pytest.mark.parametrize(
    ("name", "why"), [("compact", "there is a pass compact already"), ("A b", "is no name")]
)
def test_names_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in bad("passes", "--new", name)
    assert not list(tmp_path.iterdir())


def test_the_schema_has_loaded_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = json.loads(good("passes", "--schema"))
    assert "compact" in schema["properties"]["passes"]["items"]["anyOf"][0]["enum"]
