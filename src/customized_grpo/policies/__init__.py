"""Generators behind one interface, see README.md; nothing is exported here, so that a part costs its own."""
