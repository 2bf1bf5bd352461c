"""Weights that others published, as a directory that `flowmap.backbone` knows."""
