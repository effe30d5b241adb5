"""A first recipe for a user's own rows: what their columns look like, which task that makes, and the text of it."""
