"""Devices, processes, precision, memory, signals."""
