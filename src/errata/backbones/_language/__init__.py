"""What language models need beyond the shared forward: their logits, activations, GGUF files."""
