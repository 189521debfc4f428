"""The demo model: the scenes that it was trained on, and its VAE."""
