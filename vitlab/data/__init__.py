"""Datasets, splits, augmentation, loading."""
