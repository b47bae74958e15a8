"""Files of every form for the audit of readers: ordinary ones, and ones that try to have something run.

Each case is made in a folder of its own and gives what reads it. ``GADGET`` is what a hostile file would have run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import elastic_ir as eir
from elastic_ir.formats.ticket import GRAPH, pack_graph, unpack_graph
from elastic_ir.formats.torch_zip import append_zip_records
from elastic_ir.zoo import cifar_resnet

Read = Callable[[], Any]
EVIL = "from pathlib import Path\nPath('marker').touch()\nclass Net: ...\ndef main(): ...\nimport evil_more\n"


class Gadget:
    """Pickles as a call of a function: the usual exploit."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch marker",)


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(14, width=4)


def traced(masked: bool = False) -> eir.Graph:
    model = net()
    masks = {"layer1.0.conv1.weight": torch.eye(4)[:, :, None, None].expand(4, 4, 3, 3)} if masked else None
    name = next(name for name, tensor in model.state_dict().items() if tensor.shape == (4, 4, 3, 3))
    if masks is not None:
        masks = {name: next(iter(masks.values())).contiguous()}
    return eir.trace(model, torch.zeros(1, 3, 32, 32), masks=masks)


def read(path: Path, **options: Any) -> Read:
    """Read a source and give its network out: what is refused there is told in a note first."""

    def run() -> Any:
        graph = eir.load(path, **options)
        if len(graph):
            graph.to_module()
        return graph

    return run


# -- ordinary files ----------------------------------------------------------------------------------------------------


def state_dict(folder: Path) -> Read:
    torch.save(net().state_dict(), folder / "a.pt")
    return read(folder / "a.pt")


def old_state_dict(folder: Path) -> Read:
    torch.save(net().state_dict(), folder / "a.pt", _use_new_zipfile_serialization=False)
    return read(folder / "a.pt")


def pickled_module(folder: Path) -> Read:
    torch.save(net(), folder / "a.pt")
    return read(folder / "a.pt", input_shape=[[1, 3, 32, 32]])


def bare_safetensors(folder: Path) -> Read:
    save_file(net().state_dict(), folder / "a.safetensors")
    return read(folder / "a.safetensors")


def exported(folder: Path) -> Read:
    torch.export.save(torch.export.export(net().eval(), (torch.zeros(1, 3, 32, 32),)), folder / "a.pt2")
    return read(folder / "a.pt2")


