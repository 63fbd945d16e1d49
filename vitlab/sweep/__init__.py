"""A question: its runs planned, launched, searched."""
