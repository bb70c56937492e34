"""The sets of numbers that low-bit weights may be, one family per file.

A grid works on a layer's weights as rows, one per output channel. Scales and levels are float16
numbers, so that a grid can be stored in two bytes per number.
"""
