"""Networks of transformers whose layers pass on more than one tensor: a state, a residual, a second stream."""

from __future__ import annotations

from benchmarks.layout_networks.entry import Table, each, tokens
from benchmarks.layout_networks.hugging_face import ids, model

TABLE = Table()
add = TABLE.of("transformers", "hf_")

add(
    "mamba",
    "state passed along",
    lambda n: model(
        "MambaModel",
        hidden_size=16,
        state_size=4,
        num_hidden_layers=n,
        vocab_size=64,
        time_step_rank=4,
        use_mambapy=False,
    ),
    ids(6),
    each("layers.{i}", of=3),
    depth=3,
)
add(
    "mamba2",
    "state passed along",
    lambda n: model(
        "Mamba2Model",
        hidden_size=16,
        state_size=8,
        num_hidden_layers=n,
        vocab_size=64,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
    ids(),
    each("layers.{i}", of=3),
    depth=3,
)
add(
    "rwkv",
    "state passed along, pinned ends",
    lambda n: model("RwkvModel", hidden_size=16, num_hidden_layers=n, vocab_size=64, context_length=16),
    ids(4),
    each("blocks.{i}", of=4, pinned=[0]),
    depth=4,
    note="the first block has a norm more",
)
add(
    "xlstm",
    "state passed along",
    lambda n: model(
        "xLSTMModel",
        "xLSTMConfig",
        hidden_size=32,
        num_heads=4,
        num_hidden_layers=n,
        vocab_size=64,
        chunk_size=8,
    ),
    ids(),
    each("blocks.{i}", of=3),
    depth=3,
)
add(
    "gemma3n",
    "two streams, mixed kinds",
    lambda n: model(
        "Gemma3nTextModel",
        "Gemma3nTextConfig",
        hidden_size=32,
        intermediate_size=[48] * 2 * n,
        num_hidden_layers=2 * n,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * n,
        activation_sparsity_pattern=[0.0] * 2 * n,
    ),
    ids(),
    each("layers.{i}", of=6, unit=2),
    depth=3,
    note="an embedding and a projection beside the layers have a slice for each of them",
)
add(
    "xlnet",
    "two streams",
    lambda n: model("XLNetModel", d_model=32, n_head=4, d_inner=48, n_layer=n, vocab_size=64),
    lambda: {"input_ids": tokens()(), "use_mems": False},
    each("layer.{i}", of=3),
    depth=3,
)
add(
    "reformer",
    "two streams, mixed kinds",
    lambda n: model(
        "ReformerModel",
        "ReformerConfig",
        hidden_size=32,
        feed_forward_size=48,
        num_attention_heads=2,
        attention_head_size=16,
        vocab_size=64,
        attn_layers=["local", "local"] * n,
        axial_pos_embds=False,
        local_attn_chunk_length=4,
        is_decoder=False,
        max_position_embeddings=32,
    ),
    lambda: {"input_ids": tokens(8)()},
    each("encoder.layers.{i}", of=4, grows=2),
    depth=2,
    note="reversible: two streams that an autograd function carries",
)
