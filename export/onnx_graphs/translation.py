"""Exports the two graphs of a translation model as they are served.

    encoder.onnx   ids, mask ──> keys and values of the source, for each decoder layer; once a sentence
    model.onnx     newest ids, keys and values ──> likeliest next tokens; once a token

Nothing is computed twice: a decoder step computes one token a row and writes its keys and values behind those of the
row's earlier tokens, in place, in a cache that the caller keeps. Rows may be at different positions, which is what lets
sentences join and leave between steps.

Attention is ONNX Runtime's own: to the row's earlier tokens `com.microsoft.GroupQueryAttention`, which knows a length
for each row and a cache that is longer, and to the source `com.microsoft.MultiHeadAttention`, where the beams of a
sentence are the queries of one attention. Outside an export these operators compute nothing, so tests prove
equality with `export.networks.translation` on the exported graphs.

Shapes: B sentences of an encoder call, S source tokens, M real source tokens of all of them, N sentences of a step,
W beams, R = N x W rows, P places of the cache, D width of the model, H heads, K width of a head, V vocabulary,
C likeliest tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.networks.seq2seq import Seq2SeqTransformer
from export.networks.transformer import HIDDEN, Packing, packed_layer
from export.networks.translation import PAD_ID, CrossAttention, DecoderLayer, State, TranslationTransformer
from export.onnx_graphs.passes import cpu_session, export_graph, halve
from export.onnx_graphs.seq2seq import PackedSeq2SeqEncoder, Seq2SeqDecoderStep
from model_store.folder import ENCODER, GRAPH

# Places of the cache beyond those in use: a running batch has some too, and a graph must not count them.
SPARE_PLACES = 1


def cache_names(num_decoder_layers: int) -> list[str]:
    """Return the names of the KV cache of earlier tokens, [R, H, P, K]."""
    return [f"{part}_{number}" for number in range(num_decoder_layers) for part in ("key", "value")]


def cross_names(num_decoder_layers: int) -> list[str]:
    """Return the names of the cross-attention keys and values, [N, H, S, K]."""
    return [f"cross_{name}" for name in cache_names(num_decoder_layers)]


class PackedEncoder(nn.Module):
    """The encoder and the decoder's cross-attention keys and values; it computes only real tokens."""

    def __init__(self, model: TranslationTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encode ids and mask, int64 [B, S]; return keys and values for each decoder layer, [B, H, S, K]."""
        model, (B, S) = self.model, input_ids.shape
        packing = Packing(attention_mask)
        position_M = packing.real_only(torch.arange(S).expand(B, S))
        x_MD = model.embedding(packing.real_only(input_ids)) * model.embedding_scale
        x_MD = x_MD + model.positions_TD.index_select(0, position_M)
        for layer in model.encoder:
            x_MD = packed_layer(layer, x_MD, packing, position_M)
        memory_MD = model.encoder_norm(x_MD)
        H, K = model.config.num_heads, model.config.d_model // model.config.num_heads
        return tuple(
            packing.put_back(part_MD).view(B, S, H, K).transpose(1, 2)
            for layer in model.decoder
            for part_MD in layer.cross.key_value(memory_MD).chunk(2, dim=-1)
        )


class DecoderStep(nn.Module):
    """The decoder step: one more token for each row."""

    def __init__(self, model: TranslationTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids_NW: Tensor, past_R: Tensor, longest: Tensor, source_mask: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute a step.

        Args:
            ids_NW: the newest token of each row, int64.
            past_R: tokens that each row has in the cache already, int32.
            longest: the largest of these, plus one; int32, no dimensions.
            source_mask: int32 [N, S], 1 for a real token.
            states: the cache of each layer, then the source's keys and values of each layer.

        Returns:
            logits of the next token, [R, V], and the caches, which are the ones that came in.
        """
        model, (N, W) = self.model, ids_NW.shape
        layers = len(model.decoder)
        position_NW1 = past_R.view(N, W, 1).to(torch.int64)
        embedded_NWD = model.embedding(ids_NW) * model.embedding_scale
        x_NWD = embedded_NWD + model.positions_TD.index_select(0, position_NW1.flatten()).view(N, W, -1)
        caches = []
        for number, layer in enumerate(model.decoder):
            cache = states[2 * number], states[2 * number + 1]
            cross = states[2 * (layers + number)], states[2 * (layers + number) + 1]
            normed_NWD = layer.attention_norm(x_NWD) if layer.pre_norm else x_NWD
            mixed_NWD, *after = _attend_to_past(layer, normed_NWD, cache, past_R, longest)
            caches += after
            x_NWD = x_NWD + mixed_NWD
            if layer.pre_norm:
                x_NWD = x_NWD + _attend_to_source(layer.cross, layer.cross_norm(x_NWD), cross, source_mask)
                x_NWD = x_NWD + layer.feed_forward(layer.feed_forward_norm(x_NWD))
            else:
                x_NWD = layer.attention_norm(x_NWD)
                x_NWD = layer.cross_norm(x_NWD + _attend_to_source(layer.cross, x_NWD, cross, source_mask))
                x_NWD = layer.feed_forward_norm(x_NWD + layer.feed_forward(x_NWD))
        logits_RV = model.logits(model.decoder_norm(x_NWD).flatten(0, 1))
        return logits_RV, *caches


def _attend_to_past(
    layer: DecoderLayer, x_NWD: Tensor, cache: tuple[Tensor, Tensor], past_R: Tensor, longest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (N, W, D), attention = x_NWD.shape, layer.attention
    qkv_R13D = attention.qkv(x_NWD).view(N * W, 1, 3 * D)
    heads: dict[str, Any] = {"num_heads": attention.num_heads, "kv_num_heads": attention.num_heads}
    mixed_R1D, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (qkv_R13D, None, None, *cache, past_R, longest),
        heads,
        dtypes=(x_NWD.dtype,) * 3,
        shapes=((N * W, 1, D), cache[0].shape, cache[1].shape),
        version=1,
    )
    return attention.out(mixed_R1D.view(N, W, D)), key, value


def _attend_to_source(
    attention: CrossAttention, x_NWD: Tensor, cross: tuple[Tensor, Tensor], source_mask: Tensor
) -> Tensor:
    mixed_NWD = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (attention.query(x_NWD), *cross, None, source_mask),
        {"num_heads": attention.num_heads, "mask_filter_value": HIDDEN},
        dtype=x_NWD.dtype,
        shape=x_NWD.shape,
        version=1,
    )
    attended_NWD: Tensor = attention.out(mixed_NWD)
    return attended_NWD


