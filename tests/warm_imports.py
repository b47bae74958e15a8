"""What takes long to import, for :mod:`tests.warm`: libraries, and what commands read and write with."""

from __future__ import annotations

import lightning.pytorch
import onnx
import onnxruntime
import timm
import torch
import torchvision
import yaml
from transformers.models.llama import modeling_llama

from elastic_ir.cli import apply, diff, export, inspect, lottery, resize, undo, verify
from elastic_ir.emit import files, module
from elastic_ir.emit.onnx import export as onnx_export
from elastic_ir.frontends import described, sources, torch_file, trace
from tests.checkpoints import killed

torch.set_num_threads(1)
EARLY = (
    apply, described, diff, export, files, inspect, killed, lightning.pytorch, lottery, modeling_llama, module, onnx,
    onnx_export, onnxruntime, resize, sources, timm, torch_file, torchvision, trace, undo, verify, yaml,
)  # fmt: skip
