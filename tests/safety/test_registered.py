"""Networks made from what a file says: registered classes only, on the meta device, and nothing is opened for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from elastic_ir.errors import BlockedError, SourceError
from elastic_ir.safety.registered import configuration, model_class, network

TINY: dict[str, dict[str, Any]] = {
    "BertModel": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "intermediate_size": 8, "vocab_size": 9, "_name_or_path": "bert-base-uncased"},
    "LlamaForCausalLM": {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "intermediate_size": 8, "vocab_size": 9, "auto_map": {"AutoModel": "evil.Net"}},
    "CLIPTextModel": {"model_type": "clip", "text_config": {
        "model_type": "clip_text_model", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 9}},
    "TimmWrapperModel": {"model_type": "timm_wrapper", "architecture": "resnet10t", "num_classes": 2,
                         "label_names": ["a", "b"]},
}  # fmt: skip


def made(config: dict[str, Any]) -> torch.nn.Module:
    kind = model_class(config, "config.json")
    return network(kind, configuration(kind.config_class, config, "config.json"), "config.json")


@pytest.mark.parametrize("name", TINY)
def test_a_registered_class_is_made_on_the_meta_device(name: str) -> None:
    module = made({**TINY[name], "architectures": [name]})
    assert type(module).__name__ == name
    assert {tensor.device.type for tensor in module.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert"}, "config.json names no architecture that transformers has (None)"),
        ({"model_type": "bert", "architectures": "BertModel"}, "names no architecture"),
        ({"model_type": "bert", "architectures": [["BertModel"]]}, "names no architecture"),
        ({"model_type": "bert", "architectures": ["Trainer"]}, "(Trainer, for model_type bert)"),
        ({"model_type": "bert", "architectures": ["pipeline"]}, "(pipeline, for model_type bert)"),
        ({"model_type": "bert", "architectures": ["BertTokenizer"]}, "(BertTokenizer, for model_type bert)"),
        ({"model_type": "bert", "architectures": ["BertConfig"]}, "(BertConfig, for model_type bert)"),
        ({"model_type": "bert", "architectures": ["__loader__"]}, "names no architecture"),
        ({"model_type": "bert", "architectures": ["modeling_bert.os"]}, "names no architecture"),
        (
            {"model_type": "evil", "architectures": ["BertModel"]},
            "no model_type that transformers has (evil)",
        ),
        ({"model_type": ["bert"], "architectures": ["BertModel"]}, "no model_type that transformers has"),
        ({"architectures": ["BertModel"]}, "no model_type that transformers has (None)"),
    ],
)
def test_other_names_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError) as caught:
        model_class(config, "config.json")
    assert said in str(caught.value)


def test_a_class_that_is_none_of_transformers_is_not_made() -> None:
    for kind in (torch.nn.Linear, transformers.BertConfig, "BertModel"):
        with pytest.raises(SourceError, match="is not a model class of transformers"):
            network(kind, transformers.BertConfig(), "a.pt")


def test_what_the_class_does_not_take_is_told_in_a_line() -> None:
    config = {**TINY["BertModel"], "architectures": ["BertModel"], "hidden_act": "no such function"}
    with pytest.raises(SourceError, match=r"config\.json: the class BertModel cannot be made") as caught:
        made(config)
    assert "\n" not in str(caught.value)


def test_a_network_far_larger_than_its_checkpoint_is_not_made() -> None:
    """Its layers are counted while they are made, whatever entry asks for them."""
    config = {**TINY["BertModel"], "architectures": ["BertModel"], "num_hidden_layers": 9_999}
    kind = model_class(config, "config.json")
    made = configuration(kind.config_class, config, "config.json")
    with pytest.raises(SourceError, match=r"config\.json asks for a network of more than 5400 parts"):
        network(kind, made, "config.json", tensors=20)
    small = network(kind, kind.config_class(**TINY["BertModel"]), "config.json", tensors=20)
    assert len(small.state_dict()) > 20, "and not afterwards"


@pytest.mark.parametrize(
    "extra",
    [
        {"model_args": {"checkpoint_path": "{folder}/gadget.pt"}},
        {"architecture": "local-dir:{folder}"},
        {"architecture": "hf-hub:somebody/net"},
        {"model_args": {"pretrained": True}},
    ],
)
def test_a_class_that_would_open_files_is_not_made(extra: dict[str, Any], tmp_path: Path) -> None:
    text = {key: value.format(folder=tmp_path) if isinstance(value, str) else
            {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in value.items()}
            for key, value in extra.items()}  # fmt: skip
    (tmp_path / "gadget.pt").write_bytes(b"")
    with pytest.raises(SourceError, match=r"no constructor is given|asks for other weights"):
        made({**TINY["TimmWrapperModel"], "architectures": ["TimmWrapperModel"], **text})


def test_the_guard_holds_where_a_path_looks_like_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second wall: a configuration that was not sieved."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / "plain")
    config = transformers.TimmWrapperConfig(architecture="resnet10t", model_args={"checkpoint_path": "plain"})
    with pytest.raises(BlockedError, match=r"a\.pt: the class TimmWrapperModel would open 'plain'"):
        network(transformers.TimmWrapperModel, config, "a.pt")
