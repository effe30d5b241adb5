"""Engines: what carries payloads and updates between server and clients."""
