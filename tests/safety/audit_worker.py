"""A process that reads files under an audit hook, and prints what it was told of that reading should not do.

``python -m tests.safety.audit_worker FOLDER CASE...`` prints a line of JSON for each case: what came of it, and the
acts that are not on the list of :func:`allowed`. An audit hook stays for good, hence a process of its own.
"""

from __future__ import annotations

import json
import os
import site
import sys
import sysconfig
import tempfile
import types
from pathlib import Path
from typing import Any

from elastic_ir.errors import ElasticError
from tests.safety.audited_files import HOSTILE, ORDINARY

#: Acts that no reader needs, whatever their arguments.
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "subprocess.", "socket.connect",
    "socket.bind", "socket.getaddrinfo", "socket.gethostby", "socket.send", "urllib.", "http.", "ftplib.",
    "webbrowser.",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.",
    "tempfile.", "sqlite3.", "pickle.find_class", "cpython.run",
)  # fmt: skip
#: Files of a source that are read, by their names.
SOURCES = {
    "a.pt", "a.pt2", "b.pt2", "a.safetensors", "a.masks.safetensors", "a.ticket", "a.onnx", "a.data", "masks.pt",
    "masks.safetensors", "config.json", "model.safetensors", "pytorch_model.bin", "recipe.yaml", "slices.yaml",
    "study.yaml", "arch.pt", "masks.npz", ".metadata", "__0_0.distcp", "elastic_ir.json",
    "shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors",
    "adapter_config.json", "adapter_model.bin",
}  # fmt: skip
#: Never imported for a file's sake: what lies beside it, and programs.
STRANGERS = (
    "evil",
    "modeling_evil",
    "configuration_evil",
    "elastic_ir.cli",
    "transformers.commands",
    "__main__",
)
#: Who compiles text as a part of its work: Python's definitions, torch's graphs, the expressions of its export.
COMPILERS = (
    "dataclasses", "collections", "typing", "ast", "inspect", "enum", "functools", "torch.fx", "torch._dynamo", "sympy",
    "torch.utils._sympy", "torch.jit", "torch._jit_internal", "torch._sources", "linecache", "traceback", "importlib",
    "typing_extensions", "pydantic", "torch._export", "torch.export",
)  # fmt: skip

INSTALLED = tuple(
    os.path.realpath(folder) + os.sep
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        str(Path(__file__).parents[2]),
    }
)


def allowed(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    """Whether a reader of the folder's sources may do so."""
    if event == "os.mkdir" and Path(os.fsdecode(arguments[0])).name.startswith("torchinductor_"):
        return True  # torch's own folder of caches, which its exporter makes when it is imported
    if event.startswith(FORBIDDEN):
        return False
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int):
            return True
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & writing):
            return False
        real = Path(os.path.realpath(os.fsdecode(path)))
        if str(real).startswith(INSTALLED):
            return real.suffix not in (".pt", ".pth", ".bin", ".pkl", ".ckpt")
        if os.fsdecode(path) in sys.path:
            return True  # a zip of modules, where metadata are looked for
        inner = real.is_relative_to(folder) and "inner" not in real.parts and real.name in SOURCES
        return inner or real.is_relative_to("/proc/self") or str(real).startswith("/sys/")
    if event == "import":
        return not any(arguments[0] == name or arguments[0].startswith(f"{name}.") for name in STRANGERS)
    if event in ("exec", "compile"):
        return _compiles()
    return True


def _compiles() -> bool:
    """Whether code is run by an import of an installed module, or by one of the known compilers."""
    frame: types.FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_globals.get("__name__") != __name__:
        name = str(frame.f_globals.get("__name__"))
        if any(name == known or name.startswith(f"{known}.") for known in COMPILERS):
            return True
        frame = frame.f_back
    return False


class Watch:
    """The hook: it looks on, and stops nothing."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: set[str] = set()
        self.acts: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self.folder
        if folder is None:
            return
        self.folder = None  # what is asked for here is no act of the reader
        try:
            self.seen.add(event)
            if not allowed(event, arguments, folder):
                self.acts.append(f"{event} {arguments!r}"[:300])
        finally:
            self.folder = folder


def main(place: Path, names: list[str]) -> None:
    tempfile.gettempdir()  # tries once in a process where it can write, whoever asks first
    watch = Watch()
    sys.addaudithook(watch)
    for number, name in enumerate(names):
        folder = (place / str(number)).resolve()
        folder.mkdir()
        reader = {**ORDINARY, **HOSTILE}[name](folder)
        watch.seen, watch.acts = set(), []
        os.chdir(folder)  # which is on the path, as with python -m
        watch.folder = folder
        try:
            found = reader()
            said = f"read: {getattr(getattr(found, 'info', None), 'class_note', '') or ''}"
        except ElasticError as error:
            said = f"refused: {error}"
        except Exception as error:
            said = f"unexpected {type(error).__name__}: {error}"
        finally:
            watch.folder = None
        os.chdir(place)
        marks = [str(path.relative_to(place)) for path in place.rglob("marker")]
        line = {"case": name, "said": said, "acts": watch.acts, "marks": marks, "seen": sorted(watch.seen)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, "")
    main(Path(sys.argv[1]), sys.argv[2:] or [*ORDINARY, *HOSTILE])
