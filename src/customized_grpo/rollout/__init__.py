"""From prompts to samples: encode, draw, and keep what training needs of a draw."""
