"""What writing imports, so that a process forked from one that has it does little else."""

from __future__ import annotations

import onnx
import onnxruntime
import torch

from elastic_ir.emit import files, module
from elastic_ir.emit.onnx import export as onnx_export
from elastic_ir.frontends import described, sources, torch_file

torch.set_num_threads(1)
EARLY = (onnx, onnxruntime, files, module, onnx_export, described, sources, torch_file)
