"""What edits do to weights and states: norms, spectra, and the residual stream."""
