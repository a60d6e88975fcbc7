"""Many runs of one recipe, side by side: arms x seeds, their statistics, and what may be concluded."""
