"""Small inputs that ask for gigabytes, hours or a byte that never comes; each is made in a folder and run as a command.

:data:`INPUTS` has for each a function that makes it and returns the words of the command line, and what is then said.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.formats import ticket
from elastic_ir.formats.torch_zip import append_zip_records

Words = list[str]
INPUTS: dict[str, tuple[Callable[[Path], Words], str]] = {}


def hostile(said: str) -> Callable[[Callable[[Path], Words]], Callable[[Path], Words]]:
    """Register an input with a part of the line that is printed; "" where it is simply answered."""

    def add(make: Callable[[Path], Words]) -> Callable[[Path], Words]:
        INPUTS[make.__name__] = make, said
        return make

    return add


def layers(count: int = 3, lead: str = "layers") -> dict[str, Any]:
    return {f"{lead}.{i}.{n}.weight": np.ones((4, 4), np.float32) for i in range(count) for n in "ab"}


def pt(folder: Path, pickled: bytes, name: str = "x.pt") -> Words:
    """A file of torch.save with this pickle."""
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/version", b"3\n")
    return ["inspect", str(folder / name)]


def header(folder: Path, text: bytes, size: int = 0) -> Words:
    """A .safetensors file with this header, and as many bytes behind it, which take no room."""
    with (folder / "x.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return ["inspect", str(folder / "x.safetensors")]


def plain(folder: Path) -> str:
    save_file(layers(), folder / "m.safetensors")
    return str(folder / "m.safetensors")


def model(folder: Path, **entries: Any) -> Path:
    """A folder of a small Llama, with these entries in its configuration."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "m")
    path = folder / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder / "m"


