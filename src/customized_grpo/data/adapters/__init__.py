"""Adapters: published data sets read as rows; one file per layout, `registry.py` has them all.

Nothing is re-exported here; the names of the layouts (`names.py`) cost no import.
"""
