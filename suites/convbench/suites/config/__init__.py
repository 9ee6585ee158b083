"""What to run: suites, their files, and the plan of combinations."""
