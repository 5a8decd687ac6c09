"""The small made-up world of micro-umm: its things, how they are spoken of, how they look.

No torch and no plug-in: the benchmark, the judge and the training scripts all read it.
"""
