"""Tuned tables: measured configurations, in files and as plans read them."""
