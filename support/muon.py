"""Muon (Jordan et al. 2024): for matrices, steps that are as large in every direction.

A matrix's gradient is mostly a few directions; AdamW follows those and the others starve. Muon
takes the nearest orthogonal matrix instead, in which all weigh alike. AdamW keeps words, positions
and strides, biases and norms, and the U-Net's first and last convolution; all other matrices and
kernels are Muon's. (train.py takes plain AdamW where --vae-optimizer says so.)
"""
import torch

ADAMW = {"word", "position", "null", "stride", "conv_in", "conv_out"}   # by their names


def orthogonal(g, steps=5):
    """Roughly the nearest orthogonal matrices to g (n rows columns): a quintic iteration takes all
    singular values to 0.7 ... 1.2, with products alone, so that bfloat16 is good enough."""
    x = g.mT if g.shape[1] > g.shape[2] else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
    return (x.mT if g.shape[1] > g.shape[2] else x).to(g.dtype)


class Muon(torch.optim.AdamW):
    """params: (name, parameter) pairs. M <- 0.95 M + 0.05 G;  then, one step ahead of M,
    W <- (1 - lr decay) W - lr √max(1, rows/columns) orthogonal(0.95 M + 0.05 G)"""

    def __init__(self, params, **options):
        groups = {"AdamW's": []}                       # the first; then one for each shape
        for name, p in params:
            ours = p.ndim > 1 and ADAMW.isdisjoint(name.split("."))
            groups.setdefault(p.shape if ours else "AdamW's", []).append(p)
        super().__init__([{"params": group} for group in groups.values()], **options)
        self._step_supports_amp_scaling = False        # fp16: what overflowed is left out whole

    @torch.no_grad()
    def step(self):
        """One step, by gradients as they are; no closure, unlike AdamW's own."""
        for group in self.param_groups[1:]:
            for p in (ps := [p for p in group["params"] if p.grad is not None]):
                if not self.state[p]:
                    self.state[p] = {"step": torch.ones(()), "exp_avg": torch.zeros_like(p)}
            if ps:
                grads, past = [p.grad for p in ps], [self.state[p]["exp_avg"] for p in ps]
                torch._foreach_lerp_(past, grads, 0.05)
                ahead = torch.stack(torch._foreach_lerp(grads, past, 0.95)).flatten(2)
                size = group["lr"] * max(1, ahead.shape[1] / ahead.shape[2]) ** 0.5
                torch._foreach_mul_(ps, 1 - group["lr"] * group["weight_decay"])
                steps = [u.view_as(p) for u, p in zip(orthogonal(ahead), ps)]
                torch._foreach_add_(ps, steps, alpha=-size)
            for p in ps:
                p.grad = None                          # AdamW passes over what has none
        super().step()
