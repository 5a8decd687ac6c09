"""Training of the networks that some editors learn once, and gradient search for single edits."""
