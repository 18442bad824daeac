"""Predict once; every measure reads the saved logits."""
