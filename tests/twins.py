"""An nn.GRU and a triton_gru.GRU whose parameters are equal."""

from torch import nn

import triton_gru


def make_twins(*args, **kwargs):
    """Return an nn.GRU and a triton_gru.GRU that are made with these arguments. Their parameters have equal values."""
    theirs, ours = nn.GRU(*args, **kwargs), triton_gru.GRU(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours
