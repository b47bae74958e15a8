"""Models of the hub: found in a cache without network, fetched from a server on this machine, refused in one line."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from elastic_ir.formats.hub_cache import HubName, folder_of_label, hub_name
from elastic_ir.formats.model_folder import label_of
from elastic_ir.formats.ranges import AwaitedTensor, FileTensor, settled
from elastic_ir.tensors.recipes import Scaled
from tests.checkpoints.adapters.test_follow import adapter, check_layers, followed, lora
from tests.checkpoints.folders import config, llama
from tests.checkpoints.hub_server import COMMIT, Hub, fetched_from

pytest.importorskip("huggingface_hub")
REPO, LAYERS, PER_SHARD = "Qwen/Tiny", 12, 4
LABEL = f"{REPO}@{COMMIT}"
STATE = llama(LAYERS)


def shard(name: str) -> int:
    """What lies outside of the layers is in the first shard, then come the layers, four in each."""
    parts = name.split(".")
    return 1 + int(parts[2]) // PER_SHARD if parts[:2] == ["model", "layers"] else 0


def file_of(number: int) -> str:
    return f"model-{number + 1:05}-of-00004.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a repository has it."""
    folder = tmp_path_factory.mktemp("repository")
    for number in range(4):
        held = {name: array for name, array in STATE.items() if shard(name) == number}
        save_file(held, folder / file_of(number), {"format": "pt"})
    places = {name: file_of(shard(name)) for name in STATE}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config(LAYERS)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# Tiny\n")
    (folder / "pytorch_model.bin").write_bytes(b"weights again")
    (folder / ".gitattributes").write_text("*.bin lfs")
    return folder


@pytest.fixture
def hub(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that holds the repository, and a cache without anything; the working folder is another one."""
    with fetched_from(tmp_path, monkeypatch) as made:
        made.add(REPO, source)
        yield made


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(elastic_ir, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def said(*arguments: str) -> str:
    """The error of a command: one line."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def cache(tmp_path: Path) -> dict[str, bytes]:
    """All files of the cache, links included."""
    return {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file()
    }


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-0.6B", HubName("Qwen/Qwen3-0.6B", plain=True)),
        ("Qwen/Qwen3-0.6B@v1.0", HubName("Qwen/Qwen3-0.6B", "v1.0", plain=True)),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1", plain=True)),
        ("hf:gpt2", HubName("gpt2")),
        ("hf:a/model.bin", HubName("a/model.bin")),
        ("a/b-GGUF:Q4_K_M", HubName("a/b-GGUF", plain=True, quant="Q4_K_M")),
        ("hf:a/b@v1:Q8_0", HubName("a/b", "v1", quant="Q8_0")),
        ("hf:a/b/sub/m.gguf", HubName("a/b", inner="sub/m.gguf")),
        ("hf:a/b@refs/pr/1/m.gguf", HubName("a/b", "refs/pr/1", inner="m.gguf")),
        ("a/b/m.gguf", None),
        ("models/net.py:make", None),
        ("gpt2", None),
        ("runs/model.safetensors", None),
        ("runs/model.pt", None),
        ("a/b/c", None),
        ("./a", None),
        ("../a", None),
        ("/a/b", None),
        ("a/", None),
        ("a/b@../../etc", None),
        ("a--b/c", None),
        ("timm:resnet50", None),
    ],
)
def test_names(text: str, expected: HubName | None) -> None:
    assert hub_name(text) == expected


