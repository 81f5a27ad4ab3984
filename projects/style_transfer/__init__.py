"""Style transfer between folders of images: a class-conditional flow that is inverted with one style and run with another."""
