"""Binary image segmentation from a folder of images and a folder of masks."""
