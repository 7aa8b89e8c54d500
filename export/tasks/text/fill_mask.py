"""Fill-mask: masked language models, from Hugging Face."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from export.task_table import FILL_MASK
from export.tasks.task import Target
from export.tasks.text.agreement import AgreementTask
from export.tasks.text.rows_source import RawInput, RowsSource, rows_source_of_hugging_face, served_arguments
from service.tasks.text.fill_mask import ANSWER_MASK, FillMaskSettings, MaskedText
from service.tasks.text.fill_mask import FillMask as Served
from service.tasks.text.rows import RowsTask

# Few, because each mask has a number for each token of the vocabulary.
GOLDEN = ("A {} film.", "The {} makes no {}, sadly.")
MASK = "[MASK]"  # in generated texts


def masked_language_model_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a masked language model.

    Raises:
        LoadRefused: not a complete model of this task, or a tokenizer without a mask token.
    """
    from transformers import AutoModelForMaskedLM

    from export.conversion.checkpoints.reading import LoadRefused
    from export.conversion.text_checkpoint import read_text_checkpoint
    from export.networks.masked_language_model import MarkedTokenLogits

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForMaskedLM)
    tokenizer = checkpoint.tokenizer
    if tokenizer.mask_token is None:
        raise LoadRefused("the tokenizer has no mask_token, which marks what is to be filled in")
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    settings = FillMaskSettings(
        mask_token=tokenizer.mask_token, cleans_up=bool(tokenizer.clean_up_tokenization_spaces) and not is_bpe
    )
    names = (*checkpoint.arguments["input_names"], ANSWER_MASK)
    served = Served(**served_arguments(checkpoint) | {"graph_inputs": names}, settings=settings)
    texts = [text.replace("{}", settings.mask_token) for text in GOLDEN]
    return rows_source_of_hugging_face(
        checkpoint,
        MarkedTokenLogits,
        served,
        settings=settings,
        input_names=names,
        width=checkpoint.model.get_output_embeddings().weight.shape[0],
        golden=[RawInput({"text": text}, MaskedText(text)) for text in texts],
    )


class FillMask(AgreementTask):
    """Masked language models."""

    name = FILL_MASK
    answers_name = "likeliest tokens"

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Put a gap in place of the third word of each text."""
        words = [text.split(" ") for text in texts]
        return [MaskedText(" ".join([*each[:2], MASK, *each[3:]])) for each in words]

    def adapted(self, served: RowsTask, given: MaskedText) -> MaskedText:
        """Mark gaps as the model's tokenizer does."""
        assert isinstance(served, Served)
        return given._replace(text=given.text.replace(MASK, served.settings.mask_token))

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a masked language model."""
        self.write(masked_language_model_of_hugging_face(source), target, console)


TASK = FillMask()
