"""FlexTok: the encoder, the quantizer and the decoder as one model, with the methods that a user calls."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import checks, published, savings, weights
from .config import TokenizerConfig
from .decoder import Decoder
from .encoder import Encoder
from .flow import APG, cfg, euler, interpolate, mode_timesteps
from .fsq import FSQ
from .nested_dropout import sample_keep_k
from .vae import VAE

Ids = Tensor | list[Tensor]  # (B, k), or B 1-D tensors of different lengths


def draw(
    c: TokenizerConfig,
    x: Tensor,
    nested_prob: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The random draws of a training step for x (B, C, H, W): noise like x, t (B,), keep_k (B,), null (B,) bool.

    With probability 1 - nested_prob an image keeps all K registers; with probability null_prob it is decoded from the
    null condition. `generator` is on the CPU. So are keep_k and null, by which a batch is laid out without waiting for a GPU.
    """
    B, g = len(x), generator
    on_device = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=g)))
    noise = torch.randn(x.shape, device=x.device, generator=on_device)
    t = mode_timesteps(torch.rand(B, generator=g), c.mode_scale).to(x.device, non_blocking=True)
    keep_k = sample_keep_k(B, c.num_registers, c.keep_k_mode, generator=g)
    keep_k = torch.where(torch.rand(B, generator=g) < nested_prob, keep_k, c.num_registers)
    return noise, t, keep_k, torch.rand(B, generator=g) < c.null_prob


