"""ONNX files: rebuilt from the file that was read, or exported from PyTorch."""
