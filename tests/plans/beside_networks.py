"""Small networks whose stacks have something beside them: what goes by the number of layers, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.tensors.lazy import ShapeOnly

WIDTH = 16


class Net(nn.Module):
    """A module of named children, parameters and buffers; its forward is never run."""

    def __init__(self, **parts: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def listed(count: int, make: Callable[[int], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(make(index) for index in range(count))


def block(width: int = WIDTH) -> nn.Module:
    """A transformer's block, with norms."""
    return nn.TransformerEncoderLayer(width, 2, 2 * width)


def blocks(count: int, width: int = WIDTH) -> nn.ModuleList:
    return listed(count, lambda _: block(width))


def linears(count: int, inner: int = WIDTH, out: int = WIDTH) -> nn.ModuleList:
    return listed(count, lambda _: nn.Linear(inner, out))


def norms(count: int) -> nn.ModuleList:
    return listed(count, lambda _: nn.BatchNorm1d(WIDTH))


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))


def values(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def experts(count: int, **router: nn.Module | nn.Parameter) -> Net:
    return Net(**router, experts=listed(count, lambda _: mlp()))


def numbered(name: str, count: int, make: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    return {f"{name}{index}": make() for index in range(1, count + 1)}


def by_names(model: nn.Module, *, sort: bool = False) -> eir.Graph:
    """What a file shows of a network, in its own order or sorted by name."""
    state = model.state_dict()
    names: Iterable[str] = sorted(state) if sort else state
    return graph_of_tensors("bare", {name: ShapeOnly(tuple(state[name].shape), "float32") for name in names})


#: A network, its stage, and the norms that belong to its layers.
JOINED: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "convolutions and norms of a graph network": (
        lambda: Net(convs=linears(3), norms=norms(3), out=nn.Linear(WIDTH, 5)), "convs", ["norms"]
    ),
    "a first layer of another width": (
        lambda: Net(
            convs=listed(4, lambda at: nn.Linear(8 if at == 0 else WIDTH, WIDTH)), norms=norms(4)
        ),
        "convs", ["norms"],
    ),
    "numbered attributes": (
        lambda: Net(
            **numbered("conv", 4, lambda: nn.Conv2d(8, 8, 3)), **numbered("bn", 4, lambda: nn.BatchNorm2d(8))
        ),
        "conv", ["bn"],
    ),
    "a dictionary of modules": (
        lambda: Net(
            convs=nn.ModuleDict(numbered("layer", 3, lambda: nn.Linear(WIDTH, WIDTH))), norms=norms(3)
        ),
        "convs", ["norms"],
    ),
}  # fmt: skip

#: A network, the stage that is to change, and what is left beside it: lists.
LISTS: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "norms between the layers": (lambda: Net(lins=linears(4), norms=norms(3)), "lins", ["norms"]),
    "norms around the layers": (lambda: Net(lins=linears(4), norms=norms(5)), "lins", ["norms"]),
    "linear skips": (lambda: Net(convs=linears(4), skips=linears(4)), "convs", ["skips"]),
    "dilated convolutions": (
        lambda: Net(
            start=nn.Conv1d(1, 8, 1), dilated=listed(6, lambda _: nn.Conv1d(8, WIDTH, 3)),
            residual=listed(6, lambda _: nn.Conv1d(8, 8, 1)), skip=listed(6, lambda _: nn.Conv1d(8, 12, 1)),
        ),
        "residual", ["dilated", "skip"],
    ),
    "a list of parameters": (
        lambda: Net(blocks=blocks(4), scales=nn.ParameterList(values() for _ in range(4))), "blocks", ["scales"]
    ),
    "four lists": (
        lambda: Net(
            attentions=listed(3, lambda _: Net(q=nn.Linear(16, 16), out=nn.Linear(16, 16))),
            layer_norm1=norms(3), ffns=listed(3, lambda _: mlp()), layer_norm2=norms(3),
        ),
        "attentions", ["layer_norm1", "ffns", "layer_norm2"],
    ),
    "upsampling in one list, blocks in another": (
        lambda: Net(
            upsamples=listed(3, lambda _: nn.Conv1d(WIDTH, WIDTH, 4)),
            resblocks=listed(3, lambda _: Net(a=nn.Conv1d(WIDTH, WIDTH, 3), b=nn.Conv1d(WIDTH, WIDTH, 3))),
        ),
        "resblocks", ["upsamples"],
    ),
    "two towers of one width in one module": (
        lambda: Net(encoder_layers=blocks(3), decoder_layers=blocks(3)), "encoder_layers", ["decoder_layers"]
    ),
    "a head for each layer, further out": (
        lambda: Net(
            transformer=Net(decoder=Net(layers=blocks(3))), class_embed=linears(3, out=7),
            bbox_embed=listed(3, lambda _: Net(layers=nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 4)]))),
        ),
        "transformer.decoder.layers", ["class_embed", "bbox_embed"],
    ),
    "a norm for each layer, further out": (
        lambda: Net(encoder=Net(layers=blocks(3)), state_norms=norms(3)), "encoder.layers", ["state_norms"]
    ),
    "a weighted sum of all states, as a list of scalars": (
        lambda: Net(
            layers=blocks(4), mix=Net(scalars=nn.ParameterList(values(1) for _ in range(5)), gamma=values(1))
        ),
        "layers", ["mix.scalars"],
    ),
}  # fmt: skip

