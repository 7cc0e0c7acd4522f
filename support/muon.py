"""Muon (Jordan et al. 2024): for matrices, steps that are as large in every direction.

A matrix's gradient is mostly a few directions; AdamW follows those and the others starve. Muon
takes the nearest orthogonal matrix instead, in which all weigh alike. What maps no activations to
activations stays AdamW's: words, biases, norms, and the layers next to latents and noise levels.
"""

import torch

ADAMW = {"word", "position", "null", "stride", "conv_in", "conv_out"}   # by their names


def orthogonal(g, steps=5):
    """Roughly the nearest orthogonal matrices to g (n rows columns): a quintic iteration takes all
    singular values to 0.7 ... 1.2, with products alone, so that bfloat16 is good enough."""
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.AdamW):
    """params: (name, parameter) pairs. M <- 0.95 M + 0.05 G;  then, one step ahead of M,
    W <- (1 - lr decay) W - lr √max(1, rows/columns) orthogonal(0.95 M + 0.05 G)"""

    def __init__(self, params, **options):
        groups = {"params": []}, {"params": []}  # AdamW's, ours
        for name, p in params:
            groups[p.ndim > 1 and ADAMW.isdisjoint(name.split("."))]["params"].append(p)
        super().__init__(groups, **options)
        self._step_supports_amp_scaling = False  # fp16: a step that overflowed is left out whole

    @torch.no_grad()
    def step(self):
        group, shapes = self.param_groups[1], {}
        for p in group["params"]:
            if p.grad is not None:
                shapes.setdefault((len(p), p[0].numel()), []).append(p)
                if not self.state[p]:
                    self.state[p] = {"step": torch.ones(()), "exp_avg": torch.zeros_like(p)}
        for (rows, columns), ps in shapes.items():     # matrices of one shape are one batch
            grads, past = [p.grad for p in ps], [self.state[p]["exp_avg"] for p in ps]
            torch._foreach_lerp_(past, grads, 1 - 0.95)
            ahead = torch._foreach_lerp(grads, past, 0.95)
            o = orthogonal(torch.stack([g.reshape(rows, columns) for g in ahead]))
            torch._foreach_mul_(ps, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(ps, [u.view_as(p) for u, p in zip(o, ps)],
                                alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
            for p in ps:
                p.grad = None                          # AdamW passes over what has none
        super().step()
