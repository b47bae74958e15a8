"""Folders of ``pytorch_model.bin``: read by their pickles as data, streamed to safetensors, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError, UntrustedError
from elastic_ir.formats.bin import Strided, read_bin
from tests.checkpoints.folders import config, llama

BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
State = dict[str, torch.Tensor]


def state(layers: int = 4) -> State:
    return {name: torch.from_numpy(array) for name, array in llama(layers).items()}


def write(folder: Path, tensors: State, shards: int = 1, layers: int = 4, **how: Any) -> Path:
    """A folder as ``save_pretrained(safe_serialization=False)`` left it; the tensors go round the shards in turn."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(layers)))
    if shards == 1:
        torch.save(OrderedDict(tensors), folder / BIN, **how)
        return folder
    places = {n: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, n in enumerate(tensors)}
    for file in sorted(set(places.values())):
        torch.save({n: t for n, t in tensors.items() if places[n] == file}, folder / file, **how)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        t.dtype == right[n].dtype and t.shape == right[n].shape and content(t) == content(right[n])
        for n, t in left.items()
    )


def content(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def read(path: Path) -> State:
    """The tensors that a file is read as."""
    found = {}
    for name, data in read_bin(path).items():
        raw = bytearray(b"".join(data.chunks()))
        dtype = getattr(torch, data.dtype)
        made = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        found[name] = made.reshape(data.shape)
    return found


def said(path: Path, error: type[SourceError] = SourceError) -> str:
    with pytest.raises(error) as caught:
        read_bin(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("shards", "legacy"), [pytest.param(1, True, marks=pytest.mark.slow), (3, False)])
def test_streamed_as_safetensors_without_torch(tmp_path: Path, shards: int, legacy: bool) -> None:
    source = write(tmp_path / "source", state(), shards, _use_new_zipfile_serialization=not legacy)
    code = (
        "import sys; from elastic_ir.cli.app import elastic_ir as run\n"
        f"run(['inspect', {str(source)!r}], standalone_mode=False)\n"
        f"run(['stretch', {str(source)!r}, '--plan', '0-3,1', '-o', {str(tmp_path / 'out')!r}], "
        "standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.layers       4     4" in done.stdout
    wanted = state()
    wanted |= {n.replace("layers.1.", "layers.4."): t for n, t in state().items() if "layers.1." in n}
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config(5)
    assert not list((tmp_path / "out").glob("*.bin*"))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2,
    ],
)  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_dtypes(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2 if dtype == torch.bool else 99, (3, 5), generator=generator).to(dtype)
    tensors = {"a": values, "b": torch.zeros(0, 4, dtype=dtype), "c": values[1, 2].clone()}
    torch.save(tensors, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    assert equal(read(tmp_path / "a.bin"), tensors)


def test_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_ir.formats.bin.CHUNK", 16)
    base = torch.arange(60.0).reshape(5, 12)
    tensors = {
        "whole": base, "rows": base[1:3], "turned": base.t(), "columns": base[:, 2:7], "sparse": base[::2, ::3],
        "one": torch.arange(12.0).expand(1, 12), "broad": torch.arange(3.0).expand(4, 3),
        "nd": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), "scalar": base[2, 3],
        "last": base.reshape(5, 3, 4, 1).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0]),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "a.bin")
    assert equal(read(tmp_path / "a.bin"), {n: t.detach() for n, t in tensors.items()})
    found = read_bin(tmp_path / "a.bin")
    assert {n for n, data in found.items() if isinstance(data, Strided)} == {
        "turned", "columns", "sparse", "broad", "nd", "last",
    }  # fmt: skip


def test_the_versions_of_a_module_s_state_dict_are_no_tensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    assert equal(read(tmp_path / "a.bin"), dict(module.state_dict()))
    for protocol in (4, 5):
        torch.save(module.state_dict(), tmp_path / "a.bin", pickle_protocol=protocol)
        assert equal(read(tmp_path / "a.bin"), dict(module.state_dict()))


def test_tied_names_count_once_and_are_both_written(tmp_path: Path) -> None:
    tensors = state()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    source = write(tmp_path / "source", tensors)
    graph = eir.load(source, headers_only=True)
    assert graph.parameter_count() == sum(t.numel() for n, t in tensors.items() if n != "lm_head.weight")
    eir.save(eir.stretch(graph, to_units=5), tmp_path / "out", check=False)
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_from_pretrained_loads_it(tmp_path: Path, tied: bool) -> None:
    """Tied names as ``state_dict()`` has them, and as ``save_pretrained`` leaves one of them out."""
    import transformers as t

    torch.manual_seed(0)
    settings = t.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50, n_positions=64)
    make: Any = t.GPT2LMHeadModel
    model = make(settings).eval()
    source = tmp_path / "source"
    model.config.save_pretrained(source)
    tensors = model.state_dict()
    if not tied:
        del tensors["lm_head.weight"]
    torch.save(tensors, source / BIN)
    eir.save(eir.stretch(eir.load(source, headers_only=True), plan="0-2,1"), tmp_path / "out", check=False)
    loaded, report = make.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    unchanged = make.from_pretrained(source)  # transformers 5.3 ties names no more that a file has both of
    kept = unchanged.lm_head.weight is unchanged.transformer.wte.weight
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == kept
    assert torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)
    expected = eir.stretch(eir.trace(model), plan="0-2,1").to_module()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(tokens).logits, expected(tokens).logits)


