"""Rows: loading them, and sharing them out over clients."""
