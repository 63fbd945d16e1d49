"""Evaluation of trained models: scores, classification reports, probes, predictions, figures."""
