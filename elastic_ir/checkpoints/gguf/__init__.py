"""GGUF files as checkpoints: read by their headers, their metadata brought up to date, written, verified. No torch."""
