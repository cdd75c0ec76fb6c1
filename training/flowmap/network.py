"""`FlowMapNet`: diffusers' U-Net as an average velocity u(x, t, s, c[, w])."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from training.flowmap.interpolant import Velocity
from training.flowmap.prompts import POSITIVE, stand_in_embeddings
from training.settings.model import ModelSettings


class FlowMapNet(nn.Module):
    """The U-Net with embeddings of s, of a prompt and optionally of the guidance strength w.

    s and w enter at scale 1 through the class projection (new weights): at scale 1000 the
    derivative of u in time would be about 1000 times larger. The last convolution starts at zero,
    so an untrained model returns its input: LQ in, LQ out.
    """

    prompts: Tensor

    def __init__(self, settings: ModelSettings, *, latent_channels: int) -> None:
        super().__init__()
        self.settings = settings
        self.latent_channels = latent_channels
        self.unet = UNet2DConditionModel(**_unet_arguments(settings, latent_channels))
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.register_buffer("prompts", stand_in_embeddings(settings.prompt_channels))

    @property
    def downsample(self) -> int:
        """Latent sides must be multiples of this."""
        return self.settings.latent_multiple

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor, prompt: Tensor | None = None, w: Tensor | None = None
    ) -> Tensor:
        """u(x, t, s, c[, w]): average velocity (B, C, h, w), float32 whatever the weights are.

        Args:
            x: latents (B, C, h, w), h and w multiples of `downsample`.
            t, s: times (B,), 0 <= s <= t <= 1.
            prompt: indices (B,) into the prompt embeddings; the positive one when None.
            w: guidance strengths (B,); 1, which is none, when None. Only used with
                `guidance_conditioning`.
        """
        dtype = self.unet.conv_in.weight.dtype
        if prompt is None:
            prompt = torch.full(t.shape, POSITIVE, device=t.device)
        conditions = [self._embed(s), self.prompts[prompt].float()]
        if self.settings.guidance_conditioning:
            conditions.append(self._embed(torch.ones_like(t) if w is None else w))
        output = self.unet(
            x.to(dtype),
            self.settings.time_embedding_scale * t,
            encoder_hidden_states=None,
            class_labels=torch.cat(conditions, dim=1).to(dtype),
        ).sample.float()
        if not self.settings.input_gain:
            return output
        bias, gain = output.chunk(2, dim=1)
        return bias + gain * x

    def velocity(self, guidance: float) -> Velocity:
        """u(x, t, s) as the model is used: with the positive prompt, at one guidance strength."""
        return lambda x, t, s: self(x, t, s, None, torch.full_like(t, guidance))

    def _embed(self, values: Tensor) -> Tensor:
        return get_timestep_embedding(
            values, self.settings.time_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )


def _unet_arguments(settings: ModelSettings, latent_channels: int) -> dict[str, Any]:
    attends = [layers > 0 for layers in settings.transformer_layers]
    conditions = settings.time_channels * (2 if settings.guidance_conditioning else 1)
    return {
        "in_channels": latent_channels,
        "out_channels": latent_channels * (2 if settings.input_gain else 1),
        "block_out_channels": settings.block_channels,
        "layers_per_block": settings.layers_per_block,
        "down_block_types": [
            "CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attends[-1] else "UNetMidBlock2D",
        "transformer_layers_per_block": [max(1, n) for n in settings.transformer_layers],
        "attention_head_dim": settings.attention_heads,
        # There are no text tokens: with no encoder states the second attention attends to the image
        # itself.
        "cross_attention_dim": settings.block_channels,
        "use_linear_projection": True,
        "norm_num_groups": settings.norm_groups,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": conditions + settings.prompt_channels,
    }
