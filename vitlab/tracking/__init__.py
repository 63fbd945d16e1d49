"""Rows, the progress line, Weights & Biases."""
