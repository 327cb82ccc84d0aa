"""Exercises of notebook 05: rectified flow."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import Exercise, randint

Velocity = Callable[[Tensor, float], Tensor]


def points(g: torch.Generator) -> Iterator[tuple]:
    for B in (3, 2, 1, 6):
        a, b = (torch.randn(B, 2, generator=g) for _ in range(2))
        yield a, b, torch.rand(B, generator=g)


# ---- ★ both ends of a line from x_t and v --------------------------------------------------------


def ends(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.stack([p - s * q for p, q, s in zip(x_t, v, t, strict=True)])
    return x, x + v


def ends_t_reversed(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return ends(x_t, v, 1 - t)


def ends_swapped(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return ends(x_t, v, t)[::-1]


def ends_wrong_sign(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return ends(x_t, -v, t)


def ends_whole_step(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return x_t - v, x_t + v


# ---- ★ a training pair ---------------------------------------------------------------------------


def pair(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x_t = torch.stack([s * n + (1 - s) * p for p, n, s in zip(x, noise, t, strict=True)])
    return x_t, noise - x


def pair_t_reversed(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return pair(x, noise, 1 - t)


def target_reversed(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return pair(x, noise, t)[0], x - noise


def both_reversed(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return pair(x, noise, 1 - t)[0], x - noise


def target_noise(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return pair(x, noise, t)[0], noise


def one_t_for_all(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return pair(x, noise, t[:1].expand(len(t)))


# ---- ★ and ★★ ODE solvers ------------------------------------------------------------------------


def curved(x: Tensor, t: float) -> Tensor:
    if isinstance(t, Tensor) and t.ndim:
        raise TypeError(f"velocity(x, t): t has shape {tuple(t.shape)}; give one number for all x")
    return torch.stack([x[:, 1] + 2 * t, -x[:, 0] + t * t], dim=1)


def sampling_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, steps in ((1, 2), (3, 1), (2, 5), (4, randint(g, 6, 12))):
        yield curved, torch.randn(B, 2, generator=g), steps


def result_and_noise(f: Callable, velocity: Velocity, noise: Tensor, steps: int) -> Any:
    """The result, and whether f left the caller's noise as it was."""
    before = noise.clone()
    result = f(velocity, noise, steps)
    if not isinstance(result, Tensor):
        return result
    return {"result": result, "noise unchanged": torch.equal(noise, before)}


