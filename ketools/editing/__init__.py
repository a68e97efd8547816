"""Locate-then-edit: target optimisation, keys, closed-form weight updates, and edits as objects."""
