"""What several architectures share. Features are channels-last tokens, (N, H, W, C).

A convolution over them is a convolution on a channels-last picture and a linear layer a plain
matrix product: neither needs a copy.
"""