class FlexTok(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> 1 to K ordered token ids in [0, config.vocab_size), int64.

    Pixel models work on images of config.image_size. Latent models work on latents (B, in_channels, h, w) of any size up
    to image_size that is a multiple of patch_size; with a VAE (stage 0, frozen) they take and return images, without
    one latents.

    savings: whether to use the equivalent but faster computations of savings.py.
    """

    savings = True

    def __init__(self, config: TokenizerConfig, vae: VAE | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config)
        self.vae = None
        if vae is not None:
            self.attach(vae)

    def attach(self, vae: VAE) -> "FlexTok":
        """Take and return images from now on, by way of this VAE; it is frozen. Returns self."""
        c = self.config
        if vae.config.latent_channels != c.in_channels or c.pixels:
            raise ValueError(
                f"a VAE with latent_channels={vae.config.latent_channels} for a tokenizer with "
                f"in_channels={c.in_channels}: they must agree, and 3 stands for pixels"
            )
        self.vae = vae.requires_grad_(False).eval()
        return self

    @property
    def image_size(self) -> int:
        """Side of the (largest) images in pixels."""
        return self.config.image_size * (self.vae.config.downscale if self.vae is not None else 1)

    @property
    def device(self) -> torch.device:
        return self.encoder.registers.device

    # ---- images to ids -----------------------------------------------------------------------------------------------

    def to_latents(self, images: Tensor) -> Tensor:
        """The input of encoder and flow: with a VAE, the mode of its posterior for the images; else the input, checked."""
        dtype = self.encoder.registers.dtype
        if self.vae is None:
            x = self._check_input(images, "images")
            return (
                checks.check_range(x) if self.config.pixels else checks.check_finite(x, "images")
            ).to(dtype)
        c, downscale = self.config, self.vae.config.downscale
        unit, largest = c.patch_size * downscale, c.image_size * downscale
        images = checks.check_shape(images, "images", 3, unit, largest).to(self.device)
        with torch.no_grad():  # a few at a time: at 256x256 the published VAE takes 0.3 GB an image
            return torch.cat([self.vae.encode(x) for x in images.split(8)]).to(dtype)

    def encode_continuous(self, images: Tensor) -> Tensor:
        """Register latents before FSQ: (B, 3, H, W) -> (B, K, F)."""
        return self._latents(self.to_latents(images), self.config.num_registers)

    @torch.no_grad()
    def encode(
        self, images: Tensor, num_tokens: int | None = None, batch_size: int | None = None
    ) -> Tensor:
        """The first k = num_tokens (default: all K) token ids of each image: (B, 3, H, W) -> (B, k) int64.

        batch_size: encode so many images at a time.
        """
        parts = _split(images, batch_size)
        return torch.cat([self.encode_latents(self.to_latents(x), num_tokens) for x in parts])

    @torch.no_grad()
    def encode_latents(self, x: Tensor, num_tokens: int | None = None) -> Tensor:
        """The first k = num_tokens (default: all K) token ids of what `to_latents` gives: (B, C, h, w) -> (B, k) int64."""
        K = self.config.num_registers
        k = K if num_tokens is None else checks.check_count(num_tokens, "num_tokens", 1, K)
        return self.fsq(self._latents(self._check_input(x, "latents"), k))[1]

    # ---- ids to images -----------------------------------------------------------------------------------------------

    def velocity(
        self, x_t: Tensor, t: Tensor | float, ids: Ids | None, null: bool | Tensor = False
    ) -> Tensor:
        """One decoder evaluation: x_t (B, C, H, W), t in [0, 1] (B,) or one number for all -> velocity (B, C, H, W).

        null (a bool, or (B,) bool): decode these images from the null condition; ids may be None if all are.
        """
        x_t = self._check_input(x_t, "x_t")
        null = torch.as_tensor(null)
        if null.dtype != torch.bool or null.shape not in ((), (len(x_t),)):
            raise ValueError(
                f"null is {null.dtype} {tuple(null.shape)}: give a bool, or a (B,) bool tensor"
            )
        null = null.to(self.device).expand(len(x_t))
        if ids is None and bool(null.all()):
            ids = torch.zeros(len(x_t), 1, dtype=torch.long)
        codes, keep_k, longest = self._codes(ids)
        if len(codes) != len(x_t):
            raise ValueError(
                f"{len(codes)} rows of ids for {len(x_t)} images x_t: give one row an image"
            )
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).reshape(-1)
        if len(t) not in (1, len(x_t)):
            raise ValueError(
                f"t has {len(t)} values for {len(x_t)} images: give one, or one an image"
            )
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t={t.tolist()}: give timesteps from 0 (the image) to 1 (noise)")
        registers = self.decoder.embed_registers(codes, keep_k, null)
        return self._velocities(x_t, t, [registers], [longest])[0]

    @torch.no_grad()
    def decode(
        self,
        ids: Ids,
        steps: int = 25,
        guidance: float | Callable[[float], float] = 1.0,
        apg: bool | APG = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        to_images: bool = True,
        batch_size: int | None = None,
    ) -> Tensor:
        """Sample an image for each row of ids (any 1 <= k <= K; or a list of 1-D tensors) -> (B, 3, H, W) in [-1, 1].

        steps: Euler steps. guidance: scale of classifier-free guidance, 1 for none, or a function of t. apg: adaptive
        projected guidance instead, with the paper's settings (True) or your own `APG` object. noise: the state at
        t = 1, (B, C, H, W); by default drawn from `generator`. to_images = False leaves the samples latents if there is
        a VAE. batch_size: decode so many images at a time.
        """
        c = self.config
        codes, keep_k, longest = self._codes(ids)
        checks.check_count(steps, "steps", 1)
        scale = _guidance(guidance, steps)
        if noise is None:
            device = generator.device if generator else self.device
            shape = (len(codes), c.in_channels, c.image_size, c.image_size)
            noise = torch.randn(shape, generator=generator, device=device)
        noise = checks.check_finite(self._check_input(noise, "noise"), "noise").float()
        if len(noise) != len(codes):
            raise ValueError(
                f"noise for {len(noise)} images, ids for {len(codes)}: give one noise an image"
            )

        def sample(codes: Tensor, keep_k: Tensor, noise: Tensor) -> Tensor:
            everyone = torch.ones_like(keep_k, dtype=torch.bool)
            cond = self.decoder.embed_registers(codes, keep_k, ~everyone)  # (B, K, D)
            uncond = self.decoder.embed_registers(codes, keep_k, everyone)
            guide = APG() if apg is True else cfg
            if isinstance(apg, APG):
                guide = APG(apg.momentum, apg.threshold, apg.eta)

            def velocity(x: Tensor, t: float) -> Tensor:
                time = torch.tensor([t], device=x.device)
                if scale(t) == 1:
                    return self._velocities(x, time, [cond], [longest])[0]
                return guide(*self._velocities(x, time, [cond, uncond], [longest, 0]), scale(t))

            x = euler(
                velocity,
                noise,
                steps,
                lambda i: tqdm(i, "decode", disable=not progress, leave=False),
            )
            if self.vae is not None and to_images:
                x = torch.cat([self.vae.decode(part) for part in x.split(8)])
            return x.clamp(-1, 1) if c.pixels or (self.vae is not None and to_images) else x

        parts = zip(*(_split(x, batch_size) for x in (codes, keep_k, noise)), strict=True)
        return torch.cat([sample(*part) for part in parts])

    def reconstruct(
        self, images: Tensor, num_tokens: int | None = None, **decode_options
    ) -> Tensor:
        """encode, then decode; options as for `decode`. (B, 3, H, W) -> (B, 3, H, W)."""
        batch_size = decode_options.get("batch_size")
        x = torch.cat([self.to_latents(part) for part in _split(images, batch_size)])
        ids = torch.cat([self.encode_latents(part, num_tokens) for part in _split(x, batch_size)])
        if decode_options.get("noise") is None:  # latents may be smaller than image_size
            g = decode_options.get("generator")
            decode_options["noise"] = torch.randn(
                x.shape, generator=g, device=g.device if g else x.device
            )
        return self.decode(ids, **decode_options)

    # ---- training ----------------------------------------------------------------------------------------------------

    def loss(
        self, images: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training objective on images (B, 3, H, W) with fresh draws: a scalar."""
        checks.check_number(nested_prob, "nested_prob", 0, "a probability from 0 to 1")
        x = self.to_latents(images)
        noise, t, keep_k, null = draw(self.config, x, nested_prob, generator)
        return self.flow_loss(x, noise, t, keep_k.to(x.device), null.to(x.device))

    def flow_loss(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        keep_k: Tensor,
        null: Tensor,
        longest: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """The objective for given draws, a scalar: |v(x_t, t, registers) - (noise - x)|^2, a mean over all values, plus
        latent_penalty times the mean of max(|z| - 1, 0)^2 over the latents z of the registers that are kept.

        x: images or latents (B, C, H, W); the draws as from `draw`. longest: no keep_k is larger (default: K), so that later
        registers need not be encoded. hidden: as in `Decoder.forward`.
        """
        K = self.config.num_registers
        longest = longest or K
        z = self._latents(x, longest)  # (B, longest, F)
        codes, _ = self.fsq(z)
        codes = F.pad(codes, (0, 0, 0, K - longest))  # (B, K, F)
        registers = self.decoder.embed_registers(codes, keep_k, null)
        v = self._velocities(interpolate(x, noise, t), t, [registers], [longest], hidden)[0]
        loss = F.mse_loss(v, noise - x)
        if self.config.latent_penalty:
            excess = (z.float().abs() - 1).clamp(min=0).square().mean(-1)  # (B, longest)
            kept = torch.arange(longest, device=x.device) < torch.where(null, 0, keep_k)[:, None]
            loss = loss + self.config.latent_penalty * (excess * kept).sum() / (len(x) * K)
        return loss

    # ---- the two networks, plain or with savings ---------------------------------------------------------------------

    def _latents(self, x: Tensor, num_registers: int) -> Tensor:
        """Latents of the first registers: (B, C, H, W) -> (B, k, F)."""
        if self.savings:
            return savings.latents(self.encoder, x, num_registers)
        return self.encoder(x)[:, :num_registers]

    def _velocities(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: list[Tensor],
        kept: list[int],
        hidden: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """The velocity under each condition (B, K, D), float32. Of condition i, the registers from kept[i] on are equal."""
        if self.savings:
            found = savings.velocities(self.decoder, x_t, t, conditions, kept, hidden)
        else:
            found = [self.decoder(x_t, t, registers, hidden) for registers in conditions]
        return [v.float() for v in found]

    # ---- weights on disk ---------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Identifies what maps images to ids: encoder, quantizer and VAE. Training the decoder further does not change it."""
        c = self.config
        parts = {
            name: x for name, x in self.state_dict().items() if not name.startswith("decoder.")
        }
        scale = self.vae.config.scaling_factor if self.vae is not None else 1
        settings = [c.patch_size, c.head_dim, c.causal_registers, scale]
        parts |= {"fsq.levels": self.fsq.L, "settings": torch.tensor(settings, dtype=torch.float64)}
        return weights.fingerprint(parts)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json, and the VAE's into vae/ if there is one."""
        weights.save(self, directory, dtype, skip=("vae.",))
        if self.vae is not None:
            self.vae.save_pretrained(Path(directory) / "vae", dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> "FlexTok":
        """Load weights: shipped ones by name ("cifar10-tiny"), a directory written by `save_pretrained` or a training
        run, or a published model: its name on the Hugging Face hub ("EPFL-VILAB/flextok_d18_d28_in1k"), its directory or its
        model.safetensors.

        The model is in eval mode, on the CPU, as `dtype` (float32 or bfloat16); its VAE stays float32.
        """
        path = weights.find(name)
        if not published.is_published(path):
            tok = weights.load(cls, TokenizerConfig, path, dtype)
            return tok.attach(VAE.from_pretrained(path / "vae")) if (path / "vae").is_dir() else tok
        found = published.read_tokenizer(path, dtype)
        tok = weights.build(cls, found.config, found.tensors, found.file).to(dtype)
        if found.vae_config is None:
            return tok
        return tok.attach(weights.build(VAE, found.vae_config, found.vae_tensors, found.file))

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _check_input(self, x: Tensor, name: str) -> Tensor:
        """x for encoder or flow, on the model's device: images, or latents of any size up to image_size."""
        c = self.config
        x = checks.check_shape(x, name, c.in_channels, c.patch_size, c.image_size, fixed=c.pixels)
        return x.to(self.device)

    def _codes(self, ids: Ids) -> tuple[Tensor, Tensor, int]:
        """ids -> codes (B, K, F), the number of ids of each row keep_k (B,), and the largest of them."""
        padded, lengths = checks.check_ids(ids, self.config.num_registers, self.config.vocab_size)
        keep_k = torch.tensor(lengths, device=self.device)
        return self.fsq.ids_to_codes(padded.to(self.device)), keep_k, max(lengths)


def _split(x: Tensor, batch_size: int | None) -> Iterator[Tensor] | tuple[Tensor, ...]:
    if batch_size is None:
        return (x,)
    return x.split(checks.check_count(batch_size, "batch_size", 1))


def _guidance(guidance: float | Callable[[float], float], steps: int) -> Callable[[float], float]:
    """The guidance scale as a function of t, checked at all steps."""
    scale = guidance if callable(guidance) else lambda t: guidance
    hint = "a finite number, or a function of t that returns one"
    for i in range(steps, 0, -1):
        checks.check_number(scale(i / steps), "guidance", hint=hint, where=f" at t={i / steps:g}")
    return scale
