"""The sound files that are damaged: one small network in twelve formats, each as the files of a folder."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import elastic_ir as eir
from elastic_ir.formats.packed_masks import packed_masks
from elastic_ir.formats.safetensors import write_safetensors

Files = dict[str, bytes]

RECIPE = """\
version: 1
description: twice as deep, and then pruned to a pattern
passes:
  - stretch: {to_units: 5, order: interpolate}
  - squeeze: {plan: "0-2,4"}
  - nm-project: {n: 2, m: 4}
"""
SLICES = """\
slices:
  - sources:
      - model: folder
        layer_range: [0, 3]
  - sources:
      - model: folder
        layer_range: [1, 4]
        parameters:
          scale: [{filter: o_proj, value: 0.5}, {value: 1.0}]
merge_method: passthrough
dtype: float32
"""
#: What a llama's ``config.json`` says, as far as sizes go.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 12,
    "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "float32",
    "layer_types": ["full_attention"] * 4, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "quantization_config": {"modules_to_not_convert": ["model.layers.3.mlp", "lm_head"]},
}  # fmt: skip


def network() -> nn.Module:
    """A stem, three equal blocks and a head, of torch's own classes."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(3)]
    parts: list[tuple[str, nn.Module]] = [
        ("stem", nn.Conv2d(3, 6, 3, padding=1)), ("layers", nn.Sequential(*blocks)),
        ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", nn.Linear(6, 2)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(parts)).eval()


def masks() -> dict[str, torch.Tensor]:
    """Half of each convolution pruned."""
    chance = torch.Generator().manual_seed(1)
    names = [name for name, value in network().state_dict().items() if value.ndim == 4]
    shapes = network().state_dict()
    return {name: torch.rand(shapes[name].shape, generator=chance) > 0.5 for name in names}


def llama() -> dict[str, torch.Tensor]:
    """The tensors of a llama of four layers, as :data:`CONFIG` says."""
    chance = torch.Generator().manual_seed(2)
    shapes = {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,), "lm_head.weight": (12, 8)}
    layer = {
        "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8),
        "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16),
        "input_layernorm": (8,), "post_attention_layernorm": (8,),
    }  # fmt: skip
    for number in range(4):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def pickled(item: object, *, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes, in its form of today or in that of before 1.6."""
    file = io.BytesIO()
    torch.save(item, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@functools.cache
def _saved(suffix: str) -> tuple[tuple[str, bytes], ...]:
    """The files that ``save`` writes of the network with its masks."""
    graph = eir.trace(network(), example_inputs=(torch.randn(1, 3, 8, 8),), masks=masks())
    with tempfile.TemporaryDirectory() as folder:
        eir.save(graph, Path(folder, f"model{suffix}"))
        return tuple((path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir()))


def _packed() -> bytes:
    graph = eir.load(_written({"model.pt": pickled(network().state_dict())}), masks=masks())
    found = {name: weight.mask for name, weight in graph.weights.items() if weight.mask is not None}
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder, "m.safetensors"), *packed_masks(found))
        return Path(folder, "m.safetensors").read_bytes()


def _written(files: Files) -> Path:
    folder = Path(tempfile.mkdtemp())
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(files))


def _folder(name: str, weights: bytes) -> Files:
    return {"folder/config.json": json.dumps(CONFIG, indent=1).encode(), f"folder/{name}": weights}


def _shards() -> Files:
    tensors = llama()
    names = sorted(tensors)
    parts = {
        f"model-0000{i}-of-00002.safetensors": {n: tensors[n] for n in names[i - 1 :: 2]} for i in (1, 2)
    }
    places = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 4 * sum(t.numel() for t in tensors.values())}, "weight_map": places}
    files = {f"folder/{file}": save(part, {"format": "pt"}) for file, part in parts.items()}
    text = json.dumps(index, indent=1).encode()
    return {
        "folder/model.safetensors.index.json": text,
        "folder/config.json": json.dumps(CONFIG).encode(),
    } | files


def _gguf(more: dict[str, Any] | None = None, split: int = 0) -> Files:
    """A llama of four layers, in one file or in parts; and another one as it was stretched, which has a record."""
    from tests.networks.gguf_files import Type, llama

    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder, "model.gguf"), 4, more, types=Type.Q8_0, split=split)
        if not split:
            eir.save(
                eir.stretch(eir.load(Path(folder, "model.gguf")), to_units=5), Path(folder, "other.gguf")
            )
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _recorded() -> Files:
    files = _gguf()
    return {"model.gguf": files["other.gguf"], "other.gguf": files["model.gguf"]}


def _dcp(*damaged: str, flat: bool = False, stretched: bool = False) -> Files:
    """A training's checkpoint of two ranks, or what it was stretched to, which has a record; these files first."""
    from tests.checkpoints.dcp_folders import save as save_checkpoint

    with tempfile.TemporaryDirectory() as name:
        made = save_checkpoint(Path(name, "source"), flat=flat, ranks=2)
        if stretched:
            eir.save(eir.stretch(eir.load(made), to_units=5), Path(name, "out"))
            made = Path(name, "out")
        files = {f"folder/{path.name}": path.read_bytes() for path in sorted(made.iterdir())}
    first = [f"folder/{file}" for file in damaged]
    return {file: files[file] for file in [*first, *(file for file in files if file not in first)]}


#: For each format the seeds that it has; the first file of each is the one that is damaged most often.
FORMATS: dict[str, tuple[Callable[[], Files], ...]] = {
    "state": (
        lambda: {"model.pt": pickled({"epoch": 3, "state_dict": network().state_dict()})},
        lambda: {"model.pt": pickled(network().state_dict())},
        lambda: {"model.pt": pickled(network().state_dict(), zipped=False)},
    ),
    "ours": (lambda: dict(_saved(".pt")),),
    "module": (
        lambda: {"model.pt": pickled(network())},
        lambda: {"model.pt": pickled(network(), zipped=False)},
    ),
    "bare": (lambda: {"model.safetensors": save(network().state_dict(), {"format": "pt"})},),
    "described": (lambda: dict(reversed(_saved(".safetensors"))),),
    "ticket": (lambda: dict(_saved(".ticket")),),
    "config": (
        lambda: _folder("model.safetensors", save(llama(), {"format": "pt"})),
        lambda: _folder("pytorch_model.bin", pickled(llama())),
        lambda: _folder("pytorch_model.bin", pickled(llama(), zipped=False)),
    ),
    "index": (_shards,),
    "recipe": (
        lambda: {"recipe.yaml": RECIPE.encode(), "model.pt": pickled(network().state_dict())},
        lambda: {"recipe.yaml": SLICES.encode()} | _folder("model.safetensors", save(llama(), {"format": "pt"})),
    ),
    "gguf": (
        _gguf,
        _recorded,
        lambda: _gguf({"attention.head_count_kv": [2, 1, 2, 1], "attention.sliding_window_pattern": 2}),
        lambda: _gguf(split=20),
    ),
    "dcp": (
        lambda: _dcp(".metadata"),
        lambda: _dcp("__0_0.distcp", flat=True),
        lambda: _dcp(".metadata", "elastic_ir.json", flat=True, stretched=True),
    ),
    "masks": (
        lambda: {"mask.safetensors": _packed(), "model.pt": pickled(network().state_dict())},
        lambda: {"mask.safetensors": save(masks()), "model.pt": pickled(network().state_dict())},
        lambda: {"mask.pt": pickled({"masks": masks()}), "model.pt": pickled(network().state_dict())},
    ),
}  # fmt: skip


@functools.cache
def _seed(form: str, which: int) -> tuple[tuple[str, bytes], ...]:
    return tuple(FORMATS[form][which]().items())


def seed(form: str, which: int) -> Files:
    """The sound files of a format."""
    return dict(_seed(form, which))
