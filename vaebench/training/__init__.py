"""A training from its first epoch to its last; knows engines by what they do."""
