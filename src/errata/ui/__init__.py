"""`errata ui`: make, see, compare, save and take back edits in a page of one's own machine."""
