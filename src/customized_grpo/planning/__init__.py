"""What a recipe will cost, before anything is spent; see README.md."""
