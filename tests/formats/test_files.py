"""Output appears whole or not at all: full disks, Ctrl-C, missing folders; and JSON that cannot be written again."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_ir.errors import OutputError, SourceError
from elastic_ir.formats.files import atomic_output, parse_json
from elastic_ir.formats.safetensors import write_safetensors
from elastic_ir.safety.limits import JSON_LEVELS
from elastic_ir.tensors.lazy import InlineData


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    with atomic_output(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".pt"
        temporary.write_text("new")
        assert not target.exists()
    assert names(tmp_path) == ["out.pt"]
    assert target.read_text() == "new"


def test_permissions(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    before = os.umask(0o027)
    try:
        with atomic_output(target) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert mode(target) == 0o640
    target.chmod(0o600)
    with atomic_output(target) as temporary:
        temporary.write_text("newer")
    assert mode(target) == 0o600, "a file that is replaced keeps its own"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "out.pt"
    link.symlink_to(tmp_path / "far" / "real.pt")
    with atomic_output(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "far" / "real.pt").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 250 + ".pt", "x." + "y" * 250, "é" * 125 + ".pt"])
def test_long_names(tmp_path: Path, name: str) -> None:
    with atomic_output(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [name]


def stop(temporary: Path, error: BaseException) -> None:
    temporary.write_text("half")
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("no"), MemoryError()])
def test_whatever_stops_it_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.pt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_output(target) as temporary:
        stop(temporary, error)
    assert names(tmp_path) == ["out.pt"]
    assert target.read_text() == "old"


def test_ctrl_c(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    target.write_text("old")
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from elastic_ir.formats.files import atomic_output
with atomic_output(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "writing\n"
        assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) != 0
    assert "KeyboardInterrupt" in said
    assert names(tmp_path) == ["out.pt"]
    assert target.read_text() == "old"


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    target = small_disk / "out.safetensors"
    target.write_text("old")
    with pytest.raises(OutputError) as caught, atomic_output(target) as temporary:
        write_safetensors(temporary, {"a": InlineData((1 << 20,), "uint8", bytes(1 << 20))})
    assert (
        str(caught.value)
        == f"{target} could not be written: no space left on device; what was there is unchanged"
    )
    assert names(small_disk) == ["out.safetensors"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("late", [False, True])
def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, late: bool) -> None:
    target = tmp_path / "out.pt"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        if not late:
            fail()

    if late:  # some file systems report it only when the bytes are flushed
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as caught, atomic_output(target) as temporary:
        write(temporary)
    assert str(caught.value).startswith(f"{target} could not be written: {os.strerror(number).lower()}")
    assert names(tmp_path) == ["out.pt"]
    assert target.read_text() == "old"


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), atomic_output(tmp_path / "out.pt"):
        (tmp_path / "other").read_text()
    assert names(tmp_path) == []


# -- targets that cannot be --------------------------------------------------------------------------------------------


def said_of(target: Path) -> str:
    with pytest.raises(OutputError) as caught, atomic_output(target):
        pytest.fail("the block must not start")
    return str(caught.value)


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "out.pt"
    assert said_of(missing) == f"{missing} cannot be written: the folder {missing.parent} does not exist"
    assert said_of(tmp_path) == f"{tmp_path} is a folder; give the name of a file"
    assert said_of(Path("/dev/null")) == "/dev/null is not a plain file; give the name of a file"
    too_long = tmp_path / ("x" * 300)
    assert said_of(too_long).endswith("file name too long")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "out.pt"
    assert said_of(inside) == f"{inside} cannot be written: the folder {inside.parent} does not exist"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    target = tmp_path / "out.pt"
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)  # root may write anywhere, so it is said for it
        assert said_of(target) == f"{target} cannot be written: permission denied"
    target.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert said_of(target) == f"{target} cannot be written: it is read-only"
    assert target.read_text() == "old"


@pytest.mark.parametrize("levels", [1, 5, JSON_LEVELS])
def test_what_is_nested_as_people_nest_it(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        assert parse_json(text) == json.loads(text)
    assert parse_json("3") == 3


@pytest.mark.parametrize("levels", [JSON_LEVELS + 1, 900, 100_000])
def test_what_is_nested_too_deeply(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


def test_halves_of_characters() -> None:
    assert parse_json('{"\\ud83d\\ude00": "\\u00e4"}') == {"\U0001f600": "ä"}
    for text in ('{"\\ud800": 1}', '["\\uDFFF"]', b'["\xed\xa0\x80"]', '["\ud800"]'):
        with pytest.raises(ValueError, match="half a character"):
            parse_json(text)


def test_an_error_is_no_longer_than_anybody_reads() -> None:
    assert str(SourceError("a b " * 5000)).endswith("a b ") and len(str(SourceError("a b " * 5000))) < 1600
