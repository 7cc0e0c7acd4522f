"""A network's pass as a CUDA graph: recorded once, then launched as a whole.

A pass over one window is some 600 kernels of a few microseconds each, and a CPU takes longer to
launch them than the GPU to run them. A graph of them is one launch. It works in fixed memory, so
inputs are copied in before each replay and the result is copied out.
"""

from functools import cache
from weakref import WeakKeyDictionary

import torch

ROWS = 64                        # in larger batches kernels take longer than their launch
GRAPHS = WeakKeyDictionary()     # network -> {recorded for what: (graph, inputs, output)}
SIDE = cache(torch.cuda.Stream)  # recording wants another stream than the usual one


class Replayed:
    """network(*tensors), a batch each. On CUDA small batches without gradients replay a graph,
    which is recorded at the first call with their shapes and kept as long as the network lives.

    important: a graph reads weights where they lay when it was recorded. Training changes them in
    place, so it stays true; weights that were moved or cast lie elsewhere, and it is made anew. And
    mixed precision must not cache its casts (`amp` of model.py): a graph has to make its own.
    """

    def __init__(self, network):
        self.network = network
        self.weights = tuple((p.data_ptr(), p.dtype) for p in network.parameters())

    def __call__(self, *inputs):
        if not inputs[0].is_cuda or len(inputs[0]) > ROWS or torch.is_grad_enabled():
            return self.network(*inputs)
        graphs = GRAPHS.setdefault(self.network, {})
        key = (self.weights, torch.is_inference_mode_enabled(),  # its tensors never mix with others
               *((value.shape, value.dtype) for value in inputs))
        if key not in graphs:
            graphs[key] = self.record(inputs, graphs)
        graph, still, out = graphs[key]
        for mine, value in zip(still, inputs):
            mine.copy_(value)
        graph.replay()
        return out.clone()

    def record(self, inputs, graphs):
        """The graph of a pass, the tensors that it reads and the one that it writes."""
        still, graph = [value.clone() for value in inputs], torch.cuda.CUDAGraph()
        SIDE().wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(SIDE()):
            self.network(*still)  # chooses kernels and sets libraries up, which cannot be recorded
        # all graphs of a network share memory, because each is done before another one begins;
        # thread_local: what other threads ask of the GPU meanwhile (NCCL's watchdog) does no harm
        pool = next((other.pool() for other, *_ in graphs.values()), None)
        with torch.cuda.graph(graph, pool, SIDE(), capture_error_mode="thread_local"):
            out = self.network(*still)
        return graph, still, out