ServedNetwork = TranslationTransformer | Seq2SeqTransformer


def export_encoder(model: ServedNetwork, path: Path) -> None:
    """Write `encoder.onnx`; batch and length are dynamic."""
    axes = {0: torch.export.Dim("sentences", min=1), 1: torch.export.Dim("tokens", min=1, max=model.config.max_tokens)}
    export_graph(
        PackedEncoder(model) if isinstance(model, TranslationTransformer) else PackedSeq2SeqEncoder(model),
        (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)),
        path,
        inputs=["input_ids", "attention_mask"],
        outputs=cross_names(len(model.decoder)),
        dynamic_shapes=(axes, axes),
    )


def export_decoder_step(model: ServedNetwork, path: Path) -> None:
    """Write `model.onnx`; sentences, beams, places of the cache and source tokens are dynamic."""
    config, layers = model.config, len(model.decoder)
    step: nn.Module
    if isinstance(model, TranslationTransformer):
        step, H = DecoderStep(model), model.config.num_heads
        K = model.config.d_model // H
    else:
        step, H, K = Seq2SeqDecoderStep(model), model.config.decoder.num_heads, model.config.head_width
    N, W, P, S = 2, 3, 16, 10
    sentences, beams = torch.export.Dim("sentences", min=1), torch.export.Dim("beams", min=1)
    places, tokens = torch.export.Dim("places", min=1), torch.export.Dim("tokens", min=1, max=config.max_tokens)
    rows = torch.export.Dim.AUTO
    # Each needs its own tensor: the exporter merges one that is given twice into one input.
    states = [torch.zeros(shape) for shape in ((N * W, H, P, K), (N, H, S, K)) for _ in range(2 * layers)]
    state_axes = [{0: rows, 2: places}] * 2 * layers + [{0: sentences, 2: tokens}] * 2 * layers
    names = cache_names(layers)
    export_graph(
        step,
        (
            torch.ones(N, W, dtype=torch.int64),
            torch.ones(N * W, dtype=torch.int32),
            torch.tensor(2, dtype=torch.int32),
            torch.ones(N, S, dtype=torch.int32),
            *states,
        ),
        path,
        inputs=["ids", "past", "longest", "source_mask", *names, *cross_names(layers)],
        outputs=["logits", *(f"new_{name}" for name in names)],
        dynamic_shapes=({0: sentences, 1: beams}, {0: rows}, {}, {0: sentences, 1: tokens}, tuple(state_axes)),
    )
    _choose_likeliest(path)


