"""A bundle as a model repository of Triton Inference Server.

`model` is what runs inside the server; everything else writes the files it is found in.
"""