#: A network, the stage that is to change, and the tensors that its count sizes, with the axis.
TENSORS: dict[str, tuple[Callable[[], nn.Module], str, list[tuple[str, int]]]] = {
    "experts and a linear router": (
        lambda: Net(moe=experts(4, gate=nn.Linear(16, 4)), head=nn.Linear(16, 3)),
        "moe.experts", [("moe.gate.weight", 0)],
    ),
    "experts that are bare layers": (
        lambda: Net(gate=nn.Linear(16, 4, bias=False), experts=linears(4)), "experts", [("gate.weight", 0)]
    ),
    "experts and a parameter": (
        lambda: experts(4, w_gate=values(16, 4), w_noise=values(16, 4)), "experts",
        [("w_gate", 1), ("w_noise", 1)],
    ),
    "convolutions as experts": (
        lambda: Net(
            router=nn.Conv2d(8, 6, 1),
            experts=listed(6, lambda _: nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))),
        ),
        "experts", [("router.weight", 0)],
    ),
    "experts of the only block, with norms beside them": (
        lambda: Net(
            embed=nn.Embedding(50, 16),
            layers=listed(
                1, lambda _: Net(norm=nn.LayerNorm(16), mlp=experts(4, gate=Net(weight=values(4, 16), bias=values(4))))
            ),
        ),
        "layers.0.mlp.experts", [("layers.0.mlp.gate.weight", 0)],
    ),
    "experts further in than their router": (
        lambda: Net(
            layers=listed(1, lambda _: Net(gate=Net(wg=nn.Linear(16, 4, bias=False)), experts=Net(local=experts(4)))),
        ),
        "layers.0.experts.local.experts", [("layers.0.gate.wg.weight", 0)],
    ),
    "codebooks and heads in one tensor": (
        lambda: Net(
            quantizers=listed(8, lambda _: Net(codebook=nn.Embedding(64, 16), project=nn.Linear(16, 16))),
            heads=values(8, 16, 64),
        ),
        "quantizers", [("heads", 0)],
    ),
    "codebooks and the weights of their losses": (
        lambda: Net(
            quantizers=listed(8, lambda _: Net(codebook=nn.Embedding(64, 16), project=nn.Linear(16, 16))),
            loss_weights=torch.ones(8),
        ),
        "quantizers", [("loss_weights", 0)],
    ),
    "a weighted sum of the layers": (
        lambda: Net(encoder=Net(layers=blocks(4)), layer_weights=values(4)), "encoder.layers", [("layer_weights", 0)]
    ),
    "a weighted sum of all states": (
        lambda: Net(encoder=Net(layers=blocks(4)), layer_weights=values(5), cls=nn.Linear(16, 2)),
        "encoder.layers", [("layer_weights", 0)],
    ),
    "weights between the layers": (
        lambda: Net(encoder=Net(layers=blocks(4)), gaps=values(3)), "encoder.layers", [("gaps", 0)]
    ),
    "a weight for each state, shaped to multiply": (
        lambda: Net(layers=blocks(4), mix=values(4, 1, 1)), "layers", [("mix", 0)]
    ),
    "a linear layer over the layers": (
        lambda: Net(layers=blocks(4), combine=nn.Linear(4, 1, bias=False)), "layers", [("combine.weight", 1)]
    ),
    "two scalars for each layer": (
        lambda: Net(layers=blocks(5), residual=values(5), first=values(5)), "layers", [("residual", 0), ("first", 0)]
    ),
    "a layer over the results of all blocks": (
        lambda: Net(stem=nn.Conv2d(3, 16, 3), convs=_squares(4), fuse=nn.Conv2d(64, 16, 1), out=nn.Conv2d(16, 3, 3)),
        "convs", [("fuse.weight", 1)],
    ),
    "a head over the results of all layers": (
        lambda: Net(layers=blocks(5), head=nn.Linear(80, 3)), "layers", [("head.weight", 1)]
    ),
    "embeddings with a part for each layer": (
        lambda: Net(
            word=nn.Embedding(50, 16), embed_by_layer=nn.Embedding(50, 4 * 8), project=nn.Linear(16, 4 * 8),
            layers=listed(4, lambda _: Net(gate=nn.Linear(16, 8), up=nn.Linear(8, 16), norm=nn.LayerNorm(16))),
        ),
        "layers", [("embed_by_layer.weight", 1)],
    ),
    "one layer for the shifts of all blocks": (
        lambda: Net(shifts=nn.Linear(16, 8 * 16), layers=blocks(8)), "layers", [("shifts.weight", 0)]
    ),
    "gains for each layer, two a layer": (
        lambda: Net(gains=values(4, 2), layers=listed(4, lambda _: mlp())), "layers", [("gains", 0)]
    ),
    "prompts for each layer": (
        lambda: Net(layers=blocks(4), prompts=values(4, 5, 16)), "layers", [("prompts", 0)]
    ),
}  # fmt: skip


