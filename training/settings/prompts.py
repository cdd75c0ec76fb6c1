"""What a user may set about the two prompts that condition the model. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datagen.records import Settings

POSITIVE_PROMPT = (
    "a high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and "
    "natural lighting"
)
NEGATIVE_PROMPT = (
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, "
    "oversmooth"
)


class StandInPrompts(Settings):
    """Two fixed random directions: enough where only two conditions exist."""

    kind: Literal["stand_in"] = "stand_in"


class TextEncoderPrompts(Settings):
    """Pooled embeddings of both prompts by the text encoders of an SDXL-like checkpoint."""

    kind: Literal["text_encoders"] = "text_encoders"
    source: str
    """A hub id (`owner/name`), or a local folder that starts with `/`, `.` or `~`."""
    encoders: tuple[Literal["text_encoder", "text_encoder_2"], ...] = Field(
        ("text_encoder_2",), min_length=1
    )
    """Sub-folders of the source; the pooled outputs of several are put side by side. SDXL's own
    pooled embedding is the second one's, 1280 wide."""
    positive: str = Field(POSITIVE_PROMPT, min_length=1)
    negative: str = Field(NEGATIVE_PROMPT, min_length=1)


def is_folder(source: str) -> bool:
    """Whether a source of text encoders is a local folder, not a hub id."""
    return source.startswith(("/", ".", "~"))


PromptSettings = Annotated[StandInPrompts | TextEncoderPrompts, Field(discriminator="kind")]
