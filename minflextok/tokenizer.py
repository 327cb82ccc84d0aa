"""FlexTok: the encoder, the quantiser and the decoder as one model, with what a user calls."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import weights
from .checks import check_finite, check_range, check_shape
from .config import TokenizerConfig
from .decoder import Decoder
from .encoder import Encoder
from .flow import APG, cfg, euler, interpolate, mode_timesteps
from .fsq import FSQ
from .nested_dropout import round_up_pow2, sample_keep_k
from .vae import VAE

Ids = Tensor | list[Tensor]  # (B, k), or B 1-D tensors of different lengths


class FlexTok(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> 1 to K ordered ids in [0, config.vocab_size), int64.

    Pixel models (in_channels = 3) work on images of config.image_size. Others work on latents (B, in_channels, h, w)
    of any size up to image_size that is a multiple of patch_size; with a VAE (stage 0, frozen here) they take and
    return images, without it latents.
    """

    def __init__(self, config: TokenizerConfig, vae: VAE | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config)
        self.repa: nn.Module | None = None  # a repa.Repa, in training alone
        self.vae = None
        if vae is not None:
            self.attach(vae)

    def attach(self, vae: VAE) -> "FlexTok":
        """Take and return images from now on, by way of this VAE; it is frozen. Returns self."""
        if vae.config.latent_channels != self.config.in_channels or self.config.in_channels == 3:
            raise ValueError(
                f"a VAE with latent_channels={vae.config.latent_channels} for a tokenizer with "
                f"in_channels={self.config.in_channels}: they must agree, and 3 stands for pixels"
            )
        self.vae = vae.requires_grad_(False).eval()
        return self

    @property
    def image_size(self) -> int:
        """Side of the (largest) images in pixels."""
        return self.config.image_size * (self.vae.config.downscale if self.vae is not None else 1)

    # ---- training ------------------------------------------------------------------------------------------------

    def draw(
        self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All randomness of one training step for images like x: noise (B,C,H,W), t (B,), keep_k (B,), null (B,).

        With probability 1 - nested_prob an image keeps all K registers. `generator` is one of the CPU, where keep_k
        and null stay: `forward` lays out its work by them, and must not wait for a GPU to tell.
        """
        c, B, g = self.config, len(x), generator
        on_device = torch.Generator(x.device).manual_seed(
            int(torch.randint(2**62, (), generator=g))
        )
        noise = torch.randn(x.shape, device=x.device, generator=on_device)
        t = mode_timesteps(torch.rand(B, generator=g), c.mode_scale).to(x.device, non_blocking=True)
        keep_k = sample_keep_k(B, c.num_registers, c.keep_k_mode, generator=g)
        keep_k = torch.where(torch.rand(B, generator=g) < nested_prob, keep_k, c.num_registers)
        return noise, t, keep_k, torch.rand(B, generator=g) < c.null_prob

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        keep_k: Tensor,
        null: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """The objective for given draws: mean squared error of the velocity (paper, eq. 1), a scalar. With a teacher's
        features (B, D, h, w) of the images, also the alignment of the decoder with them (REPA).

        x: what encoder and flow see, images or latents (B, C, H, W). An image that keeps k registers is encoded into
        those k alone, which see none of the others, and decoded from them and one more that stands for all dropped
        ones: loss and gradients of the full computation, for P + k positions instead of P + K. So images of like k
        go together: k is rounded up to a power of two, and to P/8, below which another group costs more than it saves
        (as it always does where K is at most P/4).
        """
        P, K = x.shape[-1] * x.shape[-2] // self.config.patch_size**2, self.config.num_registers
        seen = torch.where(
            null, 1, keep_k
        )  # the null condition hides all registers; one is the least to carry
        sizes = round_up_pow2(seen).clamp(min=P // 8 if K > P // 4 else K, max=K)
        total = 0.0
        for m in sizes.unique().tolist():
            i = (sizes == m).nonzero()[:, 0].to(x.device, non_blocking=True)
            k, hidden = (d.to(x.device, non_blocking=True)[i] for d in (keep_k.clamp(max=m), null))
            target = None if features is None else features[i]
            total = total + self._group_loss(x[i], noise[i], t[i], k, hidden, target, m) * len(i)
        return total / len(x)

    def _group_loss(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        keep_k: Tensor,
        null: Tensor,
        features: Tensor | None,
        m: int,
    ) -> Tensor:
        """The objective on images that keep at most m registers each."""
        c = self.config
        z = self.encoder(x, m)  # (B, m, F)
        codes, _ = self.fsq(z)
        if features is None:
            v, alignment = self.decoder(interpolate(x, noise, t), t, codes, keep_k, null), 0.0
        else:
            v, hidden = self.decoder(
                interpolate(x, noise, t), t, codes, keep_k, null, tap=c.repa_block
            )
            alignment = c.repa_weight * self.repa(hidden, features)
        loss = F.mse_loss(v.float(), noise - x) + alignment
        if c.latent_penalty:  # on what the decoder sees
            over = (z.float().abs() - 1).clamp(min=0).square().mean(-1)  # (B, m)
            kept = torch.arange(m, device=x.device) < torch.where(null, 0, keep_k)[:, None]
            loss = loss + c.latent_penalty * (over * kept).sum() / (len(x) * c.num_registers)
        return loss

    def loss(
        self, images: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training objective on images (B, C, H, W) with fresh draws: a scalar."""
        x = self.to_latents(images)
        return self(x, *self.draw(x, nested_prob, generator))

    # ---- images to ids -------------------------------------------------------------------------------------------

    def to_latents(self, images: Tensor) -> Tensor:
        """What encoder and flow see: the images, checked; with a VAE their latents (the mode of the posterior).

        With a VAE, an input of in_channels channels is taken for latents already.
        """
        if self.vae is None or (
            isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] != 3
        ):
            x = self._check_shape(images, "images", self.config.in_channels)
            x = check_range(x) if self.config.in_channels == 3 else check_finite(x, "images")
            return x.to(self.encoder.registers.dtype)
        images = self._check_shape(images, "images", 3, self.vae.config.downscale)
        with torch.no_grad():  # a few at a time: at 256x256 the published VAE takes 0.3 GB an image
            return torch.cat([self.vae.encode(x) for x in images.split(8)]).to(
                self.encoder.registers.dtype
            )

    def encode_continuous(self, images: Tensor) -> Tensor:
        """Register latents before FSQ: (B, C, H, W) -> (B, K, F)."""
        return self.encoder(self.to_latents(images))

    @torch.no_grad()
    def encode(self, images: Tensor, num_tokens: int | None = None) -> Tensor:
        """The first k = num_tokens (default: all K) ids of each image: (B, C, H, W) -> (B, k) int64."""
        k = self.config.num_registers if num_tokens is None else num_tokens
        self._check_k(k, "num_tokens")
        return self.fsq(self.encoder(self.to_latents(images), k))[1]

    # ---- ids to images -------------------------------------------------------------------------------------------

    def velocity(
        self, x_t: Tensor, t: Tensor | float, ids: Ids | None, null: bool | Tensor = False
    ) -> Tensor:
        """One decoder evaluation: x_t (B, C, H, W), t in [0,1] (B,) or one number for all -> velocity (B, C, H, W).

        null (a bool, or (B,) bool) hides the ids of those images; ids may be None where it hides all.
        """
        x_t = self._check_shape(x_t, "x_t", self.config.in_channels)
        null = torch.as_tensor(null, device=x_t.device)
        if null.dtype != torch.bool or null.shape not in ((), (len(x_t),)):
            raise ValueError(
                f"null is {null.dtype} {tuple(null.shape)}: give a bool, or a (B,) bool tensor"
            )
        null = null.expand(len(x_t))
        if ids is None and bool(null.all()):
            ids = torch.zeros(len(x_t), 1, dtype=torch.long)
        codes, keep_k = self._check_ids(ids)
        if len(codes) != len(x_t):
            raise ValueError(
                f"{len(codes)} rows of ids for {len(x_t)} images x_t: give one row an image"
            )
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).reshape(
            -1
        )  # one t broadcasts over the batch
        if len(t) not in (1, len(x_t)):
            raise ValueError(
                f"t has {len(t)} values for {len(x_t)} images: give one, or one an image"
            )
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t={t.tolist()}: give timesteps from 0 (the image) to 1 (noise)")
        return self.decoder(x_t, t, codes, keep_k, null).float()

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
    ) -> Tensor:
        """Sample an image for each row of ids (any 1 <= k <= K; or a list of 1-D ids) -> (B, C, H, W).

        guidance: scale of classifier-free guidance, 1 for none, or a function of t. apg: adaptive projected guidance
        instead, with the paper's settings (True) or your own `APG` object. noise: where to start, (B, C, H, W);
        else drawn by `generator`. Images are in [-1, 1]; to_images = False leaves them latents where there is a VAE.
        """
        c, device = self.config, self.encoder.registers.device
        codes, keep_k = self._check_ids(ids)
        B = len(codes)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps={steps!r}: give a whole number of at least 1 (25 is usual)")
        if noise is None:
            noise = torch.randn(
                (B, c.in_channels, c.image_size, c.image_size),
                generator=generator,
                device=generator.device if generator else device,
            )
        noise = self._check_shape(noise, "noise", c.in_channels).float()
        if not bool(noise.isfinite().all()):
            raise ValueError("noise holds NaN or infinite values: draw it with torch.randn")
        if len(noise) != B:
            raise ValueError(f"noise for {len(noise)} images, ids for {B}: give one noise an image")
        scale = guidance if callable(guidance) else lambda t: guidance
        scales = {i / steps: scale(i / steps) for i in range(steps, 0, -1)}
        for t, s in scales.items():
            if not isinstance(s, (int, float)) or not abs(s) < float("inf"):
                raise ValueError(
                    f"guidance={s!r} at t={t:g}: give a finite number, or a function of t that returns one"
                )
        guide = (
            (APG(apg.momentum, apg.threshold, apg.eta) if isinstance(apg, APG) else APG())
            if apg
            else cfg
        )
        null = torch.zeros(B, dtype=torch.bool, device=device)
        # A GPU likes one batch better, unless the conditional half is much the longer.
        together = (
            device.type == "cuda"
            and codes.shape[1] <= noise.shape[-1] * noise.shape[-2] // c.patch_size**2 // 2
        )

        def velocity(x: Tensor, t: float) -> Tensor:
            s, time = scales[t], self.decoder.modulations(torch.tensor([t], device=device))
            if s == 1:
                return self.decoder(x, time, codes, keep_k, null).float()
            if together:
                twice = (
                    x.repeat(2, 1, 1, 1),
                    time,
                    codes.repeat(2, 1, 1),
                    keep_k.repeat(2),
                    torch.cat([null, ~null]),
                )
                v = self.decoder(*twice)
                return guide(*v.float().chunk(2), s)
            uncond = self.decoder(
                x, time, codes[:, :0], 0 * keep_k, ~null
            ).float()  # P + 1 positions
            return guide(self.decoder(x, time, codes, keep_k, null).float(), uncond, s)

        x = euler(
            velocity,
            noise,
            steps,
            wrap=lambda i: tqdm(i, "decode", disable=not progress, leave=False),
        )
        if self.vae is not None and to_images:
            x = torch.cat([self.vae.decode(part) for part in x.split(8)])
        return x.clamp(-1, 1) if x.shape[1] == 3 else x

    def reconstruct(
        self, images: Tensor, num_tokens: int | None = None, **decode_options
    ) -> Tensor:
        """encode, then decode; options as for `decode`. (B, C, H, W) -> (B, C, H, W)."""
        x = self.to_latents(images)
        ids = self.encode(x, num_tokens)
        if decode_options.get("noise") is None:  # latents may be smaller than image_size
            g = decode_options.get("generator")
            decode_options["noise"] = torch.randn(
                x.shape, generator=g, device=g.device if g else x.device
            )
        return self.decode(ids, **decode_options)

    # ---- weights on disk -----------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Names what makes ids of images: encoder, quantiser and VAE. Training the decoder further leaves it as it is."""
        c, parts = (
            self.config,
            {name: x for name, x in self.state_dict().items() if not name.startswith("decoder.")},
        )
        scale = self.vae.config.scaling_factor if self.vae is not None else 1
        settings = torch.tensor(
            [c.patch_size, c.head_dim, c.causal_registers, scale], dtype=torch.float64
        )
        return weights.fingerprint(parts | {"fsq.levels": self.fsq.L, "settings": settings})

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json, and the VAE's into vae/ if there is one."""
        weights.save(self, directory, dtype, skip=("vae.", "repa."))
        if self.vae is not None:
            self.vae.save_pretrained(Path(directory) / "vae", dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> "FlexTok":
        """Load weights: shipped ones by name ("cifar10-tiny"), a directory that `save_pretrained` or a training run
        wrote, or a published model by its name on the Hugging Face hub ("EPFL-VILAB/flextok_d18_d28_in1k").

        The model comes in eval mode, on the CPU, as `dtype` (float32 or bfloat16); its VAE stays float32.
        """
        from .published import is_published, load_official  # it builds on this file

        directory = weights.find(name)
        if is_published(directory):
            return load_official(directory, dtype)
        tok = weights.load(cls, TokenizerConfig, directory, dtype)
        return (
            tok.attach(VAE.from_pretrained(directory / "vae"))
            if (directory / "vae").is_dir()
            else tok
        )

    # ---- checks of what users give -------------------------------------------------------------------------------

    def _check_k(self, k: int, what: str) -> None:
        whole = not isinstance(k, bool) and hasattr(k, "__index__")  # numpy's whole numbers too
        if not whole or not 1 <= k <= self.config.num_registers:
            raise ValueError(
                f"{what}={k!r}: give a whole number from 1 to {self.config.num_registers}"
            )

    def _check_shape(self, x: Tensor, what: str, channels: int, scale: int = 1) -> Tensor:
        """Any multiple of the patch up to image_size, for latents and (`scale` times larger) images of a VAE."""
        c = self.config
        x = check_shape(
            x, what, channels, c.patch_size * scale, c.image_size * scale, fixed=c.in_channels == 3
        )
        return x.to(self.encoder.registers.device)

    def _check_ids(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """ids, (B, k) or a ragged list -> codes (B, max k, F), keep_k (B,), both on the model's device."""
        c = self.config
        rows = list(ids) if isinstance(ids, (Tensor, list, tuple)) else None
        if not rows or not all(isinstance(row, Tensor) and row.ndim == 1 for row in rows):
            got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(
                f"ids are {got}: give a (B, k) int64 tensor, or a list of 1-D int64 tensors"
            )
        for row in rows:
            if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
                raise ValueError(f"ids have dtype {row.dtype}: give int64")
            self._check_k(len(row), "number of ids k")
        device = self.encoder.registers.device
        keep_k = torch.tensor([len(row) for row in rows], device=device)
        padded = (
            ids if isinstance(ids, Tensor) else nn.utils.rnn.pad_sequence(rows, batch_first=True)
        )
        padded = padded.to(device, torch.long)  # with zeros, which keep_k masks
        low, high = (v.item() for v in padded.aminmax())
        if low < 0 or high >= c.vocab_size:
            raise ValueError(
                f"ids range from {low} to {high}: this model's are 0 to {c.vocab_size - 1}"
            )
        return self.fsq.ids_to_codes(padded), keep_k
