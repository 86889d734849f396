"""Measurements on a Ray cluster: other processes and nodes run the cells, this one stores them."""
