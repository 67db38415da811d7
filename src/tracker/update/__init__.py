"""Model updates: checkpoints of one model, sent to a receiver one after the other.

An update turns what the receiver has into the next checkpoint. It is a bitstream folder like any other, whose manifest
names the digest of the state that it applies to, unless it is a whole model.
"""
