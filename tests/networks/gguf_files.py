"""Small GGUF files, written by the ``gguf`` package as llama.cpp's converters do, with weights of any type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType

TOKENS = 40  #: of the vocabulary
WIDTH = 64  #: of the stream; a multiple of a block
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}\n"


def layer(hidden: int = 96, kv: int = 32) -> dict[str, tuple[int, ...]]:
    """The tensors of a llama's layer."""
    return {
        "attn_norm.weight": (WIDTH,), "attn_q.weight": (WIDTH, WIDTH), "attn_k.weight": (kv, WIDTH),
        "attn_v.weight": (kv, WIDTH), "attn_output.weight": (WIDTH, WIDTH), "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (hidden, WIDTH), "ffn_up.weight": (hidden, WIDTH), "ffn_down.weight": (WIDTH, hidden),
    }  # fmt: skip


def llama_tensors(layers: int, **sizes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a llama's tensors, in the order in which converters write them."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (TOKENS, WIDTH)}
    for number in range(layers):
        found |= {f"blk.{number}.{name}": shape for name, shape in layer(**sizes).items()}
    return found | {"output_norm.weight": (WIDTH,), "output.weight": (TOKENS, WIDTH)}


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, Any],
    *,
    arch: str = "llama",
    types: Mapping[str, Type] | Type = Type.F32,
    alignment: int | None = None,
    split: int = 0,
    seed: int = 0,
) -> Path:
    """A file of random weights; keys of the metadata are without the architecture.

    Values are written as whole numbers, floats, texts, booleans or lists of them. ``types`` is the type of all matrices
    or of some by their names; ``split`` is the most tensors in a part.
    """
    chance = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("a small one")
    for key, value in metadata.items():
        name = key if key.startswith(("general.", "tokenizer.")) else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(TOKENS)])
    writer.add_token_scores([float(-number) for number in range(TOKENS)])
    writer.add_token_types([1] * TOKENS)
    writer.add_chat_template(TEMPLATE)
    for name, shape in shapes.items():
        values = (chance.standard_normal(shape) / 8).astype(np.float32)
        wanted = types if isinstance(types, Type) else types.get(name, Type.F32)
        add(writer, name, values, wanted if values.ndim > 1 else Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: Type) -> None:
    """A tensor, quantised; of types that nothing here quantises to, random blocks."""
    if kind == Type.F32:
        writer.add_tensor(name, values)
        return
    try:
        raw = gguf.quants.quantize(values, kind)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        rows = values.reshape(-1, values.shape[-1])
        noise = np.random.default_rng(len(name)).integers(
            0, 256, (len(rows), rows.shape[1] // elements * size)
        )
        raw = noise.astype(np.uint8).reshape(*values.shape[:-1], -1)
    writer.add_tensor(name, raw, raw_dtype=kind)


def llama_metadata(layers: int, **more: Any) -> dict[str, Any]:
    """What a llama's file states of the network."""
    return {
        "block_count": layers, "context_length": 128, "embedding_length": WIDTH, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0, "vocab_size": TOKENS, **more,
    }  # fmt: skip


def llama(path: Path, layers: int = 4, more: Mapping[str, Any] | None = None, **how: Any) -> Path:
    """A llama of some layers."""
    return write(path, llama_tensors(layers), llama_metadata(layers, **(more or {})), **how)


def read_back(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, bytes]]]:
    """A file's metadata, and its tensors' types and bytes, as the ``gguf`` package reads them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {one.name: (int(one.tensor_type), one.data.tobytes()) for one in reader.tensors}
    return fields, tensors


def layers_of(path: Path, order: Sequence[int]) -> dict[str, str]:
    """For each tensor of a changed file the name that it has in its source, by the plan of ``blk``."""
    names = read_back(path)[1]
    found = {}
    for name in names:
        parts = name.split(".")
        if parts[0] == "blk":
            parts[1] = str(order[int(parts[1])])
        found[name] = ".".join(parts)
    return found
