"""Adapters as maths: names and roles of their tensors."""
