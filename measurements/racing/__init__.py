"""Contestants of `race.py`, each a process that runs one program's own training loop."""
