"""A small image classifier on scikit-learn's handwritten digits: the script that writes its rows and trains it."""
