r"""Diffusion: learn to tell noise from data, then make data out of nothing but noise.

Training mixes clean data x0 with noise eps and asks a network what is in the mixture xt: x0, or
eps, or a blend of both, since any of them gives the others. It cannot know; its best answer is the
average over all that may have led to xt, a blur where there is much noise. Sampling starts from
noise alone, moves a little towards that answer and asks again. Now fewer things can have led to
xt, so the next answer is sharper, and the last one is a sample. In DDPM noise comes in T = 1000
small steps; step t keeps 1 - beta_t of x's variance:

    x  <-  sqrt(1 - beta_t) x + sqrt(beta_t) noise                                   (DDPM Eq. 2)

So much of x0's variance is left after it: alpha_bar_t, the product of all 1 - beta so far, which
falls from nearly 1 to nearly 0. Sums of Gaussian noise are Gaussian, so one jump leads to any t:

    xt = a x0 + s eps,   a = sqrt(alpha_bar_t),   s = sqrt(1 - alpha_bar_t)          (DDPM Eq. 4)

         v              a^2 + s^2 = 1: with x0 and eps as axes, xt goes along a circle from one to
     eps  \             the other, turned by an angle of cosine a and sine s. Its direction there,
      | `. \            the tangent, is v = a eps - s x0. Who knows xt and one of x0, eps and v
      |    `xt          knows all three, so a network may be asked for any of them.
      |    /  .
      |  /     :        Flow matching goes straight from x0 to eps: xt = (1 - u) x0 + u eps. Its
      |/_______:_ x0    direction is eps - x0 all the way; this is the prediction called "flow".

The average eps, divided by -s, is the slope of log p(xt), p the density of the mixtures: the
"score". So samplers climb towards what is likely. "Ancestral" steps (ddpm) add a little fresh noise
on the way, as the true reverse process does; DDIM and DPM-Solver++ follow an ordinary differential
equation (ODE) without any, which ends in the same distribution. They see the network only as a
function model(x, t) -> prediction, so a closed form can be put in its place. x is whatever is
diffused, of any shape (b ...); t (b,) holds integers 0 ... 999, larger is noisier.

Papers: DDPM (Ho et al. 2020, arXiv:2006.11239), improved DDPM (Nichol & Dhariwal 2021, 2102.09672),
DDIM (Song et al. 2021, 2010.02502), v (Salimans & Ho 2022, 2202.00512), flow matching (Lipman et
al. 2023, 2210.02747; Liu et al. 2023, 2209.03003; Esser et al. 2024, 2403.03206), guidance (Ho &
Salimans 2022, 2207.12598), DPM-Solver++ (Lu et al. 2022, 2211.01095), trailing timesteps (Lin et
al. 2024, 2305.08891). Run `python diffusion.py` to watch noise become two bumps, then to see a
network of three layers learn to do that.
"""

import math
from functools import partial

import torch
from torch import nn

T = 1000  # noise levels (DDPM section 4)


def linear_alpha_bar(beta_first=1e-4, beta_last=0.02):
    """alpha_bar (1000,) in float64 of the linear schedule (DDPM section 4)."""
    return (1 - torch.linspace(beta_first, beta_last, T, dtype=torch.float64)).cumprod(0)


