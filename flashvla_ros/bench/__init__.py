"""Measurements that the documents quote, and the statistics they are given with."""
