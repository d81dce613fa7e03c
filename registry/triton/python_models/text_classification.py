"""Text in, label and score out: runs in Triton's Python backend beside engine, tokenizer.json and manifest.json.

Copied into the model repository, so it needs nothing of Enginery: the server's Python has numpy, onnxruntime and
tokenizers. It answers as `enginery run` does (tasks/bundle/answer.py, tasks/model_tasks/inputs/texts.py); a test holds
the two together.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # the server's own
from tokenizers import Tokenizer

UNLIMITED_TOKENS = 512


class TritonPythonModel:
    """What Triton's Python backend looks for in model.py."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine and tokenizer of this version's folder."""
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = json.loads((folder / "manifest.json").read_bytes())
        build = manifest["build"]
        source = manifest["source"]
        # Format 1 of the manifest says "labels", and names the sequence in a profile's own keys.
        labels = source["labels"] if manifest["format_version"] == 1 else source["classes"]
        self.labels = np.array([label.encode() for label in labels], dtype=np.object_)
        self.inputs = [tensor["name"] for tensor in build["inputs"]]
        self.outputs = [tensor["name"] for tensor in build["outputs"]]
        self.tokenizer = _tokenizer(folder / "tokenizer.json", _longest(build["profiles"]))
        options = onnxruntime.SessionOptions()
        if not _adds_int8_exactly():
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(folder / build["file"]), options, providers=providers)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request; the texts of all of them run as one batch."""
        texts_of = [_texts(request) for request in requests]
        flat = [text for texts in texts_of for text in texts if all(texts)]
        answers = iter(self._classify(flat) if flat else ())
        return [self._response([next(answers) for _ in texts] if all(texts) else None) for texts in texts_of]

    def _classify(self, texts: list[str]) -> list[tuple[int, float]]:
        encodings = self.tokenizer.encode_batch(texts)
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        feed = {name: np.asarray(columns[name], dtype=np.int64) for name in self.inputs}
        logits = self.session.run(self.outputs, feed)[0].astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares = shifted / shifted.sum(axis=-1, keepdims=True)
        return [(int(row.argmax()), float(row.max())) for row in shares]

    def _response(self, answers: list[tuple[int, float]] | None) -> Any:
        if answers is None:
            error = pb_utils.TritonError("an empty text has no answer: send words, as UTF-8")
            return pb_utils.InferenceResponse(error=error)
        labels = self.labels[[best for best, _ in answers]].reshape(-1, 1)
        scores = np.array([[score] for _, score in answers], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("label", labels), pb_utils.Tensor("score", scores)])


def _texts(request: Any) -> list[str]:
    """Return the request's texts; one of nothing but space becomes empty."""
    stored = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
    texts = [bytes(text).decode("utf-8", errors="replace") for text in stored]
    return [text if text.strip() else "" for text in texts]


def _longest(profiles: list[dict[str, Any]]) -> int:
    ranges = [dict(profile["axes"]) if "axes" in profile else profile for profile in profiles]
    return max((axes["sequence"]["max"] for axes in ranges if "sequence" in axes), default=UNLIMITED_TOKENS)


def _tokenizer(file: Path, longest: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    padding = tokenizer.padding or {}
    tokenizer.enable_truncation(longest)
    pad_token = str(padding.get("pad_token", "[PAD]"))
    pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_padding(pad_id=0 if pad_id is None else pad_id, pad_token=pad_token)
    return tokenizer


def _adds_int8_exactly() -> bool:
    """Tell whether this CPU adds int8 products in 32 bits: as in tasks/graphs/session.py."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text(encoding="utf-8")
