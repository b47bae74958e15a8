"""Example inputs: what is given, else a sensible guess, else a clear request."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from elastic_ir.ir.example_inputs import Inputs
from elastic_ir.tensors.torch_bridge import device_of

IMAGE_SIZES = (224, 32, 256, 28, 64, 96, 128, 384, 8)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def from_shapes(model: nn.Module, shapes: Sequence[Sequence[int]]) -> Inputs:
    """Inputs of the shapes that a user gave; token ids where the network opens with an embedding."""
    first = _first_layer(model)
    make = _tokens if isinstance(first, nn.Embedding) else _noise
    return Inputs(tuple(make(model, tuple(shape)) for shape in shapes), noise=True)


def guesses(model: nn.Module) -> Iterator[Inputs]:
    """Inputs worth trying, the likeliest first: a published configuration, then the first layer's form."""
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = settings.get("input_size") if isinstance(settings, Mapping) else None
    if size:
        yield Inputs((_noise(model, (1, *size)),), guessed=True)
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    if config is not None and isinstance(main, str):
        yield from _from_config(model, config, main)
    first = _first_layer(model)
    if isinstance(first, nn.modules.conv._ConvNd):
        rank = len(first.kernel_size)
        sizes: tuple[int, ...] = IMAGE_SIZES
        # small-image networks keep the resolution
        if max(first.stride) == 1 and isinstance(first, nn.Conv2d):
            sizes = (32, 28, 224, 64, 8)
        image = getattr(model, "image_size", None)
        if isinstance(image, int):
            sizes = (image, *sizes)
        for extent in sizes:
            yield Inputs((_noise(model, (1, first.in_channels, *(extent,) * rank)),), guessed=True)
    elif isinstance(first, nn.Linear):
        yield Inputs((_noise(model, (1, first.in_features)),), guessed=True)
        yield Inputs((_noise(model, (1, 8, first.in_features)),), guessed=True)
    elif isinstance(first, nn.Embedding):
        yield Inputs((_tokens(model, (1, 8)),), guessed=True)
    else:
        for extent in IMAGE_SIZES:
            yield Inputs((_noise(model, (1, 3, extent, extent)),), guessed=True)


def _first_layer(model: nn.Module) -> nn.Module | None:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
    return next((module for module in model.modules() if isinstance(module, kinds)), None)


def _noise(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    device = device_of(model)
    if device.type == "meta":
        return torch.empty(shape, device="meta", dtype=dtype_of(model))
    generator = torch.Generator().manual_seed(0)  # never the user's global state
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype_of(model))


def _tokens(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long, device=device_of(model))


def _from_config(model: nn.Module, config: Any, main: str) -> Iterator[Inputs]:
    """Inputs of a transformers model, from its configuration: token ids, pixels or sound features."""
    keywords: dict[str, torch.Tensor] = {}
    if main == "input_ids":
        keywords["input_ids"] = _tokens(model, (1, 8))
        vision = getattr(config, "vision_config", None)
        if vision is not None and "pixel_values" in inspect.signature(model.forward).parameters:
            keywords["pixel_values"] = _pixels(model, vision)  # two towers
    elif main == "pixel_values":
        keywords["pixel_values"] = _pixels(model, config)
    elif main == "input_features":
        length = getattr(config, "max_source_positions", 1500)
        # a front end of two convolutions halves the length once (Whisper, Radford et al. 2022, section 2.2)
        keywords["input_features"] = _noise(model, (1, getattr(config, "num_mel_bins", 80), 2 * length))
    else:
        return
    if getattr(config, "is_encoder_decoder", False):
        keywords["decoder_input_ids"] = _tokens(model, (1, 8))
    yield Inputs((), dict(keywords), guessed=True)


def _pixels(model: nn.Module, config: Any) -> torch.Tensor:
    extent = getattr(config, "image_size", 224)
    sides = tuple(extent) if isinstance(extent, (list, tuple)) else (extent, extent)
    return _noise(model, (1, getattr(config, "num_channels", 3), *sides))
