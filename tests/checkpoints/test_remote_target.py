"""Folders written behind URLs: the same files as here, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.checkpoints.remote_target import save_remote
from elastic_ir.errors import OutputError, SourceError
from tests.checkpoints.folders import config, llama, run, write

fsspec = pytest.importorskip("fsspec")
PLAN = ("--plan", "0-3,1", "--shard-size", "700")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write(tmp_path / "source", llama(), config(4), shards=3)
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("more")
    return folder


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def held(system: Any, root: str) -> dict[str, bytes]:
    return {path.removeprefix(f"{root}/"): system.cat(path) for path in system.find(root)}


def test_what_is_written_behind_a_url_is_what_is_written_here(
    source: Path, tmp_path: Path, memory: Any
) -> None:
    assert run("stretch", source, *PLAN, "-o", tmp_path / "local").exit_code == 0
    done = run("stretch", source, *PLAN, "-o", "memory://bucket/deeper")
    assert done.exit_code == 0, done.output
    assert "memory://bucket/deeper" in done.output
    assert held(memory, "/bucket/deeper") == tree(tmp_path / "local")
    done = run("stretch", source, *PLAN, "-o", f"file://{tmp_path}/there")
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "there") == tree(tmp_path / "local")
    again = run("stretch", source, *PLAN, "-o", "memory://bucket/deeper")
    assert again.exit_code == 1
    assert "memory://bucket/deeper holds files already; name another, or remove them" in again.output
    assert run("undo", "memory://bucket/deeper", "-o", "memory://bucket/again").exit_code == 0
    assert run("diff", source, "memory://bucket/again", "--headers").exit_code == 0


def test_the_configuration_comes_last(source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    genuine = type(memory).open

    def noted(self: Any, path: str, mode: str = "rb", **more: Any) -> Any:
        if mode == "wb":
            opened.append(path.rpartition("/")[2])
        return genuine(self, path, mode, **more)

    monkeypatch.setattr(type(memory), "open", noted)
    graph = eir.stretch(eir.load(source, headers_only=True), plan="0-3,1")
    told: list[tuple[int, int]] = []
    save_remote(graph, "memory://bucket/out", shard_size=700, check=False, tell=lambda *now: told.append(now))
    assert opened[-1] == "config.json"
    assert all(name.endswith(".safetensors") for name in opened[:10])
    assert told[-1][0] == told[-1][1] > 0


def test_nothing_is_left_where_it_fails(source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = eir.stretch(eir.load(source, headers_only=True), plan="0-3,1")
    genuine = type(memory).open
    files = 0

    def failing(self: Any, path: str, mode: str = "rb", **more: Any) -> Any:
        nonlocal files
        files += mode == "wb"
        if files == 5 and mode == "wb":
            raise OSError("no more room")
        return genuine(self, path, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "open", failing)
        with pytest.raises(
            OutputError, match=r"cannot be written: OSError: no more room; .*; nothing of memory://b/o"
        ):
            save_remote(graph, "memory://b/out", shard_size=700, check=False)
    assert memory.find("/b") == []
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SourceError, match="could not be read: no such file"):
        save_remote(graph, "memory://b/out", shard_size=700, check=False)
    assert memory.find("/b") == []


@pytest.mark.slow
def test_a_folder_of_a_network_that_was_built(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=3, **sizes))
    net.save_pretrained(tmp_path / "net")
    made = ("apply", tmp_path / "net", "--passes", "stretch{to-units=4}", "--no-check", "-o")
    assert run(*made, tmp_path / "here").exit_code == 0
    done = run(*made, "memory://b/out")
    assert done.exit_code == 0, done.output
    found = {path.removeprefix("/b/out/"): memory.cat(path) for path in memory.find("/b/out")}
    assert found == tree(tmp_path / "here")
    again = run(*made, "memory://b/out")
    assert again.exit_code == 1 and "memory://b/out holds files already" in again.output
    monkeypatch.setattr(memory, "info", lambda path: {"size": 1})
    broken = run(*made, "memory://b/other").output
    assert "was written with" in broken and memory.find("/b/other") == []


def test_interrupts_and_masks(source: Path, memory: Any) -> None:
    graph = eir.stretch(eir.load(source, headers_only=True), plan="0-3,1")

    def stop(*_now: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_remote(graph, "memory://b/out", shard_size=700, check=False, tell=stop)
    assert memory.find("/b") == []
    masks = {"model.layers.1.mlp.up_proj.weight": np.eye(16, 8)}
    masked = eir.load(source, headers_only=True, masks=masks)
    with pytest.raises(
        OutputError, match="masks state which files they belong to; write to a folder here and copy"
    ):
        save_remote(eir.stretch(masked, plan="0-3,1"), "memory://b/out", check=False)
    with pytest.raises(OutputError, match="fsspec knows no such scheme"):
        save_remote(graph, "zz://b/out", check=False)


@pytest.mark.parametrize("more", [("--resume",), ("--durable",), ("--jobs", "2")])
def test_options_of_folders_here(source: Path, more: tuple[str, ...]) -> None:
    done = run("stretch", source, *PLAN, "-o", "memory://b/out", *more)
    assert done.exit_code == 2
    assert f"{more[0]} is for folders that are written here, and -o is a URL" in done.output


def test_what_is_no_folder_and_no_format(source: Path, tmp_path: Path) -> None:
    save_file({f"a.{n}.weight": np.ones((2, 2)) for n in range(3)}, tmp_path / "m.safetensors")
    done = run("stretch", tmp_path / "m.safetensors", "--to-units", "4", "-o", "memory://b/out.xyz")
    assert done.exit_code == 2
    assert "behind a URL a file is written, by its suffix, or a model's folder, from one" in done.output


def test_a_folder_that_cannot_be_listed_is_not_empty(
    source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.put(str(source), "/b/out", recursive=True)
    there = held(memory, "/b/out")

    def denied(*_given: object, **_more: object) -> Any:
        raise PermissionError("ListBucket")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "ls", denied)
        done = run("stretch", source, *PLAN, "-o", "memory://b/out")
        assert done.exit_code == 1
        assert "memory://b/out cannot be listed, so it is not known to be empty" in done.output
    with monkeypatch.context() as patch:  # a server that lists nothing, and has what would be written
        patch.setattr(type(memory), "ls", lambda *_given, **_more: [])
        done = run("stretch", source, "--plan", "0-3", "-o", "memory://b/out")
        assert (
            "memory://b/out/extra/notes.txt exists already; choose another name with -o OUT\n" in done.output
        )
    assert held(memory, "/b/out") == there
    memory.rm("/b/out", recursive=True)
    memory.pipe_file("/b/out/1/2/3/4/odd:name", b"far down")
    assert "holds files already" in run("stretch", source, *PLAN, "-o", "memory://b/out").output


@pytest.mark.parametrize("url", ["memory://", "s3:///", "memory://me:secret@"])
def test_nothing_behind_the_scheme(
    source: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("stretch", source, *PLAN, "-o", url)
    assert done.exit_code == 2 and "names no place behind its scheme" in done.output
    graph = eir.stretch(eir.load(source, headers_only=True), plan="0-3,1")
    with pytest.raises(OutputError, match=r"^\w+://.* names no place behind its scheme$"):
        save_remote(graph, url, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_recipes(source: Path, memory: Any) -> None:
    slices = "".join(f"- sources: [{{model: source, layer_range: [{one}]}}]\n" for one in ("0, 3", "1, 4"))
    recipe = source.parent / "r.yaml"
    recipe.write_text(f"slices:\n{slices}merge_method: passthrough\ndtype: float16\n")
    for out, *more in (
        ("memory://r/x.pt",),
        ("memory://r/x", "--durable"),
        ("memory://r/x", "--with-optimizer"),
    ):
        done = run("stretch", recipe, "-o", out, *more)
        assert done.exit_code == 2, done.output
    assert memory.find("/r") == []
    assert run("stretch", recipe, "-o", "memory://r/x").exit_code == 0
    assert memory.exists("/r/x/config.json")


def test_verify_finds_the_source_beside(source: Path, memory: Any) -> None:
    memory.put(str(source), "/me:secret@b/source", recursive=True)
    assert (
        run("stretch", "memory://me:secret@b/source", *PLAN, "-o", "memory://me:secret@b/out").exit_code == 0
    )
    memory.put(str(source), "/b/source", recursive=True)  # where the record's URL leads in memory
    for url in ("memory://me:secret@b/out", "memory://me:secret@b/out/"):
        found = run("verify", url)
        assert found.exit_code == 0 and "(found by the record)" in found.output, found.output
