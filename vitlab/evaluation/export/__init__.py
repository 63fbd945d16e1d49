"""A trained model in the formats of other programs, one family a module."""
