"""Checks of a recipe before hours go into it: which learning rate, and can it learn a few images by heart."""
