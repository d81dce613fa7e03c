"""Audio classification: one audio file in, the model's best label out, judged by accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.audio.audio_task import AudioTask, explain_audio, is_audio
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Metric, ShownAnswer
from tasks.model_tasks.inputs.filter_banks import (
    has_filter_banks,
    open_filter_bank_encoder,
    read_filter_bank_extractor,
)
from tasks.model_tasks.labels import (
    SPECTROGRAM_MODELS,
    check_head,
    check_one_label,
    compute_softmax,
    explain_label,
    number_labels,
    read_known_label,
)
from tasks.model_tasks.scores import ACCURACY, RANKED, TOP_5_ACCURACY


@dataclass(frozen=True)
class LabelledAudio:
    """The label of an audio file; `score` is its softmax probability."""

    audio: str
    label: str
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.label} ({self.score:.0%})  {self.audio}"


@dataclass(frozen=True)
class AudioClassification(AudioTask):
    """One label per audio file; output 0 of the graph is logits [batch, labels], the answer ranks the best of them."""

    name: str = "audio-classification"
    columns: tuple[str, ...] = ("audio", "label")
    row_needs: str = "audio that can be decoded and a label"
    export_task: str = "audio-classification"
    metrics: tuple[Metric, ...] = (ACCURACY, TOP_5_ACCURACY)
    answer_axes: tuple[str, ...] = ("batch", "labels")
    optional_axes: tuple[str, ...] = ("samples",)

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[bytes, int | str] | None:
        """Return (audio file, label) where the audio can be decoded, and the label is one of the dataset's."""
        audio, label = row["audio"], read_known_label(row["label"], classes)
        return (audio, label) if label is not None and is_audio(audio) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the audio or the label of a row."""
        return explain_audio(row["audio"]) or explain_label(row["label"], of="audio file")

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's.
        """
        return replace(rows, targets=tuple(number_labels(rows.targets, rows.classes, source, rows.source)))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint reads a waveform, and has a head that gives one label for it.

        Raises:
            BadInput: it reads something else, has another head or none, or gives several labels or a number.
        """
        check_head(config, self.name, ("ForSequenceClassification", "ForAudioClassification"))
        check_one_label(config, of="audio file")

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that profiles name the samples of a waveform, and no samples of spectrograms, which have one size.

        Raises:
            BadInput: they do not.
        """
        has_one_size = config.get("model_type") in SPECTROGRAM_MODELS
        if has_one_size == ("samples" in largest):
            change = (
                "reads spectrograms of one size: remove samples from the profiles"
                if has_one_size
                else "reads a waveform: add samples to the profiles, such as {min: 1600, opt: 32000, max: 160000}"
            )
            raise BadInput(f"the checkpoint is a {config.get('model_type')}, which {change}")

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return no sizes: those of spectrograms are in config.json too, where the exporter finds them.

        Raises:
            BadInput: there is no feature extractor.
        """
        if has_filter_banks(folder):
            read_filter_bank_extractor(folder)
            return {}
        return super().fixed_sizes(folder)

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> Any:
        """Open the folder's feature extractor, of waveforms or of filter banks."""
        if has_filter_banks(folder):
            return open_filter_bank_encoder(folder)
        return super().open_encoder(folder, input_names, largest)

    def measure_inputs(self, folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode audio with the folder's feature extractor, which nobody has tried."""
        if not has_filter_banks(folder):
            return super().measure_inputs(folder, inputs, largest)
        encoder = open_filter_bank_encoder(folder)
        for content in inputs:
            encoder.encode([content])
        return EncodedSizes((), 0)

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the classes of the largest logits, best first, int64 [5] per file; [1] of at most 5 classes."""
        best = np.argsort(-outputs[0], axis=-1, kind="stable").astype(np.int64)
        return list(best[:, : RANKED if best.shape[1] > RANKED else 1])

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the most probable label of each file."""
        return [
            LabelledAudio(file, classes[int(row.argmax())], float(row.max()))
            for file, row in zip(questions, compute_softmax(outputs[0]), strict=True)
        ]


AUDIO_CLASSIFICATION = AudioClassification()
