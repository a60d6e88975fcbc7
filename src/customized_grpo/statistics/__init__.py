"""Intervals, tests and monitors: numbers in, numbers out."""
