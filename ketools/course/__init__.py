"""What the notebooks use to teach: figures."""
