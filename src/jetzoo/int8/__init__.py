"""Int8: from a folded network to the same in integers, and its file."""
