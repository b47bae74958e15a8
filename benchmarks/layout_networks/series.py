"""Time series, biosignals, tables of numbers, operators: tsai, neuralforecast, braindecode and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, floats

TABLE = Table()


def gates(path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}_l{{i}}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


# tsai ----------------------------------------------------------------------------------------------------------

TABLE.add(
    "tsai_inception_time",
    "tsai",
    "periodic forward, k to 1, sibling lists, lists inside blocks",
    lambda n: cls("tsai.models.InceptionTime.InceptionTime")(16, 3, nf=4, depth=3 * n, ks=9),
    floats(2, 16, 20),
    Stage(
        tuple(
            (*(f"inceptionblock.inception.{3 * i + k}" for k in range(3)), f"inceptionblock.shortcut.{i}")
            for i in range(3)
        ),
        slots=("inceptionblock.inception.{3i..3i+2}", "inceptionblock.shortcut.{i}"),
    ),
    depth=3,
    note="a shortcut after every third block, counted in the forward",
)
TABLE.add(
    "tsai_tst",
    "tsai",
    "plain list",
    lambda n: cls("tsai.models.TST.TST")(3, 2, 12, n_layers=n, d_model=16, n_heads=2, d_ff=24),
    floats(2, 3, 12),
    each("encoder.layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "tsai_tst_plus",
    "tsai",
    "state passed along",
    lambda n: cls("tsai.models.TSTPlus.TSTPlus")(3, 2, 12, n_layers=n, d_model=16, n_heads=2, d_ff=24),
    floats(2, 3, 12),
    each("backbone.encoder.layers.{i}", of=3),
    depth=3,
    note="attention scores go from layer to layer",
)
TABLE.add(
    "tsai_sequencer",
    "tsai",
    "recurrent",
    lambda n: cls("tsai.models.TSSequencerPlus.TSSequencerPlus")(3, 2, 12, d_model=8, depth=n),
    floats(2, 3, 12),
    each("backbone.encoder.encoder.{i}", of=3),
    depth=3,
    note="an LSTM in the place of attention",
)
TABLE.add(
    "tsai_lstm",
    "tsai",
    "recurrent",
    lambda n: cls("tsai.models.RNN.LSTM")(3, 2, hidden_size=8, n_layers=n),
    floats(2, 3, 12),
    each(*gates("rnn"), of=4, pinned=[0]),
    depth=4,
    note="the first level reads other features",
)

# neuralforecast ------------------------------------------------------------------------------------------------


class Windows(nn.Module):
    """A model of neuralforecast on the one entry of its batch that it needs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, y: Tensor) -> Any:
        return self.inner(
            {
                "insample_y": y,
                "insample_mask": torch.ones_like(y),
                "futr_exog": None,
                "hist_exog": None,
                "stat_exog": None,
            }
        )


def forecast(name: str, **settings: Any) -> nn.Module:
    return Windows(cls(f"neuralforecast.models.{name}")(h=4, input_size=8, **settings))


def add(name: str, kinds: str, make: Any, inputs: Any, *stages: Stage, **more: Any) -> None:
    TABLE.add(f"neuralforecast_{name}", "neuralforecast", kinds, make, inputs, *stages, **more)


add(
    "nbeats",
    "two streams, running sum",
    lambda n: forecast("NBEATS", stack_types=["identity"] * n, n_blocks=[1] * n, mlp_units=[[16, 16]]),
    floats(2, 8, 1),
    each("inner.blocks.{i}", of=3),
    depth=3,
    note="what is left of the input and the sum of forecasts go along; the sum has one step before the first block",
)
add(
    "nhits",
    "two streams, running sum",
    lambda n: forecast(
        "NHITS",
        stack_types=["identity"] * n,
        n_blocks=[1] * n,
        mlp_units=[[16, 16]],
        n_pool_kernel_size=[2] * n,
        n_freq_downsample=[1] * n,
    ),
    floats(2, 8, 1),
    each("inner.blocks.{i}", of=3),
    depth=3,
)
add(
    "tsmixer",
    "plain list",
    lambda n: forecast("TSMixer", n_series=3, n_block=n, ff_dim=8),
    floats(2, 8, 3),
    each("inner.mixing_layers.{i}", of=3),
    depth=3,
    note="blocks in a Sequential",
)
add(
    "itransformer",
    "encoder-decoder",
    lambda n: forecast("iTransformer", n_series=3, hidden_size=16, n_heads=2, e_layers=n, d_ff=24),
    floats(2, 8, 3),
    each("inner.encoder.attn_layers.{i}", of=3),
    depth=3,
)
add(
    "patchtst",
    "state passed along",
    lambda n: forecast(
        "PatchTST", encoder_layers=n, n_heads=2, hidden_size=16, linear_hidden_size=24, patch_len=4, stride=2
    ),
    floats(2, 8, 1),
    each("inner.model.backbone.encoder.layers.{i}", of=4, pinned=[0]),
    depth=4,
    note="attention scores go from layer to layer, and the first gets none",
)
add(
    "mlp",
    "plain list, pinned ends",
    lambda n: forecast("MLP", num_layers=n, hidden_size=16),
    floats(2, 8, 1),
    each("inner.mlp.{i}", of=4, pinned=[0]),
    depth=4,
)

