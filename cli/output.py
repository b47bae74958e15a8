"""Where a result is written: the name without one given, what must not be written over, and what was written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.cli import tables
from elastic_ir.cli.app import FORCE, JSON, given
from elastic_ir.cli.kinds import as_path, behind_url, here, hub_model, is_gguf, is_remote
from elastic_ir.errors import OutputError
from elastic_ir.formats import (
    FOLDER,
    GGUF,
    ONNX,
    OWN,
    PYTHON,
    PYTORCH,
    SAFETENSORS,
    folder_format,
    format_of,
    readable_and_writable,
    writable,
)

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
    if extension in GGUF.suffixes and hub_model(source) is not None:
        base = Path(before.name)  # the file that the hub has of that quantisation
    return base.with_name(f"{base.name.removesuffix(f'-{tag(before)}')}-{tag(after)}{extension}")


def named_after(source: str) -> tuple[Path, str]:
    """A path as the source's without its suffix, and the suffix that a result keeps: none for a folder's.

    For a source that is not a file, and for one in a cache of models, it is a name in the current folder.
    """
    base, extension = _named_after(source)
    if _is_cached(base.parent):
        from elastic_ir.formats.model_folder import cached_model, name_of

        known = cached_model(base)
        base = Path(name_of(base) if known is not None and not known[2] else base.name)
    return base, extension


def refuse_cache(out: Path) -> None:
    """OutputError where a name that nobody chose would lie in a cache of models, as the current folder does."""
    if not out.is_absolute() and out.parent == Path() and _is_cached(Path.cwd()):
        raise OutputError(
            f"the current folder is in a cache of models, {Path.cwd()}; say where to write, with -o OUT"
        )


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
    path = as_path(source)
    if is_remote(source):
        if behind_url(source) is None:
            return path, ""
    elif not path.exists():
        from elastic_ir.formats.hub_cache import hub_name

        name = hub_name(source) if "/" in source or ":" in source else None
        if name is not None:
            named = name.repo.rpartition("/")[2]
            if name.is_gguf:
                return Path(Path(name.inner).stem or f"{named}-{name.quant}"), GGUF.suffixes[0]
            return Path(named), ""
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


def refuse_overwriting(
    out: Path, inputs: dict[str, str | None], dry_run: bool = False, option: str = "-o OUT"
) -> None:
    """OutputError where writing ``out`` would replace one of the sources, or, without ``--force``, anything.

    The keys of ``inputs`` describe the sources, ``option`` is the one that names ``out``. Python source that somebody
    else wrote counts as one, as a network's own module may be the file. A dry run refuses for these alone.
    """
    _refuse_inputs(out, inputs, option)
    if PYTHON.names(out) and out.is_file() and not _written_by_us(out):
        raise OutputError(f"{out} holds source that ElasticIR did not write; choose another name with -o OUT")
    if given(FORCE) or not dry_run:
        refuse_existing(*files_of(out), other=f"choose another name with {option}")


def _refuse_inputs(out: Path, inputs: dict[str, str | None], option: str = "-o OUT") -> None:
    """OutputError where writing ``out`` would replace one of the sources."""
    for path in files_of(out):
        for what, given_name in inputs.items():
            name = given_name and here(given_name)
            if name is None or not os.path.exists(name):
                continue
            if _same(path, name):
                where = f"{out} is {what}" if path == out else f"{path}, which belongs to {out}, is {what}"
            elif path.is_dir() and _same(path, Path(name).resolve().parent):
                where = f"{out} is the folder of {what}"
            else:
                continue
            raise OutputError(f"{where}, which would be written over; choose another name with {option}")


def refuse_own_url(out: str, inputs: dict[str, str | None]) -> None:
    """OutputError where a result would take the place of one of the sources behind its URL."""
    from elastic_ir.formats.remote import same_place, without_credentials

    if here(out) != out:
        _refuse_inputs(Path(here(out)), inputs)
    for what, name in inputs.items():
        if name is not None and is_remote(name) and same_place(name, out):
            raise OutputError(
                f"{without_credentials(out)} is {what}, which would be written over; choose another name with -o OUT"
            )


def _written_by_us(path: Path) -> bool:
    """Whether Python source begins as the emitter's does."""
    from elastic_ir.emit.source.file import SIGNATURE

    with path.open("rb") as file:
        return SIGNATURE.encode() in file.readline(10_000)


