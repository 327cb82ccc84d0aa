"""FlexTok: the encoder, the quantiser and the decoder as one model, with what a user calls."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .config import WEIGHTS_DIR, TokenizerConfig, from_dict, to_json
from .decoder import Decoder
from .encoder import Encoder
from .flow import APG, cfg, euler, interpolate, mode_timesteps
from .fsq import FSQ
from .nested_dropout import sample_keep_k

Ids = Tensor | list[Tensor]  # (B, k), or B 1-D tensors of different lengths


class FlexTok(nn.Module):
    """Images (B, C, H, W) <-> 1 to K ordered ids in [0, config.vocab_size), int64.

    Pixel models (in_channels = 3) take float images in [-1, 1] of config.image_size; others take latents of any
    range, and of any size up to image_size that is a multiple of patch_size.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config)

    # ---- training ------------------------------------------------------------------------------------------------

    def draw(self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All randomness of one training step for images like x: noise (B,C,H,W), t (B,), keep_k (B,), null (B,).

        With probability 1 - nested_prob an image keeps all K registers.
        """
        c, B = self.config, len(x)
        g = {"generator": generator, "device": x.device}
        noise = torch.randn(x.shape, **g)
        t = mode_timesteps(torch.rand(B, **g), c.mode_scale)
        keep_k = sample_keep_k(B, c.num_registers, c.keep_k_mode, **g)
        keep_k = torch.where(torch.rand(B, **g) < nested_prob, keep_k, c.num_registers)
        return noise, t, keep_k, torch.rand(B, **g) < c.null_prob

    def forward(self, x: Tensor, noise: Tensor, t: Tensor, keep_k: Tensor, null: Tensor) -> Tensor:
        """The objective for given draws: mean squared error of the velocity (paper, eq. 1), a scalar."""
        z = self.encoder(x)  # (B, K, F)
        codes, _ = self.fsq(z)
        v = self.decoder(interpolate(x, noise, t), t, codes, keep_k, null)
        loss = F.mse_loss(v.float(), noise - x)
        if self.config.latent_penalty:
            loss = loss + self.config.latent_penalty * (z.float().abs() - 1).clamp(min=0).square().mean()
        return loss

    def loss(self, images: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """The training objective on images (B, C, H, W) with fresh draws: a scalar."""
        images = self._check_images(images)
        return self(images, *self.draw(images, nested_prob, generator))

    # ---- images to ids -------------------------------------------------------------------------------------------

    def encode_continuous(self, x: Tensor) -> Tensor:
        """Register latents before FSQ: (B, C, H, W) -> (B, K, F)."""
        return self.encoder(self._check_images(x))

    @torch.no_grad()
    def encode(self, images: Tensor, num_tokens: int | None = None) -> Tensor:
        """The first k = num_tokens (default: all K) ids of each image: (B, C, H, W) -> (B, k) int64."""
        k = self.config.num_registers if num_tokens is None else num_tokens
        self._check_k(k, "num_tokens")
        return self.fsq(self.encoder(self._check_images(images), k))[1]

    # ---- ids to images -------------------------------------------------------------------------------------------

    def velocity(self, x_t: Tensor, t: Tensor | float, ids: Ids | None, null: bool | Tensor = False) -> Tensor:
        """One decoder evaluation: x_t (B, C, H, W), t in [0,1] (B,) or one number for all -> velocity (B, C, H, W).

        null (a bool, or (B,) bool) hides the ids of those images; ids may be None where it hides all.
        """
        x_t = self._check_shape(x_t, "x_t")
        null = torch.as_tensor(null, device=x_t.device)
        if null.dtype != torch.bool or null.shape not in ((), (len(x_t),)):
            raise ValueError(f"null is {null.dtype} {tuple(null.shape)}: give a bool, or a (B,) bool tensor")
        null = null.expand(len(x_t))
        if ids is None and bool(null.all()):
            ids = torch.zeros(len(x_t), 1, dtype=torch.long)
        codes, keep_k = self._check_ids(ids)
        if len(codes) != len(x_t):
            raise ValueError(f"{len(codes)} rows of ids for {len(x_t)} images x_t: give one row an image")
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).reshape(-1)  # one t broadcasts over the batch
        if len(t) not in (1, len(x_t)):
            raise ValueError(f"t has {len(t)} values for {len(x_t)} images: give one, or one an image")
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t={t.tolist()}: give timesteps from 0 (the image) to 1 (noise)")
        return self.decoder(x_t, t, codes, keep_k, null).float()

    @torch.no_grad()
    def decode(self, ids: Ids, steps: int = 25, guidance: float | Callable[[float], float] = 1.0, apg: bool | APG = False,
               noise: Tensor | None = None, generator: torch.Generator | None = None, progress: bool = False) -> Tensor:
        """Sample an image for each row of ids (any 1 <= k <= K; or a list of 1-D ids) -> (B, C, H, W).

        guidance: scale of classifier-free guidance, 1 for none, or a function of t. apg: adaptive projected guidance
        instead, with the paper's settings (True) or your own `APG` object. noise: where to start, (B, C, H, W);
        else drawn by `generator`. Pixel models return values in [-1, 1].
        """
        c, device = self.config, self.encoder.registers.device
        codes, keep_k = self._check_ids(ids)
        B = len(codes)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps={steps!r}: give a whole number of at least 1 (25 is usual)")
        if noise is None:
            noise = torch.randn((B, c.in_channels, c.image_size, c.image_size), generator=generator,
                                device=generator.device if generator else device)
        noise = self._check_shape(noise, "noise", finite=True).float()
        if len(noise) != B:
            raise ValueError(f"noise for {len(noise)} images, ids for {B}: give one noise an image")
        scale = guidance if callable(guidance) else lambda t: guidance
        scales = {i / steps: scale(i / steps) for i in range(steps, 0, -1)}
        for t, s in scales.items():
            if not isinstance(s, (int, float)) or not abs(s) < float("inf"):
                raise ValueError(f"guidance={s!r} at t={t:g}: give a finite number, or a function of t that returns one")
        guide = (APG(apg.momentum, apg.threshold, apg.eta) if isinstance(apg, APG) else APG()) if apg else cfg
        null = torch.zeros(B, dtype=torch.bool, device=device)
        # A GPU likes one batch better, unless the conditional half is much the longer.
        together = device.type == "cuda" and codes.shape[1] <= noise.shape[-1] * noise.shape[-2] // c.patch_size**2 // 2

        def velocity(x: Tensor, t: float) -> Tensor:
            s, time = scales[t], torch.tensor([t], device=device)
            if s == 1:
                return self.decoder(x, time, codes, keep_k, null).float()
            if together:
                twice = (x.repeat(2, 1, 1, 1), time, codes.repeat(2, 1, 1), keep_k.repeat(2), torch.cat([null, ~null]))
                v = self.decoder(*twice)
                return guide(*v.float().chunk(2), s)
            uncond = self.decoder(x, time, codes[:, :0], 0 * keep_k, ~null).float()  # P + 1 positions
            return guide(self.decoder(x, time, codes, keep_k, null).float(), uncond, s)

        images = euler(velocity, noise, steps, wrap=lambda i: tqdm(i, "decode", disable=not progress, leave=False))
        return images.clamp(-1, 1) if c.in_channels == 3 else images

    def reconstruct(self, images: Tensor, num_tokens: int | None = None, **decode_options) -> Tensor:
        """encode, then decode; options as for `decode`. (B, C, H, W) -> (B, C, H, W)."""
        ids = self.encode(images, num_tokens)
        if decode_options.get("noise") is None:  # latents may be smaller than image_size
            g = decode_options.get("generator")
            decode_options["noise"] = torch.randn(images.shape, generator=g, device=g.device if g else images.device)
        return self.decode(ids, **decode_options)

    # ---- weights on disk -----------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json; each appears whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to(dtype or v.dtype).contiguous() for k, v in self.state_dict().items()}
        part = directory / f".model.{os.getpid()}.part"
        try:
            save_file(state, part, metadata={"format": "minflextok"})
            os.replace(part, directory / "model.safetensors")
            part.write_text(to_json(self.config))
            os.replace(part, directory / "config.json")
        except (OSError, SafetensorError) as e:
            raise OSError(f"could not write weights to {directory} ({e}): is the disk full or read-only?") from None
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path) -> "FlexTok":
        """Load shipped weights by name ("cifar10-tiny"), or a directory that `save_pretrained` or a training run wrote.

        The model comes in float32 and eval mode, on the CPU.
        """
        directory = Path(name_or_directory)
        if not directory.exists():
            directory = WEIGHTS_DIR / name_or_directory
        if not directory.is_dir():
            shipped = ", ".join(sorted(d.name for d in WEIGHTS_DIR.glob("*/"))) or "none"
            raise FileNotFoundError(f"no weights {str(name_or_directory)!r}: shipped are {shipped}; "
                                    "else give a directory with model.safetensors and config.json")
        for name in ("config.json", "model.safetensors"):
            if not (directory / name).exists():
                raise FileNotFoundError(f"{directory} has no {name}: was it written by save_pretrained?")
        try:
            values = json.loads((directory / "config.json").read_text())
            config = from_dict(TokenizerConfig, values)
        except (ValueError, TypeError, AttributeError) as e:
            raise ValueError(f"{directory / 'config.json'}: {e}. (Published FlexToks: minflextok.official.load_official)"
                             ) from None
        return cls.from_tensors(config, read_safetensors(directory / "model.safetensors"),
                                directory / "model.safetensors").float()

    @classmethod
    def from_tensors(cls, config: TokenizerConfig, tensors: dict[str, Tensor], source: str | Path) -> "FlexTok":
        """A model around given weights, in eval mode; what does not fit is an error that names `source`."""
        with torch.device("meta"):  # shapes without memory: the weights take the parameters' places, uncopied
            model = cls(config)
        own = model.state_dict()
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or extra:
            tell = [f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)} in all)"
                    for what, names in (("lacks", missing), ("has unknown", extra)) if names]
            raise ValueError(f"{source} does not fit its config: it {' and '.join(tell)}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"{source} does not fit its config: {name} is {tuple(tensor.shape)}, "
                                 f"the config makes it {tuple(own[name].shape)}")
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    # ---- checks of what users give -------------------------------------------------------------------------------

    def _check_k(self, k: int, what: str) -> None:
        whole = not isinstance(k, bool) and hasattr(k, "__index__")  # numpy's whole numbers too
        if not whole or not 1 <= k <= self.config.num_registers:
            raise ValueError(f"{what}={k!r}: give a whole number from 1 to {self.config.num_registers}")

    def _check_shape(self, x: Tensor, what: str, finite: bool = False) -> Tensor:
        c, size, p = self.config, self.config.image_size, self.config.patch_size
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{what} is {kind}: give a float tensor (uint8 images: x.float() / 127.5 - 1)")
        fits = x.ndim == 4 and len(x) > 0 and x.shape[1] == c.in_channels
        if c.in_channels == 3:
            want, fits = f"{size}, {size}", fits and x.shape[2:] == (size, size)
        else:
            want = f"H, W) with H and W multiples of {p} up to {size}"
            fits = fits and all(0 < n <= size and n % p == 0 for n in x.shape[2:])
        if not fits:
            hint = " (resize or crop first)" if c.in_channels == 3 else ""
            raise ValueError(f"{what} has shape {tuple(x.shape)}: give (B >= 1, {c.in_channels}, {want}"
                             f"{')' if c.in_channels == 3 else ''}{hint}")
        if finite and not bool(x.isfinite().all()):
            raise ValueError(f"{what} hold{'s' * (what != 'images')} NaN or infinite values: clean them first")
        return x.to(self.encoder.registers.device, self.encoder.registers.dtype)

    def _check_images(self, x: Tensor) -> Tensor:
        x = self._check_shape(x, "images", finite=True)
        if self.config.in_channels == 3:
            low, high = (v.item() for v in x.detach().aminmax())
            if max(-low, high) > 1.01:
                raise ValueError(f"images range from {low:.4g} to {high:.4g}: scale them to [-1, 1] "
                                 "(from 0..255: x / 127.5 - 1; from 0..1: x * 2 - 1)")
            if low >= 0 and high > 0.5 and len(x) >= 8:
                warnings.warn("no value in these images is negative: are they in [0, 1]? FlexTok wants [-1, 1] (x * 2 - 1)",
                              stacklevel=3)
        return x

    def _check_ids(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """ids, (B, k) or a ragged list -> codes (B, max k, F), keep_k (B,), both on the model's device."""
        c = self.config
        rows = list(ids) if isinstance(ids, (Tensor, list, tuple)) else None
        if not rows or not all(isinstance(row, Tensor) and row.ndim == 1 for row in rows):
            got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"ids are {got}: give a (B, k) int64 tensor, or a list of 1-D int64 tensors")
        for row in rows:
            if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
                raise ValueError(f"ids have dtype {row.dtype}: give int64")
            self._check_k(len(row), "number of ids k")
        device = self.encoder.registers.device
        keep_k = torch.tensor([len(row) for row in rows], device=device)
        padded = ids if isinstance(ids, Tensor) else nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = padded.to(device, torch.long)  # with zeros, which keep_k masks
        low, high = (v.item() for v in padded.aminmax())
        if low < 0 or high >= c.vocab_size:
            raise ValueError(f"ids range from {low} to {high}: this model's are 0 to {c.vocab_size - 1}")
        return self.fsq.ids_to_codes(padded), keep_k


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, memory-mapped; a damaged or foreign file is a one-line error."""
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path} is not a whole safetensors file ({e}): download or save it again") from None
