"""A training step of any library's ViT, timed; how cost grows."""
