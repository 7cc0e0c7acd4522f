"""Several processes, one a GPU, that train one network together; torchrun starts them.

Each makes the same steps on its own rows of the batch; only gradients travel.
Without torchrun there is one process, and nothing here does anything.
"""

import atexit
import os

import torch
import torch.distributed as dist

from support.console import UserError

RANK = int(os.environ.get("RANK", 0))           # this process's number
WORLD = int(os.environ.get("WORLD_SIZE", 1))    # how many there are


def print_once(text, file=None):
    """Print, however many processes there are."""
    if RANK == 0:
        print(text, file=file)


def join_processes(device):
    """Meet the other processes that torchrun started; returns this one's own device."""
    if WORLD > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            if device.index >= torch.cuda.device_count():
                raise UserError(f"there are {torch.cuda.device_count()} GPUs here: start no more "
                                "processes than that")
            torch.cuda.set_device(device)
        dist.init_process_group()
        atexit.register(dist.destroy_process_group)
    return device


def leave_processes(device):
    """Part from the others once all have come here. A process that went at exit, while another
    still worked, was once aborted there; why was not found."""
    if WORLD > 1:
        everyones(torch.zeros(1, device=device), dim=0).cpu()
        dist.destroy_process_group()
        atexit.unregister(dist.destroy_process_group)


def my_rows(draw, b, *shape, g):
    """Random numbers (b *shape) by draw = torch.rand or torch.randn: this process's rows of all
    of the batch, so that two processes together see what one would have seen."""
    whole = draw(b * WORLD, *shape, device=g.device, generator=g)
    return whole[RANK * b:(RANK + 1) * b]


def average_gradients(parameters):
    """Give each process the mean of all processes' gradients: what DistributedDataParallel does
    (and overlaps with the backward pass, which 6 million parameters do not need)."""
    if WORLD > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(total.view_as(gradient) / WORLD)


def everyones(x, dim):
    """The tensors x of all processes, put together along `dim`."""
    if WORLD == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(WORLD)]
    dist.all_gather(parts, x)
    return torch.cat(parts, dim)
