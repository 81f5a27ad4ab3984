"""What a run records, on its way to the tracking server: journal, sender, sync."""
