"""Run folders: what a training leaves on the disk, and how it goes on from there."""
