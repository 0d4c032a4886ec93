"""Proof that a fast training is the plain one, on the machine, model and data at hand.

``rules`` has the bars of each level of equality, ``report`` what was found; ``verify`` holds the
package's own techniques to the rules, ``pairs`` anybody's two training steps. To add a level, write
its rule in ``rules`` and call it in ``verify``; tests and command line follow.
"""
