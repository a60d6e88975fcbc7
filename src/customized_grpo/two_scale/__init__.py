"""The smallest world in which the method's premise holds: two scales, decided one after the other."""
