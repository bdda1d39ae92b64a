"""Trained weights in use: evaluation, detection, chat, the web page."""
