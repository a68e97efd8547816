"""What edits do to weights and states: norms, spectra, the residual stream, drift, and the targets of step 1."""
