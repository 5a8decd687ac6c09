"""What the backbones share that draw with somebody else's pipeline: its real call is measured."""