def files_of(out: Path) -> list[Path]:
    """What a result may lie in: its file or folder, and the file that its masks or its tensors go to."""
    if SAFETENSORS.names(out):
        from elastic_ir.emit.files import mask_file

        return [out, mask_file(out)]
    return [out, out.with_name(f"{out.name}.data")] if ONNX.names(out) else [out]


def refuse_existing(*paths: Path, other: str = "choose another name with -o OUT") -> None:
    """OutputError where something is there already, and no ``--force`` lets it go; an empty folder gives way.

    ``--force`` is for files and for folders of models: no other folder is taken away.
    """
    for path in filter(is_taken, paths):
        folder = path.is_dir()
        if not given(FORCE):
            what = "exists already and is not an empty folder" if folder else "exists already"
            raise OutputError(
                f"{path} {what}; {other}, or {'replace' if folder else 'write over'} it with --force"
            )
        if folder:
            from elastic_ir.formats.adapter_folder import adapter_weights
            from elastic_ir.formats.model_folder import is_checkpoint

            if folder_format(path) is FOLDER and not (is_checkpoint(path) or adapter_weights(path)):
                raise OutputError(
                    f"{path} is a folder without a model, which --force does not replace; {other}"
                )


def is_taken(path: Path) -> bool:
    """Whether a file is there, or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def would_write(out: Path, *paths: Path, size: str = "") -> tuple[str, str]:
    """The fact that a dry run ends with; ``paths`` are what the result lies in, where that is not what is usual."""
    taken = next(filter(is_taken, paths or files_of(out)), None)
    text = f"would write {out}{size}"
    if taken is not None:
        there = "which is there" if taken == out else f"and {taken} is there"
        text += (
            f", {there}: {'it is replaced' if given(FORCE) else 'give --force, or another name with -o OUT'}"
        )
    return "dry run", text


def save(graph: Graph, out: Path, check: bool) -> list[Path]:
    """Write a graph as :func:`elastic_ir.api.save` does; a folder that is there is replaced when the new one is whole.

    Whether it may be is what :func:`refuse_overwriting` is asked before.
    """
    from elastic_ir import api
    from elastic_ir.formats.files import take_name, temporary

    if writable(out) or not (is_taken(out) and out.is_dir() and given(FORCE)):
        return api.save(graph, out, check=check)
    with temporary(out, folder=True) as room:
        api.save(graph, room / out.name, check=check)
        take_name(room / out.name, out, replace=True)
    return [out]


def refuse_source(out: Path) -> None:
    """OutputError where a changed network would be written as source alone, and its weights be lost."""
    if PYTHON.names(out):
        kept = out.with_suffix(PYTORCH.suffixes[0])
        raise OutputError(
            f"{out} would hold no weights; write {kept}, then 'elastic-ir export {kept} -o {out}' writes the source"
        )


def refuse_other_form(source: str, out: Path) -> None:
    """OutputError where what was no GGUF file would be written as one, before minutes go into reading it."""
    if GGUF.names(out) and not is_gguf(source) and format_of(as_path(source)) is not GGUF:
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


def say_change(
    source: str, before: Graph | None, after: Graph, written: Sequence[Path], out: Path, **more: Any
) -> None:
    """With ``--json``, print what a command has made of a source (docs/json.md); ``out`` is where it goes."""
    if not given(JSON):
        return
    from elastic_ir.cli.diff import summary

    structure, plan = tables.structure_of(after)[0], after.resequenced.plan
    stages = structure.stages if structure is not None and len(structure.stages) == len(plan) else ()
    tables.say_result(
        {
            "source": source,
            "before": summary(before) if before is not None else None,
            "after": summary(after),
            "plan": {stage.name: list(blocks) for stage, blocks in zip(stages, plan, strict=False)} or None,
            **written_data(written),
            "would_write": str(out) if not written else None,
            **more,
        }
    )


def written_data(written: Sequence[Path]) -> dict[str, Any]:
    """Files and folders that were written, as plain data."""
    return {"wrote": [{"path": str(path), "bytes": size_of(path)} for path in written]}


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
    tables.show_facts([*facts, *graph.emitted.beside, *wrote(written)])