# braindecode ---------------------------------------------------------------------------------------------------

EEG = {"n_chans": 4, "n_outputs": 2, "n_times": 200, "sfreq": 100}
TABLE.add(
    "braindecode_conformer",
    "braindecode",
    "plain list",
    lambda n: cls("braindecode.models.EEGConformer")(
        **EEG,
        n_filters_time=8,
        filter_time_length=9,
        pool_time_length=15,
        pool_time_stride=15,
        num_layers=n,
        num_heads=2,
    ),
    floats(1, 4, 200),
    each("transformer.{i}", of=3),
    depth=3,
)
TABLE.add(
    "braindecode_labram",
    "braindecode",
    "plain list",
    lambda n: cls("braindecode.models.Labram")(
        n_chans=4,
        n_outputs=2,
        n_times=40,
        sfreq=20,
        patch_size=20,
        embed_dim=20,
        num_layers=n,
        num_heads=2,
        chs_info=[{"ch_name": name} for name in ("C3", "C4", "CZ", "FZ")],
    ),
    lambda: ((floats(1, 4, 40)(),), {"ch_names": ["C3", "C4", "CZ", "FZ"]}),
    each("blocks.{i}", of=3),
    each(
        "patch_embed.temporal_conv.conv{i}",
        "patch_embed.temporal_conv.norm{i}",
        of=(1, 2, 3),
        pinned=[0],
        optional=True,
        grows=0,
    ),
    depth=3,
)
TABLE.add(
    "braindecode_simple_conv",
    "braindecode",
    "plain list, pinned ends",
    lambda n: cls("braindecode.models.EEGSimpleConv")(
        n_chans=4, n_outputs=2, n_times=200, sfreq=100, feature_maps=8, n_convs=n, resampling_freq=50
    ),
    floats(1, 4, 200),
    refused="each block is 1.414 times as wide as the one before",
    says="wider than the one before|no two blocks in a row have equal operations and weight shapes",
)

# tables of numbers ---------------------------------------------------------------------------------------------

TABLE.add(
    "tabnet",
    "pytorch_tabnet",
    "sibling lists, running sum, shared block, state passed along",
    lambda n: cls("pytorch_tabnet.tab_network.TabNetNoEmbeddings")(6, 2, n_d=8, n_a=8, n_steps=n),
    floats(4, 6),
    each("encoder.feat_transformers.{i}", "encoder.att_transformers.{i}", of=3, pinned=[0]),
    each("encoder.initial_splitter.specifics.glu_layers.{i}", of=2, grows=0),
    depth=3,
    step=0,
    note="layers shared by all steps are registered in every step; a prior is passed along, the decisions are summed; "
    "the first step begins the sum of a loss, which is divided by the number of steps",
)
TABLE.add(
    "rtdl_resnet",
    "rtdl_revisiting_models",
    "plain list",
    lambda n: cls("rtdl_revisiting_models.ResNet")(
        d_in=6, d_out=2, n_blocks=n, d_block=16, d_hidden_multiplier=2.0, dropout1=0.0, dropout2=0.0
    ),
    floats(4, 6),
    each("blocks.{i}", of=3),
    depth=3,
)
TABLE.add(
    "rtdl_ft_transformer",
    "rtdl_revisiting_models",
    "module dict, pinned ends",
    lambda n: cls("rtdl_revisiting_models.FTTransformer")(
        n_cont_features=4,
        cat_cardinalities=[3],
        d_out=2,
        n_blocks=n,
        d_block=16,
        attention_n_heads=2,
        attention_dropout=0.0,
        ffn_d_hidden_multiplier=2.0,
        ffn_dropout=0.0,
        residual_dropout=0.0,
    ),
    lambda: (floats(2, 4)(), torch.tensor([[1], [2]])),
    each("backbone.blocks.{i}", of=5, pinned=[0, -1]),
    depth=5,
    note="the first block has no norm before its attention, the last one queries by the class token alone",
)
TABLE.add(
    "neuralop_fno",
    "neuraloperator",
    "sibling lists, raw parameters",
    lambda n: cls("neuralop.models.fno.FNO")(
        n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8, n_layers=n
    ),
    floats(1, 1, 8, 8),
    each(
        "fno_blocks.convs.{i}",
        "fno_blocks.fno_skips.{i}",
        "fno_blocks.channel_mlp.{i}",
        "fno_blocks.channel_mlp_skips.{i}",
        of=4,
        pinned=[-1],
    ),
    depth=4,
    note="four lists; the last block lacks the activation, and is kept; complex weights",
)
TABLE.add(
    "tcn_equal_dilations",
    "pytorch-tcn",
    "parametrized, running sum",
    lambda n: cls("pytorch_tcn.TCN")(
        8, [8] * n, kernel_size=3, dilations=[1] * n, dropout=0.0, use_skip_connections=True
    ),
    floats(1, 8, 12),
    each("network.{i}", of=3, pinned=[-1]),
    depth=3,
    note="weight norm; the skips of all blocks but the last are summed with the result",
)