def test_a_path_goes_before_a_name(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen").mkdir()
    Path("Qwen/Tiny").symlink_to(source)
    assert hub_name(REPO) is None
    assert len(eir.load(REPO, headers_only=True).stages[0]) == LAYERS
    assert hub_name(f"hf:{REPO}") == HubName(REPO)


# -- what is fetched -----------------------------------------------------------------------------------------------


def test_to_look_at_a_model_no_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    output = done("inspect", REPO)
    assert LABEL in output and "model.layers" in output
    assert set(hub.whole) == {"config.json", "model.safetensors.index.json"}
    assert sum("bytes=" in span for _, _, span in hub.asked) == 4  # a header each
    assert not [name for name in cache(tmp_path) if name.endswith(".safetensors")]


def test_a_squeeze_fetches_the_shards_of_the_layers_that_stay(hub: Hub, tmp_path: Path) -> None:
    done("squeeze", REPO, "--drop", "4-11", "--no-check")
    assert {name for name in hub.whole if name.endswith(".safetensors")} == {file_of(0), file_of(1)}
    assert "pytorch_model.bin" not in hub.whole and ".gitattributes" not in hub.whole
    made = load_file("Tiny-4/model.safetensors")
    assert made.keys() == {name for name in STATE if shard(name) < 2}
    assert all(np.array_equal(array, STATE[name]) for name, array in made.items())


@pytest.mark.parametrize("name", [REPO, f"hf:{REPO}", f"{REPO}@main", f"{REPO}@{COMMIT}"])
def test_a_model_is_stretched_into_the_working_folder(hub: Hub, name: str) -> None:
    output = done("stretch", name, "--to-units", "16", "--no-check")
    assert LABEL in output
    made = Path("Tiny-16")
    assert sorted(path.name for path in made.iterdir()) == [
        "README.md", "config.json", "elastic_ir.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert not any(path.is_symlink() for path in made.rglob("*"))
    record = json.loads((made / "elastic_ir.json").read_text())
    assert record["history"][0]["sources"] == [LABEL]
    assert f"Made from `{LABEL}`" in (made / "README.md").read_text()


def test_a_result_is_verified_with_the_model_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    done("stretch", REPO, "--to-units", "16", "--no-check")
    assert "Qwen/Tiny@" in done("verify", "Tiny-16", "--against", REPO, "--no-check")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = done("verify", "Tiny-16", "--no-check")
    assert f"{LABEL} (found in the hub's cache)" in output and "equal" in output
    monkeypatch.setenv("HF_HUB_CACHE", "nowhere")
    assert f"not checked, as {LABEL} is not beside it" in done("verify", "Tiny-16", "--no-check")


def test_layers_of_another_model_of_the_hub(hub: Hub, source: Path) -> None:
    hub.add("Other/Tiny", source)
    done(
        "stretch", REPO, "--plan", "0-3,b/8-11", "--with", "b=Other/Tiny", "-o", "mixed", "--no-check",
    )  # fmt: skip
    fetched = [
        path
        for method, path, span in hub.asked
        if method == "GET" and not span and path.endswith("safetensors")
    ]
    assert [path.rpartition("/")[2] for path in fetched if "Other" in path] == [file_of(3)]
    assert sorted(path.rpartition("/")[2] for path in fetched if "Qwen" in path) == [file_of(0), file_of(1)]
    record = json.loads(Path("mixed/elastic_ir.json").read_text())
    assert record["history"][0]["sources"] == [LABEL, f"Other/Tiny@{COMMIT}"]


def test_like_takes_the_configuration_alone(hub: Hub, source: Path) -> None:
    from elastic_ir.frontends.elsewhere import configuration_folder

    folder = configuration_folder(REPO)
    assert folder is not None and (folder / "config.json").is_file()
    assert hub.whole == ["config.json"]


def test_bytes_are_fetched_when_they_are_read(hub: Hub) -> None:
    graph = eir.load(REPO, headers_only=True)
    name = "model.layers.9.mlp.up_proj.weight"
    name = name if name in STATE else next(name for name in STATE if shard(name) == 3)
    data = graph.weights[name].storage.data
    assert isinstance(data, AwaitedTensor) and data.shape == STATE[name].shape
    assert b"".join(data.chunks()) == STATE[name].tobytes()
    assert [each for each in hub.whole if each.endswith(".safetensors")] == [file_of(3)]


def test_a_single_file_of_weights(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(LAYERS)))
    hub.add("org/one", folder)
    done("inspect", "org/one")
    assert hub.whole == ["config.json"]
    done("stretch", "org/one", "--to-units", "14", "--no-check")
    assert hub.whole.count("model.safetensors") == 1
    assert Path("one-14/model.safetensors").is_file()


def test_from_python(hub: Hub) -> None:
    graph = eir.load(REPO, headers_only=True)
    assert eir.save(eir.squeeze(graph, to_units=4), "small", check=False) == [Path("small")]
    assert len(eir.load("small", headers_only=True).stages[0]) == 4


# -- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's library lays it out, with a model in it; no network, and another working folder."""
    model = tmp_path / "cache" / "models--Qwen--Tiny"
    snapshot = model / "snapshots" / COMMIT
    for folder in (model / "blobs", model / "refs", snapshot, tmp_path / "work"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(source.iterdir())):
        (model / "blobs" / f"hash{number}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash{number}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path / "work")
    return snapshot


def test_a_model_in_the_cache_needs_no_network_and_no_library(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(socket.socket, "connect", lambda *_given: pytest.fail("a connection"))
    before = cache(tmp_path)
    assert LABEL in done("inspect", REPO)
    done("stretch", REPO, "--to-units", "16", "--no-check")
    assert not any(path.is_symlink() for path in Path("Tiny-16").rglob("*"))
    assert cache(tmp_path) == before


def test_a_path_in_a_cache_counts_as_the_hubs(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache(tmp_path)
    done("stretch", str(cached), "--to-units", "16", "--no-check")
    record = json.loads(Path("Tiny-16/elastic_ir.json").read_text())
    assert record["history"][0]["sources"] == [LABEL]
    monkeypatch.chdir(cached)
    assert "the current folder is in a cache of models" in said(
        "stretch", ".", "--to-units", "16", "--no-check"
    )
    assert cache(tmp_path) == before
    assert not (tmp_path / "cache" / "models--Qwen--Tiny" / "snapshots" / "Tiny-16").exists()


def test_without_network_it_says_what_is_in_the_cache(cached: Path) -> None:
    missing = said("inspect", "hf:Qwen/Other")
    assert "it is not in the hub's cache" in missing and "HF_HUB_OFFLINE" in missing
    assert f"other commits of it ({COMMIT})" in said("inspect", f"{REPO}@v2")
    (cached / file_of(2)).unlink()
    assert "not all files of it are in the hub's cache" in said("inspect", REPO)


def test_a_connection_that_is_refused_is_no_matter_for_a_model_in_the_cache(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    output = done("stretch", REPO, "--to-units", "16", "--no-check")
    assert "only those in the cache are taken" in output
    assert "cannot be reached" in said("inspect", "Qwen/Other")


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", "is gated: ask for access on its page"),
        (403, "", "the hub refuses access (403)"),
        (401, "RepoNotFound", "is no model on the hub, or a private one"),
        (401, "", "is no model on the hub, or a private one"),
        (404, "RepoNotFound", "is no model on the hub"),
        (404, "", "is no model on the hub"),
        (500, "", "answers with the status 500"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, status: int, code: str, expected: str) -> None:
    hub.refused["Meta/Large"] = status, code
    assert expected in said("inspect", "Meta/Large")


def test_a_revision_that_does_not_exist(hub: Hub) -> None:
    assert said("stretch", f"{REPO}@v9", "--to-units", "14").startswith(
        "Qwen/Tiny has no revision 'v9' on the hub"
    )


def test_a_name_that_is_none(hub: Hub) -> None:
    assert "no model of the hub" in said("inspect", "hf:a/b/c")


def test_a_file_of_another_length_or_content(hub: Hub) -> None:
    whole = hub.files[REPO][file_of(1)]
    hub.served[file_of(1)] = whole[:-8]
    assert "run the command again" in said("squeeze", REPO, "--drop", "4-11", "--no-check")
    hub.served[file_of(1)] = whole[:-1] + bytes([whole[-1] ^ 1])
    assert "by its checksum" in said("squeeze", REPO, "--drop", "4-11", "--no-check")
    assert not Path("Tiny-4").exists()
    hub.served.clear()  # what was wrong has not stayed in the cache
    done("squeeze", REPO, "--drop", "4-11", "--no-check")


def test_a_server_that_breaks_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    hub.broken.add("config.json")
    error = said("inspect", REPO)
    assert "could not be fetched" in error
    hub.broken.clear()
    done("inspect", REPO)


def test_a_header_that_is_none(hub: Hub) -> None:
    hub.served[file_of(2)] = b"\xff" * 64
    assert "header" in said("inspect", REPO)


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_given: object, **_more: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "is full; make room" in said("inspect", REPO)


def test_an_adapter_beside_the_weights_comes_along(hub: Hub, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", lora([0, 1]), layers_to_transform=[0, 1])
    hub.files[REPO] |= {path.name: path.read_bytes() for path in folder.iterdir()}
    printed = done("squeeze", REPO, "--drop", "0", "--no-check", "-o", "out")
    assert "adapter_model.safetensors follows (LORA, 4 tensors, in 1 layer), with out as its base" in printed
    check_layers(followed(Path("out"))[0], lora([0, 1]), [1])


def test_without_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = said("inspect", REPO)
    assert error.startswith(
        "Qwen/Tiny does not exist here, and as a model of the hub it needs huggingface_hub"
    )
    assert "pip install 'elastic-ir[hub]'" in error


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"m-Q4.gguf": b"GGUF"}, "holds GGUF files; say which is meant, as org/odd:Q4_K_M"),
        ({"model_index.json": b"{}"}, "has no weights under the names"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "is an adapter"),
        ({"README.md": b""}, "has no weights under the names"),
    ],
)
def test_repositories_that_hold_no_folder_of_weights(
    hub: Hub, files: dict[str, bytes], expected: str
) -> None:
    hub.files["org/odd"] = files
    assert expected in said("inspect", "org/odd")


def test_names_of_files_that_lead_elsewhere(hub: Hub) -> None:
    hub.files["org/odd"] = {"../config.json": b"{}", "model.safetensors": b""}
    assert "is no model's" in said("inspect", "org/odd")
    hub.files["org/index"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}',
    }
    with pytest.raises(SourceError, match="no file"):
        eir.load("org/index", headers_only=True)


def test_blobs_that_several_models_share(cached: Path, tmp_path: Path) -> None:
    """Newer caches keep them beside the models; a link to elsewhere is refused as in any folder."""
    blob = (cached / file_of(1)).resolve()
    shared = tmp_path / "cache" / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(Path("../../blobs/ab/abcd"))
    done("squeeze", REPO, "--drop", "4-11", "--no-check")
    shared.rename(tmp_path / "outside")
    shared.symlink_to(tmp_path / "outside")
    assert "is a symbolic link out of the folder" in said("inspect", REPO)


def test_what_was_fetched_is_read_as_an_ordinary_file(hub: Hub) -> None:
    """So that a run that goes on with the work of an earlier one has the same plan."""
    graph = eir.load(REPO, headers_only=True)
    name = next(name for name in STATE if shard(name) == 3)
    data = Scaled(graph.weights[name].storage.data, 0.5)
    assert settled(data) is data
    b"".join(data.chunks())
    again = Scaled(eir.load(REPO, headers_only=True).weights[name].storage.data, 0.5)
    assert settled(data) == again and isinstance(again.data, FileTensor)
    assert again.data.stamp is not None


def test_a_squeeze_is_verified_though_the_cache_has_a_part(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    done("squeeze", REPO, "--drop", "4-11", "--no-check")
    before = hub.whole
    output = done("verify", "Tiny-4", "--no-check")
    assert f"{LABEL} (found in the hub's cache)" in output and "equal" in output
    assert hub.whole == before  # headers alone
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not checked" in done("verify", "Tiny-4", "--no-check")


def test_what_lies_in_a_cache_is_named_and_found_by_its_label(cached: Path, source: Path) -> None:
    assert label_of(cached) == LABEL and folder_of_label(LABEL) == cached
    file = cached / "tokenizer.json"
    assert label_of(file) == f"{LABEL}/tokenizer.json" and folder_of_label(label_of(file)) == file
    assert label_of(source) == source.name and folder_of_label(source.name) is None
    for other in (f"{REPO}@main", f"{LABEL}/../..", f"../{LABEL}", f"{REPO}@{'f' * 40}"):
        assert folder_of_label(other) is None
