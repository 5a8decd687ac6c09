"""The version of errata, read by the build and by `errata.core.files`."""

__version__ = "0.2.0"