def deflated(folder: Path, record: str) -> Words:
    """A gigabyte of zeros as a record of a .pt, in a megabyte."""
    torch.save({"w": torch.ones(2, 2)}, folder / "y.pt")
    with zipfile.ZipFile(folder / "y.pt") as read, zipfile.ZipFile(folder / "x.pt", "w") as write:
        for item in read.infolist():
            if not item.filename.endswith(record):
                write.writestr(item.filename, read.read(item))
        with write.open(zipfile.ZipInfo(f"y/{record}"), "w", force_zip64=True) as _:
            pass
    with zipfile.ZipFile(folder / "x.pt", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as write:
        if record in ("data.pkl", "data/0"):
            with zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as other:
                for name in ("data.pkl", "data/0", "byteorder", "version"):
                    with other.open(f"y/{name}", "w", force_zip64=True) as file:
                        for _ in range(1 << 8 if name == record else 0):
                            file.write(bytes(1 << 22))
            os.replace(folder / "z.zip", folder / "x.pt")
        else:
            with write.open(f"y/{record}2", "w", force_zip64=True) as file:
                for _ in range(1 << 8):
                    file.write(bytes(1 << 22))
    return ["inspect", str(folder / "x.pt")]


@hostile("which no state dict needs")
def a_deflated_pickle(folder: Path) -> Words:
    return deflated(folder, "data.pkl")


@hostile("is compressed or encrypted")
def a_deflated_tensor(folder: Path) -> Words:
    return deflated(folder, "data/0")


@hostile("is compressed or encrypted")
def a_deflated_record_of_ours(folder: Path) -> Words:
    return deflated(folder, "elastic_ir/graph.json")


class _Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@hostile("nothing of it was run")
def a_list_of_a_range(folder: Path) -> Words:
    return pt(folder, pickle.dumps({"a": _Call(list, range(10**9))}, 2))


@hostile("nothing of it was run")
def a_range(folder: Path) -> Words:
    return pt(folder, pickle.dumps({"a": range(10**9)}, 2))


@hostile("nothing of it was run")
def a_bytearray_of_a_number(folder: Path) -> Words:
    return pt(folder, pickle.dumps({"a": _Call(bytearray, 10**10)}, 2))


@hostile("instructions, which no state dict needs")
def a_pickle_of_empty_lists(folder: Path) -> Words:
    return pt(folder, b"\x80\x02" + b"]" * 30_000_000 + b".")


@hostile("deeply nested keys")
def a_key_nested_without_end(folder: Path) -> Words:
    return pt(folder, b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.")


@hostile("no state dict")
def dictionaries_nested_without_end(folder: Path) -> Words:
    depth = 100_000
    return pt(folder, b"\x80\x02" + b"}X\1\0\0\0a" * depth + b"}" + b"s" * depth + b".")


@hostile("is damaged: the storage '0' is missing")
def a_storage_that_is_not_there(folder: Path) -> Words:
    torch.save({"w": torch.ones(2)}, folder / "y.pt")
    with zipfile.ZipFile(folder / "y.pt") as archive:
        return pt(folder, archive.read("y/data.pkl"))


@hostile("save it without expand")
def a_tensor_that_repeats_one_number(folder: Path) -> Words:
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, folder / "x.pt")
    return ["inspect", str(folder / "x.pt")]


@hostile("needs 4000000000000 bytes")
def an_old_file_with_a_huge_storage(folder: Path) -> Words:
    torch.save({"w": torch.ones(3000)}, folder / "x.pt", _use_new_zipfile_serialization=False)
    raw = (folder / "x.pt").read_bytes()
    raw = raw.replace(b"M\xb8\x0b", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    (folder / "x.pt").write_bytes(raw)
    return ["inspect", str(folder / "x.pt")]


@hostile("numbered from 0 to 1000000000, and only 2 are there")
def a_layer_number_of_a_billion(folder: Path) -> Words:
    save_file(
        layers(1) | {"layers.1000000000.a.weight": np.ones((4, 4), np.float32)}, folder / "x.safetensors"
    )
    return ["stretch", str(folder / "x.safetensors"), "--to-units", "3"]


@hostile("has 100001 parts")
def a_name_of_many_parts(folder: Path) -> Words:
    torch.save({"a." * 100_000 + "weight": torch.ones(2, 2)}, folder / "x.pt")
    return ["inspect", str(folder / "x.pt")]


@hostile("the plan has 5,000,000 blocks")
def units_by_the_million(folder: Path) -> Words:
    return ["stretch", plain(folder), "--to-units", "5000000"]


@hostile("the plan has 100,000,000 blocks")
def a_plan_of_a_long_range(folder: Path) -> Words:
    return ["stretch", plain(folder), "--plan", "0-99999999"]


@hostile("the plan has 100,000,000 blocks")
def a_plan_in_the_papers_notation(folder: Path) -> Words:
    return ["stretch", plain(folder), "--plan", "0:0-99999999"]


@hostile("blocks, and up to 10,000 are made")
def stages_by_the_million(folder: Path) -> Words:
    return ["stretch", plain(folder), "--to-stages", "1000000000000"]


@hostile("blocks, and up to 10,000 are made")
def a_stack_of_a_billion(folder: Path) -> Words:
    return ["apply", plain(folder), "--passes", "stack{times=1000000000}"]


@hostile("blocks, and up to 10,000 are made")
def copies_of_one_block(folder: Path) -> Words:
    return ["stretch", plain(folder), "--to-units", "999999999", "--replicate", "1", "--order", "interpolate"]


@hostile("")
def a_depth_of_a_billion(folder: Path) -> Words:
    return ["stretch", plain(folder), "--to-depth", "1000000000"]


@hostile("layers")
def a_slice_of_a_billion(folder: Path) -> Words:
    model(folder)
    (folder / "r.yaml").write_text(
        "merge_method: passthrough\nslices:\n  - sources:\n      - {model: m, layer_range: [0, 1000000000]}\n"
    )
    return ["stretch", str(folder / "r.yaml"), "-o", str(folder / "out")]


@hostile("belongs to another model")
def a_configuration_of_a_billion_layers(folder: Path) -> Words:
    return ["inspect", str(model(folder, num_hidden_layers=10**9)), "--input-shape", "1,4"]


@hostile("num_hidden_layers")
def a_reference_of_a_billion_layers(folder: Path) -> Words:
    (model(folder, num_hidden_layers=10**9) / "model.safetensors").unlink()
    return ["stretch", plain(folder), "--like", str(folder / "m")]


@hostile("num_experts")
def a_reference_of_a_billion_experts(folder: Path) -> Words:
    entries = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 10**9}
    (model(folder, **entries) / "model.safetensors").unlink()
    return ["stretch", plain(folder), "--like", str(folder / "m")]


@hostile("")
def a_configuration_of_a_billion_heads(folder: Path) -> Words:
    return ["inspect", str(model(folder, num_attention_heads=10**9)), "--input-shape", "1,4"]


@hostile("is damaged")
def a_configuration_nested_without_end(folder: Path) -> Words:
    (model(folder) / "config.json").write_text("[" * 10**6)
    return ["inspect", str(folder / "m")]


@hostile("entries")
def a_configuration_of_many_entries(folder: Path) -> Words:
    (model(folder) / "config.json").write_text('{"a": [' + "[]," * 10**7 + "[]]}")
    return ["inspect", str(folder / "m")]


@hostile("ask for a header of")
def a_header_without_end(folder: Path) -> Words:
    (folder / "x.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    return ["inspect", str(folder / "x.safetensors")]


@hostile("nested too deeply")
def a_header_nested_without_end(folder: Path) -> Words:
    return header(folder, b'{"a":' + b"[" * 10**6)


@hostile("entries")
def a_million_tensors_of_nothing(folder: Path) -> Words:
    item = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header(folder, ("{" + ",".join(f'"a.{i}.b":{item}' for i in range(10**6)) + "}").encode())


@hostile("overlap")
def tensors_over_the_same_bytes(folder: Path) -> Words:
    one = {"dtype": "U8", "shape": [1 << 30], "data_offsets": [0, 1 << 30]}
    return header(folder, json.dumps({f"l.{i}.w": one for i in range(1000)}).encode(), 1 << 30)


def ours(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Words:
    """A .pt of ours with another graph in it."""
    state = {name: torch.from_numpy(array) for name, array in layers().items()}
    torch.save(state, folder / "y.pt")
    eir.save(eir.load(folder / "y.pt"), folder / "z.pt")
    with zipfile.ZipFile(folder / "z.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("elastic_ir/graph.json"))
        graph = json.loads(archive.read(name))
    torch.save(state, folder / "x.pt")
    append_zip_records(folder / "x.pt", {"elastic_ir/graph.json": json.dumps(change(graph)).encode()})
    return ["inspect", str(folder / "x.pt")]


@hostile("entries")
def a_graph_of_many_nodes(folder: Path) -> Words:
    return ours(folder, lambda graph: graph | {"nodes": [{}] * 10**7})


@hostile("")
def a_graph_with_huge_inputs(folder: Path) -> Words:
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    eir.save(eir.trace(module, torch.ones(1, 4)), folder / "z.pt")
    with zipfile.ZipFile(folder / "z.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("elastic_ir/graph.json"))
        graph = json.loads(archive.read(name))
    graph["inputs"]["args"] = {"tuple": [{"tensor": [[10_000_000, 4], "float32"]}]}
    torch.save(module.state_dict(), folder / "x.pt")
    append_zip_records(folder / "x.pt", {"elastic_ir/graph.json": json.dumps(graph).encode()})
    return ["inspect", str(folder / "x.pt")]


@hostile("expands to more than")
def a_ticket_whose_graph_expands(folder: Path) -> Words:
    import base64
    import zlib

    graph = base64.b64encode(zlib.compress(b" " * (1 << 28), 9)).decode()
    text = json.dumps({"__metadata__": {ticket.INDEX: '{"version": 1, "masked": {}}', ticket.GRAPH: graph}})
    words = header(folder, text.encode())
    os.replace(words[1], folder / "x.ticket")
    return ["inspect", str(folder / "x.ticket")]


@hostile("brackets")
def a_recipe_of_brackets(folder: Path) -> Words:
    (folder / "r.yaml").write_text("passes: " + "[" * 200_000)
    return ["apply", plain(folder), "--recipe", str(folder / "r.yaml")]


@hostile("nested too deeply")
def a_recipe_nested_without_end(folder: Path) -> Words:
    (folder / "r.yaml").write_text("- " * 100_000)
    return ["apply", plain(folder), "--recipe", str(folder / "r.yaml")]


@hostile("KiB")
def a_recipe_without_end(folder: Path) -> Words:
    (folder / "r.yaml").write_text("# a\n" * 10**7)
    return ["apply", plain(folder), "--recipe", str(folder / "r.yaml")]


@hostile("KiB")
def a_study_without_end(folder: Path) -> Words:
    (folder / "s.yaml").write_text("a: 1\n" * 10**6)
    return ["lottery", "run", str(folder / "s.yaml")]


def constant(folder: Path, operator: str, inputs: dict[str, Any], shape: list[int]) -> Words:
    """An ONNX network in which a constant would be folded to gigabytes."""
    import onnx
    from onnx import helper, numpy_helper

    given = [numpy_helper.from_array(np.asarray(value), name) for name, value in inputs.items()]
    nodes = [
        helper.make_node(operator, list(inputs), ["big"]),
        helper.make_node("ReduceSum", ["big"], ["one"], keepdims=0),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "x.onnx")
    return ["apply", str(folder / "x.onnx"), "--passes", "fold-constants", "-o", str(folder / "out.onnx")]


@hostile("")
def a_constant_of_a_shape(folder: Path) -> Words:
    return constant(folder, "ConstantOfShape", {"s": np.array([100_000, 100_000])}, [])


@hostile("")
def a_constant_that_is_expanded(folder: Path) -> Words:
    return constant(folder, "Expand", {"v": np.ones(1, np.float32), "s": np.array([100_000, 100_000])}, [])


@hostile("")
def a_constant_that_is_tiled(folder: Path) -> Words:
    return constant(folder, "Tile", {"v": np.ones((1, 1), np.float32), "s": np.array([100_000, 100_000])}, [])


@hostile("")
def a_constant_range(folder: Path) -> Words:
    return constant(
        folder, "Range",
        {"a": np.float32(0), "b": np.float32(10**10), "c": np.float32(1)}, [],
    )  # fmt: skip


@hostile("")
def a_tensor_without_its_bytes(folder: Path) -> Words:
    import onnx
    from onnx import helper

    tensor = onnx.TensorProto(name="w", data_type=1, dims=[100_000, 100_000])
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, [1, 100_000]) for name in ("x", "y")]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [tensor])), folder / "x.onnx"
    )
    return ["inspect", str(folder / "x.onnx")]


