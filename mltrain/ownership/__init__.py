"""Which process may write to a run: claims, leases, locks, liveness."""
