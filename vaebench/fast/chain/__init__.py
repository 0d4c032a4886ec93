"""Fully connected networks as chains of layers: read off any module, and told to a kernel."""
