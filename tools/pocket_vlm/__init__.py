"""How pocket-vlm was made: drawings, two stages of training, the card."""

import errata  # noqa: F401  (before transformers, which looks for torchvision: errata._torchvision)
