"""Texts: counts with their nouns, what is short enough to be shown, names made safe, JSON that is read safely."""
