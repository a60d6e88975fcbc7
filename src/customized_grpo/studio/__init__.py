"""`cgrpo studio`: runs in a browser while they train; see README.md."""
