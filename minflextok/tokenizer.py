"""FlexTok: the encoder, the quantizer and the decoder as one model, with the methods that a user
calls."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import adaptive, checks, codec_checks, published, savings, weights
from .codec_checks import Ids
from .config import TokenizerConfig
from .decoder import Decoder
from .draws import Draws, draw
from .encoder import Encoder
from .flow import euler, interpolate
from .fsq import FSQ
from .guidance import APG, make_guide
from .vae import VAE


class FlexTok(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> 1 to K ordered token ids in [0, config.vocab_size), int64.

    - A pixel model takes and returns images of config.image_size.
    - A latent model takes and returns latents (B, in_channels, h, w) of a VAE (stage 0). h and w
      are multiples of patch_size up to image_size.
    - A latent model with its VAE attached (and frozen) takes and returns images.

    savings: True for the faster computations of savings.py, whose results are the same up to
    rounding; `tok.savings = False` for the plain ones.
    """

    savings = True

    def __init__(self, config: TokenizerConfig, vae: VAE | None = None):
        super().__init__()
        self.config = checks.check_type(config, TokenizerConfig, "config")
        self.encoder = Encoder(config)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config)
        self.vae = None
        if vae is not None:
            self.attach(vae)

    def attach(self, vae: VAE) -> "FlexTok":
        """Attach a VAE and freeze it: the model takes and returns images from now on. Returns
        self."""
        self.vae = codec_checks.check_vae(vae, self.config).requires_grad_(False).eval()
        return self

    @property
    def image_size(self) -> int:
        """Side of the (largest) images in pixels."""
        return self.config.image_size * (self.vae.config.downscale if self.vae is not None else 1)

    @property
    def device(self) -> torch.device:
        return self.encoder.registers.device

    # ---- images to ids ---------------------------------------------------------------------------

    def to_latents(self, images: Tensor) -> Tensor:
        """The input of the encoder and of the flow: with a VAE, the mode of its posterior for the
        images; else the images (pixels or latents) themselves, checked."""
        if self.vae is not None:
            unit = self.config.patch_size * self.vae.config.downscale
            x = self.vae.encode(checks.check_shape(images, "images", 3, unit, self.image_size))
        else:
            x = self._check_input(images, "images")
            x = checks.check_range(x) if self.config.pixels else x
        return x.to(self.encoder.registers.dtype)

    def _to_images(self, x: Tensor) -> Tensor:
        """The inverse: images in [-1, 1]; latents, for a latent model without a VAE."""
        if self.vae is not None:
            x = self.vae.decode(x)
        return x.clamp(-1, 1) if self.config.pixels or self.vae is not None else x

    def encode_continuous(self, images: Tensor) -> Tensor:
        """The values of the registers before FSQ: (B, 3, H, W) -> z (B, K, F)."""
        return self._encode_registers(self.to_latents(images), self.config.num_registers)

    def encode(
        self, images: Tensor, num_tokens: int | None = None, batch_size: int | None = None
    ) -> Tensor:
        """The first k = num_tokens (default: all K) token ids of each image: (B, 3, H, W) -> (B, k)
        int64.

        batch_size: the largest number of images to encode at a time (default: all).
        """
        return self.encode_latents(self.to_latents(images), num_tokens, batch_size)

    @torch.no_grad()
    def encode_latents(
        self, x: Tensor, num_tokens: int | None = None, batch_size: int | None = None
    ) -> Tensor:
        """As `encode`, for the output of `to_latents`: (B, C, h, w) -> (B, k) int64."""
        k = self.config.num_registers if num_tokens is None else num_tokens
        checks.check_count(k, "num_tokens", 1, self.config.num_registers)
        parts = _split(self._check_input(x, "latents"), batch_size)
        return torch.cat([self.fsq(self._encode_registers(part, k))[1] for part in parts])

    def encode_adaptive(self, images: Tensor, target: float, metric="psnr", **options):
        """For each image the shortest prefix of its ids that meets a target: see
        `adaptive.encode_adaptive`."""
        return adaptive.encode_adaptive(self, images, target, metric, **options)

    # ---- ids to images ---------------------------------------------------------------------------

    def velocity(
        self, x_t: Tensor, t: Tensor | float, ids: Ids | None, null: bool | Tensor = False
    ) -> Tensor:
        """One decoder evaluation: x_t (B, C, H, W), t in [0, 1] (B,) or one number for all ->
        velocity (B, C, H, W).

        null (a bool, or (B,) bool): which images have the null condition; ids may be None if all
        have it.
        """
        x_t = self._check_input(x_t, "x_t")
        null = codec_checks.check_null(null, len(x_t)).to(self.device)
        t = codec_checks.check_timesteps(t, len(x_t)).to(self.device)
        if ids is None and bool(null.all()):
            ids = torch.zeros(len(x_t), 1, dtype=torch.long)
        codes, keep_k, longest = self._codes(ids)
        checks.check_rows(codes, "ids", len(x_t), "x_t")
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
        """Sample an image for each row of ids (any 1 <= k <= K; or a list of 1-D tensors) -> (B, 3,
        H, W) in [-1, 1].

        steps: Euler steps.
        guidance: scale of classifier-free guidance, 1 for none, or a function of t.
        apg: adaptive projected guidance instead, with the paper's settings (True) or those of your
        own `APG` object.
        noise: the state at t = 1, (B, C, H, W); by default drawn from `generator` for images of
        image_size.
        to_images: False returns latents, without decoding them with the VAE.
        batch_size: the largest number of images to decode at a time (default: all).
        """
        c = self.config
        codes, keep_k, longest = self._codes(ids)
        checks.check_count(steps, "steps", 1, 100_000)
        checks.check_bools(progress=progress, to_images=to_images)
        times = [i / steps for i in range(steps, 0, -1)]
        checks.check_guidance(guidance, times, "t=")
        scale = guidance if callable(guidance) else lambda t: guidance
        checks.check_generator(generator)
        if noise is None:
            noise = self._noise((len(codes), c.in_channels, c.image_size, c.image_size), generator)
        noise = self._check_input(noise, "noise").float()
        checks.check_rows(noise, "noise", len(codes), "ids")

        def sample(codes: Tensor, keep_k: Tensor, noise: Tensor) -> Tensor:
            everyone = torch.ones_like(keep_k, dtype=torch.bool)
            cond = self.decoder.embed_registers(codes, keep_k, null=~everyone)  # (B, K, D)
            uncond = self.decoder.embed_registers(codes, keep_k, null=everyone)
            guide = make_guide(apg)

            def guided_velocity(x: Tensor, t: float) -> Tensor:
                time = torch.tensor([t], device=x.device)
                if scale(t) == 1:
                    return self._velocities(x, time, [cond], [longest])[0]
                v, u = self._velocities(x, time, [cond, uncond], [longest, 0])
                return guide(v, u, scale(t))

            x = euler(guided_velocity, noise, steps, progress)
            return self._to_images(x) if to_images else x

        parts = zip(*(_split(x, batch_size) for x in (codes, keep_k, noise)), strict=True)
        return torch.cat([sample(*part) for part in parts])

    def reconstruct(self, images: Tensor, num_tokens: int | None = None, **options) -> Tensor:
        """encode, then decode with the options of `decode`: (B, 3, H, W) -> (B, 3, H, W). The
        default noise has the size of the images, which may be smaller than image_size for a latent
        model."""
        x = self.to_latents(images)
        ids = self.encode_latents(x, num_tokens, options.get("batch_size"))
        if options.get("noise") is None:
            options["noise"] = self._noise(x.shape, options.get("generator"))
        return self.decode(ids, **options)

    # ---- training --------------------------------------------------------------------------------

    def loss(
        self, images: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training objective on images (B, 3, H, W) with fresh draws: a scalar."""
        nested_prob = checks.check_probability(nested_prob, "nested_prob")
        checks.check_generator(generator, "cpu")
        x = self.to_latents(images)
        return self.flow_loss(x, draw(self.config, x, nested_prob, generator).to(x.device))

    def flow_loss(
        self, x: Tensor, draws: Draws, longest: int | None = None, hidden: list | None = None
    ) -> Tensor:
        """The objective for given draws, a scalar: the mean over all values of (v(x_t, t,
        registers) - (noise - x))^2.

        latent_penalty, which is not in the paper, keeps z out of the flat part of FSQ's tanh: it
        weighs max(|z| - 1, 0)^2 of the registers that are kept, summed over them and divided by the
        number of all values of z.
        x: images or latents (B, C, H, W). longest: keep_k is at most this (default: K), so later
        registers are not encoded.
        hidden: as in `Decoder.forward`.
        """
        K = self.config.num_registers
        longest = K if longest is None else longest
        noise, t, keep_k, null = draws
        z = self._encode_registers(x, longest)  # (B, longest, F)
        codes, _ = self.fsq(z)
        codes = F.pad(codes, (0, 0, 0, K - longest))  # (B, K, F)
        registers = self.decoder.embed_registers(codes, keep_k, null)
        x_t = interpolate(x, noise, t)
        v = self._velocities(x_t, t, [registers], [longest], hidden)[0]
        loss = F.mse_loss(v, noise - x)
        if self.config.latent_penalty:
            excess = (z.float().abs() - 1).clamp(min=0).square().mean(-1)  # (B, longest)
            kept = torch.arange(longest, device=x.device) < torch.where(null, 0, keep_k)[:, None]
            loss = loss + self.config.latent_penalty * (excess * kept).sum() / (len(x) * K)
        return loss

    # ---- the two networks, plain or with savings -------------------------------------------------

    def _encode_registers(self, x: Tensor, k: int) -> Tensor:
        """The values z of the first k registers: (B, C, H, W) -> (B, k, F)."""
        if self.savings:
            return savings.encode_registers(self.encoder, x, k)
        return self.encoder(x)[:, :k]

    def _velocities(
        self, x_t: Tensor, t: Tensor, conditions: list, kept: list[int], hidden: list | None = None
    ) -> list[Tensor]:
        """The velocity under each condition (B, K, D), float32. kept[i]: in condition i, all
        registers with index >= kept[i] are the same vector."""
        if self.savings:
            found = savings.velocities(self.decoder, x_t, t, conditions, kept, hidden)
        else:
            found = [self.decoder(x_t, t, registers, hidden) for registers in conditions]
        return [v.float() for v in found]

    # ---- weights on disk -------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Identifies what maps images to ids: encoder, quantizer and VAE. Training the decoder
        further does not change it."""
        c = self.config
        tensors = {k: x for k, x in self.state_dict().items() if not k.startswith("decoder.")}
        scale = self.vae.config.scaling_factor if self.vae is not None else 1
        settings = [c.patch_size, c.head_dim, c.causal_registers, scale]
        return weights.fingerprint(tensors | {"fsq.levels": self.fsq.L}, settings)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json, and the VAE's into vae/
        if there is one."""
        checks.check_path(directory, "directory")
        weights.save(self, directory, checks.check_dtype(dtype, optional=True), skip=("vae.",))
        if self.vae is not None:
            self.vae.save_pretrained(Path(directory) / "vae", dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> "FlexTok":
        """Load weights: shipped ones by name ("cifar10-tiny"), a directory written by
        `save_pretrained` or a training run, or a published model: its name on the Hugging Face hub
        ("EPFL-VILAB/flextok_d18_d28_in1k"), its directory or its model.safetensors.

        The model is in eval mode, on the CPU, as `dtype` (float32, bfloat16 or float16); its
        VAE stays float32.
        """
        path, dtype = weights.find(checks.check_path(name)), checks.check_dtype(dtype)
        if not published.is_published(path):
            tok = weights.load(cls, TokenizerConfig, path, dtype)
            return tok.attach(VAE.from_pretrained(path / "vae")) if (path / "vae").is_dir() else tok
        found = published.read_tokenizer(path, dtype)
        tok = weights.build(cls, found.config, found.tensors, found.file).to(dtype)
        return tok.attach(VAE.build(found)) if found.vae_config is not None else tok

    # ---- helpers ---------------------------------------------------------------------------------

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.device if checks.check_generator(generator) is None else generator.device
        return torch.randn(shape, generator=generator, device=device)

    def _check_input(self, x: Tensor, name: str) -> Tensor:
        """x for the encoder or the flow, on the model's device: images, or latents of any size up
        to image_size."""
        c = self.config
        x = checks.check_shape(x, name, c.in_channels, c.patch_size, c.image_size, fixed=c.pixels)
        return checks.check_values(x, name).to(self.device)

    def _codes(self, ids: Ids) -> tuple[Tensor, Tensor, int]:
        """ids -> codes (B, K, F), padded with the code of id 0; keep_k (B,), the number of ids of
        each row; the largest keep_k."""
        padded, lengths = codec_checks.check_ids(ids, self.config)
        keep_k = torch.tensor(lengths, device=self.device)
        return self.fsq.ids_to_codes(padded.to(self.device)), keep_k, max(lengths)


def _split(x: Tensor, batch_size: int | None) -> tuple[Tensor, ...]:
    size = len(x) if batch_size is None else batch_size
    return x.split(checks.check_count(size, "batch_size", 1))
