"""Readers of packaged data sets, which `fedsa.packages` fetches from the package index."""
