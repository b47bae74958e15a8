"""timm's families, both ways: what one member becomes after another loads strictly there and computes the same."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from benchmarks.zoo import Models, check
from benchmarks.zoo_pairs import PAIRS

#: Shallow and deep members, a small pair of each way to build a network (``python -m benchmarks.zoo`` runs all 272
#: pairs): what the blocks are called and hold, what stands between and beside them.
FAMILIES = """
resnet18 resnet34 | resnet26 resnet50 | resnetv2_18 resnetv2_34 | nf_resnet26 nf_resnet50 | skresnet18 skresnet34
resnest26d resnest50d | convnext_tiny convnext_small | swin_tiny_patch4_window7_224 swin_small_patch4_window7_224
xcit_tiny_12_p16_224 xcit_tiny_24_p16_224 | gmixer_12_224 gmixer_24_224 | poolformer_s12 poolformer_s24
pvt_v2_b1 pvt_v2_b2 | twins_pcpvt_small twins_pcpvt_base | davit_tiny davit_small | hiera_tiny_224 hiera_small_224
repvit_m2 repvit_m3 | mambaout_femto mambaout_kobe | sequencer2d_s sequencer2d_m | coatnet_0_224 coatnet_1_224
coat_lite_mini coat_lite_small | gcvit_xxtiny gcvit_xtiny | xception41 xception65 | darknet17 darknet21
ese_vovnet39b ese_vovnet57b | gernet_m gernet_l | starnet_s2 starnet_s3
"""

pytestmark = pytest.mark.slow


@cache
def listed() -> dict[tuple[str, str], dict[str, Any]]:
    return {(pair["shallow"], pair["deep"]): pair for pair in json.loads(PAIRS.read_text())["pairs"]}


@pytest.mark.parametrize(
    "names", [names.strip() for names in FAMILIES.replace("\n", "|").split("|") if names]
)
def test_a_family_both_ways(names: str) -> None:
    shallow, deep = names.split()
    pair, models = listed()[shallow, deep], Models()
    assert pair["stretch"] == pair["squeeze"] == "possible"
    for way in ("stretch", "squeeze"):
        assert check(pair, way, models) == "equal", way
