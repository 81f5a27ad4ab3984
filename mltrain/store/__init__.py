"""Files that survive a power cut, and artifact stores."""
