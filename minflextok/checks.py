"""Images and latents that users give, checked where they come in: an error names the value and the fix."""

import warnings

from torch import Tensor


def check_shape(
    x: Tensor, what: str, channels: int, unit: int, largest: int | None = None, fixed: bool = False
) -> Tensor:
    """Returns x, a float tensor (B >= 1, channels, H, W); else a ValueError that calls it `what`.

    H and W must be multiples of `unit` up to `largest` (None: any), or `largest` itself where that is `fixed`.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{what} is {kind}: give a float tensor (uint8 images: x.float() / 127.5 - 1)"
        )
    fits = x.ndim == 4 and len(x) > 0 and x.shape[1] == channels
    if fixed:
        want, fits = f"{largest}, {largest})", fits and x.shape[2:] == (largest, largest)
    else:
        want = f"H, W) with H and W multiples of {unit}" + (f" up to {largest}" if largest else "")
        fits = fits and all(0 < n <= (largest or n) and n % unit == 0 for n in x.shape[2:])
    if not fits:
        hint = " (resize or crop first)" if channels == 3 else ""
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}: give (B >= 1, {channels}, {want}{hint}"
        )
    return x


def check_finite(x: Tensor, what: str) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError(f"{what} hold NaN or infinite values: clean them first")
    return x


def check_range(images: Tensor) -> Tensor:
    """Returns the images, all values in [-1, 1]; a GPU has to finish its work for that. Warns where [0, 1] is likely."""
    low, high = (v.item() for v in check_finite(images, "images").detach().aminmax())
    if max(-low, high) > 1.01:
        raise ValueError(
            f"images range from {low:.4g} to {high:.4g}: scale them to [-1, 1] "
            "(from 0..255: x / 127.5 - 1; from 0..1: x * 2 - 1)"
        )
    if low >= 0 and high > 0.5 and len(images) >= 8:
        warnings.warn(
            "no value in these images is negative: are they in [0, 1]? Give [-1, 1] (x * 2 - 1)",
            stacklevel=4,
        )
    return images


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of its type where it has none."""
    return str(error).split("\n")[0] or type(error).__name__
