"""Small checkpoint folders, made without torch: a Llama's names and shapes, in as many shards as wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import save_file

from elastic_ir.cli.app import elastic_ir

State = dict[str, NDArray[np.generic]]


def llama(layers: int = 4, width: int = 8, seed: int = 0) -> State:
    """The state dict of a Llama; every tensor of every layer is another."""
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> NDArray[np.generic]:
        return rng.standard_normal(shape).astype(np.float16)

    state: State = {"model.embed_tokens.weight": some(32, width)}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        for name in "qkvo":
            state[f"{path}.self_attn.{name}_proj.weight"] = some(width, width)
        state[f"{path}.mlp.gate_proj.weight"] = some(2 * width, width)
        state[f"{path}.mlp.up_proj.weight"] = some(2 * width, width)
        state[f"{path}.mlp.down_proj.weight"] = some(width, 2 * width)
        state[f"{path}.input_layernorm.weight"] = some(width)
        state[f"{path}.post_attention_layernorm.weight"] = some(width)
    state["model.norm.weight"] = some(width)
    state["lm_head.weight"] = some(32, width)
    return state


def config(layers: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_attention_heads": 2, "num_hidden_layers": layers, "vocab_size": 32, **more,
    }  # fmt: skip


def write(folder: Path, state: State, configuration: Mapping[str, Any], shards: int = 1) -> Path:
    """A folder as ``save_pretrained`` leaves it; the tensors go round the shards in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration))
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(state)}
    for file in sorted(set(places.values())):
        part = {name: array for name, array in state.items() if places[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(a.nbytes for a in state.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def run(*arguments: object) -> Result:
    """A command; what it writes is not compared with a network, for which a process would import torch."""
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(
        elastic_ir, given + ["--no-check"] * (given[0] in ("stretch", "squeeze", "verify"))
    )
