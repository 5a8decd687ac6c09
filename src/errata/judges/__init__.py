"""Who looks at an image or an answer and scores it: one file per judge. Called by runs only."""
