"""The Vision Transformer and its parts: torch and einops, nothing else of vitlab."""