def _squares(count: int) -> nn.Module:
    return listed(count, lambda _: nn.Conv2d(16, 16, 3, padding=1))


def _stage(inner: int, width: int) -> nn.Module:
    def one(inner: int) -> nn.Module:
        return Net(a=nn.Conv2d(inner, width, 3), b=nn.BatchNorm2d(width), c=nn.Conv2d(width, width, 3))

    return nn.Sequential(one(inner), one(width))


def _bottlenecks(inner: int, width: int) -> nn.Module:
    def one(inner: int) -> nn.Module:
        return Net(
            a=nn.Conv2d(inner, width, 1), b=nn.Conv2d(width, width, 3), c=nn.Conv2d(width, 4 * width, 1),
            bn=nn.BatchNorm2d(4 * width),
        )  # fmt: skip

    return nn.Sequential(one(inner), one(4 * width))


def _convnext(depth: int) -> nn.Module:
    """Blocks beside a downsampling norm and convolution, which are two as well."""

    def stage(at: int) -> nn.Module:
        width = 16 << at
        down = nn.Sequential(nn.LayerNorm(width // 2), nn.Conv2d(width // 2, width, 2))
        return Net(downsample=down, blocks=listed(depth, lambda _: block(width)))

    return Net(stages=listed(3, stage))


#: Networks in which every stage may change alone.
INDEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "stages of a pyramid": lambda: Net(
        stem=nn.Conv2d(3, 8, 3), conv2_x=_stage(8, 8), conv3_x=_stage(8, 16), conv4_x=_stage(16, 32),
        fc=nn.Linear(32, 10),
    ),
    "stages of bottlenecks": lambda: Net(
        conv1=nn.Conv2d(3, 8, 3), layer1=_bottlenecks(8, 8), layer2=_bottlenecks(32, 16), layer3=_bottlenecks(64, 32),
        fc=nn.Linear(128, 10),
    ),
    "downsampling of two layers beside two blocks": lambda: _convnext(2),
    "a head of three, an activation among them": lambda: Net(
        layers=blocks(3), head=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    ),
    "a head of four, two layers among them": lambda: Net(
        layers=blocks(4), head=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
    ),
    "towers of equal depth": lambda: Net(text=Net(layers=blocks(3)), vision=Net(layers=blocks(3))),
    "towers of two widths in one module": lambda: Net(text_layers=blocks(3), vision_layers=blocks(3, 24)),
    "two layers, two classes, two token types": lambda: Net(
        embeddings=Net(
            word=nn.Embedding(50, 16), token_type_embeddings=nn.Embedding(2, 16), norm=nn.LayerNorm(16)
        ),
        encoder=Net(layer=blocks(2)), classifier=nn.Linear(16, 2),
    ),
    "ten blocks, ten classes": lambda: Net(stem=nn.Conv2d(3, 16, 3), blocks=blocks(10), fc=nn.Linear(16, 10)),
    "three blocks, three colours": lambda: Net(stem=nn.Conv2d(3, 16, 3), blocks=blocks(3), fc=nn.Linear(16, 10)),
    "four blocks, the mean and deviation of three colours": lambda: Net(
        stem=nn.Conv2d(3, 16, 3), blocks=blocks(4), mean=torch.ones(3), std=torch.ones(3)
    ),
    "four blocks, five classes with weights": lambda: Net(
        blocks=blocks(4), head=nn.Linear(16, 5), loss=Net(class_weights=torch.ones(5))
    ),
    "four blocks, a head of four times their width": lambda: Net(
        layers=blocks(4), head=nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    ),
    "three blocks beside queries, keys and values": lambda: Net(
        pool=Net(query=values(1, 1, 16), qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16)), layers=blocks(3)
    ),
    "two blocks beside a doubled width": lambda: Net(layers=blocks(2), head=nn.Linear(32, 5)),
    "three blocks, a last convolution to three colours": lambda: Net(
        stem=nn.Conv2d(3, 16, 3), convs=_squares(3), out=nn.Conv2d(16, 3, 3)
    ),
    "temperatures": lambda: Net(blocks=blocks(2), scale=values(), temperature=values(1)),
    "tasks, fewer than layers": lambda: Net(layers=blocks(4), heads=linears(3, out=2)),
    "five tokens, five blocks": lambda: Net(
        cls_token=values(1, 1, 16), pos_embed=values(1, 5, 16), patch=nn.Conv2d(3, 16, 4), blocks=blocks(5)
    ),
    "a plain row of layers": lambda: nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    ),
    "hidden layers, other numbers of inputs and classes": lambda: Net(
        first=nn.Linear(4, 16), hidden=linears(3), last=nn.Linear(16, 2)
    ),
    "layers of experts": lambda: Net(
        layers=listed(3, lambda _: experts(4, gate=nn.Linear(16, 4))), head=nn.Linear(16, 9)
    ),
    "a stem of two numbered convolutions beside a stage of two blocks": lambda: Net(
        conv1=nn.Conv2d(3, 8, 3), bn1=nn.BatchNorm2d(8), conv2=nn.Conv2d(8, 8, 3), bn2=nn.BatchNorm2d(8),
        layer=_stage(8, 8), fc=nn.Linear(8, 10),
    ),
    "stages that are dictionaries, of equal counts and widths": lambda: nn.Sequential(
        *(Net(**numbered("unit", 3, lambda: Net(a=nn.Conv2d(8, 8, 3), b=nn.BatchNorm2d(8)))) for _ in range(2))
    ),
    "a filter along the channels, as wide as the stage is long": lambda: Net(
        blocks=blocks(5), gate=Net(conv=nn.Conv1d(1, 1, 5, bias=False))
    ),
    "eight heads beside eight blocks of a stage": lambda: Net(
        stages=listed(2, lambda _: Net(down=Net(attention_biases=values(8, 49)), blocks=blocks(8)))
    ),
    "norms of two branches of different widths": lambda: Net(
        blocks=listed(3, lambda _: Net(small=block(12), large=block(24), fuse=nn.Linear(12, 24))),
        norm=nn.ModuleList([nn.LayerNorm(12), nn.LayerNorm(24)]),
    ),
    "numbered attributes that a forward loops over": lambda: Net(
        stem=nn.Linear(4, 16), **numbered("block", 5, lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))),
        head=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
    ),
    "branches of two widths": lambda: Net(
        branches=nn.ModuleList([nn.Sequential(block(), block()), nn.Sequential(block(24), block(24))])
    ),
}  # fmt: skip
