"""Sources that are no paths, or no sources: each is told in its own terms what to give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.errors import SourceError
from elastic_ir.frontends.sources import is_name


def said(source: str | Path, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        eir.load(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "a model of the hub is given by its name: Qwen/Qwen3-0.6B",
        ),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/v1", "by its name: Qwen/Qwen3-0.6B@v1"),
        ("memory://nowhere/model.safetensors", "memory://nowhere/model.safetensors does not exist"),
        ("memory://nowhere/model.onnx", "memory://nowhere/model.onnx does not exist"),
        ("zz://bucket/model.gguf", "fsspec knows no such scheme"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/resolve/main/a.onnx", "by its name: Qwen/Qwen3-0.6B@main"),
        ("hf://Qwen/Qwen3-0.6B", "write hf:Qwen/Qwen3-0.6B"),
        (
            "huggingface:Qwen/Qwen3-0.6B",
            "huggingface: is no known scheme; sources that are no paths: hf:ORG/NAME",
        ),
        ("my-hub:llama", "'my-hub' names no package"),
        ("nowhere_at_all:make", "nowhere_at_all cannot be imported"),
    ],
)
def test_names_that_are_none(source: str, expected: str) -> None:
    assert expected in said(source)


def test_networks_of_libraries_without_their_prefix() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    assert said("resnet50") == (
        "resnet50 does not exist; it is a network of timm and torchvision: give timm:resnet50 or torchvision:resnet50"
    )
    assert said("resnet50.a1_in1k").endswith("give timm:resnet50.a1_in1k")
    assert said("no_network_at_all") == "no_network_at_all does not exist"


def test_parts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert said(tmp_path / "config.json").endswith(f"is a model's configuration; give its folder, {tmp_path}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    assert "is an index; give its folder" in said(index)
    for name in ("model-00002-of-00003.safetensors", "pytorch_model-00001-of-00002.bin"):
        save_file({"a": np.zeros(1)}, tmp_path / name)
        assert "shards of a model; give its folder" in said(tmp_path / name)
    save_file({"a": np.zeros(1)}, tmp_path / "model-00001-of-00001.safetensors")
    assert eir.load(tmp_path / "model-00001-of-00001.safetensors").weights.keys() == {"a"}


def test_what_is_a_name_of_a_factory() -> None:
    assert is_name("timm:resnet50") and is_name("package.module:make")
    assert not is_name("hf:gpt2") and not is_name("hf:Qwen/Qwen3-0.6B") and not is_name("https://a.b/c")


def test_trained_weights_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    asked: list[str] = []
    from torchvision.models import resnet18

    state = {name: torch.full_like(tensor, 0.5) for name, tensor in resnet18().state_dict().items()}

    def fetched(url: str, *_given: object, **more: object) -> dict[str, torch.Tensor]:
        asked.append(url)
        assert more["progress"] is False
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    graph = eir.load("torchvision:resnet18", pretrained=True)
    assert len(asked) == 1 and "resnet18" in asked[0]
    module = graph.origin.module
    assert module is not None
    assert all(bool((weight == 0.5).all()) for weight in module.parameters())


def test_trained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refused(*_given: object, **_more: object) -> object:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    error = said("torchvision:resnet18", pretrained=True)
    assert error.startswith(
        "torchvision:resnet18: its trained weights could not be taken (OSError: Network is"
    )
    assert "torchvision has no model 'nothing'" in said("torchvision:nothing", pretrained=True)


def test_trained_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    made: list[bool] = []
    create = timm.create_model

    def created(name: str, pretrained: bool = False) -> torch.nn.Module:
        made.append(pretrained)
        module: torch.nn.Module = create(name)
        return module

    monkeypatch.setattr(timm, "create_model", created)
    eir.load("timm:resnet10t", pretrained=True)
    eir.load("timm:resnet10t")
    assert made == [True, False]
    monkeypatch.undo()
    assert "its trained weights could not be taken" in said("timm:resnet10t", pretrained=True)


def test_only_names_of_libraries_have_trained_weights(tmp_path: Path) -> None:
    assert "timm:NAME and torchvision:NAME alone" in said(tmp_path, pretrained=True)
    assert "alone" in said("package.module:make", pretrained=True)
