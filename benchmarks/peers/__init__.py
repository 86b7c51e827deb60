"""Peers: other ways to the MLP activations of all layers, written as their users write them.

    turns.py             one peer and the bare forward pass by turns, in one process
    hooks.py             plain Hugging Face hooks, which keep a batch until the next one comes
    dump.py              everything to disk in float16
    transformer_lens.py  TransformerLens, with the activations in its cache
    nnsight.py           nnsight, with the activations saved from a trace
    delphi.py            the cache of EleutherAI's delphi

A peer with a file of the same name in `requirements/` runs in an environment of its own that holds these versions and
nothing else; the others run in ours. All read the same folder of weights and the same windows. None of them keeps top
windows, statistics or samples: that work is still ahead of their users.
"""
