"""Models and data that come from the package index."""
