"""Models behind URLs: streamed as local ones are, by ranges of bytes; servers that misbehave are refused in a line."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import elastic_ir as eir
from elastic_ir.errors import SourceError
from elastic_ir.formats import parts
from elastic_ir.formats import remote as remote_files
from tests.checkpoints.folders import config, llama, run, write
from tests.checkpoints.range_server import Behaviour, serving

fsspec = pytest.importorskip("fsspec")
PLAN = ("--plan", "0-3,1")


def tree(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what names the source."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: raw for name, raw in found.items() if name not in ("README.md", "elastic_ir.json")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write(tmp_path / "source", llama(), config(4), shards=3)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("more")
    return folder


@pytest.fixture
def wanted(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What the same command makes of the local folder."""
    assert run("stretch", source, *PLAN, "-o", tmp_path / "local").exit_code == 0
    return tree(tmp_path / "local")


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote_files, "_PAUSE", 0.01)
    with serving(source.parent) as found:
        yield found


def in_memory(folder: Path) -> str:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.put(str(folder), "/bucket/source", recursive=True)
    return "memory://bucket/source"


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
def test_a_folder_behind_a_url_is_streamed_as_a_local_one(
    kind: str,
    source: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = {"memory": lambda: in_memory(source), "file": lambda: f"file://{source}"}
    url = urls[kind]() if kind in urls else f"{request.getfixturevalue('server').url}/source"
    done = run("stretch", url, *PLAN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "out") == wanted
    record = json.loads((tmp_path / "out" / "elastic_ir.json").read_text())
    assert record["history"][0]["sources"] == [url]
    assert f"Made from `{url}`" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere" / "out")
    found = run("verify", tmp_path / "elsewhere" / "out")  # a record alone has nobody ask a server
    assert found.exit_code == 0 and f"{url} is not beside it" in found.output.replace("\n", " ")
    assert run("verify", tmp_path / "elsewhere" / "out", "--against", url).exit_code == 0


def test_weights_are_asked_for_by_ranges_and_never_whole(
    server: Behaviour, source: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ASKED", 256)
    monkeypatch.setattr("elastic_ir.formats.safetensors._FIRST", 64)
    done = run("stretch", f"{server.url}/source", *PLAN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "out") == wanted
    sent = [size for path, size in server.sent if path.endswith(".safetensors")]
    assert len(sent) > 40
    whole = min(file.stat().st_size for file in source.glob("*.safetensors"))
    assert max(sent) < whole


def test_to_look_at_a_model_only_headers_are_asked_for(server: Behaviour) -> None:
    done = run("inspect", f"{server.url}/source", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["stages"][0]["blocks"] == 4
    assert not [path for path, _ in server.sent if path.endswith("tokenizer.json")]


def test_the_temporary_folder_goes_with_the_graph(source: Path) -> None:
    graph = eir.load(in_memory(source), headers_only=True)
    folder = graph.origin.folder  # type: ignore[attr-defined]
    assert folder.is_dir()
    assert graph.name == "source"
    del graph
    import gc

    gc.collect()
    assert not folder.exists()


def test_a_server_that_lists_nothing_is_asked_for_the_usual_names(
    server: Behaviour, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    server.lists = False
    done = run("stretch", f"{server.url}/source", *PLAN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    note = "the URL's server lists no files: beside the weights only the usual names were asked for"
    assert note in " ".join(done.output.split())
    assert "cache" not in done.output
    assert tree(tmp_path / "out") == {n: raw for n, raw in wanted.items() if n != "extra/notes.txt"}


def test_a_usual_name_that_cannot_be_asked_for_is_not_absent(server: Behaviour) -> None:
    server.lists = False
    server.statuses = {"model.masks.safetensors": [503] * 100}
    assert "model.masks.safetensors cannot be read: ClientResponseError: 503" in refused(
        f"{server.url}/source"
    )


def test_a_single_file_and_a_network_that_is_run(server: Behaviour, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    state = {f"layers.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    graph = eir.load(f"{server.url}/model.safetensors")
    deeper = eir.stretch(graph, to_units=5)
    eir.save(deeper, tmp_path / "deeper.safetensors")
    found = eir.load(tmp_path / "deeper.safetensors").state_dict()
    assert torch.equal(found["layers.4.weight"], state["layers.1.weight"])


def test_several_processes_ask_for_ranges(source: Path, tmp_path: Path) -> None:
    options = (*PLAN, "--shard-size", "700", "--no-check")
    assert run("stretch", source, *options, "-o", tmp_path / "local").exit_code == 0
    done = run("stretch", f"file://{source}", *options, "--jobs", "2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


# -- servers that misbehave --------------------------------------------------------------------------------------------


def refused(url: str) -> str:
    with pytest.raises(SourceError) as caught:
        eir.load(url, headers_only=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ranges_that_break_off_are_asked_for_again(
    server: Behaviour, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    server.broken = 2
    assert run("stretch", f"{server.url}/source", *PLAN, "-o", tmp_path / "out").exit_code == 0
    assert tree(tmp_path / "out") == wanted
    server.broken = 10**6
    done = run("stretch", f"{server.url}/source", *PLAN, "-o", tmp_path / "next")
    assert done.exit_code == 1
    assert "see the address and the connection" in done.output
    assert not list(tmp_path.glob("*next*"))


def test_a_connection_that_breaks_while_weights_are_written(server: Behaviour, tmp_path: Path) -> None:
    graph = eir.stretch(eir.load(f"{server.url}/source", headers_only=True), plan="0-3,1")
    server.broken = 10**6
    with pytest.raises(SourceError, match=r"cannot be read: .*see the address and the connection"):
        eir.save(graph, tmp_path / "out", check=False)
    assert not list(tmp_path.glob("*out*"))


def test_servers_without_ranges_and_of_wrong_lengths(server: Behaviour) -> None:
    server.short = True
    assert "bytes where" in refused(f"{server.url}/source")
    server.short, server.ranges = False, False
    large = server.folder / "large.safetensors"
    save_file({"a.weight": torch.zeros(400, 1000), "b.weight": torch.zeros(4000, 1000)}, large)
    graph = eir.load(f"{server.url}/large.safetensors")
    with pytest.raises(
        SourceError, match="its server gives no ranges of bytes, so all of it would come; download"
    ):
        list(graph.weights["b.weight"].storage.data.chunks())


def test_a_file_that_changes_meanwhile(server: Behaviour, source: Path, tmp_path: Path) -> None:
    graph = eir.stretch(eir.load(f"{server.url}/source", headers_only=True), plan="0-3,1")
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8] + bytes(8))
    with pytest.raises(
        SourceError, match=r"00002-of-00003\.safetensors was changed after it was read; read it again"
    ):
        eir.save(graph, tmp_path / "out", check=False)
    assert not list(tmp_path.glob("*out*"))


def test_what_is_no_model(source: Path) -> None:
    url = in_memory(source)
    assert refused("memory://bucket/nothing").startswith(
        "memory://bucket/nothing is no model's folder: it does not have"
    )
    assert refused(f"{url}/config.json").endswith("as far as it can be listed")
    assert "is one of 3 shards of a model; give its folder" in refused(
        f"{url}/model-00001-of-00003.safetensors"
    )
    system = fsspec.filesystem("memory")
    damaged = system.cat("/bucket/source/model-00002-of-00003.safetensors")
    system.pipe("/bucket/source/model-00002-of-00003.safetensors", damaged[:-4])
    said = refused(url)
    assert said.startswith("memory://bucket/source/model-00002-of-00003.safetensors is truncated")
    system.rm("/bucket/source/model-00002-of-00003.safetensors")
    assert refused(url) == (
        "memory://bucket/source has no file model-00002-of-00003.safetensors, which its index names"
    )
    system.pipe("/bucket/source/model.masks.safetensors", b"")
    assert "has masks beside its weights" in refused(url)


def as_torch_saves(folder: Path, shards: bool) -> None:
    """The same weights as ``pytorch_model.bin``, or as two such files and an index."""
    files = sorted(folder.glob("*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink()
    if not shards:
        torch.save(state, folder / "pytorch_model.bin")
        return
    places = {name: f"pytorch_model-{1 + at % 2:05}-of-00002.bin" for at, name in enumerate(state)}
    for name in set(places.values()):
        torch.save({n: t for n, t in state.items() if places[n] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("shards", "lists"), [(False, True), (True, True), (True, False)])
def test_files_of_torch_in_a_folder(
    shards: bool, lists: bool, server: Behaviour, source: Path, tmp_path: Path
) -> None:
    """Their pickles are read, their tensors come by ranges."""
    as_torch_saves(source, shards)
    assert run("stretch", source, *PLAN, "-o", tmp_path / "local").exit_code == 0
    server.lists = lists
    done = run("stretch", f"{server.url}/source", *PLAN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    wanted = {name: raw for name, raw in tree(tmp_path / "local").items() if lists or "notes" not in name}
    assert tree(tmp_path / "out") == wanted


def test_torch_files_and_packages_that_are_missing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    in_memory(source)
    for name in list(system.store):
        if "safetensors" in name:
            system.rm(name)
    system.pipe("/bucket/source/pytorch_model.bin", b"PK")
    assert "memory://bucket/source/pytorch_model.bin is truncated or damaged" in refused(
        "memory://bucket/source"
    )
    if importlib.util.find_spec("s3fs") is None:
        assert "needs another package (" in refused("s3://bucket/model")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'elastic-ir[remote]'" in refused("memory://bucket/source")
