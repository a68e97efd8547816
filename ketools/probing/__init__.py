"""What the model knows and where it recalls it."""
