"""What turns a person's input into arrays: tokenizers, image processors, the reading of images.

It knows the files of a checkpoint that say how, and nothing of weights, models or jax.
"""
