"""What edits do to weights and states: norms, spectra, the residual stream, drift, and optimised targets."""
