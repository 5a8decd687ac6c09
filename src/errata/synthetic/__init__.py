"""The two rendered worlds that the bundled models were trained on. No torch."""
