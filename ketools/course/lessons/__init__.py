"""Helper code and exercises of the notebooks, a module each: nb00 belongs to notebook 00."""
