"""Text to train on: `open.open_corpus` gives the documentation of installed packages, climbmix, or the user's own."""
