"""A changed GGUF file is, as transformers reads it, the network that the same change of the folder gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import elastic_ir as eir
from tests.networks.gguf_families import CONFIGS, FAMILIES, MODELS, made

pytestmark = pytest.mark.slow


def _read(path: Path) -> Any:
    """The network of a file: by ``from_pretrained``, which wants accelerate, else by what that calls."""
    if importlib.util.find_spec("accelerate") is not None:
        return MODELS.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    from transformers import modeling_gguf_pytorch_utils

    load_gguf_checkpoint: Any = modeling_gguf_pytorch_utils.load_gguf_checkpoint
    model = MODELS.from_config(CONFIGS.from_pretrained(path.parent, gguf_file=path.name))
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unknown
    model.tie_weights()
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(12)[None] % 48).logits
    return found


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_file_and_the_folder_are_one_network(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder, file = tmp_path / "folder", tmp_path / "m.gguf"
    model = made(name, folder, file)
    as_read = _read(file)
    assert torch.allclose(_logits(as_read), _logits(model), atol=1e-5)

    eir.save(eir.stretch(eir.load(folder, headers_only=True), plan=family.plan), tmp_path / "deeper")
    unit = family.unit or None  # a period that no entry of the file states
    eir.save(eir.stretch(eir.load(file), plan=family.plan, unit=unit), tmp_path / "deeper.gguf")
    wanted = MODELS.from_pretrained(tmp_path / "deeper")
    found = _read(tmp_path / "deeper.gguf")
    assert found.config.num_hidden_layers == wanted.config.num_hidden_layers
    state, other = wanted.state_dict(), found.state_dict()
    assert state.keys() == other.keys()
    for key, tensor in state.items():
        assert torch.allclose(other[key], tensor, atol=1e-6), key
    assert torch.allclose(_logits(found), _logits(wanted), atol=1e-5)
    assert not torch.allclose(_logits(found), _logits(model), atol=1e-2)
