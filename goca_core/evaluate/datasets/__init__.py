"""Data sets: images and their label maps."""
