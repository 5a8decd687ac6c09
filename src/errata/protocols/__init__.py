"""In which order edits are made and probes are asked. One file per protocol, named as it is."""