def exported_with_gadget(folder: Path) -> Read:
    """Example inputs whose pickle calls a function, and an expression in place of a size."""
    exported(folder)
    with zipfile.ZipFile(folder / "a.pt2") as old, zipfile.ZipFile(folder / "b.pt2", "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("sample_inputs/model.pt"):
                torch.save(((Gadget(),), {}), folder / "inputs.pt")
                content = (folder / "inputs.pt").read_bytes()
            elif item.filename.endswith("models/model.json"):
                data = json.loads(content)
                size = {"as_expr": {"expr_str": "__import__('os').system('touch marker')", "hint": None}}
                for meta in data["graph_module"]["graph"]["tensor_values"].values():
                    meta["sizes"] = [size for _ in meta["sizes"]]
                content = json.dumps(data).encode()
            new.writestr(item.filename, content)
    return read(folder / "b.pt2")


def ours(extension: str) -> Callable[[Path], Read]:
    def make(folder: Path) -> Read:
        eir.save(traced(masked=True), folder / f"a.{extension}")
        return read(folder / f"a.{extension}")

    return make


def masks_apart(extension: str) -> Callable[[Path], Read]:
    def make(folder: Path) -> Read:
        torch.save(net().state_dict(), folder / "a.pt")
        masks = {name: mask.to(torch.bool) for name, mask in traced(masked=True).masks().items()}
        path = folder / f"masks.{extension}"
        if extension == "npz":
            arrays: dict[str, Any] = {name: mask.numpy() for name, mask in masks.items()}
            np.savez(path, **arrays)
        else:
            save_file(masks, path) if extension == "safetensors" else torch.save(masks, path)
        return read(folder / "a.pt", masks=path)

    return make


def onnx_file(folder: Path) -> Read:
    """With weights in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []
    for index in range(3):
        array = np.random.default_rng(index).standard_normal((16, 16)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"blocks.{index}.weight"))
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"blocks.{index}.weight"], [f"y{index}"]))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16]) for name in ("x0", "x3")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "a.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="a.data", size_threshold=0)
    return read(path)


def bert(folder: Path, **more: Any) -> Path:
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=20
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written |= {"_name_or_path": "bert-base-uncased", "id2label": {"0": "a/b", "1": "N/A"}, **more}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def as_bin(folder: Path) -> Path:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def reference(folder: Path) -> Read:
    source = eir.load(bert(folder))
    return lambda: eir.stretch(source, like=folder)


def described_model(folder: Path, **more: Any) -> Read:
    """A model of transformers that is described by its configuration alone, as those are that hold no plain data."""
    graph = eir.load(bert(folder / "model"))
    data = json.loads((folder / "model/config.json").read_text()) | more
    change = pretrained("bert.modeling_bert:BertModel", "bert.configuration_bert:BertConfig", data)
    return changed(folder, change, graph=graph)


def recipe(folder: Path, text: str = "version: 1\npasses:\n- stretch:\n    to_depth: 20\n") -> Read:
    from elastic_ir.passes.infra.recipe import read_recipe

    (folder / "recipe.yaml").write_text(text)
    return lambda: read_recipe(folder / "recipe.yaml")


def slices(folder: Path, more: str = "") -> Read:
    from elastic_ir.passes.depth.slices_file import read_slices

    bert(folder / "model")
    (folder / "slices.yaml").write_text(
        "merge_method: passthrough\nslices:\n- sources:\n  - model: model\n    layer_range: [0, 3]\n" + more
    )
    return lambda: read_slices(folder / "slices.yaml")


def study(folder: Path, text: str | None = None) -> Read:
    from elastic_ir.training.studies.study_file import read_study

    (folder / "study.yaml").write_text(
        text or (Path(__file__).parents[2] / "studies/study-a.yaml").read_text()
    )
    return lambda: read_study(folder / "study.yaml")


def distributed(folder: Path) -> Path:
    """A folder of ``torch.distributed.checkpoint``, with an optimizer."""
    from tests.checkpoints.dcp_folders import save

    return save(folder / "dcp")


def files_of_ranks(folder: Path) -> Path:
    """What ``HuggingFaceStorageWriter`` leaves of two ranks: rows of tensors in safetensors, with their places."""
    (folder / "ranks").mkdir()
    for rank in range(2):
        parts = {f"layers.{layer}.weight": torch.ones(2, 4) for layer in range(3)}
        places = {name: {"saved_offsets": [2 * rank, 0]} for name in parts}
        path = folder / "ranks" / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        save_file(parts, path, {"DCP_SHARDING_INFO": json.dumps(places)})
    return folder / "ranks"


def accelerate(folder: Path) -> Read:
    """A folder of Accelerate's ``save_state``."""
    from tests.checkpoints.accelerate_folders import save_plain
    from tests.checkpoints.dcp_folders import trained

    return read(save_plain(folder / "state", *trained()))


def distributed_gadget(folder: Path) -> Read:
    """One whose metadata would call a function."""
    path = distributed(folder)
    (path / ".metadata").write_bytes(pickle.dumps(Gadget()))
    return read(path)


def adapter(folder: Path, tensor: object = None) -> Read:
    """An adapter of PEFT, its tensors in a file of ``torch.save``."""
    from elastic_ir.checkpoints.adapters.read import read_adapter

    name = "base_model.model.layers.0.lora_A.weight"
    torch.save({name: torch.ones(2, 2) if tensor is None else tensor}, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return lambda: read_adapter(folder)


ORDINARY: dict[str, Callable[[Path], Read]] = {
    "state dict": state_dict,
    "old state dict": old_state_dict,
    "pickled module": pickled_module,
    "bare safetensors": bare_safetensors,
    "exported program": exported,
    "our pt": ours("pt"),
    "our safetensors": ours("safetensors"),
    "ticket": ours("ticket"),
    "masks in pt": masks_apart("pt"),
    "masks in safetensors": masks_apart("safetensors"),
    "masks in npz": masks_apart("npz"),
    "onnx": onnx_file,
    "folder": lambda folder: read(bert(folder)),
    "folder by headers": lambda folder: read(bert(folder), headers_only=True),
    "folder of bin": lambda folder: read(as_bin(bert(folder))),
    "folder of bin by headers": lambda folder: read(as_bin(bert(folder)), headers_only=True),
    "folder as a reference": reference,
    "described model": described_model,
    "recipe": recipe,
    "slices": slices,
    "study": study,
    "distributed checkpoint": lambda folder: read(distributed(folder)),
    "folder of Accelerate": accelerate,
    "files of ranks": lambda folder: read(files_of_ranks(folder)),
    "adapter": adapter,
}


# -- hostile files -----------------------------------------------------------------------------------------------------


def changed(
    folder: Path,
    change: Callable[[dict[str, Any]], None],
    extension: str = "safetensors",
    graph: eir.Graph | None = None,
) -> Read:
    """A file of ours whose description is changed, with a gadget and a module beside it."""
    gadgets(folder)
    path = folder / f"a.{extension}"
    eir.save(graph or traced(), path)
    if extension == "pt":
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("elastic_ir/graph.json"))
            data = json.loads(archive.read(name))
        change(data)
        torch.save(net().state_dict(), path)
        append_zip_records(path, {"elastic_ir/graph.json": json.dumps(data).encode()})
    else:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        packed = GRAPH in metadata
        data = json.loads(unpack_graph(metadata[GRAPH]) if packed else metadata["elastic_ir.graph"])
        change(data)
        text = json.dumps(data)
        said = {GRAPH: pack_graph(text)} if packed else {"elastic_ir.graph": text}
        save_file(load_file(path), path, {**metadata, **said})
    return read(path)


def gadgets(folder: Path) -> None:
    """What a hostile file beside them may name: a pickle under several names, a module, a model's folder."""
    folder.mkdir(exist_ok=True)
    for name in ("gadget.pt", "gadget", "gadget.bin"):
        torch.save(Gadget(), folder / name)
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(EVIL)
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    torch.save(Gadget(), inner / "pytorch_model.bin")
    (inner / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 10}))


