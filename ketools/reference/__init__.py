"""Plain loops that say what is meant, one fact at a time, every position, every layer: to compare the fast code with."""
