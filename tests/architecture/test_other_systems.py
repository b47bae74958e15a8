"""What Windows and macOS lack is done another way, or not asked for; on a Linux that has been made to lack it."""

from __future__ import annotations

import builtins
import ntpath
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import elastic_ir as eir
from elastic_ir.frontends.sources import is_name
from elastic_ir.safety import own_process
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints import folders

WINDOWS = Path(__file__).with_name("windows.py")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="another system is pretended with /proc")


def on_windows(code: str, folder: Path) -> str:
    """What code prints in a process that has what Windows has; its working folder is the one given."""
    script = folder.parent / "script.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, WINDOWS, script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@linux_only
def test_files_are_written_and_replaced(folder: Path) -> None:
    """Formats with one file and with masks beside it, over what was there; nothing is left beside them."""
    from safetensors.torch import load_file, save_file

    save_file(cifar_resnet(14, width=4).state_dict(), folder / "m.safetensors")
    code = """
import elastic_ir as eir
from elastic_ir.passes import Pipeline
graph = Pipeline.parse("prune{sparsity=0.9},stretch{to-stages=3,3,3}").run(eir.load("m.safetensors"))
for name in ("out.safetensors", "out.ticket", "out.safetensors"):
    eir.save(graph, name)
try:
    eir.save(graph, "missing/out.ticket")
except eir.OutputError as error:
    print(error)
"""
    assert "does not exist" in on_windows(code, folder)
    masks = "out.masks.safetensors"
    assert {path.name for path in folder.iterdir()} == {
        "m.safetensors",
        "out.safetensors",
        "out.ticket",
        masks,
    }
    cifar_resnet(20, width=4).load_state_dict(load_file(folder / "out.safetensors"))
    assert (
        eir.load(folder / "out.ticket").sparsity() == eir.load(folder / "out.safetensors").sparsity() > 0.89
    )


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("durable", [False, True])
def test_folders_are_written_and_gone_on_with(durable: bool, folder: Path) -> None:
    folders.write(folder / "llama", folders.llama(), folders.config(4), shards=2)
    code = f"""
import elastic_ir as eir
from pathlib import Path
from elastic_ir.checkpoints import write
graph = eir.stretch(eir.load("llama", headers_only=True), to_units=6)
from elastic_ir.checkpoints.resumable import Work
taken = Work.finish
def interrupted(self, name):
    taken(self, name)
    raise KeyboardInterrupt
Work.finish = interrupted
try:
    write.save_checkpoint(graph, Path("out"), durable={durable}, check=False)
except KeyboardInterrupt:
    pass
Work.finish = taken
write.save_checkpoint(graph, Path("out"), durable={durable}, check=False, resume=True)
"""
    on_windows(code, folder)
    assert {path.name for path in folder.iterdir()} == {"llama", "out"}
    expected = eir.stretch(eir.load(folder / "llama"), to_units=6).state_dict()
    found = eir.load(folder / "out").state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@linux_only
def test_a_lock_is_one_processs_at_a_time(folder: Path) -> None:
    code = """
from pathlib import Path
from elastic_ir.formats.locks import locked, owner
path = Path("lock")
with locked(path, needed=True) as mine:
    print(mine, owner(path).split()[0])
    with locked(path) as again:
        print(again)
    print(path.exists())
print(path.exists())
with locked(path) as mine:
    print(mine)
"""
    assert on_windows(code, folder).split() == ["True", "process", "False", "True", "False", "True"]


def test_where_nothing_can_be_locked_the_lock_is_had_unless_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elastic_ir.formats.locks import locked

    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with locked(tmp_path / "lock") as mine:
        assert mine
    with pytest.raises(OSError, match="files cannot be locked in"), locked(tmp_path / "lock", needed=True):
        pass
    eir.save(eir.trace(cifar_resnet(8, width=4), (torch.zeros(1, 3, 8, 8),)), tmp_path / "m.pt")
    assert (tmp_path / "m.pt").is_file()


def test_memory_that_is_not_known_is_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: Any, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(path)

    assert own_process._peak() > 1 << 20
    monkeypatch.setattr(builtins, "open", none)
    assert own_process._peak() > 1 << 20  # macOS
    monkeypatch.setitem(sys.modules, "resource", None)
    assert own_process._peak() == 0


def test_onnx_with_external_data_is_replaced_where_files_have_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT has no hard links; the file that was there comes back if its model cannot be replaced."""
    from elastic_ir.emit.onnx.save import _replace_both

    def no_link(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    names = [tmp_path / name for name in ("new.data", "m.data", "new.onnx", "m.onnx", "before")]
    for path in names[:4]:
        path.write_text(path.name)
    new_data, data, new, model, before = names
    _replace_both((new_data, data), (new, model), before)
    assert (data.read_text(), model.read_text(), before.read_text()) == ("new.data", "new.onnx", "m.data")
    new_data.write_text("newer")
    with pytest.raises(FileNotFoundError):
        _replace_both((new_data, data), (new, model), before)
    assert data.read_text() == "new.data"


def test_a_drives_letter_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_name("c:model") and is_name("package.module:factory")
    monkeypatch.setattr(os.path, "splitdrive", ntpath.splitdrive)
    assert not is_name(r"C:\models\missing.pt") and not is_name("C:missing.pt")
    assert is_name("package.module:factory") and is_name("timm:resnet18")
    with pytest.raises(eir.SourceError, match=r"^C:missing\.pt does not exist"):
        eir.load("C:missing.pt")
