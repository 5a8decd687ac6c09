"""What families of models do with pictures, beyond one placeholder and one tower."""