def test_safetensors_are_taken_where_both_lie_there(tmp_path: Path) -> None:
    source = write(tmp_path / "source", state())
    other = {name: tensor + 1 for name, tensor in state().items()}
    save_file(other, source / "model.safetensors")
    graph = eir.load(source, headers_only=True)
    name = "model.norm.weight"
    assert b"".join(graph.weights[name].storage.data.chunks()) == content(other[name])


# -- what is refused -----------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def evil(folder: Path) -> dict[str, tuple[Any, str]]:
    """What a hostile pickle may hold, and what is said of it."""
    mark = folder / "was_run"
    return {
        "system": (Evil(os.system, f"touch {mark}"), f"it names {os.system.__module__}.system"),
        "eval": (Evil(eval, f"open({str(mark)!r}, 'w')"), "it names __builtin__.eval"),
        "nested": ({"a": [({"b": Evil(os.mkdir, str(mark))},)]}, f"it names {os.mkdir.__module__}.mkdir"),
        "key": ({(1, 2): 3}, "it has a tuple as a key"),
        "getattr": (Evil(getattr, "", "join"), "it names __builtin__.getattr"),
        "load": (Evil(torch.load, str(mark)), "it names torch.serialization.load"),
        "class": (Evil, "test_bin.Evil"),
        "set": ({1, 2}, "it names __builtin__.set"),
        "bytes": (b"abc", "it names _codecs.encode"),
        "ordered": (Evil(OrderedDict, {"a": 1}), "it makes an OrderedDict in an unusual way"),
        "rebuilt": (Evil(torch._utils._rebuild_tensor_v2, 1, 2, 3, 4, False, None), "makes a tensor of something"),
        "hooked": (
            Evil(torch._utils._rebuild_parameter, torch.zeros(1), True, {"a": 1}), "makes a parameter of something",
        ),
        "called twice": (Evil(OrderedDict, Evil(os.getcwd)), f"it names {os.getcwd.__module__}.getcwd"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(evil(Path())))
@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickles(tmp_path: Path, kind: str, legacy: bool) -> None:
    what, told = evil(tmp_path)[kind]
    torch.save(
        {"a.weight": torch.zeros(2), "b": what}, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy
    )
    message = said(tmp_path / "a.bin", UntrustedError)
    assert told in message
    assert message.endswith("nothing of it was run. Ask for the weights as safetensors")
    assert not (tmp_path / "was_run").exists()


def test_a_hostile_folder_is_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "source", state())
    torch.save({"a": Evil(os.system, "true")}, source / BIN)
    for command in (("inspect",), ("stretch", "--to-units", "5", "-o", str(tmp_path / "out"))):
        done = CliRunner().invoke(elastic_ir, [command[0], str(source), *command[1:]])
        assert done.exit_code == 1
        assert done.output == (
            f"error: {source / BIN}: it names posix.system, which plain weights have no need of; nothing of it was "
            "run. Ask for the weights as safetensors\n"
        )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (b"\x80\x02(i__builtin__\neval\n.", "uses an instruction"),
        (b"\x80\x02\x82\x01.", "uses an instruction"),
        (b"\x80\x02Pabc\n.", "uses an instruction"),
        (b"\x80\x02]}b.", "sets the state of a list"),
        (b"\x80\x02}]K\x01a.", "it is damaged|puts elements|holds"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"\x80\x02ctorch\nfloat32\n}b.", "sets the state of a Name"),
        (b"\x80\x02K\x01Q.", "refers to something that is not a storage"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01K\x02s.", "puts elements into a Name"),
        (b"\x80\x02.", "its pickle cannot be read"),
        (b"\x80\x02}", "its pickle cannot be read"),
        (b"", "its pickle cannot be read"),
    ],
)
def test_pickles_that_nobody_saves(tmp_path: Path, code: bytes, told: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    assert re.search(told, said(tmp_path / "a.bin"))


def test_a_pickle_that_grows_without_end_is_read_at_once(tmp_path: Path) -> None:
    """Tuples of tuples: to hash or to print them would take for ever."""
    code = b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 200 + b"K\x02s."
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    assert "has a tuple as a key" in said(tmp_path / "a.bin")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated(tmp_path: Path, share: float, legacy: bool) -> None:
    torch.save(state(), tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(whole[: int(len(whole) * share)])
    assert re.search("truncated|damaged", said(tmp_path / "a.bin"))


def changed(path: Path, edit: Callable[[dict[str, bytes]], None], **how: Any) -> None:
    """Write a file's records anew after an edit."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    edit(records)
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, text in records.items():
            archive.writestr(name, text)


def test_damage_inside_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def wider(text: bytes) -> bytes:
        return text.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")

    def after(edit: Callable[[dict[str, bytes]], Any], **how: Any) -> str:
        torch.save({"x": torch.arange(6.0).reshape(2, 3)}, path)
        changed(path, edit, **how)
        return said(path)

    assert "the storage of 'x' is missing" in after(lambda records: records.pop("a/data/0"))
    assert "'x' needs 24 bytes of a storage, which has 20" in after(
        lambda records: records.update({"a/data/0": bytes(20)})
    )
    assert "'x' needs 28 bytes of a storage, which has 24" in after(
        lambda records: records.update({"a/data.pkl": wider(records["a/data.pkl"])})
    )
    assert "was written on a big-endian machine" in after(
        lambda records: records.update({"a/byteorder": b"big"})
    )
    assert "has no record data.pkl" in after(lambda records: records.pop("a/data.pkl"))
    assert "is compressed or encrypted" in after(lambda _: None, compression=zipfile.ZIP_DEFLATED)
    assert "'data.pkl' stands twice" in after(lambda records: records.update({"b/data.pkl": b""}))
    assert "is a TorchScript archive" in after(lambda records: records.update({"a/constants.pkl": b""}))


def test_a_record_that_is_not_where_the_directory_says(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "a.bin")
    whole = bytearray((tmp_path / "a.bin").read_bytes())
    whole[:4] = b"PK\0\0"
    (tmp_path / "a.bin").write_bytes(whole)
    assert "is not where its directory says" in said(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<html>", "is not a file of torch.save: it begins with b'<html>'"),
        (pickle.dumps({"a": 1}, 2), "is a pickle, but none of torch.save"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert told in said(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"x": torch.zeros(1), "epoch": 3}, "under 'epoch' it holds a int"),
        ({"state_dict": {"x": torch.zeros(1)}}, "under 'state_dict' it holds a dict"),
        ({1: torch.zeros(1)}, "under 1 it holds a tensor"),
        ([torch.zeros(1)], "holds a list and no state dict"),
    ],
)
def test_what_is_no_bare_state_dict(tmp_path: Path, held: object, told: str) -> None:
    torch.save(held, tmp_path / "a.bin")
    assert told in said(tmp_path / "a.bin")


def test_shards_and_index_that_do_not_agree(tmp_path: Path) -> None:
    source = write(tmp_path / "source", state(), shards=3)
    second = "pytorch_model-00002-of-00003.bin"
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = second
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError) as error:
        eir.load(source, headers_only=True)
    assert (
        str(error.value)
        == f"{source / INDEX} names the tensor 'model.extra.weight', which {second} does not hold"
    )
    (source / second).unlink()
    with pytest.raises(SourceError, match=f"is not complete: {second} of 3 shards missing"):
        eir.load(source, headers_only=True)


def test_a_source_that_changes(tmp_path: Path) -> None:
    source = write(tmp_path / "source", state())
    graph = eir.load(source, headers_only=True)
    os.utime(source / BIN, ns=(1, 1))
    with pytest.raises(SourceError, match="was changed after it was read"):
        eir.save(graph, tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def test_random_damage_is_one_line(tmp_path: Path) -> None:
    """Bytes changed at random: read all the same, or refused in one line, and nothing else."""
    import random

    torch.save(
        {"x": torch.arange(6.0).reshape(2, 3), "y": torch.zeros(2, dtype=torch.int8)}, buffer := io.BytesIO()
    )
    whole, rng = buffer.getvalue(), random.Random(0)
    told: list[str] = []
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "a.bin").write_bytes(damaged)
        try:
            read_bin(tmp_path / "a.bin")
        except SourceError as error:
            told.append(str(error))
    assert 100 < len(told) < 600
    assert not [text for text in told if "\n" in text]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_view_with_a_sign_of_its_own_is_refused(tmp_path: Path, legacy: bool) -> None:
    tensors = state()
    tensors["model.norm.weight"] = torch._neg_view(tensors["model.norm.weight"])
    folder = write(tmp_path / "source", tensors, _use_new_zipfile_serialization=not legacy)
    assert "makes a tensor in an unusual way" in said(folder / BIN, UntrustedError)


def test_a_view_that_repeats_without_end_is_refused(tmp_path: Path) -> None:
    tensors = state()
    tensors["model.extra"] = torch.zeros(1).expand(1, 1 << 40)
    folder = write(tmp_path / "source", tensors)
    assert "'model.extra' repeats 1 numbers to 1099511627776" in said(folder / BIN)
