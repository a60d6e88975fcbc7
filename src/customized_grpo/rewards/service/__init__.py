"""`cgrpo serve-rewards`; see README.md. Only `app` and `server` import a web framework."""
