"""ONNX models: what their readers, analyses and writers share."""
