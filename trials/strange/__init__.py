"""Strange inputs, and the sandbox that they are tried in."""
