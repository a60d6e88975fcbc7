"""Public benchmarks of subject-driven generation; see README.md."""
