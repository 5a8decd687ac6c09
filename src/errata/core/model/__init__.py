"""What a model is to errata: a backbone, batches of prompts, recorders of activations."""
