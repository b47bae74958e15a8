"""Folders streamed to another depth: bytes, shards, configuration, side files, and what stops half-way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import elastic_ir as eir
from elastic_ir.checkpoints.record import Origin, read_record
from elastic_ir.checkpoints.side_files import side_files
from elastic_ir.checkpoints.write import save_checkpoint
from elastic_ir.errors import EmitError, PlanError, SourceError
from elastic_ir.formats import parts
from elastic_ir.formats import safetensors as safetensors_file
from elastic_ir.formats.model_folder import CheckpointSource
from tests.checkpoints.folders import State, config, llama, run, write


def made(folder: Path) -> State:
    """All tensors of a folder, each held against the index where there is one."""
    state: State = {}
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text()) if index.exists() else None
    for file in sorted(folder.glob("model*.safetensors")):
        part = load_file(file)
        assert places is None or all(places["weight_map"][name] == file.name for name in part)
        state |= part
    if places is not None:
        assert set(places["weight_map"]) == set(state)
        assert places["metadata"]["total_size"] == sum(array.nbytes for array in state.values())
    return state


def expected(state: State, order: list[int]) -> dict[str, bytes]:
    """The bytes of the Llama whose layers are those of the source in that order."""
    found = {n: a.tobytes() for n, a in state.items() if "layers" not in n}
    for at, source in enumerate(order):
        for name, array in state.items():
            if name.startswith(f"model.layers.{source}."):
                found[name.replace(f"layers.{source}.", f"layers.{at}.")] = array.tobytes()
    return found


def same(folder: Path, state: State, order: list[int]) -> bool:
    return {n: a.tobytes() for n, a in made(folder).items()} == expected(state, order)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", llama(), config(4), shards=3)


@pytest.mark.parametrize(
    ("command", "options", "order"),
    [
        ("stretch", ("--to-units", 6), [0, 1, 2, 3, 0, 1]),
        ("stretch", ("--to-units", 6, "--order", "interpolate"), [0, 0, 1, 1, 2, 3]),
        ("stretch", ("--plan", "0-2,1-3"), [0, 1, 2, 1, 2, 3]),
        ("squeeze", ("--to-units", 2), [0, 1]),
        ("squeeze", ("--drop", "1,2"), [0, 3]),
        ("squeeze", ("--plan", "3,0"), [3, 0]),
    ],
)
@pytest.mark.parametrize("size", ["5GB", "1500"])
def test_bytes_of_every_layer(
    source: Path, tmp_path: Path, command: str, options: tuple[Any, ...], order: list[int], size: str
) -> None:
    out = tmp_path / "out-1.5"  # a dot in a folder's name makes it no file
    done = run(command, source, *options, "-o", out, "--shard-size", size)
    assert done.exit_code == 0, done.output
    assert same(out, llama(), order)
    assert json.loads((out / "config.json").read_text()) == config(len(order))
    assert leftovers(tmp_path) == []


def test_shards_hold_no_more_than_asked(source: Path, tmp_path: Path) -> None:
    run("stretch", source, "--to-units", 6, "-o", tmp_path / "out", "--shard-size", "1.5kB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    for file in files:
        assert sum(array.nbytes for array in load_file(file).values()) <= 1500


def test_one_unedited_folder_comes_back(source: Path, tmp_path: Path) -> None:
    eir.save(eir.load(source, headers_only=True), tmp_path / "out", check=False)
    assert same(tmp_path / "out", llama(), [0, 1, 2, 3])


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    run("stretch", source, "--to-units", 7, "-o", tmp_path / "deep")
    run("squeeze", tmp_path / "deep", "--to-units", 4, "-o", tmp_path / "back")
    assert same(tmp_path / "back", llama(), [0, 1, 2, 3])
    first, second = read_record(tmp_path / "back")
    assert (first.sources, first.plan) == (("source",), {"model.layers": "0-3,0-2"})
    assert (second.sources, second.plan) == (("deep",), {"model.layers": "0-3"})
    assert first.origin("model.layers.4.mlp.up_proj.weight") == Origin("model.layers.0.mlp.up_proj.weight")
    assert not second.lineage
    card = (tmp_path / "back" / "README.md").read_text()
    assert card.count("## Depth changed by ElasticIR") == 2
    assert "| `model.layers` | 4 | 7 | 0-3,0-2 |" in card
    assert "- `model.layers`: 4 from 0, 5 from 1, 6 from 2" in card


def test_no_torch_is_imported(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from elastic_ir.cli.app import elastic_ir as run\n"
        f"run(['stretch', {str(source)!r}, '--to-units', '6', '-o', {str(tmp_path / 'out')!r}, '--durable'], "
        "standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "out", llama(), [0, 1, 2, 3, 0, 1])


def test_packed_bytes_and_eight_bit_floats_pass_untouched(tmp_path: Path) -> None:
    header, data = {}, b""
    for layer in range(3):
        for name, dtype, shape, size in (
            ("proj.weight", "F4", [4, 6], 12),
            ("out.weight", "F8_E4M3", [4, 4], 16),
        ):
            spans = [len(data), len(data) + size]
            header[f"model.layers.{layer}.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": spans}
            data += os.urandom(size)
    text = json.dumps(header).encode()
    source = write(tmp_path / "source", llama(), config(3))
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert run("stretch", source, "--plan", "0-2,1", "-o", tmp_path / "out").exit_code == 0
    before, _ = safetensors_file.read_safetensors(source / "model.safetensors")
    after, _ = safetensors_file.read_safetensors(tmp_path / "out" / "model.safetensors")
    for at, number in enumerate([0, 1, 2, 1]):
        for name in ("proj.weight", "out.weight"):
            old, new = before[f"model.layers.{number}.{name}"], after[f"model.layers.{at}.{name}"]
            assert (old.dtype, old.shape) == (new.dtype, new.shape)
            assert b"".join(old.chunks()) == b"".join(new.chunks())


def test_side_files_go_along_and_other_weights_stay(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "chat_template.jinja").write_text("{{ x }}")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"weights")
    (source / "original").mkdir()
    (source / "original" / "consolidated.00.pth").write_bytes(b"weights")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").write_text("")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    run("stretch", source, "--to-units", 6, "-o", tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {
        "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json", "README.md", "config.json",
        "elastic_ir.json", "model.safetensors",
    }  # fmt: skip
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"
    assert (
        (tmp_path / "out" / "README.md")
        .read_text()
        .startswith("---\nlicense: mit\n---\n# A model\n\n## Depth")
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "elastic_ir.json"])
def test_a_side_file_that_links_out_of_the_folder(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("")
    (source / name).symlink_to(tmp_path / "secret")
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert f"{name} is a symbolic link out of the folder" in done.output
    with pytest.raises(SourceError, match="symbolic link"):
        side_files(CheckpointSource(source, source.resolve(), {}, ()))


def test_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "out", "--shard-size", "5kB", "--dry-run")
    assert "model.layers  4 -> 6  0-3,0,1" in done.output
    assert "\nmodel.layers  0-3     0-3\nmodel.layers  4-5     0-1\n" in done.output  # the lineage
    assert re.search(r"\nmodel-00001-of-0000\d\.safetensors +\d\.\d kB\n", done.output)
    assert f"dry run:    would write {tmp_path / 'out'} (" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_that_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("kept")
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "out")
    taken = f"error: {tmp_path / 'out'} exists already and is not an empty folder; choose another name"
    assert done.output.endswith(f"{taken} with -o OUT, or replace it with --force\n")
    assert (tmp_path / "out" / "a").read_text() == "kept"
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "none" / "out")
    assert done.output.endswith(f"error: the folder {tmp_path / 'none'} does not exist\n")


def test_a_disk_without_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    small = os.statvfs_result((status.f_bsize, 1, 0, 1, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "out")
    assert f"{tmp_path} has 0.00 GB free; make room or write elsewhere with -o OUT" in done.output
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_a_system_that_cannot_copy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(parts, "BUFFER", 100)
    assert run("stretch", source, "--to-units", 6, "-o", tmp_path / "out").exit_code == 0
    assert same(tmp_path / "out", llama(), [0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_source_that_changes(source: Path, tmp_path: Path, when: str) -> None:
    graph = eir.stretch(eir.load(source, headers_only=True), to_units=6)
    shard = source / "model-00002-of-00003.safetensors"
    touched = False

    def touch(done: int = 0, total: int = 0) -> None:
        nonlocal touched
        if not touched:
            touched = True
            os.utime(shard, ns=(1, 1))

    if when == "before":
        touch()
    with pytest.raises(SourceError, match="was changed after it was read"):
        save_checkpoint(graph, tmp_path / "out", check=False, tell=touch)
    assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []


def test_what_only_streams_have(tmp_path: Path, source: Path) -> None:
    for option in (("--durable",), ("--resume",), ("--shard-size", "1GB")):
        done = run("stretch", source / "model-00001-of-00003.safetensors", "--to-units", 6, *option)
        assert done.exit_code == 2
        assert f"{option[0]} is for checkpoint folders that are written as folders" in done.output
    done = run("stretch", source, "--to-units", 6, "--shard-size", "many")
    assert "'many' is not a size; write for example 5GB, 500MB or 2GiB" in done.output
    with pytest.raises(EmitError, match="was not read from a checkpoint folder by its headers"):
        save_checkpoint(eir.Graph("a"), tmp_path / "out")


def test_a_configuration_without_a_count(tmp_path: Path) -> None:
    plain = {key: value for key, value in config(4).items() if key != "num_hidden_layers"}
    graph = eir.load(write(tmp_path / "source", llama(), plain), headers_only=True)
    with pytest.raises(
        PlanError, match=r"config.json has no entry that counts the 4 layers at model\.layers"
    ):
        eir.save(eir.stretch(graph, to_units=5), tmp_path / "out", check=False)


def test_targets_that_cannot_be_made(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    done = run("stretch", source, "--to-units", 6, "-o", tmp_path / "link")
    assert "link is a symbolic link; name the folder that it leads to, or another" in done.output
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = run("stretch", source, "--to-units", 6, "-o", ".")
    assert ". is the folder that this runs in" in done.output and (tmp_path / "here").is_dir()
