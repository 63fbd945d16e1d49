"""Runs as a table, compared, drawn, written up."""
