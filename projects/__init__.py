"""Training systems built on mltrain; each folder is a project that ``mltrain train NAME`` runs."""
