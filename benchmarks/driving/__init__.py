"""A robot with one camera drives through worlds never trained on."""
