"""Builds this repository's encoder-decoder network with the weights of a Hugging Face model.

`FAMILIES` says what the families differ in. Their layers have two sets of names: those of BART and its descendants, and
those of T5.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from export.conversion.checkpoints.reading import CONFIG, LoadRefused
from export.networks.seq2seq import ACTIVATIONS, Seq2SeqConfig, Seq2SeqTransformer, StackConfig
from export.networks.transformer import NEGATIVE

HEAD_WIDTH_STEP = 8  # widths of a head that ONNX Runtime's attention with a cache takes are multiples


class Family(NamedTuple):
    """The traits of a model family that its `config.json` does not tell.

    Attributes:
        like_t5: layers are named and built as in T5; otherwise as in BART.
        norm_position: before each sub-layer, or after its residual sum.
        embedding_norm: the sum of embedding and position is normalised.
        final_norm: the output of both stacks is normalised.
        masks_padding: the padding token is never predicted.
    """

    like_t5: bool = False
    norm_position: str = "post"
    embedding_norm: bool = False
    final_norm: bool = False
    masks_padding: bool = False


FAMILIES = {
    "marian": Family(masks_padding=True),
    "t5": Family(like_t5=True, norm_position="pre", final_norm=True),
    "mt5": Family(like_t5=True, norm_position="pre", final_norm=True),
    "bart": Family(embedding_norm=True),
    "mbart": Family(norm_position="pre", embedding_norm=True, final_norm=True),
    "m2m_100": Family(norm_position="pre", final_norm=True),
}


def network_of(model: Any, max_tokens: int) -> Seq2SeqTransformer:
    """Build the network.

    Args:
        model: a model of `transformers` of one of the `FAMILIES`.
        max_tokens: longest source and longest answer.

    Raises:
        LoadRefused: an activation or a shape is not offered.
    """
    family = FAMILIES[model.config.model_type]
    network_config = _t5_config(model, max_tokens) if family.like_t5 else _bart_config(model, max_tokens)
    if network_config.activation not in ACTIVATIONS:
        raise LoadRefused(f"{CONFIG}: activation {network_config.activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if network_config.head_width % HEAD_WIDTH_STEP:
        raise LoadRefused(
            f"{CONFIG}: heads are {network_config.head_width} wide; multiples of {HEAD_WIDTH_STEP} are offered"
        )
    network = Seq2SeqTransformer(network_config)
    theirs = model.state_dict()
    ours = _t5_weights(model, theirs, max_tokens) if family.like_t5 else _bart_weights(model, theirs, network_config)
    buffers = {name: buffer for name, buffer in network.named_buffers() if name not in ours}
    network.load_state_dict(ours | buffers)
    # One tensor for embeddings and output where the model has one.
    if torch.equal(network.source_embedding.weight, network.target_embedding.weight):
        network.target_embedding.weight = network.source_embedding.weight
    if torch.equal(network.output.weight, network.target_embedding.weight):
        network.output.weight = network.target_embedding.weight
    if family.masks_padding:
        network.logits_bias_V[model.config.pad_token_id] = NEGATIVE
    return network.eval()


def _bart_config(model: Any, max_tokens: int) -> Seq2SeqConfig:
    config, family = model.config, FAMILIES[model.config.model_type]
    if config.encoder_attention_heads != config.decoder_attention_heads and (
        config.d_model % config.encoder_attention_heads or config.d_model % config.decoder_attention_heads
    ):
        raise LoadRefused(f"{CONFIG}: d_model is not a multiple of the numbers of heads")
    widths = {config.d_model // heads for heads in (config.encoder_attention_heads, config.decoder_attention_heads)}
    if len(widths) > 1:
        raise LoadRefused(f"{CONFIG}: encoder_attention_heads and decoder_attention_heads differ")
    head_width = widths.pop()
    return Seq2SeqConfig(
        source_vocab_size=model.get_encoder().embed_tokens.num_embeddings,
        vocab_size=model.lm_head.out_features,
        d_model=config.d_model,
        head_width=head_width,
        encoder=StackConfig(
            num_layers=config.encoder_layers, num_heads=config.encoder_attention_heads, d_ff=config.encoder_ffn_dim
        ),
        decoder=StackConfig(
            num_layers=config.decoder_layers, num_heads=config.decoder_attention_heads, d_ff=config.decoder_ffn_dim
        ),
        max_tokens=max_tokens,
        activation=config.activation_function,
        norm_position="pre" if family.norm_position == "pre" else "post",
        embedding_norm=family.embedding_norm,
        final_norm=family.final_norm,
        attention_scale=head_width**-0.5,
        embedding_scale=config.d_model**0.5 if config.scale_embedding else 1.0,
    )


def _bart_weights(model: Any, theirs: dict[str, Tensor], config: Seq2SeqConfig) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {"output.weight": theirs["lm_head.weight"]}
    for side, our_side, stack in (
        ("encoder", "source", config.encoder),
        ("decoder", "target", config.decoder),
    ):
        prefix, module = f"model.{side}", getattr(model.model, side)
        # A module may multiply its embeddings itself; the weight is before that.
        ours[f"{our_side}_embedding.weight"] = module.embed_tokens.weight
        ours[f"{our_side}_positions_TD"] = _positions(module, model.config, config.max_tokens)
        for theirs_name, ours_name in (
            ("layernorm_embedding", f"{our_side}_embedding_norm"),
            ("layer_norm", f"{side}_norm"),
        ):
            if f"{prefix}.{theirs_name}.weight" in theirs:
                ours |= _linear(theirs, f"{prefix}.{theirs_name}", ours_name)
        for number in range(stack.num_layers):
            ours |= bart_layer(theirs, f"{prefix}.layers.{number}", f"{side}.{number}", side == "decoder")
    if "final_logits_bias" in theirs:
        ours["logits_bias_V"] = theirs["final_logits_bias"][0]
    return ours


def _positions(stack: nn.Module, config: Any, max_tokens: int) -> Tensor:
    """Return what the model adds to the first `max_tokens` tokens; [T, D]."""
    ids_1T = torch.full((1, max_tokens), (config.pad_token_id or 0) + 1)  # ids that are not padding
    positions: Any = stack.embed_positions
    with torch.no_grad():
        # Marian's table takes the shape of the ids, the others' the ids.
        found: Tensor = positions(ids_1T.shape if config.model_type == "marian" else ids_1T)
    return found.reshape(max_tokens, -1)


def bart_layer(theirs: dict[str, Tensor], their: str, our: str, decodes: bool) -> dict[str, Tensor]:
    """Rename the weights of a layer to the names of this repository's networks.

    Args:
        theirs: all weights of the model.
        their: the layer's name in the model.
        our: its name here.
        decodes: whether it is a layer of the decoder.
    """
    pairs = [
        ("self_attn.out_proj", "attention.out"),
        ("self_attn_layer_norm", "attention_norm"),
        ("fc1", "feed_forward.up"),
        ("fc2", "feed_forward.down"),
        ("final_layer_norm", "feed_forward_norm"),
    ]
    joined: list[tuple[tuple[str, ...], str, str]] = [(("q", "k", "v"), "self_attn", "attention.qkv")]
    if decodes:
        pairs += [
            ("encoder_attn.out_proj", "cross.out"),
            ("encoder_attn.q_proj", "cross.query"),
            ("encoder_attn_layer_norm", "cross_norm"),
        ]
        joined.append((("k", "v"), "encoder_attn", "cross.key_value"))
    ours: dict[str, Tensor] = {}
    for theirs_name, ours_name in pairs:
        ours |= _linear(theirs, f"{their}.{theirs_name}", f"{our}.{ours_name}")
    for parts, attention, ours_name in joined:
        for kind in ("weight", "bias"):
            tensors = [theirs[f"{their}.{attention}.{part}_proj.{kind}"] for part in parts]
            ours[f"{our}.{ours_name}.{kind}"] = torch.cat(tensors)
    return ours


def _linear(theirs: dict[str, Tensor], their: str, our: str) -> dict[str, Tensor]:
    return {f"{our}.{kind}": theirs[f"{their}.{kind}"] for kind in ("weight", "bias") if f"{their}.{kind}" in theirs}


def _t5_config(model: Any, max_tokens: int) -> Seq2SeqConfig:
    config = model.config
    return Seq2SeqConfig(
        source_vocab_size=model.shared.num_embeddings,
        vocab_size=model.lm_head.out_features,
        d_model=config.d_model,
        head_width=config.d_kv,
        encoder=StackConfig(num_layers=config.num_layers, num_heads=config.num_heads, d_ff=config.d_ff),
        decoder=StackConfig(num_layers=config.num_decoder_layers, num_heads=config.num_heads, d_ff=config.d_ff),
        max_tokens=max_tokens,
        activation=config.dense_act_fn,
        norm_position="pre",
        norm="rmsnorm",
        norm_eps=config.layer_norm_epsilon,
        final_norm=True,
        gated=config.is_gated_act,
        bias=False,
        relative=True,
        attention_scale=1.0,
        output_scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
    )


def _t5_weights(model: Any, theirs: dict[str, Tensor], max_tokens: int) -> dict[str, Tensor]:
    source_bias_HTT, target_bias_HTT = (_biases(getattr(model, side), max_tokens) for side in ("encoder", "decoder"))
    ours = {
        # From the query of the last token to all keys, then from that of the first one to all later keys.
        "source_bias_UH": torch.cat((source_bias_HTT[:, -1], source_bias_HTT[:, 0, 1:]), dim=1).T,
        "target_bias_TH": target_bias_HTT[:, -1].flip(1).T,
        "source_embedding.weight": theirs["shared.weight"],
        "target_embedding.weight": theirs["shared.weight"],
        "output.weight": theirs["lm_head.weight"],
    }
    for side in ("encoder", "decoder"):
        ours[f"{side}_norm.weight"] = theirs[f"{side}.final_layer_norm.weight"]
        for number in range(len(getattr(model, side).block)):
            ours |= _t5_layer(theirs, f"{side}.block.{number}.layer", f"{side}.{number}", side == "decoder")
    return ours


@torch.no_grad()
def _biases(stack: Any, max_tokens: int) -> Tensor:
    """Return the bias on the scores of self-attention for all pairs of positions; [H, T, T]."""
    (bias_HTT,) = stack.block[0].layer[0].SelfAttention.compute_bias(max_tokens, max_tokens)
    found: Tensor = bias_HTT
    return found


def _t5_layer(theirs: dict[str, Tensor], their: str, our: str, decodes: bool) -> dict[str, Tensor]:
    def joined(place: str, names: tuple[str, ...]) -> Tensor:
        return torch.cat([theirs[f"{their}.{place}.{name}.weight"] for name in names])

    last = 2 if decodes else 1
    dense = f"{last}.DenseReluDense"
    gated = f"{their}.{dense}.wi_0.weight" in theirs
    ours = {
        "attention.qkv": joined("0.SelfAttention", ("q", "k", "v")),
        "attention.out": theirs[f"{their}.0.SelfAttention.o.weight"],
        "attention_norm": theirs[f"{their}.0.layer_norm.weight"],
        "feed_forward.up": joined(dense, ("wi_0", "wi_1") if gated else ("wi",)),
        "feed_forward.down": theirs[f"{their}.{dense}.wo.weight"],
        "feed_forward_norm": theirs[f"{their}.{last}.layer_norm.weight"],
    }
    if decodes:
        ours |= {
            "cross.query": theirs[f"{their}.1.EncDecAttention.q.weight"],
            "cross.key_value": joined("1.EncDecAttention", ("k", "v")),
            "cross.out": theirs[f"{their}.1.EncDecAttention.o.weight"],
            "cross_norm": theirs[f"{their}.1.layer_norm.weight"],
        }
    return {f"{our}.{name}.weight": tensor for name, tensor in ours.items()}