@hostile("")
def graphs_nested_without_end(folder: Path) -> Words:
    def field(number: int, content: bytes) -> bytes:
        size, text = len(content), io.BytesIO()
        while size > 127:
            text.write(bytes([size & 127 | 128]))
            size >>= 7
        return bytes([number << 3 | 2]) + text.getvalue() + bytes([size]) + content

    graph = b""
    for _ in range(20_000):  # graph > node (1) > attribute (5) > graph (6)
        graph = field(1, field(5, field(6, graph)))
    (folder / "x.onnx").write_bytes(b"\x08\x08" + field(7, graph))
    return ["inspect", str(folder / "x.onnx")]


SPECIAL = "is not a regular file"


def fifo(path: Path) -> str:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return str(path)


for _suffix in ("pt", "safetensors", "ticket", "onnx"):

    def _source(folder: Path, suffix: str = _suffix) -> Words:
        return ["inspect", fifo(folder / f"x.{suffix}")]

    INPUTS[f"a_pipe_as_{_suffix}"] = _source, SPECIAL


@hostile(SPECIAL)
def a_device(folder: Path) -> Words:
    return ["inspect", "/dev/zero"]


@hostile(SPECIAL)
def a_link_to_a_device(folder: Path) -> Words:
    (folder / "x.pt").symlink_to("/dev/zero")
    return ["inspect", str(folder / "x.pt")]


