"""One HTML page about any set of runs: figures, the numbers behind each, where they come from."""
