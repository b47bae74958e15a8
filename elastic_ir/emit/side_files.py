"""The files beside a checkpoint's weights that go with a copy: tokenizer, generation settings, chat template, code."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from elastic_ir.checkpoint_source import CONFIG, RECORD, CheckpointSource, stamp_of
from elastic_ir.emit.model_card import CARD
from elastic_ir.errors import SourceChangedError, SourceError

#: Weights in any form, and their indices: of the source's depth, and so not the copy's.
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|tflite|ot|mlmodel|npz|zip|tar|gz)"
    r"|.*\.index\.json",
    re.IGNORECASE,
)
_OURS = {CONFIG, RECORD, CARD}


@dataclass(frozen=True)
class SideFile:
    """One file to copy, under its name in the folder."""

    name: str
    path: Path
    size: int
    stamp: tuple[int, int, int]


def side_files(source: CheckpointSource) -> list[SideFile]:
    """All files that hold no weights, those of folders inside included; hidden ones stay behind.

    Raises SourceError for a link out of the folder.
    """
    found = []
    for path in sorted(source.folder.rglob("*")):
        name = path.relative_to(source.folder)
        if _WEIGHTS.fullmatch(path.name) or not path.is_file() or any(p.startswith(".") for p in name.parts):
            continue
        if not path.resolve().is_relative_to(source.root):
            raise SourceError(
                f"{path} is a symbolic link out of the folder, to {path.resolve()}; put the file itself there"
            )
        if name.as_posix() in _OURS:  # written anew
            continue
        status = path.stat()
        found.append(SideFile(name.as_posix(), path, status.st_size, stamp_of(status)))
    return found


def copy_side_file(file: SideFile, target: Path) -> None:
    """Copy a file's bytes; SourceError where it is gone, or was changed since the folder was read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.path.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
            if stamp_of(os.fstat(source.fileno())) != file.stamp:
                raise SourceChangedError(f"{file.path} was changed after it was read; read it again")
    except FileNotFoundError as error:
        raise SourceChangedError(f"{file.path} is gone since the folder was read") from error
