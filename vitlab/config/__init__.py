"""Configuration: YAML composed by Hydra, checked against signatures, built into objects."""
