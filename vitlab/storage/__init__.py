"""Run folders, checkpoints, locks, atomic files."""
