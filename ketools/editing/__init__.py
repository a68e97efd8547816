"""Step 1 and step 2 of locate-then-edit: targets, keys, closed-form updates, and edits as objects."""
