"""Kinds of layers that a network derives from numbers: each kind is spread over the places that it has."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import elastic_ir as eir
from elastic_ir.checkpoints.oracle import comparison
from elastic_ir.checkpoints.oracle.comparison import asked, judged
from elastic_ir.checkpoints.oracle.process import answer
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.write import plan_checkpoint
from elastic_ir.errors import PlanError
from tests.checkpoints.folders import config, llama, write
from tests.checkpoints.oracle.test_comparison import compared, stretched
from tests.networks.transformers_families import SMALL


class _Here:
    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def answer(self) -> Any:
        return json.loads(json.dumps(answer(json.loads(json.dumps(self.data)))))


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def started(module: str, data: Mapping[str, Any]) -> Iterator[_Here]:
        yield _Here(data)

    monkeypatch.setattr(comparison, "started", started)


def deepseek(folder: Path) -> eir.Graph:
    """Some first layers are dense, and all others hold experts."""
    settings = t.DeepseekV3Config(
        **SMALL, num_hidden_layers=4, first_k_dense_replace=2, moe_intermediate_size=16, num_key_value_heads=4,
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    t.DeepseekV3Model(settings).save_pretrained(folder)
    return eir.load(folder, headers_only=True)


def order(graph: eir.Graph) -> list[int]:
    return [int(child.origin.rpartition(".")[2]) for child in graph.stages[0].container.children]


@pytest.mark.parametrize(
    ("how", "made", "dense"),
    [
        ({}, [0, 1, 2, 3, 2, 3], 2),
        ({"order": "interpolate"}, [0, 0, 1, 1, 2, 3], 4),  # which the configuration can state
    ],
)
@pytest.mark.slow
def test_copies_stand_where_their_kind_does(
    how: dict[str, Any], made: list[int], dense: int, tmp_path: Path
) -> None:
    graph = deepseek(tmp_path / "source")
    deeper = eir.stretch(graph, to_units=6, **how)
    assert order(deeper) == made
    eir.save(deeper, tmp_path / "out")
    loaded: Any = t.DeepseekV3Model.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    assert (model.config.num_hidden_layers, model.config.first_k_dense_replace) == (6, dense)
    with pytest.raises(PlanError, match="keep the kinds in their places with --plan"):
        eir.save(eir.stretch(graph, plan="0-3,0,1"), tmp_path / "other")


def test_a_stack_that_does_not_change_need_not_be_found_in_the_network(tmp_path: Path) -> None:
    """Names and shapes show that it is whole; one that changes has to be found."""
    source = write(tmp_path / "source", llama(), config(4))
    graph = eir.stretch(eir.load(source, headers_only=True), to_units=5)
    plan = plan_checkpoint(graph)
    shapes = {name: data.shape for shard in plan.shards.values() for name, data in shard.items()}

    def found(*more: Stack) -> dict[str, Any]:
        stacks = [*plan.stacks, *more]
        data = asked(
            (plan.source.config, plan.source.shapes), (plan.source.config, shapes), stacks, proposed=False
        )
        return answer(json.loads(json.dumps(data)))

    assert found(Stack("projector", "", 0, 4, (0, 1, 2, 3)))["config"]["num_hidden_layers"] == 5
    wrong = found(Stack("projector", "", 0, 4, (0, 1, 2, 3, 3)))
    assert "config" not in wrong
    assert (
        judged(wrong, proposed=False).nearest == "the layers of projector are not found in LlamaForCausalLM"
    )


@pytest.mark.skipif(not hasattr(t, "MiniCPM3Config"), reason="this transformers has no such network")
def test_a_constant_of_the_depth_is_told(tmp_path: Path) -> None:
    settings = t.MiniCPM3Config(
        **SMALL, num_hidden_layers=4, num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, scale_depth=1.4,
    )  # fmt: skip
    t.MiniCPM3Model(settings).save_pretrained(tmp_path / "source")
    found = compared(stretched(tmp_path / "source"))
    assert found.by_depth == ("layers.residual_scale is 0.494975 with 8 layers, 0.7 with 4",)
    eir.save(stretched(tmp_path / "source"), tmp_path / "out")
