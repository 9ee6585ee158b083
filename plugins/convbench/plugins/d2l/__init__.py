"""The functions and layers of the chapter (Dive into Deep Learning, 7.1 to 7.5). This package imports torch."""

from convbench.plugins.d2l.correlation import (
    conv2d_true,
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
)
from convbench.plugins.d2l.edges import BOOK_KERNEL, EDGE_KERNEL, Learned, edge_image, learn_kernel
from convbench.plugins.d2l.layers import Conv2D, LocallyConnected2d
from convbench.plugins.d2l.pooling import StochasticPool2d, pool2d, stochastic_pool2d

__all__ = [
    "BOOK_KERNEL",
    "EDGE_KERNEL",
    "Conv2D",
    "Learned",
    "LocallyConnected2d",
    "StochasticPool2d",
    "conv2d_true",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "edge_image",
    "learn_kernel",
    "pool2d",
    "stochastic_pool2d",
]
