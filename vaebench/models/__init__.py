"""The networks, and what the trainer needs of anybody's."""
