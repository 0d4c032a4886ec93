"""Run folders: what a training leaves on the disk, and how it goes on from there.

``folder`` writes and reads them, ``checkpoints`` keeps what a resume needs, ``settings`` compares
options, ``storage`` replaces files whole. May import what ``training`` may, and ``training``. To
add a file to a run: a method of ``RunFolder`` that writes it by ``storage``, so that no kill leaves
half of it; runs of older versions, which lack it, must go on loading.
"""
