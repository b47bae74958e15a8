"""Single files behind URLs: read by ranges or fetched once, written there, refused in terms of the URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints import remote
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from elastic_ir.formats import remote as remote_files
from elastic_ir.formats.remote import path_of, url_beside, without_credentials
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints.range_server import Behaviour, serving
from tests.networks.gguf_files import Type, llama, read_back

fsspec = pytest.importorskip("fsspec")
STATE = {f"layers.{n}.{end}": np.full((6, 6), n, np.float32) for n in range(3) for end in ("weight", "bias")}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(elastic_ir, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def flat(text: str) -> str:
    return " ".join(text.split())


def said(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    return done.output.strip().splitlines()[-1].removeprefix("error: ")


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    remote._here.clear()
    return system


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty; sources lie beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


@pytest.fixture
def server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote_files, "_PAUSE", 0.01)
    remote._here.clear()
    with serving(here) as found:
        yield found


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(20)


def made(path: Path) -> Path:
    """A source of the form that the name shows."""
    if path.suffix == ".gguf":
        return llama(path, 4, {"attention.head_count_kv": [2, 1, 2, 1]}, types=Type.Q8_0)
    if path.name == "bare.pt":
        torch.save({name: torch.from_numpy(array) for name, array in STATE.items()}, path)
    elif path.name == "bare.safetensors":
        save_file(STATE, path)
    elif path.suffix == ".onnx":
        onnx.save(chain(), path)
    else:
        eir.save(network(), path, check=False)
    return path


def chain(blocks: int = 3) -> onnx.ModelProto:
    """An ONNX network of blocks that are alike, each with a matrix of 4 KiB."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(blocks):
        name = f"layers.{number}.weight"
        array = rng.standard_normal((32, 32)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(array, name))
        nodes.append(helper.make_node("MatMul", [value, name], [f"m{number}"], f"/layers/{number}/MatMul"))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"], f"/layers/{number}/Relu"))
        value = f"r{number}"
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 32]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


KINDS = ["m.gguf", "bare.pt", "ours.pt", "bare.safetensors", "ours.safetensors", "ours.ticket", "chain.onnx"]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", KINDS)
def test_a_file_behind_a_url_gives_what_it_gives_here(name: str, here: Path, memory: Any) -> None:
    source = made(here / name)
    memory.put_file(str(source), f"/bucket/{name}")
    url = f"memory://bucket/{name}"
    how = ("--plan", "0-3,1") if name == "m.gguf" else ("--to-units", "5")
    if name.startswith("ours"):
        how = ("--to-depth", "32")
    end = Path(name).suffix
    good("stretch", source, *how, "-o", f"local{end}", "--no-check")
    good("stretch", url, *how, "-o", f"out{end}", "--no-check")
    same = json.loads(good("diff", f"local{end}", f"out{end}", "--json"))
    assert same["same"] is True
    good("stretch", url, *how, "-o", f"memory://other/out{end}", "--no-check")
    assert memory.cat(f"/other/out{end}") == Path(f"out{end}").read_bytes()
    assert json.loads(good("diff", url, source, "--json"))["same"] is True
    assert json.loads(good("inspect", url, "--json"))["source"] == url
    if end == ".onnx":  # without a record
        return
    good("undo", f"memory://other/out{end}", "-o", f"memory://other/back{end}", "--no-check")
    assert json.loads(good("diff", f"memory://other/back{end}", source, "--json"))["same"] is True


def test_without_o_the_result_has_the_files_name_here(here: Path, memory: Any) -> None:
    memory.put_file(str(made(here / "m.gguf")), "/bucket/m.gguf")
    good("stretch", "memory://bucket/m.gguf", "--plan", "0-3,1")
    assert Path("m-5.gguf").is_file()
    memory.put_file(str(made(here / "bare.pt")), "/bucket/bare.pt")
    good("stretch", "memory://bucket/bare.pt", "--to-units", "4")
    assert Path("bare-depth4.pt").is_file()


