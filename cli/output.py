"""Where a result is written: the name without one given, what must not be written over, and what was written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.cli import tables
from elastic_ir.errors import OutputError
from elastic_ir.formats import GGUF, OWN, PYTHON, PYTORCH, SAFETENSORS, format_of, readable_and_writable

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

#: The suffixes of our own formats that hold a network with its weights, as help texts list them.
WITH_WEIGHTS = ", ".join(form.suffixes[0] for form in OWN if form.read and form.write)


def tag(graph: Graph) -> str:
    """What distinguishes networks of one family in a file name: ``depth56``, else the stages' blocks ``3-4-23-3``."""
    structure = graph.structure
    if structure.depth is not None:
        return f"depth{structure.depth}"
    return "-".join(str(len(stage)) for stage in structure.stages)


def default_output(source: str, before: Graph, after: Graph) -> Path:
    """Beside the source, or in the current folder for one that is not a file: ``model.pt`` -> ``model-depth56.pt``.

    The source's own tag is replaced: ``model-depth56.pt`` squeezed is ``model-depth20.pt``.
    """
    base, extension = named_after(source)
    return base.with_name(f"{base.name.removesuffix(f'-{tag(before)}')}-{tag(after)}{extension}")


def named_after(source: str) -> tuple[Path, str]:
    """A path as the source's without its suffix, and the suffix that a result keeps: none for a folder's.

    For a source that is not a file, and for one in a cache of models, it is a name in the current folder. Raises
    OutputError where the current folder is in a cache.
    """
    base, extension = _named_after(source)
    if _is_cached(base.parent):
        from elastic_ir.formats.model_folder import cached_model, name_of

        known = cached_model(base)
        base = Path(name_of(base) if known is not None and not known[2] else base.name)
    if not base.is_absolute() and base.parent == Path() and _is_cached(Path.cwd()):
        raise OutputError(
            f"the current folder is in a cache of models, {Path.cwd()}; say where to write, with -o OUT"
        )
    return base, extension


def _is_cached(folder: Path) -> bool:
    """Whether a folder is in a cache of a hub, or of torch's."""
    whole = folder.resolve()
    if any(part.startswith("models--") for part in (*whole.parts, *Path(os.path.abspath(folder)).parts)):
        return True
    home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch"
    )
    return whole.is_relative_to(Path(home).expanduser().resolve() / "hub")


def _named_after(source: str) -> tuple[Path, str]:
    from elastic_ir.frontends.sources import is_name

    if is_name(source):
        return Path(re.sub(r"[^\w.-]+", "-", source.rpartition(":")[2]).strip("-")), PYTORCH.suffixes[0]
    path = Path(source)
    if not path.exists():
        from elastic_ir.formats.hub_cache import hub_name

        name = hub_name(source) if "/" in source or ":" in source else None
        if name is not None:
            return Path(name.repo.rpartition("/")[2]), ""
    if path.is_dir():
        return (path.resolve() if path.name in ("", "..") else path), ""
    if GGUF.names(path):
        from elastic_ir.formats.gguf.parts import stem_of

        return path.with_name(stem_of(path)), kept_suffix(path)
    return path.with_suffix(""), kept_suffix(path)


def kept_suffix(path: Path) -> str:
    """A source's own suffix where files of it are read and written, else that of PyTorch's."""
    return path.suffix if readable_and_writable(path) else PYTORCH.suffixes[0]


def beside(source: str, extension: str) -> Path:
    """The source's name with another extension, or in the current folder for one that is not a file."""
    base, _ = named_after(source)
    return base.with_name(base.name + extension)


def applied(source: str) -> Path:
    """What ``apply`` writes: the source's name with ``-applied``."""
    base, extension = named_after(source)
    return base.with_name(f"{base.name}-applied{extension.lower()}")


def refuse_overwriting(out: Path, inputs: dict[str, str | None]) -> None:
    """OutputError where writing ``out`` would replace one of the sources; the keys describe them.

    Python source that somebody else wrote counts as one: a network's own module may be the file.
    """
    from elastic_ir.emit.files import mask_file

    masks = mask_file(out) if SAFETENSORS.names(out) else None
    for what, name in inputs.items():
        if name is None or not os.path.exists(name):
            continue
        if _same(out, name):
            where = f"{out} is {what}"
        elif out.is_dir() and _same(out, Path(name).resolve().parent):
            where = f"{out} is the folder of {what}"
        elif masks is not None and _same(masks, name):
            where = f"{masks}, where the masks of {out} go, is {what}"
        else:
            continue
        raise OutputError(f"{where}, which would be written over; choose another name with -o OUT")
    if PYTHON.names(out) and out.is_file() and not _written_by_us(out):
        raise OutputError(f"{out} holds source that ElasticIR did not write; choose another name with -o OUT")


def _written_by_us(path: Path) -> bool:
    """Whether Python source begins as the emitter's does."""
    from elastic_ir.emit.source.file import SIGNATURE

    with path.open("rb") as file:
        return SIGNATURE.encode() in file.readline(10_000)


def refuse_source(out: Path) -> None:
    """OutputError where a changed network would be written as source alone, and its weights be lost."""
    if PYTHON.names(out):
        kept = out.with_suffix(PYTORCH.suffixes[0])
        raise OutputError(
            f"{out} would hold no weights; write {kept}, then 'elastic-ir export {kept} -o {out}' writes the source"
        )


def refuse_other_form(source: str, out: Path) -> None:
    """OutputError where what was no GGUF file would be written as one, before minutes go into reading it."""
    if GGUF.names(out) and format_of(Path(source)) is not GGUF:
        raise OutputError(
            f"{out} would be a GGUF file, and only what was one is written so; convert what is written otherwise with "
            "convert_hf_to_gguf of llama.cpp"
        )


def _same(path: Path, other: str | Path) -> bool:
    return os.path.exists(path) and os.path.samefile(path, other)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size


def wrote(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """A fact for each file or folder that was written: its path and its size."""
    return [("wrote", f"{path} ({tables.file_size(size_of(path))})") for path in paths]


def show_written(graph: Graph, written: Sequence[Path]) -> None:
    """Print what was written, what the check of the network could not compare, and what it has changed."""
    facts = []
    if graph.emitted.unchecked:
        facts.append(("note", f"outputs were not compared: {graph.emitted.unchecked}"))
    if graph.emitted.replaced:
        facts.append(("note", f"a GraphModule stands for the class: {graph.emitted.replaced}"))
    tables.show_facts([*facts, *wrote(written)])