def euler(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x, t = noise, 1.0
    for _ in range(steps):
        x = x - velocity(x, t) / steps
        t = t - 1 / steps
    return x


def in_place(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return noise.copy_(euler(velocity, noise, steps))


def heun_in_place(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return noise.copy_(heun(velocity, noise, steps))


def wrong_sign(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: -velocity(x, t), noise, steps)


def evaluates_at_the_end(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: velocity(x, t - 1 / steps), noise, steps)


def time_from_0(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: velocity(x, 1 - t), noise, steps)


def time_from_0_upwards(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: -velocity(x, 1 - t), noise, steps)


def whole_steps(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: steps * velocity(x, t), noise, steps)


def both_ends_included(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x = noise
    for t in torch.linspace(1, 0, steps).tolist():
        x = x - velocity(x, t) / steps
    return x


def misses_the_first(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x = noise
    for i in range(steps - 1, 0, -1):
        x = x - velocity(x, i / steps) / steps
    return x


def always_at_the_noise(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(lambda x, t: velocity(noise, t), noise, steps)


def heun(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    move: float = 1.0,
    age: float = 1.0,
    weight: float = 0.5,
) -> Tensor:
    """move, age: how far x and t move before the second evaluation; weight: of each velocity."""
    x, h = noise, 1 / steps
    for i in range(steps):
        t = 1 - i * h
        first = velocity(x, t)
        second = velocity(x - move * h * first, t - age * h)
        x = x - h * weight * (first + second)
    return x


def euler_only(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return euler(velocity, noise, steps)


def does_not_move(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return heun(velocity, noise, steps, move=0)


def at_the_same_time(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return heun(velocity, noise, steps, age=0)


def not_halved(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    return heun(velocity, noise, steps, weight=1.0)


def midpoint(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x, h = noise, 1 / steps
    for i in range(steps):
        t = 1 - i * h
        x = x - h * velocity(x - h / 2 * velocity(x, t), t - h / 2)
    return x


def second_alone(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x, h = noise, 1 / steps
    for i in range(steps):
        t = 1 - i * h
        x = x - h * velocity(x - h * velocity(x, t), t - h)
    return x


def moves_twice(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    x, h = noise, 1 / steps
    for i in range(steps):
        first = velocity(x, 1 - i * h)
        x = x - h * first
        x = x - h * (first + velocity(x, 1 - (i + 1) * h)) / 2
    return x


# ---- ★★ adaptive projected guidance --------------------------------------------------------------


def guidance_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, scale, threshold in ((1, 3.0, 1.0), (2, 1.0, 0.5), (3, 7.5, 2.5), (4, 2.0, 100.0)):
        cond = torch.randn(B, 2, generator=g)
        yield cond, cond + 2 * torch.randn(B, 2, generator=g), scale, threshold


def apg(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    out = []
    for c, u in zip(cond, uncond, strict=True):
        diff = c - u
        length = diff.norm()
        if length > threshold:
            diff = diff * threshold / length
        parallel = (diff @ c) / (c @ c) * c
        out.append(c + (scale - 1) * (diff - parallel))
    return torch.stack(out)


def projected_as_a_batch(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    diff = cond - uncond
    diff = diff * (threshold / diff.norm(dim=1, keepdim=True)).clamp(max=1)
    parallel = (diff * cond).sum() / (cond * cond).sum() * cond
    return cond + (scale - 1) * (diff - parallel)


def apg_with_s(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    return apg(cond, uncond, scale + 1, threshold)


def keeps_parallel(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    diff = cond - uncond
    clipped = diff * (threshold / diff.norm(dim=1, keepdim=True)).clamp(max=1)
    return cond + (scale - 1) * clipped - (apg(cond, uncond, scale, threshold) - cond)


def no_projection(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    diff = cond - uncond
    return cond + (scale - 1) * diff * (threshold / diff.norm(dim=1, keepdim=True)).clamp(max=1)


def length_not_squared(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    clipped = no_projection(cond, uncond, 2.0, threshold) - cond
    return cond + (scale - 1) * (
        clipped - (clipped * cond).sum(1, keepdim=True) / cond.norm(dim=1, keepdim=True) * cond
    )


def projected_first(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    across = not_clipped(cond, uncond, 2.0, threshold) - cond
    return no_projection(cond, cond - across, scale, threshold)


def each_number_clipped(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    return not_clipped(cond, cond - (cond - uncond).clamp(-threshold, threshold), scale, threshold)


def not_clipped(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    return apg(cond, uncond, scale, float("inf"))


def always_threshold_long(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    longer = cond - 1e6 * (cond - uncond)  # the same direction, and long enough to be clipped
    return cond - (apg(cond, longer, scale, threshold) - cond)


def clipped_as_a_batch(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    diff = cond - uncond
    clipped = diff * (threshold / diff.norm()).clamp(max=1)
    return not_clipped(cond, cond - clipped, scale, threshold)


def parallel_to_uncond(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    diff = no_projection(cond, uncond, 2.0, threshold) - cond
    length2 = uncond.square().sum(1, keepdim=True)
    along = (diff * uncond).sum(1, keepdim=True) / length2 * uncond
    return cond + (scale - 1) * (diff - along)


def from_uncond(cond: Tensor, uncond: Tensor, scale: float, threshold: float) -> Tensor:
    return uncond + apg(cond, uncond, scale + 1, threshold) - cond


# ---- ★★★ the score from the velocity -------------------------------------------------------------


def score_inputs(g: torch.Generator) -> Iterator[tuple]:
    for x_t, v, t in points(g):
        yield x_t, v, 0.2 + 0.7 * t


def score(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    _, noise = ends(x_t, v, t)
    return torch.stack([-n / s for n, s in zip(noise, t, strict=True)])


def score_not_divided(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return -ends(x_t, v, t)[1]


def score_divided_twice(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return score(x_t, v, t) / t[:, None]


def score_wrong_sign(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return -score(x_t, v, t)


def score_of_the_image(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return -ends(x_t, v, t)[0] / t[:, None]


def score_of_the_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return -v / t[:, None]


IN_PLACE = (
    "the result is right, but your function changes the caller's noise: `x -= ...` works in place. "
    "Write x = x - ..."
)

EXERCISES = {
    "ends": Exercise(
        points,
        ends,
        [
            (
                ends_t_reversed,
                "t = 1 is noise here: from x_t subtract t * v to reach x, and add (1 - t) * v "
                "to reach the noise.",
            ),
            (ends_swapped, "these are the two ends in the wrong order: x first, then the noise."),
            (
                ends_wrong_sign,
                "v points from the image to the noise (v = noise - x), so the image is in the "
                "direction of -v.",
            ),
            (
                ends_whole_step,
                "you added and subtracted all of v. x_t is at t * v from x, and at (1 - t) * v "
                "from the noise.",
            ),
            (
                lambda x_t, v, t: (ends(x_t, v, t)[0], x_t + v),
                "the image is right. The noise is (1 - t) * v away from x_t, not v.",
            ),
            (
                lambda x_t, v, t: (ends(x_t, v, t)[0], x_t - (1 - t[:, None]) * v),
                "the image is right. The noise is in the direction of +v: x_t + (1 - t) * v.",
            ),
            (
                lambda x_t, v, t: ends(x_t, v, t[:1].expand(len(t))),
                "all points got the t of the first one; t[:, None] gives each point its own t.",
            ),
        ],
    ),
    "pair": Exercise(
        points,
        pair,
        [
            (pair_t_reversed, "t is reversed: here t = 1 is noise and t = 0 is the image."),
            (target_reversed, "the target has the wrong sign: dx_t/dt = noise - x."),
            (
                both_reversed,
                "this is a consistent flow in the other convention (Liu et al., flow matching: t = "
                "1 is the image). Here t = 1 is noise.",
            ),
            (
                target_noise,
                "this is the target of a diffusion model that predicts noise. A flow predicts "
                "the velocity.",
            ),
            (
                one_t_for_all,
                "all points got the t of the first one; t[:, None] gives each point its own t.",
            ),
            (
                lambda x, noise, t: pair(x, noise, t)[::-1],
                "these are in the wrong order: first the state, then the target velocity.",
            ),
            (
                lambda x, noise, t: (pair(x, noise, t)[0], t[:, None] * (noise - x)),
                "the target is multiplied by t. The velocity is constant along the line: "
                "noise - x.",
            ),
            (
                lambda x, noise, t: (x + t[:, None] * noise, noise - x),
                "the image must fade out, too: its factor is 1 - t, so that the state is "
                "pure noise at t = 1.",
            ),
            (
                lambda x, noise, t: (pair(x, noise, t)[0], noise - pair(x, noise, t)[0]),
                "this target points from the state to the noise, and its length depends on "
                "t. The velocity is that of the whole line: noise - x.",
            ),
        ],
    ),
    "euler": Exercise(
        sampling_inputs,
        euler,
        [
            (
                wrong_sign,
                "the sign is wrong. Time falls from 1 to 0, so each step SUBTRACTS velocity / "
                "steps.",
            ),
            (
                evaluates_at_the_end,
                "the velocity is evaluated at the t where the step ends. Evaluate it where the "
                "step starts: at 1 first, at 1/steps last, never at 0.",
            ),
            (time_from_0, "your t runs from 0 upwards. Sampling starts at the noise, t = 1."),
            (
                time_from_0_upwards,
                "this samples a flow of the other convention (noise at t = 0). Here noise is at "
                "t = 1.",
            ),
            (
                both_ends_included,
                "linspace(1, 0, steps) evaluates the velocity at 0, where sampling has ended. "
                "The last evaluation is at t = 1/steps.",
            ),
            (
                whole_steps,
                "each step adds a whole velocity. A step covers 1/steps of the time, so divide "
                "by steps.",
            ),
            (
                always_at_the_noise,
                "the velocity is evaluated at the noise in every step. Evaluate it at the current "
                "state.",
            ),
            (
                lambda velocity, noise, steps: noise - velocity(noise, 1.0),
                "this is a single step. Take `steps` steps of length 1 / steps.",
            ),
            (
                lambda velocity, noise, steps: euler(
                    lambda x, t: steps * t * velocity(x, t), noise, steps
                ),
                "each step has the length t. All steps have the same length, 1 / steps.",
            ),
            (
                misses_the_first,
                "the first step is missing: the velocity is evaluated at t = 1 first.",
            ),
            (
                lambda velocity, noise, steps: euler(
                    lambda x, t: velocity(x, steps * t), noise, steps
                ),
                "the velocity is evaluated at the number of the step, i. The time is i / steps.",
            ),
            (in_place, IN_PLACE),
        ],
        result_and_noise,
    ),
    "heun": Exercise(
        sampling_inputs,
        heun,
        [
            (
                euler_only,
                "this is the Euler method. Evaluate a second velocity at the end of the Euler "
                "step, and average both.",
            ),
            (
                does_not_move,
                "the second velocity is evaluated at the old x. Evaluate it at the end of the "
                "Euler step.",
            ),
            (
                at_the_same_time,
                "the second velocity is evaluated at the old t. The Euler step ends at t - h.",
            ),
            (
                moves_twice,
                "you moved twice: the Euler step is only used to evaluate the second velocity. "
                "The mean velocity moves x from where it was before.",
            ),
            (
                midpoint,
                "this is the midpoint method, which uses the velocity at half a step. Heun's "
                "method uses the mean of the velocities at both ends.",
            ),
            (
                not_halved,
                "two velocities are added without the factor 1/2, so each step is twice as long.",
            ),
            (
                second_alone,
                "each step uses the second velocity alone. Use the mean of both.",
            ),
            (
                lambda velocity, noise, steps: heun(velocity, noise, steps, move=-1),
                "the second velocity is evaluated at x + h * v. The Euler step subtracts: x "
                "- h * v.",
            ),
            (
                lambda velocity, noise, steps: heun(velocity, noise, steps, age=-1),
                "the second velocity is evaluated at t + h. Time falls: the Euler step ends "
                "at t - h.",
            ),
            (heun_in_place, IN_PLACE),
        ],
        result_and_noise,
    ),
    "apg": Exercise(
        guidance_inputs,
        apg,
        [
            (
                apg_with_s,
                "this has scale instead of scale - 1. The result starts from cond, so scale = 1 "
                "must change nothing.",
            ),
            (keeps_parallel, "you kept the part parallel to cond. This is the part to remove."),
            (
                no_projection,
                "the part parallel to cond is still included. Subtract it: diff - (diff . c) / "
                "(c . c) c.",
            ),
            (
                length_not_squared,
                "the part parallel to cond is (diff . c) / (c . c) c: divide by the SQUARE of "
                "the length of cond.",
            ),
            (
                projected_first,
                "the order is wrong: clip the whole difference first, then remove its part "
                "parallel to cond.",
            ),
            (
                each_number_clipped,
                "you clipped each number. Clip the LENGTH of each difference.",
            ),
            (
                not_clipped,
                "the difference is not clipped: if it is longer than threshold, scale it to "
                "this length.",
            ),
            (
                always_threshold_long,
                "shorter differences were lengthened to the threshold. Clipping only shortens.",
            ),
            (
                clipped_as_a_batch,
                "you clipped the length of the whole batch. Each difference is clipped alone: "
                "norm(dim=1, keepdim=True).",
            ),
            (
                parallel_to_uncond,
                "you removed the part parallel to uncond. Remove the part parallel to cond.",
            ),
            (from_uncond, "this starts from uncond, as CFG does. APG starts from cond."),
            (
                lambda cond, uncond, scale, threshold: uncond + scale * (cond - uncond),
                "this is CFG. APG clips the difference and removes its part parallel to cond.",
            ),
            (
                lambda cond, uncond, scale, threshold: (
                    2 * cond - apg(cond, uncond, scale, threshold)
                ),
                "the difference has the wrong sign: it is cond - uncond.",
            ),
            (
                projected_as_a_batch,
                "(diff * cond).sum() is over the whole batch. Each point has its own parallel "
                "part: sum(1, keepdim=True).",
            ),
            (
                lambda cond, uncond, scale, threshold: apg(cond, uncond, scale, threshold) - cond,
                "this is only what guidance adds. Add it to cond.",
            ),
        ],
    ),
    "score": Exercise(
        score_inputs,
        score,
        [
            (
                score_not_divided,
                "this is -E[noise | x_t]. Its division by t is missing: the Gaussian has "
                "variance t^2, and one factor t is in y - (1 - t) x = t * noise.",
            ),
            (
                score_divided_twice,
                "you divided by t^2. The gradient is -(y - (1 - t) x) / t^2 = -noise / t: one "
                "factor t cancels.",
            ),
            (
                score_wrong_sign,
                "the sign is wrong: the density of the noised states falls in the direction of "
                "the noise.",
            ),
            (
                score_of_the_image,
                "you used the estimate of the image, x_t - t * v. The score contains that of "
                "the noise, x_t + (1 - t) * v.",
            ),
            (
                score_of_the_velocity,
                "you used the velocity in place of the noise. E[noise | x_t] = x_t + (1 - t) * v.",
            ),
            (
                lambda x_t, v, t: -(x_t + t[:, None] * v) / t[:, None],
                "the noise is (1 - t) * v away from x_t, not t * v (exercise 2).",
            ),
            (
                lambda x_t, v, t: -(x_t - (1 - t[:, None]) * v) / t[:, None],
                "the sign of v is wrong: the noise is x_t + (1 - t) * v (exercise 2).",
            ),
            (
                lambda x_t, v, t: -x_t / t[:, None] ** 2,
                "this is the score of a Gaussian around 0. The mean given x is (1 - t) x: "
                "use the noise, not x_t.",
            ),
        ],
    ),
}
