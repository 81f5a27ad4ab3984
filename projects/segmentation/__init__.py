"""Image segmentation, binary or of several classes, from two folders."""
