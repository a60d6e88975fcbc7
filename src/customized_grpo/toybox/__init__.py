"""The embedded default problem: a world of toys, its models, and the recipe of their weights."""
