"""ONNX models without a single useful name, and networks as PyTorch's older exporter writes them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from elastic_ir.onnx_model import bodies


def nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with numbers for the names of all values and weights, and nothing that says where it is from."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    numbers: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    def rename(graph: onnx.GraphProto) -> None:
        for entry in (*graph.input, *graph.output, *graph.value_info):
            entry.name, entry.doc_string = number(entry.name), ""
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            tensor.name, tensor.doc_string = number(tensor.name), ""
        for node in graph.node:
            node.input[:] = map(number, node.input)
            node.output[:] = map(number, node.output)
            node.name = node.doc_string = ""
            del node.metadata_props[:]
            for body in bodies(node):
                rename(body)
        graph.name, graph.doc_string = "graph", ""
        del graph.metadata_props[:]

    rename(new.graph)
    del new.metadata_props[:]
    return new


def write_nameless(source: Path, target: Path) -> Path:
    """A nameless version of a file."""
    onnx.save(nameless(onnx.load(source)), target)
    return target


def export_older(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, opset: int = 17) -> Path:
    """A network by ``torch.onnx.export(dynamo=False)``, no two of its norms alike."""
    torch.manual_seed(0)
    module = module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(module, inputs, str(path), dynamo=False, opset_version=opset)
        finally:
            logging.disable(logging.NOTSET)
    return path
