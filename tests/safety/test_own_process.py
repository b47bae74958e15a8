"""Modules of ours in a process of their own: what they answer, and what ends them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from elastic_ir.safety.own_process import ProcessError, started

HEAD = "import json, os, sys\nfrom elastic_ir.safety.own_process import answering, bounded, received\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def answered(folder: Path, body: str) -> object:
    (folder / "module_of_a_test.py").write_text(HEAD + body)
    with started("module_of_a_test", {"number": 3}) as process:
        return process.answer()


def test_data_goes_in_and_comes_out_whatever_is_printed(folder: Path) -> None:
    body = """
data = received()
with answering() as out:
    print("noise"); os.system("echo more noise")
    out.write(json.dumps([data["number"], os.environ["HF_HUB_OFFLINE"], "" in sys.path]).encode())
"""
    assert answered(folder, body) == [3, "1", False]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise ValueError('so it is')", "ValueError: so it is"),
        ("sys.exit(7)", "it ended with status 7"),
        ("bounded(50e6, 60)\nheld = []\nwhile True: held.append(b'x' * 10**6)", "it takes too much memory"),
        ("bounded(1e9, 0.2)\nwhile True: pass", "it takes too long"),
    ],
)
def test_no_answer_is_told_why(folder: Path, body: str, why: str) -> None:
    with pytest.raises(ProcessError) as failed:
        answered(folder, body)
    assert str(failed.value) == why


def test_it_ends_with_the_block(folder: Path) -> None:
    (folder / "module_of_a_test.py").write_text(
        f"{HEAD}import time\nopen('{folder}/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    begun = time.monotonic()
    with started("module_of_a_test", None):
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert time.monotonic() - begun < 30
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert time.monotonic() - begun < 40
