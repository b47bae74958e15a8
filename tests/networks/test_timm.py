"""timm's families, both ways: what one member becomes after another loads strictly there and computes the same."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from benchmarks.zoo import Models, check
from benchmarks.zoo_pairs import PAIRS

#: Shallow and deep members, one pair or two of a family (``python -m benchmarks.zoo`` runs all 272 pairs); those under
#: 5 million parameters are of the everyday suite.
FAMILIES = """
resnet18 resnet34 | resnet26 resnet50 | resnet50 resnet101 | resnetv2_50 resnetv2_101 | seresnet50 seresnet101
ecaresnet50d ecaresnet101d | resnest26d resnest50d | res2net50_26w_4s res2net101_26w_4s | skresnet18 skresnet34
nf_resnet26 nf_resnet50 | nfnet_f1 nfnet_f2 | vgg16 vgg19 | vgg16_bn vgg19_bn | convnext_tiny convnext_small
convnextv2_tiny convnextv2_small | swin_tiny_patch4_window7_224 swin_small_patch4_window7_224
swinv2_tiny_window16_256 swinv2_small_window16_256 | cait_xxs24_224 cait_xxs36_224
xcit_tiny_12_p16_224 xcit_tiny_24_p16_224 | resmlp_12_224 resmlp_24_224 | poolformer_s12 poolformer_s24
gmixer_12_224 gmixer_24_224 | mvitv2_tiny mvitv2_small | pvt_v2_b1 pvt_v2_b2
twins_pcpvt_small twins_pcpvt_base | davit_tiny davit_small | focalnet_tiny_srf focalnet_small_srf
hiera_tiny_224 hiera_small_224 | fastvit_sa12 fastvit_sa24 | repvit_m2 repvit_m3
inception_next_tiny inception_next_small | mambaout_femto mambaout_kobe | sequencer2d_s sequencer2d_m
coatnet_0_224 coatnet_1_224 | coat_lite_mini coat_lite_small | gcvit_xxtiny gcvit_xtiny | nest_tiny nest_small
xception41 xception65 | darknet17 darknet21 | ese_vovnet39b ese_vovnet57b | nextvit_small nextvit_base
gernet_m gernet_l | starnet_s2 starnet_s3 | maxvit_small_tf_224 maxvit_base_tf_224
efficientvit_l1 efficientvit_l2
"""
EVERYDAY = 5_000_000


@cache
def listed() -> dict[tuple[str, str], dict[str, Any]]:
    return {(pair["shallow"], pair["deep"]): pair for pair in json.loads(PAIRS.read_text())["pairs"]}


def members() -> list[Any]:
    found = []
    for names in FAMILIES.replace("\n", "|").split("|"):
        if names.strip():
            shallow, deep = names.split()
            pair = listed().get((shallow, deep)) or _alias(shallow, deep)
            small = pair["parameters"][1] < EVERYDAY
            found.append(pytest.param(pair, marks=[] if small else pytest.mark.slow, id=f"{shallow}-{deep}"))
    return found


def _alias(shallow: str, deep: str) -> dict[str, Any]:
    """A pair under other names of the same state dicts (nest_tiny and nest_tiny_jx)."""
    for (left, right), pair in listed().items():
        if left.startswith(shallow) and right.startswith(deep):
            return {**pair, "shallow": shallow, "deep": deep}
    raise LookupError(f"{shallow} and {deep} are no listed pair")


@pytest.mark.parametrize("pair", members())
def test_a_family_both_ways(pair: dict[str, Any]) -> None:
    assert pair["stretch"] == pair["squeeze"] == "possible"
    large = max(pair["parameters"]) > 300_000_000
    models = Models()
    for way in ("stretch", "squeeze"):
        assert check(pair, way, models) == ("names equal" if large else "equal"), way
