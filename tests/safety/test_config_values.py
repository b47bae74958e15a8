"""Values of a configuration: those that lead out of the file are refused, and ordinary ones are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.errors import SourceError
from elastic_ir.safety.config_values import plain_values


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_args": {"checkpoint_path": "weights"}}, "a path (model_args.checkpoint_path: 'weights')"),
        (
            {"model_args": {"pretrained": True}},
            "asks for other weights than the file's (model_args.pretrained",
        ),
        ({"a": [{"b": [{"cache_dir": "x"}]}]}, "a path (a.b.cache_dir: 'x')"),
        ({"architecture": "local-dir:/tmp/x"}, "a URL (architecture"),
        ({"architecture": "hf-hub:timm/vit"}, "a URL (architecture"),
        ({"architecture": "hf_hub:timm/vit"}, "a URL (architecture"),
        ({"anything": "file:///etc/passwd"}, "a URL (anything"),
        ({"anything": "HTTPS://host/x"}, "a URL (anything"),
        ({"anything": " http://host"}, "a URL (anything"),
        ({"backbone": "microsoft/resnet-50"}, "a name on a hub (backbone"),
        (
            {"a": {"backbone": "resnet50", "use_timm_backbone": False}},
            "takes a backbone from elsewhere (a.backbone",
        ),
        ({"backbone": "."}, "takes a backbone from elsewhere (backbone: '.')"),
        ({"text_config": {"_attn_implementation": "somebody/kernel@main"}}, "a name on a hub"),
        ({"_attn_implementation_internal": "somebody/kernel:forward"}, "a name on a hub"),
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 of num_hidden_layers; no network has more than"),
        ({"num_experts": 10**6}, "asks for 1000000 of num_experts; no network has more than 100000"),
        ({"text_config": {"depths": [2, 10**7]}}, "asks for 10000000 of text_config.depths"),
        ({"anything": "/etc/passwd"}, "a path (anything"),
        ({"anything": "~/x"}, "a path (anything"),
        ({"anything": "../x"}, "a path (anything"),
        ({"anything": "a/../../x"}, "a path (anything"),
        ({"anything": "C:\\x"}, "a path (anything"),
        ({"anything": ["gelu", "beside.pkl"]}, "a path (anything: 'beside.pkl')"),
        ({"anything": "model.safetensors "}, "a path (anything"),
        ({"vocab_file": "vocab"}, "a path (vocab_file: 'vocab')"),
        ({"base_model_name_or_path": "bert"}, "a path (base_model_name_or_path: 'bert')"),
    ],
)
def test_what_leads_out_of_the_file_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError) as caught:
        plain_values(config, "config.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("config.json ")


def test_ordinary_configurations_pass() -> None:
    config = {
        "_name_or_path": "bert-base-uncased",
        "architectures": ["BertModel"],
        "auto_map": {"AutoModel": "modeling_evil.Evil"},
        "hidden_act": "gelu_pytorch_tanh",
        "torch_dtype": "bfloat16",
        "drop_path_rate": 0.1,
        "drop_path": 0.2,
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "id2label": {"0": "crane/bird", "1": "N/A", "2": "/slash"},
        "label2id": {"crane/bird": 0},
        "num_experts": 16_384,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
        "backbone": "resnet50",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "passages_path": None,
        "transformers_version": "4.41.0.dev0",
        "doc_sep": " // ",
        "text_config": {"_name_or_path": "google/flan-t5-xl", "hidden_size": 4},
    }
    given = copy.deepcopy(config)
    plain = plain_values(config)
    assert config == given, "the caller's own is left as it is"
    assert plain["use_pretrained_backbone"] is False
    assert plain["text_config"] == {"hidden_size": 4}
    dropped = {"_name_or_path", "auto_map", "use_pretrained_backbone", "text_config"}
    assert {key: plain[key] for key in config.keys() - dropped} == {
        key: config[key] for key in config.keys() - dropped
    }
    assert not {"_name_or_path", "auto_map"} & plain.keys()


KEYS = st.sampled_from(["model_args", "text_config", "x", "layers", "checkpoint"])
OUT = st.sampled_from(["/tmp/a.pt", "file:a", "https://h/a", "local-dir:a", "../a", "~/a"])


@given(st.recursive(OUT, lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(
    KEYS, inner, min_size=1, max_size=2), max_leaves=4))  # fmt: skip
def test_a_path_is_found_at_any_depth(value: Any) -> None:
    with pytest.raises(SourceError):
        plain_values({"value": value})


def test_a_configuration_nested_too_deeply() -> None:
    config: dict[str, Any] = {}
    for _ in range(10_000):
        config = {"inner": config}
    with pytest.raises(SourceError, match="nested too deeply"):
        plain_values(config)
