"""Augmentation: pure functions on whole batches, on the training device."""
