"""The made-up world of micro-vlm: scenes of one shape, named entities and their facts."""
