"""The only room that knows accelerate, and the signals of the operating system."""
