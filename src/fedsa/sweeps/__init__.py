"""Sweeps that come with fedsa: TOML files, see `fedsa.sweep.files`."""
