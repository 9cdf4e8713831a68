"""Conversion of a module and its arguments to a checked `Call`."""