def test_the_record_names_the_url_and_verify_finds_it(here: Path, memory: Any) -> None:
    memory.put_file(str(made(here / "m.gguf")), "/bucket/m.gguf")
    good("stretch", "memory://bucket/m.gguf", "--plan", "0-3,1", "-o", "out.gguf")
    record = json.loads(read_back(Path("out.gguf"))[0]["elastic_ir.record"])
    assert record["history"][0]["sources"] == ["memory://bucket/m.gguf"]
    assert "not checked, as memory://bucket/m.gguf is not" in good("verify", "out.gguf")
    assert "result:     equal" in good("verify", "out.gguf", "--against", "memory://bucket/m.gguf")
    memory.put_file("out.gguf", "/bucket/out.gguf")  # a result in the same bucket shows its source
    found = good("verify", "memory://bucket/out.gguf")
    assert "against:    memory://bucket/m.gguf (found by the record)" in found
    assert "result:     equal" in found
    memory.mv("/bucket/m.gguf", "/bucket/moved.gguf")
    assert "not checked, as memory://bucket/m.gguf is not" in good("verify", "out.gguf")
    assert "result:     equal" in good("verify", "out.gguf", "--against", "memory://bucket/moved.gguf")
    good(
        "stretch",
        "memory://bucket/moved.gguf",
        "--plan",
        "0-3,1",
        "-o",
        "memory://bucket/out.gguf",
        "--force",
    )
    output = good("verify", "memory://bucket/out.gguf")
    assert "file:       memory://bucket/out.gguf" in output and "against:    memory://bucket/moved" in output
    assert "out.gguf: blk 4 is 1 of memory://bucket/moved.gguf" in good(
        "diff", "memory://bucket/moved.gguf", "memory://bucket/out.gguf"
    )


