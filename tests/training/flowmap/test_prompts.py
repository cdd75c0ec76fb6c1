"""Prompt embeddings: from tiny CLIP text encoders, once for a run; their file; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from datagen.errors import FlowmapsrError
from tests.support.tiny import MODEL
from training.flowmap.initial import fetch_inputs, initial_network
from training.flowmap.prompts import (
    PROMPTS_FILE,
    encode_once,
    encode_prompts,
    read_prompts,
    stand_in,
    write_prompts,
)
from training.run_dir.paths import StagePaths
from training.settings.model import NEGATIVE_PROMPT, POSITIVE_PROMPT, TextEncoderPrompts
from training.settings.recipe import TrainingRecipe

WIDTH, PROJECTION, LENGTH = 16, 24, 77
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,-"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL-like folder: two random text encoders with tokenizers that spell letter by letter."""
    folder = tmp_path_factory.mktemp("sdxl")
    for name, kind, seed in (
        ("text_encoder", CLIPTextModel, 0),
        ("text_encoder_2", CLIPTextModelWithProjection, 1),
    ):
        tokenizer = _tokenizer(folder / name.replace("text_encoder", "tokenizer"))
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=PROJECTION,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder / name)
    return folder


def _tokenizer(folder: Path) -> CLIPTokenizer:
    units = [letter + end for letter in LETTERS for end in ("", "</w>")]
    vocabulary = [*units, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    numbers = {unit: number for number, unit in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _settings(source: Path, **values: Any) -> TextEncoderPrompts:
    return TextEncoderPrompts.model_validate({"source": str(source), **values})


def _by_hand(folder: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled outputs of both encoders: the last state at the first end token, projected or not."""
    units = [_unit(word, i) for word in _words(text) for i in range(len(word))]
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"]
    numbers = [vocabulary["<|startoftext|>"], *(vocabulary[unit] for unit in units)]
    numbers = numbers[: LENGTH - 1] + [end] * max(1, LENGTH - len(numbers))
    pooled = []
    for name, kind in (
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
    ):
        model = kind.from_pretrained(folder / name).eval()
        with torch.no_grad():
            output = model(torch.tensor([numbers]))
            state = output.last_hidden_state[:, numbers.index(end)]
            pooled.append(model.text_projection(state) if name.endswith("2") else state)
    return pooled[0], pooled[1]


def _words(text: str) -> list[str]:
    """CLIP's words: runs of letters, single digits, runs of anything else."""
    import re

    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())


def _unit(word: str, index: int) -> str:
    return word[index] + ("</w>" if index == len(word) - 1 else "")


def test_pooled_embeddings_of_both_prompts_side_by_side(sdxl: Path) -> None:
    texts = ("a sharp image, 8k", "blur")
    settings = _settings(
        sdxl,
        encoders=["text_encoder", "text_encoder_2"],
        positive=texts[0],
        negative=texts[1],
    )
    prompts = encode_prompts(settings)
    expected = torch.cat([torch.cat(_by_hand(sdxl, text), dim=1) for text in texts])
    assert prompts.embeddings.shape == (2, WIDTH + PROJECTION)
    torch.testing.assert_close(prompts.embeddings, expected)
    assert prompts.texts == texts and "text_encoder+text_encoder_2" in prompts.made_by


def test_the_default_is_the_projected_second_encoder_on_the_papers_prompts(sdxl: Path) -> None:
    prompts = encode_prompts(_settings(sdxl))
    expected = torch.cat([_by_hand(sdxl, text)[1] for text in (POSITIVE_PROMPT, NEGATIVE_PROMPT)])
    torch.testing.assert_close(prompts.embeddings, expected)
    assert not torch.allclose(prompts.embeddings[0], prompts.embeddings[1])


def _recipe(folder: Path, source: Path | str, *, channels: int) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "manifest": "/data",
            "output": str(folder),
            "model": {**MODEL, "prompt_channels": channels},
            "prompts": {"kind": "text_encoders", "source": str(source)},
            "stages": [{"name": "one", "objective": {"kind": "flow_matching"}, "steps": 1}],
        }
    )


def test_a_run_encodes_once_and_gives_the_embeddings_to_its_network(
    sdxl: Path, tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint"
    source.symlink_to(sdxl)
    recipe = _recipe(tmp_path / "run", source, channels=PROJECTION)
    folder = StagePaths(tmp_path / "run", "one")
    fetch_inputs(recipe, folder)
    source.unlink()  # stored embeddings need no encoder
    fetch_inputs(recipe, folder)
    initial = initial_network(recipe, folder, latent_channels=4)
    assert torch.equal(initial.net.prompts, read_prompts(folder.run / PROMPTS_FILE).embeddings)
    torch.testing.assert_close(initial.net.prompts, encode_prompts(_settings(sdxl)).embeddings)


def test_embeddings_of_another_width_are_refused_with_the_setting(
    sdxl: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlowmapsrError, match=r"width 24.*takes 8: set model\.prompt_channels=24"):
        encode_once(tmp_path, _settings(sdxl), channels=8)


def test_a_source_without_encoders_is_named(sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FlowmapsrError, match=r"prompts\.source: .*no text encoder 'text_encoder_2'"
    ):
        encode_prompts(_settings(tmp_path))
    pickled = tmp_path / "pickled"
    (pickled / "text_encoder_2").mkdir(parents=True)
    (pickled / "tokenizer_2").symlink_to(sdxl / "tokenizer_2")
    config = (sdxl / "text_encoder_2" / "config.json").read_text()
    (pickled / "text_encoder_2" / "config.json").write_text(config)
    state = CLIPTextModelWithProjection.from_pretrained(sdxl / "text_encoder_2").state_dict()
    torch.save(state, pickled / "text_encoder_2" / "pytorch_model.bin")
    with pytest.raises(FlowmapsrError, match="with safetensors files"):
        encode_prompts(_settings(pickled))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "1 tensors are missing, such as text_projection.weight"),
        ("not finite", r"of text_projection\.weight are not finite"),
        ("none", ""),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused_and_a_variant_is_read(
    sdxl: Path, tmp_path: Path, fault: str, message: str
) -> None:
    shutil.copytree(sdxl, tmp_path / "sdxl")
    path = tmp_path / "sdxl" / "text_encoder_2" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    if fault == "missing":
        del weights["text_projection.weight"]
    if fault == "not finite":
        weights["text_projection.weight"][0, 0] = float("inf")
    path.unlink()
    variant = path.with_name("model.fp16.safetensors")
    safetensors.torch.save_file(weights, variant, metadata={"format": "pt"})
    if not message:
        expected = encode_prompts(_settings(sdxl)).embeddings
        assert torch.equal(encode_prompts(_settings(tmp_path / "sdxl")).embeddings, expected)
        return
    with pytest.raises(FlowmapsrError, match=message):
        encode_prompts(_settings(tmp_path / "sdxl"))


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / PROMPTS_FILE
    write_prompts(path, stand_in(8))
    back = read_prompts(path)
    assert (back.made_by, back.texts) == (stand_in(8).made_by, stand_in(8).texts)
    assert torch.equal(back.embeddings, stand_in(8).embeddings)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FlowmapsrError, match="does not hold prompt embeddings"):
        read_prompts(path)


@pytest.mark.parametrize("values", [{"encoders": []}, {"encoders": ["t5"]}, {"positive": ""}])
def test_settings_that_cannot_work_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _settings(Path("/sdxl"), **values)
