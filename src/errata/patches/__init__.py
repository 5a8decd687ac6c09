"""What an edit can be: the shapes, one file each.

The file's name is what a saved patch calls its shape.
"""
