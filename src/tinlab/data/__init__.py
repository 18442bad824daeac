"""Sources of images, the pack, and the batches read from it."""
