"""Many runs: a list of recipes times seeds, or a search; each run in a process of its own."""
