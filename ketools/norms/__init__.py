"""What edits do to weights and states: norms, spectra, the residual stream, and optimised targets."""
