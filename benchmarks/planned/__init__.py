"""A list of jobs, and running as many of them as fit into the minutes of a borrowed GPU."""
