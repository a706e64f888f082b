"""The web page: command ``demo``."""
