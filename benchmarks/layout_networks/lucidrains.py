"""x-transformers and other packages of its author: most keep their blocks in lists of lists."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, floats, images, tokens

TABLE = Table()


def xt(
    name: str,
    *stages: Stage,
    kinds: str = "list of lists, mixed kinds",
    depth: int = 3,
    step: int = 1,
    note: str = "",
    **settings: Any,
) -> None:
    def make(n: int) -> nn.Module:
        layers = cls("x_transformers.Decoder")(dim=16, depth=n, heads=2, attn_dim_head=8, **settings)
        made: nn.Module = cls("x_transformers.TransformerWrapper")(
            num_tokens=50, max_seq_len=16, attn_layers=layers
        )
        return made

    chosen = stages or (each("attn_layers.layers.{i}", of=6, unit=2),)
    TABLE.add(
        f"x_transformers_{name}",
        "x-transformers",
        kinds,
        make,
        tokens(),
        *chosen,
        depth=depth,
        step=step,
        note=note,
    )


xt("decoder", note="attention and feed-forward are layers of one list, by turns")
xt("rotary", rotary_pos_emb=True)
xt("macaron", each("attn_layers.layers.{i}", of=9, unit=3), macaron=True)
xt(
    "sandwich",
    each("attn_layers.layers.{i}", of=8),
    sandwich_coef=2,
    depth=4,
    step=0,
    note="attentions first, then pairs, then feed-forwards",
)
TABLE.add(
    "x_transformers_cross",
    "x-transformers",
    "list of lists, mixed kinds, encoder-decoder",
    lambda n: cls("x_transformers.XTransformer")(
        dim=16,
        enc_num_tokens=50,
        enc_depth=n,
        enc_heads=2,
        enc_max_seq_len=16,
        dec_num_tokens=50,
        dec_depth=n,
        dec_heads=2,
        dec_max_seq_len=16,
    ),
    lambda: (tokens(8)(), tokens(6)()),
    each("encoder.attn_layers.layers.{i}", of=6, unit=2),
    each("decoder.net.attn_layers.layers.{i}", of=9, unit=3),
    depth=3,
    note="gives a loss",
)

# others --------------------------------------------------------------------------------------------------------

TABLE.add(
    "performer",
    "performer-pytorch",
    "list of lists, registered twice",
    lambda n: cls("performer_pytorch.Performer")(dim=16, depth=n, heads=2, dim_head=8, nb_features=8),
    floats(1, 8, 16),
    each("net.layers.{i}", "proj_updater.instance.layers.{i}", of=3),
    depth=3,
    note="the projections' updater holds the network a second time",
)
TABLE.add(
    "perceiver_io",
    "perceiver-pytorch",
    "list of lists",
    lambda n: cls("perceiver_pytorch.PerceiverIO")(
        dim=16,
        queries_dim=16,
        depth=n,
        num_latents=4,
        latent_dim=16,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=8,
        latent_dim_head=8,
    ),
    floats(1, 8, 16),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "perceiver_repeated_cross",
    "perceiver-pytorch",
    "list of lists, lists inside blocks",
    lambda n: cls("perceiver_pytorch.Perceiver")(
        input_channels=3,
        input_axis=2,
        num_freq_bands=2,
        max_freq=4.0,
        depth=n,
        num_latents=4,
        latent_dim=16,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=8,
        latent_dim_head=8,
        num_classes=5,
        self_per_cross_attn=2,
    ),
    floats(1, 6, 6, 3),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "mlp_mixer",
    "mlp-mixer-pytorch",
    "flat sequential",
    lambda n: cls("mlp_mixer_pytorch.MLPMixer")(
        image_size=16, channels=3, patch_size=4, dim=16, depth=n, num_classes=5
    ),
    images(16),
    each("{i}", of=[2, 3, 4]),
    depth=3,
)
TABLE.add(
    "g_mlp",
    "g-mlp-pytorch",
    "plain list",
    lambda n: cls("g_mlp_pytorch.gMLP")(num_tokens=50, dim=16, depth=n, seq_len=8),
    tokens(8),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "conformer",
    "conformer",
    "plain list",
    lambda n: cls("conformer.Conformer")(dim=16, depth=n, dim_head=8, heads=2, conv_kernel_size=3),
    floats(1, 8, 16),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "egnn_network",
    "egnn-pytorch",
    "two streams, list of lists",
    lambda n: cls("egnn_pytorch.EGNN_Network")(dim=8, depth=n, num_nearest_neighbors=0),
    lambda: (floats(1, 5, 8)(), floats(1, 5, 3)()),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "egnn_global_attention",
    "egnn-pytorch",
    "two streams, list of lists, mixed kinds",
    lambda n: cls("egnn_pytorch.EGNN_Network")(
        dim=8,
        depth=2 * n,
        num_nearest_neighbors=0,
        global_linear_attn_every=2,
        global_linear_attn_heads=2,
        global_linear_attn_dim_head=8,
        num_global_tokens=2,
    ),
    lambda: (floats(1, 5, 8)(), floats(1, 5, 3)()),
    each("layers.{i}", of=4, unit=2),
    depth=2,
)
TABLE.add(
    "reformer_reversible",
    "reformer-pytorch",
    "two streams, registered twice",
    lambda n: cls("reformer_pytorch.Reformer")(
        dim=16, depth=n, heads=2, bucket_size=4, n_hashes=2, use_full_attn=True
    ),
    floats(1, 8, 16),
    each("layers.blocks.{i}", "layers.irrev_blocks.{i}", of=3),
    depth=3,
    note="an autograd function carries the two streams",
)
TABLE.add(
    "linear_attention_transformer",
    "linear-attention-transformer",
    "list of lists",
    lambda n: cls("linear_attention_transformer.LinearAttentionTransformer")(
        dim=16, heads=2, depth=n, max_seq_len=16
    ),
    floats(1, 8, 16),
    each("layers.layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "enformer_transformer",
    "enformer-pytorch",
    "registered twice, flat sequential",
    lambda n: _enformer(n),
    floats(1, 256, 4),
    each("transformer.{i}", "_trunk.4.{i}", of=3),
    depth=3,
)


def _enformer(n: int) -> nn.Module:
    config = cls("enformer_pytorch.EnformerConfig")(
        dim=96, depth=n, heads=2, target_length=-1, num_downsamples=3, dim_divisible_by=24
    )
    made: nn.Module = cls("enformer_pytorch.Enformer")(config)
    return made


TABLE.add(
    "axial_image",
    "axial-attention",
    "two streams, list of lists, mixed kinds",
    lambda n: cls("axial_attention.AxialImageTransformer")(
        dim=8, depth=n, heads=2, dim_heads=4, reversible=False
    ),
    floats(1, 8, 6, 6),
    each("layers.blocks.{i}", of=6, unit=2),
    depth=3,
)
TABLE.add(
    "ft_transformer",
    "tab-transformer-pytorch",
    "list of lists, running sum",
    lambda n: cls("tab_transformer_pytorch.FTTransformer")(
        categories=(4, 3), num_continuous=2, dim=16, depth=n, heads=2, dim_head=8, dim_out=1
    ),
    lambda: (tokens(2, 4)() * 0, floats(1, 2)()),
    each("transformer.layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "timesformer",
    "timesformer-pytorch",
    "list of lists",
    lambda n: cls("timesformer_pytorch.TimeSformer")(
        dim=16, image_size=16, patch_size=8, num_frames=2, num_classes=5, depth=n, heads=2, dim_head=8
    ),
    floats(1, 2, 3, 16, 16),
    each("layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "bs_roformer",
    "BS-RoFormer",
    "list of lists, repeats within repeats, shared buffer, pinned ends",
    lambda n: cls("bs_roformer.BSRoformer")(
        dim=16,
        depth=n,
        heads=2,
        dim_head=8,
        time_transformer_depth=1,
        freq_transformer_depth=1,
        flash_attn=False,
        freqs_per_bands=(5, 12, 16),
        stft_n_fft=64,
        stft_hop_length=16,
        stft_win_length=64,
    ),
    floats(1, 320),
    each("layers.{i}", of=4, pinned=[0]),
    depth=4,
    note="the first layer's values are kept for all others, which have a layer more to mix them in",
)
TABLE.add(
    "itransformer",
    "iTransformer",
    "list of lists, lists inside blocks, state passed along, pinned ends",
    lambda n: cls("iTransformer.iTransformer")(
        num_variates=3,
        lookback_len=8,
        depth=n,
        dim=16,
        pred_length=(2, 4),
        heads=2,
        dim_head=8,
        num_tokens_per_variate=1,
    ),
    floats(1, 8, 3),
    each("layers.{i}", of=4, pinned=[0]),
    depth=4,
    note="the first layer's values are kept for all others, which have a layer more to mix them in",
)
TABLE.add(
    "se3_transformer",
    "se3-transformer-pytorch",
    "module dict, two streams",
    lambda n: cls("se3_transformer_pytorch.SE3Transformer")(
        dim=4, heads=1, dim_head=4, depth=n, num_degrees=2, num_neighbors=3, valid_radius=10
    ),
    lambda: (floats(1, 6, 4)(), floats(1, 6, 3)()),
    each("net.blocks.{i}", of=3),
    depth=3,
    note="features of each degree in a dictionary",
)
TABLE.add(
    "ddpm_unet",
    "denoising-diffusion-pytorch",
    "list of lists, long skips, one-block levels",
    lambda n: cls("denoising_diffusion_pytorch.Unet")(
        dim=8, dim_mults=(1, 2), flash_attn=False, attn_heads=2, attn_dim_head=4
    ),
    lambda: (images(16)(), tokens(1)()[0]),
    may_refuse="each level of the U-Net has its own width, and one group of blocks",
    says="wider|width|one by one",
)
TABLE.add(
    "mambapy",
    "mambapy",
    "plain list",
    lambda n: cls("mambapy.mamba.Mamba")(
        cls("mambapy.mamba.MambaConfig")(d_model=8, n_layers=n, d_state=4, pscan=False)
    ),
    floats(1, 4, 8),
    each("layers.{i}", of=3),
    depth=3,
)
