"""ONNX operators as PyTorch functions."""
