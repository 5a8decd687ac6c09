"""errata: correct what a trained multimodal model knows, measure whether it held, and take it back."""

__version__ = "0.1.0"
