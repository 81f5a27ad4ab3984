"""The origin of a training: its code, its data, and the files it writes."""
