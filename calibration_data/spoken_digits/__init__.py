"""A small classifier of spoken digits, said by espeak-ng: the script that writes its rows and trains it."""
