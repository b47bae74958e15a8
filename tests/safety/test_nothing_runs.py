"""No reader runs code of a file: held by an audit hook, in a process of its own, over files of every form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.safety.audited_files import HOSTILE, ORDINARY

ROOT = Path(__file__).parents[2]


def audited(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What came of each case; see audit_worker."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    told = subprocess.run(
        [sys.executable, "-m", "tests.safety.audit_worker", str(folder), *names],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    return {line["case"]: line for line in lines}


def hold(found: dict[str, dict[str, Any]]) -> None:
    """Nothing forbidden was done; ordinary files were read, hostile ones told of in a line."""
    wrong = {name: line["acts"] for name, line in found.items() if line["acts"] or line["marks"]}
    assert not wrong
    for name, line in found.items():
        said = line["said"]
        assert not said.startswith("unexpected"), (name, said)
        if name in ORDINARY:
            assert said == "read: ", (name, said)
            assert "open" in line["seen"], "the hook is told of what happens"
        elif name in TOLD:
            assert TOLD[name] in said, (name, said)
        elif name not in HARMLESS:
            assert said != "read: ", name


#: Where nothing has to be said: what is not looked at; a graph without a class of its own, which is built as it is; and
#: what transformers unpacks where accelerate is installed.
HARMLESS = (
    "auto_map",
    "slices that call",
    "class torch.fx.graph_module:GraphModule",
    "folder that is quantised",
)
TOLD = {
    "checkpoint_path": "the description holds a path (model_args.checkpoint_path: ",
    "class elastic_ir.cli.__main__:main": "elastic_ir.cli.__main__.main is in no trusted package, so none of its code",
    "local-dir": "the description holds a URL (architecture: 'local-dir:",
    "a method of torch": "torch.__setattr__, which is not among the functions that a file may name",
    "a function of torch": "torch.load, which is not among the functions that a file may name",
    "folder of timm": "config.json holds a path (model_args.checkpoint_path: 'gadget.pt')",
    "folder with a backbone": "config.json takes a backbone from elsewhere (backbone: 'inner')",
    "auto_map alone": "config.json names no model_type that transformers has (evil)",
    "onnx data outside": "which is outside the model's folder",
    "gadget bin": "it names posix.system, which plain weights have no need of; nothing of it was run",
}


@pytest.mark.slow
def test_files_of_every_form(tmp_path: Path) -> None:
    found = audited(tmp_path, [*ORDINARY, *HOSTILE])
    assert found.keys() == ORDINARY.keys() | HOSTILE.keys()
    hold(found)


@pytest.mark.slow
def test_the_hook_sees_what_an_unguarded_reader_does(tmp_path: Path) -> None:
    """The exploits are real ones: read as pickles usually are, they run."""
    code = (
        "import sys, torch; from pathlib import Path; from tests.safety import audited_files as f;"
        "seen = []; sys.addaudithook(lambda event, given: seen.append(event));"
        "f.gadgets(Path('.')); torch.load('gadget.pt', weights_only=False); print('os.system' in seen)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=env,
    )
    assert told.stdout.strip() == "True"
    assert (tmp_path / "marker").exists()