def test_credentials_are_not_written_down(here: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_credentials("https://me:secret@host/a/m.gguf?X-Signature=1#x") == "https://host/a/m.gguf"
    assert without_credentials("s3://me:secret@b/run#2.pt?versionId=1") == "s3://b/run#2.pt"
    assert url_beside("https://host/a/m.gguf?X=1", "n.gguf") == "https://host/a/n.gguf?X=1"
    assert path_of("s3://bucket/a/m.gguf").name == "m.gguf"
    made(here / "bare.pt")
    with serving(here) as server:
        url = f"{server.url}/bare.pt?token=secret"
        good("stretch", url, "--to-units", "4", "-o", "out.pt")
        assert "secret" not in said("inspect", f"{server.url}/none.pt?token=secret")
    assert eir.load("out.pt").info.steps[0]["sources"] == [f"{server.url}/bare.pt"]  # type: ignore[index]
    assert b"secret" not in Path("out.pt").read_bytes()


def test_parts_of_a_gguf_file(here: Path, memory: Any) -> None:
    made(here / "m.gguf")
    good("stretch", here / "m.gguf", "--plan", "0-3", "--shard-size", "60KB", "-o", here / "p.gguf")
    parts = sorted(here.glob("p-*.gguf"))
    for part in parts:
        memory.put_file(str(part), f"/bucket/{part.name}")
    first = f"memory://bucket/{parts[0].name}"
    good("stretch", first, "--plan", "0-3,1", "-o", "memory://bucket/out.gguf")
    written = [path for path in memory.find("/bucket") if "/out-" in path]
    assert len(written) == len(parts)
    assert "result:     equal" in good("verify", f"memory:/{written[0]}")
    memory.rm(f"/bucket/{parts[1].name}")
    assert f"memory://bucket/{parts[1].name} does not exist" in said("inspect", first)


def test_external_data_of_onnx_lies_beside_it(here: Path, memory: Any) -> None:
    onnx.save(chain(), here / "ext.onnx", save_as_external_data=True, location="w.bin")
    memory.put_file(str(here / "ext.onnx"), "/bucket/ext.onnx")
    assert "memory://bucket/w.bin does not exist" in said("inspect", "memory://bucket/ext.onnx")
    memory.put_file(str(here / "w.bin"), "/bucket/w.bin")
    good("stretch", "memory://bucket/ext.onnx", "--to-units", "5", "-o", "out.onnx")
    good("stretch", made(here / "chain.onnx"), "--to-units", "5", "-o", "local.onnx")
    assert json.loads(good("diff", "local.onnx", "out.onnx", "--json"))["same"] is True


def test_a_network_that_torch_reads_is_fetched(here: Path, memory: Any) -> None:
    torch.save(network(), here / "whole.pt")
    memory.put_file(str(here / "whole.pt"), "/bucket/whole.pt")
    good("stretch", "memory://bucket/whole.pt", "--to-depth", "32", "-o", "out.pt", "--no-check")
    assert eir.load("out.pt").depth == 32
    state = {name: torch.ones(2, 2) for name in ("a.0.w", "a.1.w")}
    torch.save({"model": state, "ema": dict(state)}, here / "k.ckpt")
    memory.put_file(str(here / "k.ckpt"), "/bucket/k.ckpt")
    assert "holds several state dicts" in said("inspect", "memory://bucket/k.ckpt")
    good("inspect", "memory://bucket/k.ckpt", "--key", "model")
    assert "leave out the key" in said("inspect", "memory://bucket/bare.safetensors", "--key", "model")


@pytest.mark.parametrize("name", ["m.gguf", "bare.pt", "bare.safetensors"])
def test_to_look_at_a_file_a_small_part_of_it_is_asked_for(name: str, server: Behaviour, here: Path) -> None:
    if name == "m.gguf":
        llama(here / name, 40, {}, types=Type.F32)
    else:
        state = {f"layers.{n}.weight": np.full((600, 600), n, np.float32) for n in range(4)}
        save_file(state, here / "bare.safetensors")
        torch.save({n: torch.from_numpy(array) for n, array in state.items()}, here / "bare.pt")
    good("inspect", f"{server.url}/{name}")
    asked = sum(size for _, size in server.sent)
    assert asked < (here / name).stat().st_size / 2


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "bare.pt", "ours.ticket", "bare.safetensors"])
def test_a_file_that_changes_while_it_is_copied(name: str, here: Path, server: Behaviour) -> None:
    made(here / name)
    graph = eir.load(f"{server.url}/{name}")
    how = {"m.gguf": {"plan": "0-3,1"}, "ours.ticket": {"to_depth": 32}}.get(name, {"to_units": 5})
    after = eir.stretch(graph, **how)  # type: ignore[arg-type]
    (here / name).write_bytes((here / name).read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(
        SourceError, match=f"{server.url}/{name} was changed after it was read; read it again"
    ):
        eir.save(after, here / f"out{Path(name).suffix}", check=False)
    assert not list(here.glob("*out*"))


def test_a_whole_file_that_breaks_off(server: Behaviour, here: Path) -> None:
    made(here / "chain.onnx")
    url = f"{server.url}/chain.onnx"
    server.cut = 2
    good("inspect", url)
    (here / "chain.onnx").touch()
    server.cut = 10**6
    assert said("inspect", url).endswith("see the address and the connection")
    server.cut, server.ranges = 0, False
    good("inspect", url)  # it comes as a stream


def test_servers_of_wrong_lengths(server: Behaviour, here: Path) -> None:
    for name in ("m.gguf", "bare.pt"):
        made(here / name)
        server.short = True
        assert "bytes where" in said("inspect", f"{server.url}/{name}")
        server.short = False


def test_masks_beside_a_file_are_not_forgotten(here: Path, memory: Any) -> None:
    memory.put_file(str(made(here / "bare.safetensors")), "/bucket/bare.safetensors")
    memory.pipe_file("/bucket/bare.masks.safetensors", b"")
    url = "memory://bucket/bare.safetensors"
    assert "has masks beside it (bare.masks.safetensors)" in said("inspect", url)


@pytest.mark.parametrize("status", [403, 503])
def test_what_cannot_be_asked_for_is_not_absent(status: int, here: Path, server: Behaviour) -> None:
    made(here / "bare.safetensors")
    url = f"{server.url}/bare.safetensors"
    server.statuses = {"masks.safetensors": [status] * 100}
    refused = said("stretch", url, "--to-units", "4")
    assert refused.startswith(f"whether {url} has masks beside it is not known")
    assert f"bare.masks.safetensors cannot be read: ClientResponseError: {status}" in refused
    server.statuses = {".safetensors": [status] * 3}  # each look is a HEAD and a GET
    good("inspect", url)
    server.statuses = {"none.pt": [status] * 100}
    assert f"none.pt cannot be read: ClientResponseError: {status}" in said(
        "inspect", f"{server.url}/none.pt"
    )
    server.statuses = {"none.pt": [410] * 100}
    assert said("inspect", f"{server.url}/none.pt").endswith("none.pt does not exist")
    assert "cannot be read: ClientConnectorError" in said("inspect", "http://127.0.0.1:1/none.pt")


def test_results_take_the_place_of_nothing(here: Path, memory: Any) -> None:
    memory.put_file(str(made(here / "m.gguf")), "/bucket/m.gguf")
    url = "memory://bucket/m.gguf"
    assert "is the source, which would be written over" in said("stretch", url, "--plan", "0-3,1", "-o", url)
    memory.pipe_file("/bucket/out.gguf", b"there")
    out = "memory://bucket/out.gguf"
    assert "exists already" in said("stretch", url, "--plan", "0-3,1", "-o", out)
    assert memory.cat("/bucket/out.gguf") == b"there"
    dry = ("stretch", url, "--plan", "0-3,1", "-o", out, "--dry-run")
    assert "where out.gguf is already: give --force, or another name with -o OUT" in flat(good(*dry))
    assert "where out.gguf is already: it is replaced" in flat(good(*dry, "--force"))
    assert "already" not in good(*dry[:-2], "memory://bucket/other.gguf", "--dry-run")
    good("stretch", url, "--plan", "0-3,1", "-o", out, "--force")
    assert memory.cat("/bucket/out.gguf").startswith(b"GGUF")


def test_an_upload_that_fails_leaves_nothing(
    here: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(here / "bare.pt")

    def failing(*_given: object, **_more: object) -> Any:
        raise OSError("no more room")

    monkeypatch.setattr(type(memory), "open", failing)
    error = said("stretch", here / "bare.pt", "--to-units", "4", "-o", "memory://bucket/out.pt")
    assert "cannot be written: OSError: no more room" in error
    assert error.endswith("nothing of memory://bucket/out.pt is left")
    assert memory.find("/bucket") == []


def test_no_line_shows_a_password(here: Path, memory: Any) -> None:
    source = str(made(here / "m.gguf"))
    for more in (["--dry-run"], ["--dry-run", "--json"], [], ["--force", "--json"]):
        shown = good("stretch", source, "--plan", "0-3,1", "-o", "memory://me:secret@bucket/out.gguf", *more)
        assert "memory://bucket/out.gguf" in shown and "secret" not in shown
    assert memory.exists("/me:secret@bucket/out.gguf")


@pytest.mark.slow
def test_errors_and_data_show_no_password(here: Path, memory: Any) -> None:
    made(here / "bare.pt")
    memory.put_file(str(here / "bare.pt"), "/me:secret@bucket/bare.pt")
    url = "memory://me:secret@bucket"
    for shown in (
        good("inspect", f"{url}/bare.pt", "--json"),
        good("stretch", f"{url}/bare.pt", "--to-units", "4", "-o", f"{url}/out.pt", "--json"),
        said("inspect", f"{url}/none.pt"),
        said("inspect", "http://me:secret@127.0.0.1:1/x.pt?signature=secret%2F"),
        said("inspect", "hf://me:secret@org/name"),
        said("inspect", "https://me:secret@huggingface.co/org/name?token=secret"),
        said("stretch", here / "bare.pt", "--to-units", "4", "-o", "zz://me:secret@bucket/out.pt"),
        run("stretch", here / "bare.pt", "--to-units", "4", "-o", f"{url}/out.xyz").output,
    ):
        assert "secret" not in shown


# -- what is there already ---------------------------------------------------------------------------------------------


def held(system: Any) -> dict[str, bytes]:
    return {path: system.cat(path) for path in system.find("/bucket")}


def sparse(path: Path) -> Path:
    state = {name.replace("weight", "weight_orig"): torch.from_numpy(array) for name, array in STATE.items()}
    state |= {f"layers.{n}.weight_mask": torch.eye(6) for n in range(3)}
    torch.save(state, path)
    return path


def test_force_leaves_no_masks_of_an_earlier_file(here: Path, memory: Any) -> None:
    out = "memory://bucket/x.safetensors"
    good("stretch", sparse(here / "sparse.pt"), "--to-units", "4", "-o", out)
    assert len(memory.find("/bucket")) == 2
    memory.rm("/bucket/x.safetensors")
    dense = made(here / "bare.safetensors")
    assert "x.masks.safetensors exists already" in said("stretch", dense, "--to-units", "4", "-o", out)
    good("stretch", dense, "--to-units", "4", "-o", out, "--force")
    assert memory.find("/bucket") == ["/bucket/x.safetensors"]


@pytest.mark.parametrize("name", ["x.safetensors", "x.masks.safetensors"])
def test_a_forced_write_that_fails_leaves_what_was_there(
    name: str, here: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "memory://bucket/x.safetensors"
    source = sparse(here / "sparse.pt")
    good("stretch", source, "--to-units", "4", "-o", out)
    before = held(memory)
    genuine = type(memory).open

    def failing(self: Any, path: str, mode: str = "rb", **more: Any) -> Any:
        if mode == "wb" and path.endswith(f"/{name}"):
            raise OSError("no more room")
        return genuine(self, path, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "open", failing)
        error = said("stretch", source, "--to-units", "5", "-o", out, "--force")
    assert error.endswith(f"what was at {out} is still there")
    assert held(memory) == before
    good("stretch", source, "--to-units", "5", "-o", out, "--force")
    assert held(memory) != before
    assert not memory._intrans


def test_no_url_of_a_source_is_written_over(here: Path, memory: Any) -> None:
    source = made(here / "bare.safetensors")
    memory.put_file(str(source), "/bucket/bare.safetensors")
    kept, how = source.read_bytes(), ("--to-units", "4", "--force")
    for given, out in (
        (source, f"file://{source}"),
        (f"file://{source}", f"local://{source}"),
        (f"file://{source}", source),
        ("memory://bucket/bare.safetensors", "memory:///bucket/bare.safetensors"),
    ):
        assert "is the source, which would be written over" in said("stretch", given, *how, "-o", out)
    assert source.read_bytes() == kept == memory.cat("/bucket/bare.safetensors")


def test_targets_are_refused_before_anything_is_read(here: Path, memory: Any) -> None:
    memory.pipe_file("/bucket/out.pt", b"there")
    memory.pipe_file("/bucket/folder/x", b"there")
    (here / "bare.pt").write_bytes(b"is not read")
    for out, error in (
        ("memory://bucket/out.pt", "exists already"),
        ("http://127.0.0.1:1/out.pt", "servers of HTTP take no files"),
        ("zz://bucket/out.pt", "fsspec knows no such scheme"),
    ):
        assert error in said("stretch", here / "bare.pt", "--to-units", "4", "-o", out)
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    (here / "model" / "model.safetensors").write_bytes(b"is not read")
    refused = said("stretch", here / "model", "--to-units", "4", "-o", "memory://bucket/folder")
    assert "memory://bucket/folder holds files already" in refused


@pytest.mark.parametrize("command", ["report", "follow"])
def test_commands_that_write_here_alone(command: str, here: Path) -> None:
    more = {"follow": ["--base", "base"]}.get(command, [])
    done = run(command, here / "none.pt", *more, "-o", "memory://me:secret@bucket/out.html")
    assert done.exit_code == 2
    assert "memory://bucket/out.html is a URL, and this command writes here" in done.output
    assert not list(Path().iterdir())


# -- apply and export --------------------------------------------------------------------------------------------------


def test_apply_writes_behind_a_url(here: Path, memory: Any) -> None:
    source, out = made(here / "bare.safetensors"), "memory://bucket/out.safetensors"
    how = ("apply", source, "--passes", "stretch{to-units=4}", "-o")
    dry = json.loads(good(*how, out, "--dry-run", "--json"))
    assert dry["would_write"] == out and not memory.find("/bucket")
    told = json.loads(good(*how, out, "--json"))
    assert [one["path"] for one in told["wrote"]] == [out] and told["would_write"] is None
    good(*how, "local.safetensors")
    assert memory.cat("/bucket/out.safetensors") == Path("local.safetensors").read_bytes()
    assert "where out.safetensors is already: give --force" in flat(good(*how, out, "--dry-run"))
    assert "exists already; choose another name" in said(*how, out)
    good(*how, out, "--force")
    url = "memory://bucket/bare.safetensors"
    memory.put_file(str(source), "/bucket/bare.safetensors")
    assert "is the source, which would be written over" in said(
        "apply", url, "--passes", "stretch{to-units=4}", "-o", url, "--force"
    )
    folder = run(*how, "memory://bucket/folder")
    assert folder.exit_code == 2 and "behind a URL a file is written, by its suffix" in flat(folder.output)


@pytest.mark.slow
def test_export_writes_behind_a_url(here: Path, memory: Any) -> None:
    """A file alone, and source with its weights beside it."""
    torch.save(network().state_dict(), here / "net.pt")
    how = ("export", here / "net.pt", "--arch", "elastic_ir.zoo:cifar_resnet20", "-o")
    out = "memory://bucket/net.safetensors"
    told = json.loads(good(*how, out, "--json"))
    assert [one["path"] for one in told["wrote"]] == [out]
    good(*how, "net.safetensors")
    assert memory.cat("/bucket/net.safetensors") == Path("net.safetensors").read_bytes()
    assert "exists already" in said(*how, out)
    memory.pipe_file("/bucket/net.pt", b"there")
    assert "memory://bucket/net.pt exists already" in said(*how, "memory://bucket/net.py", "--weights")
    told = json.loads(good(*how, "memory://bucket/net.py", "--weights", "--force", "--json"))
    assert [one["path"] for one in told["wrote"]] == ["memory://bucket/net.py", "memory://bucket/net.pt"]
    assert b"net.pt" in memory.cat("/bucket/net.py")


@pytest.mark.slow
def test_export_of_onnx_behind_a_url(here: Path, memory: Any) -> None:
    torch.save(network(), here / "net.pt")
    told = good("export", here / "net.pt", "-o", "memory://bucket/net.onnx")
    assert "checked:" in told and "memory://bucket/net.onnx (" in told
    onnx.checker.check_model(onnx.load_from_string(memory.cat("/bucket/net.onnx")))


# -- signed URLs -------------------------------------------------------------------------------------------------------


def test_a_signed_url_is_of_one_file(here: Path, server: Behaviour) -> None:
    """A store answers 403 for whatever the signature is not of; masks that can be seen are not forgotten."""
    made(here / "bare.safetensors")
    url = f"{server.url}/bare.safetensors?X-Amz-Signature=secret"
    server.statuses = {"masks.safetensors": [403] * 100}
    assert "secret" not in good("stretch", url, "--to-units", "4", "-o", "out.safetensors")
    assert len(load_file("out.safetensors")) == 8
    server.statuses = {}
    (here / "bare.masks.safetensors").write_bytes(b"")
    assert "has masks beside it (bare.masks.safetensors)" in said("inspect", url)
