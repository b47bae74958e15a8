"""ONNX files into graphs."""
