"""Rows: where they come from, and who has which."""
