"""Scores of taggers: reading and writing them, and what they are worth."""
