"""Patches outside errata: as PEFT adapters, as ordinary checkpoints, and several as one."""
