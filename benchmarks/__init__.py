"""Benchmarks: how fast and how small, beside the goal and beside others, each run as `python -m benchmarks.NAME`.

    capture.py       what capture costs, and what it leaves behind
    families.py      which families of models are read as a plain pass reads them
    stale_families.py  the stale set of every family of text models that can be built small
    figures.py       one measured figure, and how figures are printed
    subjects.py      models with random weights, and texts for them
    passes.py        a pass that only runs the model beside one that captures
    peak_memory.py   the memory of one pass in a process of its own
    peers/           other ways to the same activations
    environments.py  what peers are installed in
    smollm2.py       a real small language model, as a server and as a subject

`RESULTS.md` keeps what was measured, where, and by which command.
"""
