"""Figures: generic drawers and the named figures that notebooks, reports and widgets show."""
