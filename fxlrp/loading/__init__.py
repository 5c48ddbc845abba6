"""Models, checkpoints, images and rules read from names and files."""
