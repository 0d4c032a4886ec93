"""Proofs: verify, pairs of steps, and that what is wrong is seen."""
