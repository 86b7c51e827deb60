"""Neuron Ledger's science: tables in, tables out. It knows no file, no clock, no network and no scheduler.

The hops, in order:

    sequences      text           -> windows of tokens, each document in one split
    activations    windows, model -> the records worth keeping, and statistics of each neuron (`capture`, `reduction`)
    associations   windows, model -> what each neuron does on each token
    vocabulary     model          -> what each token stands for, in the corpus or not
    connections    weights        -> the tokens and neurons that each neuron is joined to most strongly
    exemplars      records        -> those to show, and those to score on
    explanations   shown records  -> words
    simulations    words          -> what the neuron should do
    judgements     words, texts   -> which texts a language model says fit                     (if chosen, see `scorers`)
    ablations      simulations, model -> what the subject foretells with one in the neuron's place  (the same)
    scores         all of these   -> how well the words predict the neuron

`tables` declares every table, `ports` says what must be supplied from outside, `provenance` gives each row an
identity, and `testing` has stand-ins with known answers.
"""
