"""Data: MNIST, the built-in strokes and files of the user's own, as checked tensors."""
