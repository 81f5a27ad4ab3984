"""Files that survive a power cut, and the artifact stores of runs."""
