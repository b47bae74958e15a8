"""Writing results behind URLs, or showing what would be written there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import FORCE, given
from elastic_ir.cli.streamed import fetch_gguf, show_compared, show_gguf_plan, show_plan, show_result

if TYPE_CHECKING:
    from elastic_ir.checkpoints.oracle.comparison import Compared
    from elastic_ir.cli.resize import Wanted
    from elastic_ir.ir.graph import Graph


def refuse_target(url: str, folder: bool) -> None:
    """OutputError where a result cannot be written behind a URL, or something is there already."""
    from elastic_ir.checkpoints.remote_target import refuse_target as refuse
    from elastic_ir.formats.remote import path_of

    refuse(url, [] if folder else [path.name for path in output.files_of(path_of(url))], given(FORCE))


def write_folder(graph: Graph, url: str, wanted: Wanted) -> dict[str, Any]:
    """Write a folder that was read by its headers behind a URL, or print what would be written; as data, what was."""
    from elastic_ir.checkpoints.remote_target import save_remote
    from elastic_ir.checkpoints.write import SHARD_SIZE, plan_checkpoint
    from elastic_ir.formats.remote import without_credentials

    shard_size = wanted.shard_size or SHARD_SIZE
    plan = plan_checkpoint(graph, shard_size, without_credentials(url))
    size = sum(plan.files.values())
    if wanted.dry_run:
        plan = plan.settled()
    show_plan(plan)
    if wanted.dry_run:
        return _would_write(url, [], f" ({show_result(graph, plan.files)})")
    found: list[Compared] = []
    with tables.transfer(f"writing {url}") as tell:
        save_remote(
            graph,
            url,
            shard_size=shard_size,
            check=not wanted.no_check,
            tell=tell,
            tell_compared=found.append,
        )
    show_compared(plan, found)
    tables.show_facts(_facts({url: size}))
    return {**_data({url: size}), "would_write": None}


def write_file(graph: Graph, url: str, wanted: Wanted) -> dict[str, Any]:
    """Write a file, or a folder that is no stream, behind a URL, or print what would be written; as data, what was."""
    from elastic_ir.checkpoints.remote_target import save_remote_gguf
    from elastic_ir.formats import GGUF, writable
    from elastic_ir.formats.remote import path_of

    name = path_of(url)
    if GGUF.names(name) and graph.origin.streamed:
        plan = show_gguf_plan(graph, name, wanted)
        if wanted.dry_run:
            return _would_write(url, [*plan.sizes], f" ({show_result(graph, plan.sizes)})")
        fetch_gguf(graph)
        with tables.transfer(f"writing {url}") as tell:
            sizes = save_remote_gguf(plan, url, given(FORCE), tell)
        tables.show_facts(_facts(sizes))
        return {**_data(sizes), "would_write": None}
    folder = not writable(name)
    beside = [path.name for path in output.files_of(name)[1:]] if not folder else []
    if wanted.dry_run:
        return _would_write(url, [name.name, *beside] if not folder else [])

    def write(path: Path) -> list[Path]:
        return output.save(graph, path, check=not wanted.no_check)

    facts, data = uploaded(url, write, beside, folder)
    output.show_written(graph, [])
    tables.show_facts(facts)
    return {**data, "would_write": None}


def uploaded(
    url: str, write: Callable[[Path], Sequence[Path]], beside: Sequence[str], folder: bool = False
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Have a function write a file, and those beside it, or a folder, and take it behind a URL; as facts and data, what
    was.
    """
    from elastic_ir.checkpoints.remote_target import save_remote_file, save_remote_tree

    with tables.transfer(f"writing {url}") as tell:
        if folder:
            sizes = save_remote_tree(url, write, tell)
        else:
            sizes = save_remote_file(url, write, given(FORCE), tell, beside)
    return _facts(sizes), _data(sizes)


def _would_write(url: str, names: Sequence[str], size: str = "") -> dict[str, Any]:
    """Print what a dry run ends with, and say if something is there; as data, the same. ``names`` are as of
    :func:`refuse_target`: those of files, or none for a folder.
    """
    from elastic_ir.checkpoints.remote_target import taken

    there, way = taken(url, names), "name another, or remove what is there"
    if names:
        way = "it is replaced" if given(FORCE) else "give --force, or another name with -o OUT"
    note = f", where {there} is already: {way}" if there is not None else ""
    tables.show_facts([("dry run", f"would write {url}{size}{note}")])
    return {"would_write": url}


def _facts(sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was written, as lines; whatever is printed shows URLs without users, passwords and queries."""
    return [("wrote", f"{url} ({tables.file_size(size)})") for url, size in sizes.items()]


def _data(sizes: Mapping[str, int]) -> dict[str, Any]:
    return {"wrote": [{"path": url, "bytes": size} for url, size in sizes.items()]}
