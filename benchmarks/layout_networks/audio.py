"""Speech and music: torchaudio, speechbrain, asteroid, demucs, encodec, vocos, snac."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, floats

TABLE = Table()


def gates(path: str, *, both: bool = False) -> tuple[str, ...]:
    """The slots of a recurrent layer of several levels."""
    one = tuple(f"{path}.{name}_l{{i}}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return one + tuple(f"{slot}_reverse" for slot in one) if both else one


TABLE.add(
    "torchaudio_conformer",
    "torchaudio",
    "plain list",
    lambda n: cls("torchaudio.models.Conformer")(
        input_dim=16, num_heads=2, ffn_dim=24, num_layers=n, depthwise_conv_kernel_size=3
    ),
    lambda: (floats(1, 8, 16)(), torch.tensor([8])),
    each("conformer_layers.{i}", of=3),
    depth=3,
)
TABLE.add(
    "torchaudio_conv_tasnet",
    "torchaudio",
    "running sum, pinned ends",
    lambda n: cls("torchaudio.models.ConvTasNet")(
        enc_kernel_size=8,
        enc_num_feats=16,
        msk_num_feats=8,
        msk_num_hidden_feats=16,
        msk_num_layers=2,
        msk_num_stacks=n,
    ),
    floats(1, 1, 64),
    each("mask_generator.conv_layers.{i}", of=6, pinned=[0, -1], unit=2),
    or_stages=(each("mask_generator.conv_layers.{i}", of=6, pinned=[-2, -1], unit=2),),
    depth=3,
    note="two dilations by turns; the sum of skips starts as zero, and the last block lacks a residual convolution",
)
TABLE.add(
    "torchaudio_wavernn",
    "torchaudio",
    "flat sequential, running sum",
    lambda n: cls("torchaudio.models.WaveRNN")(
        upsample_scales=[2, 2],
        n_classes=8,
        hop_length=4,
        n_res_block=n,
        n_rnn=8,
        n_fc=8,
        kernel_size=3,
        n_freq=6,
        n_hidden=8,
        n_output=8,
    ),
    lambda: (floats(1, 1, 24)(), floats(1, 1, 6, 8)()),
    each("upsample.resnet.melresnet_model.{i}", of=[3, 4, 5]),
    depth=3,
)
TABLE.add(
    "torchaudio_wav2vec2",
    "torchaudio",
    "parametrized",
    lambda n: cls("torchaudio.models.wav2vec2_model")(
        "group_norm",
        [(16, 10, 5), (16, 3, 2), (16, 3, 2), (16, 3, 2)],
        False,
        16,
        0.0,
        8,
        2,
        n,
        2,
        0.0,
        24,
        0.0,
        0.0,
        False,
        0.0,
        None,
    ),
    floats(1, 400),
    each("encoder.transformer.layers.{i}", of=3),
    depth=3,
    note="a convolution with weight norm gives the positions; those of the feature extractor downsample, every one",
)
TABLE.add(
    "torchaudio_emformer",
    "torchaudio",
    "two streams, state passed along",
    lambda n: cls("torchaudio.models.Emformer")(16, 2, 24, n, 4, right_context_length=1),
    lambda: (floats(1, 9, 16)(), torch.tensor([9])),
    each("emformer_layers.{i}", of=3),
    or_stages=(each("emformer_layers.{i}", of=3, pinned=[0]),),
    depth=3,
    note="utterance, right context and memory go from layer to layer; the first one's memory has another shape",
)


def add(name: str, kinds: str, make: Any, inputs: Any, *stages: Stage, **more: Any) -> None:
    TABLE.add(f"speechbrain_{name}", "speechbrain", kinds, make, inputs, *stages, **more)


add(
    "transformer",
    "hidden states",
    lambda n: cls("speechbrain.lobes.models.transformer.Transformer.TransformerEncoder")(
        num_layers=n, nhead=2, d_ffn=24, d_model=16
    ),
    floats(1, 8, 16),
    each("layers.{i}", of=3),
    depth=3,
    note="hands out every layer's attention in a list",
)
add(
    "conformer",
    "hidden states",
    lambda n: cls("speechbrain.lobes.models.transformer.Conformer.ConformerEncoder")(
        num_layers=n, d_model=16, d_ffn=24, nhead=2, kernel_size=3, attention_type="regularMHA"
    ),
    floats(1, 8, 16),
    each("layers.{i}", of=3),
    depth=3,
)
add(
    "ecapa",
    "running sum, pinned ends",
    lambda n: cls("speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN")(
        6,
        lin_neurons=8,
        channels=[16] * (n + 1) + [16 * n],
        kernel_sizes=[5] + [3] * n + [1],
        dilations=[1] + [2] * n + [1],
        attention_channels=8,
        res2net_scale=2,
        se_channels=8,
        groups=[1] * (n + 2),
    ),
    floats(1, 12, 6),
    depth=3,
    step=0,
    refused="a convolution behind the blocks has columns for each of them",
    says="mfa|as wide|columns|concatenat|a value to cat",
)
add(
    "diffwave",
    "running sum",
    lambda n: cls("speechbrain.lobes.models.DiffWave.DiffWave")(
        input_channels=8, residual_layers=n, residual_channels=8, dilation_cycle_length=1, total_steps=10
    ),
    lambda: (floats(1, 1, 512)(), torch.tensor([3]), floats(1, 8, 2)()),
    each("residual_layers.{i}", of=3),
    depth=3,
    note="all skips are summed and divided by the root of their number",
    may_refuse="the sum of skips is divided by the root of the number of layers, a constant of the forward",
    says="number of|counts|a value to add",
)
add(
    "lstm",
    "recurrent",
    lambda n: cls("speechbrain.nnet.RNN.LSTM")(hidden_size=8, input_size=8, num_layers=n),
    floats(1, 5, 8),
    each(*gates("rnn"), of=3),
    depth=3,
)
add(
    "li_gru",
    "recurrent, shared block",
    lambda n: cls("speechbrain.nnet.RNN.LiGRU")(hidden_size=8, input_shape=[1, 5, 8], num_layers=n),
    floats(1, 5, 8),
    each("rnn.{i}", of=3),
    depth=3,
    note="each layer runs once for every step of time, in a loop",
)


def tdconv(n: int) -> nn.Module:
    made: nn.Module = cls("asteroid.masknn.convolutional.TDConvNet")(
        8, 2, n_blocks=1, n_repeats=n, bn_chan=8, hid_chan=16, skip_chan=8
    )
    return made


TABLE.add(
    "asteroid_tdconv",
    "asteroid",
    "running sum",
    tdconv,
    floats(1, 8, 12),
    each("TCN.{i}", of=3),
    depth=3,
    note="every block gives a residual and a skip; skips are summed",
)
TABLE.add(
    "asteroid_dprnn",
    "asteroid",
    "recurrent, flat sequential",
    lambda n: cls("asteroid.masknn.recurrent.DPRNN")(8, 2, bn_chan=8, hid_size=8, chunk_size=4, n_repeats=n),
    floats(1, 8, 12),
    each("net.{i}", of=3),
    depth=3,
)
TABLE.add(
    "demucs_cross_transformer",
    "demucs",
    "two streams, sibling lists, mixed kinds",
    lambda n: cls("demucs.transformer.CrossTransformerEncoder")(
        16, num_heads=2, num_layers=2 * n + 1, norm_first=True, hidden_scale=2.0
    ),
    lambda: (floats(1, 16, 2, 3)(), floats(1, 16, 6)()),
    each("layers.{i}", "layers_t.{i}", of=7, unit=2, pinned=[-1]),
    depth=3,
    may_refuse="an odd number of layers ends the period of self and cross attention",
    says="period|whole unit",
    note="two lists, one for spectrum and one for time; self and cross attention by turns",
)
TABLE.add(
    "demucs_waveform",
    "demucs",
    "long skips, one-block levels, recurrent",
    lambda n: cls("demucs.demucs.Demucs")(
        ["a", "b"], channels=4, depth=2, lstm_layers=n, norm_starts=9, resample=False, dconv_mode=0
    ),
    floats(1, 2, 256),
    each(*gates("lstm.lstm", both=True), of=3, pinned=[0]),
    depth=3,
    note="the first level of the LSTM reads half as many features",
)
TABLE.add(
    "encodec_seanet",
    "encodec",
    "parametrized, recurrent, one-block levels",
    lambda n: cls("encodec.modules.seanet.SEANetEncoder")(dimension=8, n_filters=4, ratios=[2, 2], lstm=n),
    floats(1, 1, 64),
    each(*gates("model.7.lstm"), of=2),
    depth=2,
)
TABLE.add(
    "vocos",
    "vocos",
    "plain list",
    lambda n: cls("vocos.models.VocosBackbone")(input_channels=8, dim=16, intermediate_dim=24, num_layers=n),
    floats(1, 8, 12),
    each("convnext.{i}", of=3),
    depth=3,
)
TABLE.add(
    "snac_decoder",
    "snac",
    "parametrized, one-block levels",
    lambda n: cls("snac.layers.Decoder")(
        input_channel=8, channels=32, rates=[2, 2], noise=False, depthwise=False, attn_window_size=None
    ),
    floats(1, 8, 6),
    each("model.2.block.{i}", of=[2, 3, 4], unit=3),
    each("model.1.block.{i}", of=[2, 3, 4], unit=3),
    may_refuse="the three residual units of a level have dilations of their own",
    says="dilation|no two blocks in a row have equal operations",
    note="weight norm everywhere; three units of rising dilation in each level, which both show together",
)


class WaveNetVocoder(nn.Module):
    """Layers taken from speechbrain's HiFi-GAN: residual blocks of three branches, averaged, under weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cls("speechbrain.lobes.models.HifiGAN.HifiganGenerator")(
            in_channels=8,
            out_channels=1,
            resblock_type="1",
            resblock_dilation_sizes=[[1, 1, 1], [1, 1, 1]],
            resblock_kernel_sizes=[3, 3],
            upsample_kernel_sizes=[4, 4],
            upsample_initial_channel=16,
            upsample_factors=[2, 2],
            inference_padding=0,
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


TABLE.add(
    "speechbrain_hifigan",
    "speechbrain",
    "parametrized, sibling lists, one-block levels, repeats within repeats",
    lambda n: WaveNetVocoder(),
    floats(1, 8, 6),
    *(each(f"inner.resblocks.{b}.convs1.{{i}}", f"inner.resblocks.{b}.convs2.{{i}}", of=3) for b in range(4)),
    note="two lists of convolutions advance together in each residual block; the blocks run side by side",
)
