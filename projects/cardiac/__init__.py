"""Estimates myocardial infarction from cine MR by motion: preparation, motion, registration, infarct. Not for clinical use."""
