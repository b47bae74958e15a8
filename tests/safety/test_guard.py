"""The guard: what it stops, what goes on, and whom it leaves alone."""

from __future__ import annotations

import collections
import ctypes
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elastic_ir.errors import BlockedError, SourceError
from elastic_ir.safety.guard import guarded

ACTS: dict[str, Callable[[Path], Any]] = {
    "read a file": lambda path: path.read_bytes(),
    "read it by descriptor": lambda path: os.open(path, os.O_RDONLY),
    "write": lambda path: path.write_text("other"),
    "append": lambda path: path.open("a"),
    "make": lambda path: (path.parent / "new").touch(),
    "remove": lambda path: path.unlink(),
    "rename": lambda path: path.rename(path.parent / "new"),
    "copy": lambda path: shutil.copy(path, path.parent / "new"),
    "link": lambda path: (path.parent / "new").symlink_to(path),
    "folder": lambda path: (path.parent / "new").mkdir(),
    "eval": lambda path: eval(f"open({str(path)!r}).read()"),
    "exec": lambda path: exec("import os"),
    "compile": lambda path: compile("1", "text", "eval"),
    "system": lambda path: os.system(f"touch {path.parent / 'new'}"),
    "subprocess": lambda path: subprocess.run(["touch", str(path.parent / "new")], check=False),
    "unpickle": lambda path: pickle.loads(pickle.dumps(os.getcwd)),
    "resolve": lambda path: socket.getaddrinfo("localhost", 80),
    "connect": lambda path: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "library": lambda path: ctypes.CDLL(str(path)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    return path


@pytest.mark.parametrize("act", ACTS)
def test_acts_are_stopped_before_they_happen(act: str, file: Path) -> None:
    with guarded("the class Net") as guard, pytest.raises(BlockedError, match=r"^the class Net would "):
        ACTS[act](file)
    assert guard.blocked
    assert [path.name for path in file.parent.iterdir()] == ["secret.txt"]
    assert file.read_text() == "secret", "and it is possible again afterwards"


def test_a_stopped_act_is_an_error_of_ours_and_of_the_system() -> None:
    with (
        guarded("the class Net") as guard,
        pytest.raises(OSError, match="the class Net would open") as caught,
    ):
        open("/etc/hostname").read()  # noqa: SIM115
    assert isinstance(caught.value, SourceError), (
        "what a library expects of a file that cannot be read, and ours"
    )
    assert str(caught.value) == (
        "the class Net would open '/etc/hostname', which nothing that comes from a file may do"
    )
    assert guard.blocked == ["open '/etc/hostname'"]


def test_imports_and_definitions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guarded_part.py").write_text("value = eval('6 * 7')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a write is stopped, which an import takes calmly
    with guarded("the class Net") as guard:
        pair = collections.namedtuple("pair", "a b")  # made by exec
        module = __import__("guarded_part")
    sys.modules.pop("guarded_part")
    assert pair(1, 2).b == 2
    assert module.value == 42
    assert guard.blocked == []


def test_a_module_on_the_path_does_not_open_the_folder_for_other_files(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder is on the path of many programs, and sources lie in it."""
    monkeypatch.syspath_prepend(file.parent)
    link = file.parent / "looks_like.py"
    link.symlink_to("/etc/hostname")
    with guarded("the class Net"):
        for path in (file, link):
            with pytest.raises(BlockedError):
                path.read_bytes()


def test_threads_that_it_starts_are_guarded_and_others_are_not(file: Path) -> None:
    said: dict[str, str] = {}
    go, done = threading.Event(), threading.Event()

    def read(name: str) -> None:
        try:
            said[name] = file.read_text()
        except BlockedError:
            said[name] = "blocked"

    def wait() -> None:
        go.wait(10)
        read("older")
        done.set()

    older = threading.Thread(target=wait)
    older.start()
    with guarded("the class Net"):
        go.set()
        assert done.wait(10)
        younger = threading.Thread(target=read, args=("younger",))
        younger.start()
        younger.join()
    older.join()
    assert said == {"older": "secret", "younger": "blocked"}


def test_guards_nest_and_end_with_an_error(file: Path) -> None:
    with guarded("outer"):
        with pytest.raises(ZeroDivisionError), guarded("inner"):
            raise ZeroDivisionError
        with pytest.raises(BlockedError, match="outer would open"):
            file.read_text()
    assert file.read_text() == "secret"
