"""litgpt and torchtune: decoders that share one rotary table."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Table, cls, each, floats, tokens

TABLE = Table()


def litgpt(n: int, **more: Any) -> nn.Module:
    config = cls("litgpt.Config")(
        block_size=16,
        vocab_size=50,
        padded_vocab_size=50,
        n_layer=n,
        n_head=2,
        n_embd=16,
        intermediate_size=24,
        **more,
    )
    made: nn.Module = cls("litgpt.GPT")(config)
    return made


H = "transformer.h.{i}"
TABLE.add("litgpt_pythia", "litgpt", "shared buffer, module dict", litgpt, tokens(8), each(H, of=3), depth=3)
TABLE.add(
    "litgpt_llama",
    "litgpt",
    "shared buffer, module dict",
    lambda n: litgpt(
        n,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        bias=False,
        parallel_residual=False,
        n_query_groups=1,
    ),
    tokens(8),
    each(H, of=3),
    depth=3,
)
TABLE.add(
    "litgpt_moe",
    "litgpt",
    "shared buffer, module dict, lists inside blocks",
    lambda n: litgpt(
        n,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMoE",
        bias=False,
        parallel_residual=False,
        n_expert=2,
        n_expert_per_token=1,
    ),
    tokens(8),
    each(H, of=3),
    depth=3,
    note="experts are chosen by value: a forward that no tracer may read",
)


def tune(path: str, **settings: Any) -> nn.Module:
    made: nn.Module = cls(f"torchtune.models.{path}")(**settings)
    return made


SMALL = {"vocab_size": 50, "num_heads": 2, "num_kv_heads": 1, "embed_dim": 16, "max_seq_len": 16}
TABLE.add(
    "torchtune_llama2",
    "torchtune",
    "shared buffer",
    lambda n: tune("llama2.llama2", **SMALL, num_layers=n),
    tokens(8),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "torchtune_gemma2",
    "torchtune",
    "mixed kinds, shared buffer",
    lambda n: tune(
        "gemma2.gemma2", **SMALL, num_layers=2 * n, head_dim=8, intermediate_dim=24, sliding_window_size=4
    ),
    tokens(8),
    each("layers.{i}", of=6, unit=2),
    depth=3,
)
TABLE.add(
    "torchtune_fusion_decoder",
    "torchtune",
    "mixed kinds, shared buffer, encoder-decoder",
    lambda n: tune(
        "llama3_2_vision.llama3_2_vision_decoder",
        vocab_size=50,
        num_layers=2 * n,
        fusion_interval=2,
        num_special_tokens=2,
        num_heads=2,
        num_kv_heads=1,
        embed_dim=16,
        max_seq_len=16,
        encoder_max_seq_len=8,
        intermediate_dim=24,
    ),
    lambda: {"tokens": tokens(8)(), "encoder_input": floats(1, 4, 16)()},
    each("layers.{i}", of=6, unit=2),
    depth=3,
    note="every second layer holds a fusion layer and a layer in one",
)
TABLE.add(
    "torchtune_clip_text",
    "torchtune",
    "plain list",
    lambda n: tune(
        "clip.clip_text_encoder", vocab_size=50, max_seq_len=8, embed_dim=16, num_heads=2, num_layers=n
    ),
    tokens(8),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "torchtune_t5",
    "torchtune",
    "encoder-decoder, shared buffer",
    lambda n: tune(
        "t5.t5_encoder",
        embed_dim=16,
        mlp_dim=24,
        num_heads=2,
        head_dim=8,
        num_layers=n,
        rel_pos_num_buckets=8,
        rel_pos_max_dist=16,
        vocab_size=50,
        norm_eps=1e-6,
        max_seq_len=8,
    ),
    tokens(8),
    each("layers.{i}", of=3),
    depth=3,
    note="the table of relative positions lies beside the layers",
)
