"""The files beside a checkpoint's weights that go with a copy: tokenizer, generation settings, chat template, code."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.card import CARD
from elastic_ir.checkpoints.config.depth import beside_reindexed
from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.checkpoints.read import inside
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import SourceChangedError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_of_adapter
from elastic_ir.formats.files import read_json, stamp_of
from elastic_ir.formats.model_folder import MASKS, RECORD, CheckpointSource, is_compound

#: Weights in any form, and their indices: of the source's depth, and so not the copy's.
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|tflite|ot|mlmodel|npz|zip|tar|gz)"
    r"|.*\.index(\.\w+)?\.json",
    re.IGNORECASE,
)
_OURS = {RECORD, CARD}
#: Files about texts and images, full of numbers that are not layers'.
_NO_LAYERS = re.compile(
    r"token|vocab|merges|template|processor|dictionary|lexicon|sentence|label", re.IGNORECASE
)
_SMALL = 4 << 20  #: bytes; a file of settings has fewer


@dataclass(frozen=True)
class SideFile:
    """One file to copy, under its name in the folder."""

    name: str
    path: Path
    size: int
    stamp: tuple[int, int, int]
    #: whether it is about the network that changes, and not about another part of its folder
    about: bool = True


def is_side_file(name: str) -> bool:
    """Whether a file of that name, with the folders before it, holds no weights and is not hidden."""
    parts = name.split("/")
    return not (_WEIGHTS.fullmatch(parts[-1]) or any(part.startswith(".") for part in parts))


def is_taken_along(name: str) -> bool:
    """Whether a file of that name goes with a copy, changed or not: no weights, or those of an adapter."""
    return is_side_file(name) or name.rpartition("/")[2] in ADAPTER_WEIGHTS


def side_files(source: CheckpointSource) -> list[SideFile]:
    """All files that hold no weights, those of folders inside included; hidden ones stay behind.

    Of the other parts of a compound folder also those that hold weights. Names are those in the whole folder. Raises
    SourceError for a link out of the folder.
    """
    found = []
    whole = source.whole or source.folder
    anew = {f"{source.inner}{name}" for name in (*_OURS, source.layout.config)}
    for path, part in _walked(whole, source.inner):
        name = path.relative_to(whole).as_posix()
        if not (part or is_side_file(name)) or (not part and is_of_adapter(path)):
            continue
        inside(path, source.root)
        if name in anew:
            continue
        status = path.stat()
        about = not part and name.startswith(source.inner)
        found.append(SideFile(name, path, status.st_size, stamp_of(status), about))
    return found


def left_out(source: CheckpointSource) -> list[str]:
    """Files of weights that are of the source's depth, and that a copy lacks: other variants, other formats.

    Adapters are :mod:`elastic_ir.checkpoints.adapters`'s.
    """
    whole = source.whole or source.folder
    names = ((path.relative_to(whole).as_posix(), path, part) for path, part in _walked(whole, source.inner))
    own = {shard.name for shard in source.shards} | {MASKS, source.layout.index, source.layout.saved[1]}
    return [
        name
        for name, path, part in names
        if not (
            part
            or is_side_file(name)
            or is_of_adapter(path)
            or (path.parent == source.folder and path.name in own)
        )
    ]


def adapters_in(source: CheckpointSource) -> list[Path]:
    """The folders with adapters of PEFT: the checkpoint's own, and those in it."""
    walked = _walked(source.whole or source.folder, source.inner)
    return [
        path.parent
        for path, part in walked
        if not part and path.name == ADAPTER_CONFIG and is_of_adapter(path)
    ]


def _walked(whole: Path, inner: str) -> Iterator[tuple[Path, bool]]:
    """The files of a folder that are not hidden, and whether each is in a part other than the one in ``inner``."""
    parts: list[str] = []
    if is_compound(whole):
        from elastic_ir.formats.compound_folder import parts_of

        parts = [f"{part}/" for part in parts_of(whole) if f"{part}/" != inner]
    for path in sorted(whole.rglob("*")):
        name = path.relative_to(whole).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield path, any(name.startswith(part) for part in parts)


def beside_part(whole: Path, inner: str) -> list[str]:
    """The files of a compound folder that a copy has as they are, when the part in ``inner`` changes, by their names.

    ``inner`` ends with a slash; it is empty where the part lies in the folder itself.
    """
    found = ((path.relative_to(whole).as_posix(), path, part) for path, part in _walked(whole, inner))
    return [
        name
        for name, path, part in found
        if part or (inner and not name.startswith(inner) and is_side_file(name) and not is_of_adapter(path))
    ]


@dataclass
class FollowedFiles:
    """The texts of files beside the weights that concern layers, and what was kept because the user asked for it."""

    texts: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


def followed_files(
    side: Iterable[SideFile], stacks: Sequence[Stack], names: Iterable[str], keep: Sequence[str] = ()
) -> FollowedFiles:
    """JSON files that concern layers (``generation_config.json``, ``quantize_config.json``), in step with the depth.

    A file that does not, or cannot be read, is copied as it is. Raises PlanError, with file and entry, for what
    concerns layers and cannot be followed.
    """
    found = FollowedFiles()
    names = list(names)
    if not any(stack.changed for stack in stacks):
        return found
    for file in side:
        if (
            not (file.about and file.name.endswith(".json"))
            or _NO_LAYERS.search(file.name)
            or file.size > _SMALL
        ):
            continue
        try:
            document = read_json(file.path)
        except (OSError, ValueError):
            continue
        made: Any = document
        if isinstance(document, dict):
            made = beside_reindexed(document, file.name, stacks, names, keep)
        follow = followed(made, file.name, stacks, names, keep)
        found.kept += follow.kept
        if follow.document != document:
            found.texts[file.name] = json_text(follow.document)
    return found


def json_text(document: Any) -> str:
    """A file's text, as transformers lays it out but in the order that it had."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


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
