"""What killed runs leave goes with the next save into the folder, and nothing else does; names that are too long."""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import OutputError
from elastic_ir.formats.files import atomic_folder, atomic_output, sweep, temporary, try_lock
from tests import warm
from tests.checkpoints import killed
from tests.checkpoints.folders import config, llama, write

_DIES = """
import os, signal, sys
from pathlib import Path
from elastic_ir.formats.files import atomic_folder
from elastic_ir.formats.files import atomic_output

with atomic_output(Path(sys.argv[1], "model.pt")) as one, atomic_folder(Path(sys.argv[1], "model")) as other:
    one.write_bytes(b"half")
    (other / "inside").write_bytes(b"half")
    print(one.name, other.name, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], stdout=subprocess.DEVNULL, check=False)
    assert len(names(tmp_path)) == 2  # the second one has removed what the first one left
    with atomic_output(tmp_path / "other.txt") as path:
        path.write_text("x")
    assert names(tmp_path) == {"other.txt"}


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    living = subprocess.Popen(
        [sys.executable, "-c", _DIES, str(tmp_path), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert living.stdin is not None and living.stdout is not None
    living.stdout.readline()
    before = names(tmp_path)
    with atomic_folder(tmp_path / "folder") as path:
        assert names(tmp_path) == {*before, path.name}
    assert names(tmp_path) == {*before, "folder"}
    living.stdin.close()
    living.wait()
    sweep(tmp_path)
    assert names(tmp_path) == {"folder"}


def test_only_what_is_ours_is_removed(tmp_path: Path) -> None:
    token = "elastic-ir-0123456789abcdef.tmp"
    kept = [
        f"x.model.{token}", ".model.elastic-ir-0123456789abcde.tmp.pt", ".model.elastic-ir-0123456789abcdef.pt",
        f".model.{token}.pt.bak", ".model.0123456789abcdef.tmp", ".model.partial",
    ]  # fmt: skip
    swept = [f".model.{token}.pt", f".a.b\n.c.{token}", f".{token}.x.{token}.onnx"]
    for name in (*kept, *swept, "elsewhere"):
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{token}").mkdir()
    (tmp_path / f".folder.{token}" / "inside").write_text("x")
    (tmp_path / f".link.{token}").symlink_to(tmp_path / "elsewhere")
    with temporary(tmp_path / "model.pt") as mine:
        sweep(tmp_path)
        assert names(tmp_path) == {*kept, "elsewhere", f".link.{token}", mine.name}
        assert mine.name.startswith(".model.") and mine.suffix == ".pt"
    assert names(tmp_path) == {*kept, "elsewhere", f".link.{token}"}
    sweep(tmp_path / "nowhere")  # nothing to do, and no error


def test_where_files_cannot_be_locked_everything_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / ".model.elastic-ir-0123456789abcdef.tmp.pt"
    left.write_text("x")
    monkeypatch.setattr("elastic_ir.formats.files.try_lock", lambda handle: None)
    with atomic_output(tmp_path / "model.pt") as path:
        path.write_text("y")
    assert names(tmp_path) == {left.name, "model.pt"}


def test_a_temporary_that_another_sweeps_before_it_is_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[str] = []

    def late(handle: int) -> bool | None:
        if not taken:
            taken.extend(names(tmp_path))
            (tmp_path / taken[0]).unlink()
        return try_lock(handle)

    monkeypatch.setattr("elastic_ir.formats.files.try_lock", late)
    with atomic_output(tmp_path / "model.pt") as path:
        path.write_text("x")
        assert names(tmp_path) == {path.name} != set(taken)
    assert names(tmp_path) == {"model.pt"}


def test_names_that_take_many_bytes(tmp_path: Path) -> None:
    for name in ("ä" * 120 + ".pt", "x" * 252 + ".pt", "\U0001f600" * 62 + ".a", "n" * 255):
        with atomic_output(tmp_path / name) as path:
            path.write_text("x")
        assert (tmp_path / name).read_text() == "x"
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("length", [235, 240, 243])
def test_a_name_too_long_for_its_sidecar(length: int, tmp_path: Path) -> None:
    state = {f"layers.{n}.weight": torch.eye(4) for n in range(3)}
    save_file(state, tmp_path / "source.safetensors")
    out = tmp_path / ("n" * length + ".safetensors")
    plain = eir.load(tmp_path / "source.safetensors")
    eir.save(plain, out)  # without masks there is no sidecar
    assert eir.load(out).weights.keys() == state.keys()
    out.unlink()
    masked = eir.load(tmp_path / "source.safetensors", mask_from_zeros=True)
    if length + len(".masks.safetensors") <= 255:
        eir.save(masked, out)
        return
    with pytest.raises(
        OutputError, match=r"the file of masks would be named .* bytes, and a name has at most 255"
    ):
        eir.save(masked, out)
    assert names(tmp_path) == {"source.safetensors"}


@pytest.mark.parametrize(
    "suffix",
    [".pt", *(pytest.param(s, marks=pytest.mark.slow) for s in (".safetensors", ".ticket", ".onnx"))],
)
def test_a_disk_that_is_full(suffix: str, tmp_path: Path) -> None:
    """A limit on files' sizes stands for the disk: a write then fails in the same place, with another reason."""
    program = (
        "import resource, sys, torch\nimport elastic_ir as eir\nfrom elastic_ir.errors import OutputError\n"
        "from torch import nn\n"
        "m = nn.Sequential(*[nn.Sequential(nn.Linear(200, 200), nn.ReLU()) for _ in range(2)]).eval()\n"
        "graph = eir.trace(m, example_inputs=(torch.randn(1, 200),))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    eir.save(graph, sys.argv[1])\nexcept OutputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / f"out{suffix}")],
        capture_output=True, text=True, check=True, preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )  # fmt: skip
    assert "could not be written: file too large; what was there is unchanged" in done.stdout
    assert not names(tmp_path)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def tree(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return {part.relative_to(path.parent).as_posix(): part.read_bytes() for part in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "moments"), [("out.pt", 13), ("out.onnx", 12), ("out.ticket", 12), ("out", 13)]
)
def test_killed_at_fifty_moments(output: str, moments: int, tmp_path: Path) -> None:
    """The target is absent or whole, and a normal run after it leaves nothing but the target."""
    context = warm.context()
    if output == "out":
        source = write(tmp_path / "source", llama(20), config(20), shards=3)
        options = [str(source), "--to-units", "30", "--shard-size", "260", "--no-check"]
    else:
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(20)]
        source = tmp_path / (
            "source.onnx" if output == "out.onnx" else "source.pt"
        )  # what is exported takes long
        graph = eir.trace(nn.Sequential(*blocks).eval(), example_inputs=(torch.randn(1, 64),))
        eir.save(graph, source)
        options = [str(source), "--to-units", "60"]
    folder = tmp_path / "here"
    folder.mkdir()
    command = ["stretch", *options, "-o", str(folder / output)]

    def start() -> multiprocessing.process.BaseProcess:
        here, there = context.Pipe()
        process = context.Process(target=killed.command, args=(there, command, 0.0))
        process.start()
        there.close()
        here.recv()
        return process

    def run() -> tuple[float, dict[str, bytes]]:
        process, begun = start(), time.perf_counter()
        process.join()
        assert process.exitcode == 0
        return time.perf_counter() - begun, tree(folder / output)

    def clear() -> None:
        subprocess.run(["rm", "-r", str(folder / output)], check=True)

    seconds = []
    for _ in range(3):
        took, whole = run()
        seconds.append(took)
        clear()
    dice = random.Random(output)
    for _ in range(moments):
        process = start()
        time.sleep(dice.uniform(0, 1.05) * min(seconds))
        process.kill()
        process.join()
        if (folder / output).exists():
            assert tree(folder / output) == whole
            clear()
        assert run()[1] == whole
        assert names(folder) == {output}
        clear()
