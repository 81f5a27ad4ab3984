"""Where a training comes from: its code, its data, what it wrote itself."""
