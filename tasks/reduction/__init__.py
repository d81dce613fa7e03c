"""Reduce a graph that answers otherwise than fp32 to the few nodes that do it.

From outside call `reduce_pair` and then `write_folder`. Never imports measurement, report or flows.
"""