def pretrained(kind: str, config: str, data: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        graph["module"] = {
            "pretrained": f"transformers.models.{kind}" if "." in kind.partition(":")[0] else kind,
            "config": f"transformers.models.{config}" if "." in config.partition(":")[0] else config,
            "data": data, "training": False,
        }  # fmt: skip

    return change


def timm_model(**data: Any) -> Callable[[dict[str, Any]], None]:
    return pretrained(
        "timm_wrapper.modeling_timm_wrapper:TimmWrapperModel",
        "timm_wrapper.configuration_timm_wrapper:TimmWrapperConfig",
        {"architecture": "resnet10t", "num_classes": 10, "label_names": list("abcdefghij"), **data},
    )


def of_class(name: str) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        graph["module"]["parts"][0]["class"] = name

    return change


def in_place_of_its_class(name: str) -> Callable[[Path], Read]:
    return lambda folder: changed(folder, of_class(name))


def with_attribute(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        graph["module"]["parts"][0]["attributes"]["hook"] = value

    return change


def calling(function: str, *arguments: Any) -> Callable[[dict[str, Any]], None]:
    """A graph whose first function is another; its class is not at hand, so the graph itself is built."""

    def change(graph: dict[str, Any]) -> None:
        graph["module"] = {"opaque": "a test"}
        node = next(node for node in graph["nodes"] if node["kind"] == "function")
        node["op"] = function
        if arguments:
            node["args"] = list(arguments)

    return change


def gadget_at(place: str) -> Callable[[Path], Read]:
    def make(folder: Path) -> Read:
        gadgets(folder)
        state: dict[str, Any] = dict(net().state_dict())
        path = folder / "a.pt"
        if place == "beside":
            torch.save({**state, "bad": Gadget()}, path)
        elif place == "old":
            torch.save({**state, "bad": Gadget()}, path, _use_new_zipfile_serialization=False)
        elif place == "raw":
            path.write_bytes(pickle.dumps(Gadget(), 2))
        elif place == "module":
            module = net()
            module.bad = Gadget()  # type: ignore[assignment]
            torch.save(module, path)
        elif place == "masks":
            torch.save(state, path)
            torch.save({"fc.weight": Gadget()}, folder / "masks.pt")
            return read(path, masks=folder / "masks.pt")
        elif place == "masks in npz":
            torch.save(net().state_dict(), path)
            np.savez(folder / "masks.npz", masks=np.array([Gadget()], dtype=object))
            return read(path, masks=folder / "masks.npz")
        elif place == "architecture":
            torch.save(state, path)
            torch.save(Gadget(), folder / "arch.pt")
            return read(path, arch=folder / "arch.pt")
        elif place == "bin":
            as_bin(bert(folder))
            torch.save({"embeddings.word_embeddings.weight": Gadget()}, folder / "pytorch_model.bin")
            return read(folder)
        return read(path)

    return make


def folder_saying(**more: Any) -> Callable[[Path], Read]:
    def make(folder: Path) -> Read:
        bert(folder, **more)
        gadgets(folder)
        return read(folder)

    return make


def reference_saying(**more: Any) -> Callable[[Path], Read]:
    def make(folder: Path) -> Read:
        source = eir.load(bert(folder / "good"))
        bert(folder / "bad", **more)
        gadgets(folder / "bad")
        return lambda: eir.stretch(source, like=folder / "bad")

    return make


def onnx_outside(folder: Path) -> Read:
    import onnx

    gadgets(folder)
    read_it = onnx_file(folder)
    model = onnx.load(folder / "a.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret/a.data"
    (folder.parent / "secret").mkdir(exist_ok=True)
    shutil.copy(folder / "a.data", folder.parent / "secret/a.data")
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return read_it


_APPLY = "!!python/object/apply:os.system ['touch marker']"
_DETR = {"model_type": "detr", "architectures": ["DetrModel"], "use_timm_backbone": False}
_CLASSES = (
    "os:system", "evil:Net", "elastic_ir.cli.__main__:main", "elastic_ir.cli.__main__:Net", "elastic_ir.cli.app:run",
    "transformers:pipeline", "transformers.commands.chat:Chat", "timm.models._helpers:load_checkpoint",
    "torch.hub:load", "torch.nn.modules.module:warnings.sys.modules", "torch.utils.benchmark.op_fuzzers:Net",
    "torch.fx.graph_module:GraphModule", "subprocess:Popen", "__main__:Net", "modeling_evil:Net",
)  # fmt: skip

HOSTILE: dict[str, Callable[[Path], Read]] = {
    "exported program with a call and an expression": exported_with_gadget,
    **{f"gadget {place}": gadget_at(place)
       for place in ("beside", "old", "raw", "module", "masks", "masks in npz", "architecture", "bin")},
    **{f"class {name}": in_place_of_its_class(name) for name in _CLASSES},
    "class in a ticket": lambda folder: changed(folder, of_class("evil:Net"), "ticket"),
    "class in our pt": lambda folder: changed(folder, of_class("evil:Net"), "pt"),
    "model in our pt": lambda folder: changed(
        folder, timm_model(model_args={"checkpoint_path": str(folder / "gadget.pt")}), "pt"),
    "checkpoint_path": lambda folder: changed(
        folder, timm_model(model_args={"checkpoint_path": str(folder / "gadget.pt")})),
    "checkpoint_path without a path": lambda folder: changed(
        folder, timm_model(model_args={"checkpoint_path": "gadget"})),
    "pretrained_cfg": lambda folder: changed(folder, timm_model(
        model_args={"pretrained": True, "pretrained_cfg": {"file": str(folder / "gadget.pt")}})),
    "local-dir": lambda folder: changed(folder, timm_model(architecture=f"local-dir:{folder / 'inner'}")),
    "hf-hub": lambda folder: changed(folder, timm_model(architecture="hf-hub:somebody/net")),
    "pretrained: true": lambda folder: changed(folder, timm_model(model_args={"pretrained": True})),
    "a class of nobody": lambda folder: changed(
        folder, pretrained("evil:Net", "bert.configuration_bert:BertConfig", {})),
    "a configuration of nobody": lambda folder: changed(
        folder, pretrained("bert.modeling_bert:BertModel", "evil:Net", {})),
    "kernels of somebody": lambda folder: described_model(folder, _attn_implementation="somebody/kernel"),
    "internal kernels": lambda folder: described_model(folder, _attn_implementation_internal="somebody/kernel:f"),
    "a function of torch": lambda folder: changed(folder, calling("torch.load", "gadget.pt")),
    "a method of torch": lambda folder: changed(folder, calling("torch.__setattr__", "relu", "x")),
    "a function of the system": lambda folder: changed(folder, calling("os.system", "touch marker")),
    "a function of a module": lambda folder: changed(folder, calling("evil.main")),
    "an attribute's class": lambda folder: changed(folder, with_attribute({"class": "evil:Net"})),
    "an attribute's function": lambda folder: changed(folder, with_attribute({"function": "os.system"})),
    "an attribute's enum": lambda folder: changed(folder, with_attribute({"enum": ["evil:Net", "x"]})),
    "a partial": lambda folder: changed(folder, with_attribute(
        {"partial": [{"class": "subprocess:Popen"}, ["touch", "marker"], {"dict": []}]})),
    "auto_map": folder_saying(auto_map={"AutoModel": "modeling_evil.Net", "AutoConfig": "configuration_evil.Net"}),
    "auto_map alone": folder_saying(
        model_type="evil", architectures=["EvilModel"], auto_map={"AutoModel": "modeling_evil.Net"}),
    "architecture: pipeline": folder_saying(architectures=["pipeline"]),
    "architecture: Trainer": folder_saying(architectures=["Trainer"]),
    "folder of timm": folder_saying(
        model_type="timm_wrapper", architectures=["TimmWrapperModel"], architecture="resnet10t",
        model_args={"checkpoint_path": "gadget.pt"}),
    "folder with a backbone": folder_saying(**_DETR, backbone="inner", use_pretrained_backbone=True),
    "folder with a hub's backbone": folder_saying(**_DETR, backbone="somebody/net", use_pretrained_backbone=True),
    "folder with kernels": folder_saying(_attn_implementation="somebody/kernel"),
    "folder that is quantised": folder_saying(quantization_config={"quant_method": "mxfp4"}),
    "reference of auto_map": reference_saying(
        model_type="evil", auto_map={"AutoModel": "modeling_evil.Net", "AutoConfig": "configuration_evil.Net"}),
    "reference of timm": reference_saying(
        model_type="timm_wrapper", architectures=["TimmWrapperModel"], architecture="resnet10t",
        model_args={"checkpoint_path": "gadget.pt"}),
    "onnx data outside": onnx_outside,
    "metadata of a distributed checkpoint": distributed_gadget,
    "adapter with a gadget": lambda folder: adapter(folder, Gadget()),
    "recipe that calls": lambda folder: recipe(folder, f"version: 1\npasses:\n- stretch: {_APPLY}\n"),
    "slices that call": lambda folder: slices(folder, f"dtype: {_APPLY}\n"),
    "study that calls": lambda folder: study(folder, f"name: {_APPLY}\n"),
}  # fmt: skip
