"""The ROME family: a key, a value, and an update of the weights that maps one to the other."""
