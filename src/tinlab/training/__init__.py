"""The loop that every recipe goes through, and what it is made of."""