@hostile(SPECIAL)
def a_device_as_architecture(folder: Path) -> Words:
    return ["inspect", plain(folder), "--arch", "/dev/zero"]


@hostile(SPECIAL)
def a_pipe_as_architecture(folder: Path) -> Words:
    return ["inspect", plain(folder), "--arch", fifo(folder / "a.pt")]


@hostile(SPECIAL)
def a_pipe_as_reference(folder: Path) -> Words:
    return ["stretch", plain(folder), "--like", fifo(folder / "a.pt")]


@hostile(SPECIAL)
def a_pipe_as_masks(folder: Path) -> Words:
    return ["inspect", plain(folder), "--mask", fifo(folder / "a.pt")]


@hostile(SPECIAL)
def a_device_as_masks(folder: Path) -> Words:
    return ["inspect", plain(folder), "--mask", "/dev/zero"]


@hostile(SPECIAL)
def a_pipe_as_masks_beside(folder: Path) -> Words:
    words = ["inspect", plain(folder)]
    fifo(folder / "m.masks.safetensors")
    return words


@hostile(SPECIAL)
def a_pipe_as_configuration(folder: Path) -> Words:
    fifo(model(folder) / "config.json")
    return ["inspect", str(folder / "m")]


@hostile(SPECIAL)
def a_pipe_as_configuration_to_trace(folder: Path) -> Words:
    fifo(model(folder) / "config.json")
    return ["stretch", str(folder / "m"), "--to-depth", "20"]


@hostile(SPECIAL)
def a_pipe_as_index(folder: Path) -> Words:
    where = model(folder)
    (where / "model.safetensors").unlink()
    fifo(where / "model.safetensors.index.json")
    return ["inspect", str(where)]


@hostile(SPECIAL)
def a_pipe_as_weights(folder: Path) -> Words:
    fifo(model(folder) / "model.safetensors")
    return ["inspect", str(folder / "m")]


@hostile(SPECIAL)
def a_pipe_as_recipe(folder: Path) -> Words:
    return ["apply", plain(folder), "--recipe", fifo(folder / "r.yaml")]


@hostile(SPECIAL)
def a_device_as_slices(folder: Path) -> Words:
    (folder / "r.yaml").symlink_to("/dev/zero")
    return ["stretch", str(folder / "r.yaml"), "-o", str(folder / "out")]


@hostile(SPECIAL)
def a_pipe_as_study(folder: Path) -> Words:
    return ["lottery", "run", fifo(folder / "s.yaml")]


@hostile("is not a file")
def a_pipe_as_passes(folder: Path) -> Words:
    return ["apply", plain(folder), "--load-pass", fifo(folder / "p.py"), "--passes", "compact"]
