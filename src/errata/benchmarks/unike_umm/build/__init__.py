"""Builds records in the published schema of `unike_umm`: text edits whose effect can be drawn.

How the published records were made was not released. Here they come from two sources, in one
folder: relations from rows of CounterFact and MQuAKE (`rows`, `relations`), and attributes that a
model behind an endpoint proposes in four stages (`instruct`). Both pass the same `checks`; what
does not pass is kept with its reason. No torch.
"""
