"""Converters: named functions from one representation to another. One module (or package) an edge of the graph."""
