"""Tracking of a run: metrics, progress line, log file, Weights & Biases."""