def cosine_alpha_bar(s=0.008, beta_max=0.999):
    """alpha_bar (1000,) in float64: cos^2((t/T + s)/(1 + s) pi/2), over its value at
    t = 0 (improved DDPM Eq. 17, whose t = 1 ... T is our 0 ... T - 1)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = ((u + s) / (1 + s) * torch.pi / 2).cos() ** 2
    return (1 - (1 - f[1:] / f[:-1]).clamp(max=beta_max)).cumprod(0)


def flow_alpha_bar():
    """alpha_bar (1000,) in float64 of the straight way (1 - u) x0 + u eps: x0's share of the
    variance, as ever. u is the middle of the t-th of T equal parts, so never 1, where nothing would
    be left of x0: samplers divide by its scale 1 - u, or take its logarithm."""
    u = (torch.arange(T, dtype=torch.float64) + 0.5) / T
    return (1 - u) ** 2 / ((1 - u) ** 2 + u ** 2)


SCHEDULES = {"cosine": cosine_alpha_bar, "linear": linear_alpha_bar, "flow": flow_alpha_bar}
PREDICTIONS = ("v", "eps", "x0", "flow")


def guide(unconditional, conditional, scale):
    """Guided prediction: 0 is unconditional, 1 conditional; scale = 1 + w of Ho & Salimans Eq. 6.

    What the network says with the caption minus what it says without is where the caption pulls; a
    scale over 1 goes further that way, for more obedience and less variety.
    Exact whatever is predicted, because at a given xt each is an affine function of the others.
    """
    return unconditional + scale * (conditional - unconditional)


def timesteps(steps):
    """`steps` noise levels from 999 down, evenly spaced, "trailing" (Lin et al. Table 2): however
    few there are, the first is 999, the level that pure noise x_T really has."""
    if not 1 <= steps <= T:
        raise ValueError(f"steps is {steps}, but must be 1 ... {T}")
    return [round(T - T * i / steps) - 1 for i in range(steps)]


def jumps(steps):
    """A sampler's (t, t_prev), from each level to the next one down; the last is -1, no noise at
    all. (The name is DDPM's, which counts as noise is added: t_prev comes before t there.)
    steps: how many, for `timesteps`, or the levels themselves, from 999 down."""
    levels = timesteps(steps) if isinstance(steps, int) else list(steps)
    return list(zip(levels, levels[1:] + [-1]))


class Noise:
    """Gaussian noise like x (b*k ...), k draws for each of b samples. Each sample has a stream of
    its own, a torch.Generator on the CPU, so it does not depend on its batch or device."""

    def __init__(self, streams):
        self.streams = list(streams)

    def __call__(self, x):
        k = len(x) // len(self.streams)
        draws = [torch.randn(k, *x.shape[1:], generator=stream) for stream in self.streams]
        return torch.cat(draws).to(x.device)


def replacement(diffusion, network, known, mask, eps):
    """The network with what is known of x (mask True) replaced by noised truth at every level (Song
    et al. 2021, score SDE, 2011.13456, appendix I.2), as in training. important: no loss ever asked
    what it says of known frames; left to it, they drift and lead the rest astray."""
    def predict(x, t):
        return network(torch.where(mask, diffusion.q_sample(known, t, eps), x), t)

    return predict


def every(x, t):
    """The level t for every sample of x (b ...): (b,), as networks expect it."""
    return torch.full(x.shape[:1], t, device=x.device)


class Diffusion:
    """A schedule and the meaning of the network's output: what training and sampling must share.
    Any of SCHEDULES goes with any of PREDICTIONS; flow matching is ("flow", "flow")."""

    def __init__(self, schedule="cosine", predict="v"):
        if schedule not in SCHEDULES or predict not in PREDICTIONS:
            raise ValueError(f"unknown schedule {schedule!r} or prediction {predict!r}: choose "
                             f"from {list(SCHEDULES)} and {list(PREDICTIONS)}")
        self.alpha_bar, self.predict = SCHEDULES[schedule](), predict
        clean = torch.cat([self.alpha_bar, self.alpha_bar.new_ones(1)])  # index -1: no noise at all
        self.signal, self.noise = clean.sqrt(), (1 - clean).sqrt()
        if schedule == "flow":  # from the circle, a^2 + s^2 = 1, to the line, a + s = 1
            size = self.signal + self.noise
            self.signal, self.noise = self.signal / size, self.noise / size

    # ---- the process, and four names for one prediction ------------------------------------------

    def at(self, t, table, like):
        """A table at levels t (b,), shaped to multiply `like` (b ...); at an int t, a number.

        important: the tables are float64 and cast last. In float32, 1 - alpha_bar loses its digits
        near t = 0, and with them the small variances of the last steps. t = -1 is no noise at all.
        """
        if isinstance(t, int):
            return table[t].item()
        return table.to(like.dtype).to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))

    def scales(self, t, like):
        """a and s at t: √ᾱ and √(1−ᾱ), but 1 - u and u of the schedule "flow"."""
        return self.at(t, self.signal, like), self.at(t, self.noise, like)

    def q_sample(self, x0, t, eps):
        """xt = a·x0 + s·ε   (DDPM Eq. 4: √ᾱ·x0 + √(1−ᾱ)·ε)"""
        a, s = self.scales(t, x0)
        return a * x0 + s * eps

    def target(self, x0, t, eps):
        """What the network should return: ε, x0, ε − x0 or v = a·ε − s·x0 (Salimans & Ho, app. D)

        Near pure noise xt is nearly ε, so ε can be copied and says nothing of x0. Near clean data
        xt is nearly x0, and x0 can be copied. At either end v and flow ask for what cannot be
        copied, and `to_x0_eps` never divides by a number near zero.
        """
        a, s = self.scales(t, x0)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0}[self.predict]

    def to_x0_eps(self, prediction, xt, t):
        """(x0, eps) from a prediction at xt: what `q_sample` and `target` say, solved for both.
        (xt, v) is (x0, eps) turned by an angle with cosine a and sine s, so v turns back."""
        a, s = self.scales(t, xt)
        if self.predict == "v":
            power = a ** 2 + s ** 2    # 1 on the circle
            return (a * xt - s * prediction) / power, (s * xt + a * prediction) / power
        if self.predict == "flow":
            return (xt - s * prediction) / (a + s), (xt + a * prediction) / (a + s)
        if self.predict == "x0":
            return prediction, (xt - a * prediction) / s
        return (xt - s * prediction) / a, prediction

    def loss(self, model, x0, t, eps, weight=None):
        """The simple loss (DDPM Eq. 14, there for eps), one value a sample: (b,).

        weight: broadcastable to x0, 1 where an element counts and 0 where not; None counts all.
        """
        error = (model(self.q_sample(x0, t, eps), t) - self.target(x0, t, eps)).float() ** 2
        weight = torch.ones_like(error) if weight is None else weight.expand_as(error)
        return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)

    def posterior(self, x0, xt, t, t_prev):
        """Mean and variance of q(x_prev | xt, x0)   (DDPM Eq. 6 and 7), for any t_prev < t."""
        a, s = self.scales(t, xt)
        a_prev, s_prev = self.scales(t_prev, xt)
        alpha = (a / a_prev) ** 2            # the share of variance that the jump t_prev -> t keeps
        beta = s ** 2 - alpha * s_prev ** 2  # and the noise that it adds: 1 - alpha on the circle
        mean = (a_prev * beta * x0 + (a / a_prev) * s_prev ** 2 * xt) / s ** 2
        return mean, s_prev ** 2 / s ** 2 * beta

    # ---- samplers: one signature, sampler(model, x_T, steps) -> x0 -------------------------------

    @torch.no_grad()
    def ddpm(self, model, x_T, steps, noise=torch.randn_like):
        """Ancestral sampling (DDPM Alg. 2) over the jumps between levels, posterior variance β̃."""
        x = x_T
        for t, t_prev in jumps(steps):
            x0, _ = self.to_x0_eps(model(x, every(x, t)), x, t)
            mean, variance = self.posterior(x0, x, t, t_prev)
            x = mean + variance ** 0.5 * noise(x)  # variance 0 in the last step: it adds no noise
        return x

    @torch.no_grad()
    def ddim(self, model, x_T, steps, eta=0.0, noise=torch.randn_like):
        """DDIM (Song et al. Eq. 12 and 16): deterministic at eta 0, DDPM's variance at eta 1. Of
        flow at eta 0 it is Euler's step, x + (u' − u)·(ε − x0)."""
        x = x_T
        for t, t_prev in jumps(steps):
            x0, eps = self.to_x0_eps(model(x, every(x, t)), x, t)
            a_prev, s_prev = self.scales(t_prev, x)
            _, variance = self.posterior(x0, x, t, t_prev)
            sigma = eta * variance ** 0.5
            x = a_prev * x0 + max(0.0, s_prev ** 2 - sigma ** 2) ** 0.5 * eps
            if eta:
                x = x + sigma * noise(x)
        return x

    @torch.no_grad()
    def dpm(self, model, x_T, steps, eta=0.0, noise=torch.randn_like):
        """DPM-Solver++(2M) (Lu et al. 2022 Alg. 2), the midpoint form: second order in the
        half log-SNR λ = log(a/s), first order at the first and the last step. With eta 1 its SDE
        form, which forgets a part of x at each step and draws fresh noise for it."""
        # xt = a·x0 + s·ε, so x/s = e^λ·x0 + ε. A small DDIM step takes the guesses x0 and ε to the
        # next level, x'/s' = e^λ'·x0 + ε. The difference has no ε: x'/s' − x/s = (e^λ' − e^λ)·x0.
        # Add such steps up to one, h = λ' − λ long, with D for x0 all the way, and multiply by s',
        # where e^λ' = a'/s':  x' = s'/s·x − a'·(e⁻ʰ − 1)·D.  D = x0 is DDIM; here D is x0 midway.
        # (a' and s' are a_prev and s_prev below.)
        x, x0_last, h_last = x_T, None, None
        for t, t_prev in jumps(steps):
            x0, _ = self.to_x0_eps(model(x, every(x, t)), x, t)
            if t_prev == -1:
                return x0                  # λ is infinite at s = 0: all that is left is x0
            a, s = self.scales(t, x)
            a_prev, s_prev = self.scales(t_prev, x)
            h = math.log(a_prev / s_prev) - math.log(a / s)
            d = x0                         # x0 at the middle of the step, by extrapolation
            if x0_last is not None:
                half = h / (2 * h_last)    # of this step, in steps like the last
                d = (1 + half) * x0 - half * x0_last
            x = s_prev / s * math.exp(-eta * h) * x - a_prev * math.expm1(-(1 + eta) * h) * d
            if eta:
                x = x + s_prev * (-math.expm1(-2 * eta * h)) ** 0.5 * noise(x)
            x0_last, h_last = x0, h


if __name__ == "__main__":
    CENTRES, STD, N = torch.tensor([-2.0, 2.0]), 0.5, 20_000
    COSINE, FLOW = Diffusion("cosine", "v"), Diffusion("flow", "flow")

    def draw(n):
        """n samples of the data, (n 1)."""
        return CENTRES[torch.randint(2, (n, 1))] + STD * torch.randn(n, 1)

    def ideal(diffusion, x, t):
        """What is best to say of two bumps: E[x0 | xt] of each, by its share in what led to xt."""
        a, s = diffusion.scales(t, x)
        variance, off = a ** 2 * STD ** 2 + s ** 2, x - a * CENTRES                  # n 1, n 2
        share = (-off ** 2 / (2 * variance)).softmax(1)
        x0 = (share * (CENTRES + a * STD ** 2 / variance * off)).sum(1, keepdim=True)
        return diffusion.target(x0, t, (x - a * x0) / s)

    def show(name, x):
        counts = x.histc(64, -4, 4)
        print(f"{name:8s}" + "".join(" .:-=+*#%@"[int(9.99 * c)] for c in counts / counts.max()))

    def watched(x, t):
        if t[0] % 200 == 199:
            show(f"t = {t[0]}", x)
        return ideal(COSINE, x, t)

    torch.manual_seed(0)
    x_T = torch.randn(N, 1)
    print("noise on its way to data, from -4 to 4, by dpm in 20 steps")
    show("samples", COSINE.dpm(watched, x_T, 20))
    show("truth", draw(N))

    # Nobody knows the ideal answer for real data. A network learns it: this is all of training.
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def learned(x, t):
        return net(torch.cat([x, t[:, None] / T], dim=1))

    for _ in range(1500):
        x0, eps = draw(256), torch.randn(256, 1)
        loss = COSINE.loss(learned, x0, torch.randint(T, (256,)), eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    show("learned", COSINE.dpm(learned, x_T, 20))

    print("\nthe right bump's mean and std after 5, 20 and 100 steps (in truth 2.00 0.50)")
    for name, sampler, way in (("dpm", Diffusion.dpm, COSINE), ("ddim", Diffusion.ddim, COSINE),
                               ("ddpm", Diffusion.ddpm, COSINE), ("flow", Diffusion.ddim, FLOW)):
        ends = [sampler(way, partial(ideal, way), x_T, steps) for steps in (5, 20, 100)]
        print(f"{name:8s}", *(f" {x[x > 0].mean():.2f} {x[x > 0].std():.2f} " for x in ends))