def halve_translation(encoder: Path, decoder: Path) -> None:
    """Convert both graphs to float16, in place, with the keys and values of their inputs and outputs.

    This lets the decoder step write its cache in place on a GPU, where its operator has no float32 kernel. Log
    probabilities are computed in float32, because hundreds of them are summed and compared.
    """
    halve(encoder, kept=[])
    halve(decoder, kept=["log_probabilities", "log_normalizers"], in_full=["LogSoftmax"])


def _choose_likeliest(path: Path) -> None:
    """Let the graph output the top tokens and their log probabilities instead of all logits, in place.

    Their number is the input `num_candidates`, which torch's exporter cannot express. The output `log_normalizers` is
    what turns log probabilities into logits again, for searches whose rules are about logits.
    """
    model = onnx.load(path)
    graph = model.graph
    logits = next(output for output in graph.output if output.name == "logits")
    graph.node.extend(
        [
            # All tokens are computed, though few are needed: ONNX Runtime's ReduceLogSumExp takes 16 times as long.
            helper.make_node("LogSoftmax", ["logits"], ["all_log_probabilities"], axis=-1),
            helper.make_node(
                "TopK", ["all_log_probabilities", "num_candidates"], ["log_probabilities", "top_ids"], axis=-1
            ),
            helper.make_node("ReduceMax", ["logits", "last_axis"], ["highest_logit"], keepdims=1),
            helper.make_node("ReduceMax", ["all_log_probabilities", "last_axis"], ["highest_probability"], keepdims=1),
            helper.make_node("Sub", ["highest_logit", "highest_probability"], ["log_normalizers"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.input.append(helper.make_tensor_value_info("num_candidates", TensorProto.INT64, [1]))
    chosen = [
        helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["rows", "candidates"]),
        helper.make_tensor_value_info("top_ids", TensorProto.INT64, ["rows", "candidates"]),
        helper.make_tensor_value_info("log_normalizers", TensorProto.FLOAT, ["rows", 1]),
    ]
    del graph.value_info[:]  # the shapes of torch's exporter are wrong where an operator is ONNX's own
    outputs = [*chosen, *(output for output in graph.output if output is not logits)]
    del graph.output[:]
    graph.output.extend(outputs)
    onnx.save(model, path)


class OnnxTranslator:
    """The exported graphs as a `Translator`, to be compared with PyTorch."""

    def __init__(self, folder: Path, encoder: str = ENCODER, decoder: str = GRAPH) -> None:
        self._encoder, self._decoder = cpu_session(folder / encoder), cpu_session(folder / decoder)
        self._shape_of = {node.name: node.shape for node in self._decoder.get_inputs()}
        self._caches = [name for name in self._shape_of if name.startswith(("key_", "value_"))]
        halved = {node.name for node in self._decoder.get_inputs() if node.type == "tensor(float16)"}
        self._dtype = torch.float16 if halved.issuperset(self._caches) else torch.float32

    def begin(self, sources: list[list[int]]) -> State:
        """Compute the state of the first step, as `Translator.begin` says."""
        longest = max(map(len, sources))
        ids_RS = np.array([source + [PAD_ID] * (longest - len(source)) for source in sources])
        mask_RS = np.array([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
        names = [f"cross_{name}" for name in self._caches]
        outputs = self._encoder.run(names, {"input_ids": ids_RS, "attention_mask": mask_RS})
        state = {name: torch.from_numpy(array) for name, array in zip(names, outputs, strict=True)}
        state["source_mask"] = torch.from_numpy(mask_RS.astype(np.int32))
        for name in self._caches:
            _, H, _, K = self._shape_of[name]
            state[name] = torch.zeros(len(sources), H, SPARE_PLACES, K, dtype=self._dtype)
        return state

    def next_tokens(
        self, last_R: list[int], state: State, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], State]:
        """Decode one more token, as `Translator.next_tokens` says; the cache grows by one place each step."""
        after, past = dict(state), state[self._caches[0]].size(2) - SPARE_PLACES
        for name in self._caches:
            after[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 1))
        feeds = {
            "ids": np.array(last_R)[:, None],
            "past": np.full(len(last_R), past, dtype=np.int32),
            "longest": np.array(past + 1, dtype=np.int32),
            "num_candidates": np.array([count]),
            **{name: tensor.numpy() for name, tensor in after.items()},
        }
        names = ["log_probabilities", "top_ids", *(f"new_{name}" for name in self._caches)]
        top, ids, *caches = self._decoder.run(names, feeds)
        after |= {name: torch.from_numpy(cache) for name, cache in zip(self._caches, caches, strict=True)}
        return top, ids, after
