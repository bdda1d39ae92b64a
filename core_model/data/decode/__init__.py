"""From a file to a picture or a mask: orientation, bit depth, colours, damage."""
