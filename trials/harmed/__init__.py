"""Commands that are killed, stopped and refused, and what must be left of their work."""
