"""One module per Hugging Face task: rows to feeds, outputs to answers, answers to scores.

Call `model_task(name)`, or `source_task(source)` where the task may be a module of the user's. Never imports a backend
or opens a session: who calls it runs the engine.
"""

import difflib
from collections.abc import Mapping, Sequence

from registry.errors import BadInput
from registry.records import SourceFiles
from tasks.model_tasks.audio.audio_classification import AUDIO_CLASSIFICATION
from tasks.model_tasks.audio.speech_recognition import AUTOMATIC_SPEECH_RECOGNITION
from tasks.model_tasks.audio.speech_to_text import SPEECH_TO_TEXT
from tasks.model_tasks.contract import ModelTask
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION
from tasks.model_tasks.images.object_detection import OBJECT_DETECTION
from tasks.model_tasks.images.semantic_segmentation import SEMANTIC_SEGMENTATION
from tasks.model_tasks.own.code import TASK_FILE
from tasks.model_tasks.own.module_task import MODULE, open_module_task
from tasks.model_tasks.texts.fill_mask import FILL_MASK
from tasks.model_tasks.texts.multi_label_classification import MULTI_LABEL_CLASSIFICATION
from tasks.model_tasks.texts.question_answering import QUESTION_ANSWERING
from tasks.model_tasks.texts.sentence_embedding import FEATURE_EXTRACTION, SENTENCE_SIMILARITY
from tasks.model_tasks.texts.text2text_generation import TEXT2TEXT_GENERATION
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.model_tasks.texts.text_pair_classification import TEXT_PAIR_CLASSIFICATION
from tasks.model_tasks.texts.text_regression import TEXT_RANKING, TEXT_REGRESSION
from tasks.model_tasks.texts.token_classification import TOKEN_CLASSIFICATION

__all__ = ["MODEL_TASKS", "MODULE", "ModelTask", "model_task", "source_task"]

_ALL: tuple[ModelTask, ...] = (
    TEXT_CLASSIFICATION,
    TEXT_PAIR_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    FEATURE_EXTRACTION,
    SENTENCE_SIMILARITY,
    IMAGE_CLASSIFICATION,
    SEMANTIC_SEGMENTATION,
    OBJECT_DETECTION,
    AUDIO_CLASSIFICATION,
    AUTOMATIC_SPEECH_RECOGNITION,
    SPEECH_TO_TEXT,
    QUESTION_ANSWERING,
    MULTI_LABEL_CLASSIFICATION,
    TEXT_REGRESSION,
    TEXT_RANKING,
    TEXT2TEXT_GENERATION,
    FILL_MASK,
)
MODEL_TASKS: Mapping[str, ModelTask] = {task.name: task for task in _ALL}


def model_task(name: str) -> ModelTask:
    """Return the task of that name.

    Raises:
        BadInput: there is none, the message names those that there are; or it is code of a user's own.
    """
    if name == MODULE:
        raise BadInput(f"task: {MODULE} is Python code of the model's owner, which this does not run")
    if name not in MODEL_TASKS:
        near = difflib.get_close_matches(name, (*MODEL_TASKS, MODULE), n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(MODEL_TASKS)}"
        raise BadInput(f"there is no task {name[:80]!r}: {hint}")
    return MODEL_TASKS[name]


def source_task(source: SourceFiles, axes: Sequence[str] = ()) -> ModelTask:
    """Return the task of a release's source; a user's module is that in the source's folder, `axes` the profiles'.

    Raises:
        BadInput: as `model_task`, or the module is gone or was changed.
    """
    if source.source.task != MODULE:
        return model_task(source.source.task)
    digest = next((record.sha256 for record in source.files if record.path == TASK_FILE), None)
    return open_module_task(source.directory / TASK_FILE, axes, digest=digest)
