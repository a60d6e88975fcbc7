"""Damaged and hostile inputs for every door of the package, see `fuzz.py`."""
