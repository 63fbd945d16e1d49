"""The kinds of dataset, one module each."""
