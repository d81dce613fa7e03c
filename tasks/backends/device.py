"""The compute capability that the TensorRT builder compares with its target's."""

from registry.host.gpu import local_compute_capability as local_compute_capability
