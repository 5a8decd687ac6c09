"""Names of before for `errata.testing.small_settings`."""

from errata.testing.small_settings import ADAPTER as SMALL
from errata.testing.small_settings import SMALL_SETTINGS as FAST

__all__ = ["FAST", "SMALL"]
