"""One run on several machines: shards of its units, their merge, and a queue for workers."""
