"""The source of a translation conversion: a trained model from a run or from elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from export.conversion.golden_texts import GOLDEN_TEXTS
from export.conversion.model_source import provenance_of
from export.networks.translation import BOS_ID, EOS_ID, PAD_ID, TranslationConfig
from export.onnx_graphs.translation import ServedNetwork
from export.training.run_folder import read_result
from export.training.translation import NETWORKS, Translator, load_run_model, translate
from model_store.folder import TOKENIZER
from service.tasks.decoding.languages import Languages
from service.tasks.decoding.search import MODEL_DEFAULTS, Hypothesis, SearchDefaults
from service.tasks.decoding.sentence import Sentence
from service.tasks.decoding.settings import LanguageCodes, LanguageTokens, TextPrefix
from service.tasks.translation import Translation

UNKNOWN_CODE = ">>unknown<<"  # a language code that no model knows


@dataclass(frozen=True, kw_only=True)
class TranslationSource:
    """A PyTorch translation model with its tokenizer and languages."""

    module: ServedNetwork
    tokenizer_json: str
    source_language: str
    target_language: str
    target_tokenizer_json: str | None = None
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID
    pad_id: int = PAD_ID
    defaults: SearchDefaults = MODEL_DEFAULTS
    language_codes: LanguageCodes | None = None
    language_tokens: LanguageTokens | None = None
    prefixes: tuple[TextPrefix, ...] = ()
    task_type: type[Translation] = Translation
    provenance: dict[str, Any] = field(default_factory=dict)

    def task(self) -> Translation:
        """Pre- and postprocessing, as the service will do it."""
        return self.task_type(
            self.tokenizer_json,
            max_tokens=self.module.config.max_tokens,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            source_language=self.source_language,
            target_language=self.target_language,
            target_tokenizer_json=self.target_tokenizer_json,
            defaults=self.defaults,
            language_codes=self.language_codes,
            languages=Languages(self.source_language, self.target_language, self.language_tokens, self.prefixes),
            vocab_size=self.module.config.vocab_size,
            has_log_normalizers=True,
        )

    def golden_texts(self) -> list[str]:
        """Return the golden texts; with language codes also a text with a known and one with an unknown code."""
        if self.language_codes is None:
            return list(GOLDEN_TEXTS)
        codes = [*list(self.language_codes.ids)[:1], UNKNOWN_CODE]
        return [*GOLDEN_TEXTS, *(f"{code} {text}" for code, text in zip(codes, GOLDEN_TEXTS, strict=False))]

    def translate(self, translator: Translator, sentences: list[Sentence], batch_size: int = 64) -> list[Hypothesis]:
        """Translate sentences with this model's begin and end tokens."""
        ids, options = [each.ids for each in sentences], [each.options for each in sentences]
        return translate(translator, ids, options, batch_size, bos_id=self.bos_id, eos_id=self.eos_id)


def translation_source_of_run(run_dir: Path) -> TranslationSource:
    """Load the best weights of a finished training run as a source for conversion.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
        ValueError: its network cannot be served.
    """
    result = read_result(run_dir)
    if result["network"] != NETWORKS[TranslationConfig][0]:
        raise ValueError(f"{run_dir} holds a {result['network']}: only the Transformer has a form for serving")
    model = load_run_model(run_dir)
    with torch.no_grad():
        # [PAD] is neither attended to nor predicted, but its row may have grown without bound, and in int8 the largest
        # row sets the scale of all.
        model.embedding.weight[PAD_ID] = 0.0
    return TranslationSource(
        module=model,
        tokenizer_json=(run_dir / TOKENIZER).read_text(),
        source_language=result["source_language"],
        target_language=result["target_language"],
        provenance=provenance_of(result),
    )
