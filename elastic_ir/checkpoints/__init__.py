"""Checkpoints: Hugging Face folders by their headers: read, planned anew, written, resumed, verified. No torch here."""
