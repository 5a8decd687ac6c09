"""Hooks: what reads or changes the activations of a model at named sites."""
