"""A vision-language model as a reward."""
