"""Small audio files, and tiny networks that read them, in Hugging Face layout."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
SOUNDS = ("high", "low", "noise")
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c", "d")
NETWORK = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16, 16, 16], "conv_kernel": [10, 8, 4], "conv_stride": [8, 8, 4], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "initializer_range": 0.3,
}  # fmt: skip


def draw_audio(
    seed: int, seconds: float = 0.3, *, rate: int = RATE, channels: int = 1, file_type: str = "WAV", **options: Any
) -> bytes:
    """Draw noise around a tone, as a file."""
    random = np.random.default_rng(seed)
    times = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * random.integers(100, 3000) * times)[:, None]
    return save_audio(0.4 * tone + 0.1 * random.standard_normal((len(times), channels)), rate, file_type, **options)


def save_audio(samples: Any, rate: int = RATE, file_type: str = "WAV", **options: Any) -> bytes:
    """Return the file of samples [samples] or [samples, channels]."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=file_type, **options)
    return file.getvalue()


def save_extractor(folder: Path, **settings: Any) -> Path:
    """Save a feature extractor."""
    from transformers import Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(**settings).save_pretrained(folder)
    return folder


def save_listener(folder: Path, labels: tuple[str, ...] = SOUNDS) -> Path:
    """Save a random classifier of audio and its feature extractor."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    names = dict(enumerate(labels))
    config = Wav2Vec2Config(
        **NETWORK, classifier_proj_size=16, id2label=names, label2id={name: number for number, name in names.items()}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    return save_extractor(folder)


def save_spectrogram_listener(folder: Path) -> Path:
    """Save a random Audio Spectrogram Transformer and its feature extractor."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=48,
        num_mel_bins=32, initializer_range=0.3, id2label=dict(enumerate(SOUNDS)),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=48, num_mel_bins=32).save_pretrained(folder)
    return folder


def save_recognizer(folder: Path) -> Path:
    """Save a random CTC network over LETTERS, its feature extractor and its vocabulary."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Wav2Vec2Config(**NETWORK, feat_extract_norm="layer", vocab_size=len(LETTERS), pad_token_id=0)
        Wav2Vec2ForCTC(config).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}), encoding="utf-8")
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    return save_extractor(folder)
