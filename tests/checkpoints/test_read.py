"""Checkpoint folders read by their headers: what is found, and what is refused before a tensor is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from tests.checkpoints.folders import config, llama, write

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


def read(folder: Path) -> eir.Graph:
    return eir.load(folder, headers_only=True)


def said(folder: Path) -> str:
    with pytest.raises(SourceError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(tmp_path / "source", llama(), config(4), shards=3)


def change(path: Path, edit: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_are_one_network(tmp_path: Path, shards: int) -> None:
    state = llama(12)
    graph = read(write(tmp_path / "source", state, config(12), shards))
    assert {stage.name: len(stage) for stage in graph.stages} == {"model.layers": 12}
    assert [block.path for block in graph.stages[0].blocks] == [f"model.layers.{i}" for i in range(12)]
    assert {name: weight.shape for name, weight in graph.weights.items()} == {
        n: a.shape for n, a in state.items()
    }
    for name, weight in graph.weights.items():
        assert b"".join(weight.storage.data.chunks()) == state[name].tobytes()


def test_inspect_imports_no_torch(sharded: Path) -> None:
    code = (
        "import sys; from elastic_ir.cli.app import elastic_ir as run\n"
        f"run(['inspect', {str(sharded)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.layers       4     4" in done.stdout


def test_dtypes_of_less_than_a_byte_are_carried(tmp_path: Path) -> None:
    state = llama()
    folder = write(tmp_path / "source", state, config(4))
    header = {"a.weight": {"dtype": "F4", "shape": [3, 4], "data_offsets": [0, 6]},
              "b.weight": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [6, 9]},
              "c.weight": {"dtype": "I4", "shape": [2, 1], "data_offsets": [9, 10]}}  # fmt: skip
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(10)))
    weights = read(folder).weights
    assert weights["a.weight"].dtype == "float4_e2m1fn"
    assert [b"".join(w.storage.data.chunks()) for w in weights.values()] == [
        bytes(range(6)), bytes(range(6, 9)), bytes([9])
    ]  # fmt: skip


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert said(sharded) == f"{sharded} is not complete: {SECOND} of 3 shards missing; fetch it again"


def test_a_shard_is_truncated(sharded: Path) -> None:
    whole = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(whole[:-1])
    assert f"{SECOND} is truncated" in said(sharded)


def test_the_index_names_what_no_shard_holds(sharded: Path) -> None:
    change(sharded / INDEX, lambda data: data["weight_map"].update({"model.extra.weight": SECOND}))
    assert (
        said(sharded)
        == f"{sharded / INDEX} names the tensor 'model.extra.weight', which {SECOND} does not hold"
    )


def test_a_shard_holds_what_the_index_does_not_name(sharded: Path) -> None:
    change(sharded / INDEX, lambda data: data["weight_map"].pop("model.norm.weight"))
    assert (
        "holds the tensor 'model.norm.weight', which model.safetensors.index.json names not at all"
        in said(sharded)
    )


def test_a_name_in_two_shards(sharded: Path) -> None:
    first = sharded / "model-00001-of-00003.safetensors"
    (sharded / SECOND).write_bytes(first.read_bytes())
    change(
        sharded / INDEX,
        lambda data: data.update(
            weight_map={n: first.name for n, f in data["weight_map"].items() if f == first.name}
            | {"x": SECOND}
        ),
    )
    assert f"lies in both {first.name} and {SECOND}" in said(sharded)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", ".."])
def test_the_index_leads_out_of_the_folder(sharded: Path, name: str) -> None:
    change(sharded / INDEX, lambda data: data["weight_map"].update({"model.norm.weight": name}))
    assert said(sharded) == (
        f"{sharded / INDEX} names the file {name!r}; shards lie in the index's own folder"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[1]", "is damaged: it holds no table"),
        ("{}", "is damaged: its weight_map is not a table of tensors and files"),
        ('{"weight_map": {"a": 1}}', "is damaged: its weight_map is not a table of tensors and files"),
        ('{"weight_map": {}}', "names no tensor"),
    ],
)
def test_a_damaged_index(sharded: Path, text: str, message: str) -> None:
    (sharded / INDEX).write_text(text)
    assert message in said(sharded)


def test_a_link_out_of_the_folder(sharded: Path, tmp_path: Path) -> None:
    (sharded / SECOND).rename(tmp_path / "elsewhere.safetensors")
    (sharded / SECOND).symlink_to(tmp_path / "elsewhere.safetensors")
    assert f"{SECOND} is a symbolic link out of the folder, to {tmp_path.resolve()}" in said(sharded)


def test_a_hub_cache_links_to_its_own_blobs(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert len(read(snapshot).stages[0]) == 4


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers = 5, but the weights hold 4 layers at model.layers"),
        pytest.param(
            {"text_config": {"n_layer": 3}, "num_hidden_layers": 9},
            "num_hidden_layers = 9, text_config.n_layer = 3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_configuration_counts_other_layers(sharded: Path, entries: dict[str, Any], message: str) -> None:
    change(sharded / "config.json", lambda data: data.update(entries))
    assert message in said(sharded)


def test_no_configuration(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    assert "no config.json" in said(sharded)


def test_a_header_of_100_gigabytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", llama(), config(4))
    (folder / "model.safetensors").write_bytes((100 << 30).to_bytes(8, "little") + b"{}")
    assert "ask for a header of 107374182400 bytes" in said(folder)


def test_a_file_of_100_gigabytes_that_is_all_header(tmp_path: Path) -> None:
    """The file is as long as it says, with holes: nothing of it is read."""
    folder = write(tmp_path / "source", llama(), config(4))
    with (folder / "model.safetensors").open("wb") as file:
        file.write((100 << 30).to_bytes(8, "little"))
        file.truncate(8 + (100 << 30))
    assert "ask for a header of 107374182400 bytes" in said(folder)


def test_a_name_that_stands_twice_in_a_header(sharded: Path) -> None:
    entry = b'"a.weight":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
    text = b"{" + entry + b"," + entry + b"}"
    (sharded / SECOND).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert said(sharded) == f"{sharded / SECOND} is damaged: a name stands twice in its header"


def test_a_name_that_stands_twice_in_the_index(sharded: Path) -> None:
    """JSON keeps the last one; the shards say whether that is right."""
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    name = next(name for name, file in places.items() if file == SECOND)
    other = "model-00001-of-00003.safetensors"
    entries = [f'"{n}": "{f}"' for n, f in places.items()] + [f'"{name}": "{other}"']
    (sharded / INDEX).write_text('{"weight_map": {' + ", ".join(entries) + "}}")
    assert said(sharded) == f"{sharded / SECOND} holds the tensor {name!r}, which {INDEX} names as in {other}"


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([[0, 4], [2, 6]], "overlap"),
        ([[0, 4], [0, 4]], "overlap"),
        ([[0, 4], [4, 8]], "truncated"),
        ([[0, 4], [4, 900]], "takes 4 bytes"),
        ([[0, 4], [-4, 0]], "offsets that are not counts"),
        ([[0, 4], [1 << 62, (1 << 62) + 4]], "belong to no tensor"),
    ],
)
def test_offsets_that_cannot_be(tmp_path: Path, offsets: list[list[int]], message: str) -> None:
    folder = write(tmp_path / "source", llama(), config(4))
    header = {
        n: {"dtype": "F16", "shape": [2], "data_offsets": o} for n, o in zip("ab", offsets, strict=True)
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
    assert message in said(folder)


def test_inspect_says_it_in_one_line(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    done = CliRunner().invoke(elastic_ir, ["inspect", str(sharded)])
    assert done.exit_code == 1
    assert done.output.startswith("error: ") and done.output.count("\n") == 1


def test_a_stem_of_numbered_layers_hides_no_stack(tmp_path: Path) -> None:
    """Whisper's encoder has conv1 and conv2 beside its layers."""
    rng = np.random.default_rng(0)
    state = {name.replace("model.", "encoder."): array for name, array in llama(3).items()}
    for number, channels in ((1, 5), (2, 8)):
        state[f"encoder.conv{number}.weight"] = rng.standard_normal((8, channels, 3)).astype(np.float16)
    save_file(state, tmp_path / "a.safetensors")
    assert {s.name: len(s) for s in eir.load(tmp_path / "a.safetensors").stages} == {"encoder.layers": 3}
