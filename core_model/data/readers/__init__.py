"""Folder layouts of data sets: MVTec AD, VisA, AeBAD, the built-in textures."""
