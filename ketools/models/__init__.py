"""Language models: loading, anatomy, tokens, replay from the middle, scoring, and the weights that edits change."""
