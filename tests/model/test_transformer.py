"""Compare the whole model with PyTorch's Transformer and with the sizes in the paper."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.config import PRESETS, ModelConfig
from mt.model.transformer import Transformer, build_model
from tests.model.small import VOCAB, small, sources

pytestmark = pytest.mark.usefixtures("one_thread")


# --- sizes, names, ties


@pytest.mark.parametrize(("preset", "count"), [("base", 63_082_496), ("big", 214_245_376)])
def test_presets_have_the_papers_number_of_parameters(preset: str, count: int) -> None:
    """Compare with table 3 of Vaswani et al. 2017 (65M and 213M; joint vocabulary of 37,000).

    Also compare with the sum of the sizes of all layers.
    """
    with torch.device("meta"):
        model = Transformer(ModelConfig(**PRESETS[preset]), 37_000, 37_000)
    assert sum(p.numel() for p in model.parameters()) == count
    d, ff, layers = (PRESETS[preset][key] for key in ("d_model", "d_ff", "encoder_layers"))
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * ff + ff + d, 2 * d
    assert count == 37_000 * d + layers * (attention + feed_forward + 2 * norm) + layers * (
        2 * attention + feed_forward + 3 * norm
    )


ATTENTION = r"(self_attn|encoder_attn)\.(q|k|v|out)_proj\.(weight|bias)"
NORMS = r"(self_attn|encoder_attn|final)_layer_norm\.(weight|bias)"
MARIAN_NAMES = [
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"output_projection\.weight",  # fairseq's name for an untied output matrix
    rf"(encoder|decoder)\.layers\.\d+\.({ATTENTION}|{NORMS}|fc[12]\.(weight|bias))",
    r"(encoder|decoder)\.layer_norm\.(weight|bias)",  # in a pre-norm stack, as in Pegasus
]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_parameter_names_are_those_of_marian_in_hugging_face(norm: str) -> None:
    names = [name for name, _ in small(norm, "decoder").named_parameters()]
    strangers = [
        name for name in names if not any(re.fullmatch(pattern, name) for pattern in MARIAN_NAMES)
    ]
    assert strangers == []
    per_encoder_layer, per_decoder_layer = 8 + 4 + 4, 16 + 4 + 6
    assert len(names) == 2 + 2 * per_encoder_layer + 3 * per_decoder_layer + (
        4 if norm == "pre" else 0
    )
    assert "encoder.layers.0.self_attn.q_proj.weight" in names
    assert "decoder.layers.2.encoder_attn_layer_norm.bias" in names
    assert ("encoder.layer_norm.weight" in names) == (norm == "pre")


@pytest.mark.parametrize(
    ("tie", "matrices"),
    [
        ("all", ["encoder.embed_tokens.weight"]),
        ("decoder", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
        (
            "none",
            [
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "output_projection.weight",
            ],
        ),
    ],
)
def test_tied_matrices_share_memory_and_are_listed_once(tie: str, matrices: list[str]) -> None:
    model = small(tie=tie)
    listed = [name for name, parameter in model.named_parameters() if len(parameter) == VOCAB]
    assert sorted(listed) == sorted(matrices)
    src, tgt, out = (
        model.encoder.embed_tokens.weight,
        model.decoder.embed_tokens.weight,
        model.output_weight,
    )
    assert (src.data_ptr() == tgt.data_ptr()) == (tie == "all")
    assert (tgt.data_ptr() == out.data_ptr()) == (tie != "none")
    assert len({src.data_ptr(), tgt.data_ptr(), out.data_ptr()}) == len(matrices)


def test_tying_all_with_two_vocabularies_is_refused() -> None:
    with pytest.raises(ValueError, match="joint vocabulary"):
        build_model(ModelConfig(**PRESETS["tiny"], tie_embeddings="all"), 10, 11, seed=1)


def test_vocabularies_of_two_sizes_stand_on_their_own_sides() -> None:
    model = build_model(
        ModelConfig(**PRESETS["tiny"], tie_embeddings="decoder"), 10, 13, seed=1
    ).eval()
    hidden = model(torch.tensor([[9, 3]]), None, torch.tensor([[2, 12]]))
    assert model.project(hidden).shape == (1, 2, 13)


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (
        build_model(ModelConfig(**PRESETS["tiny"]), 20, 20, seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["encoder.embed_tokens.weight"], other["encoder.embed_tokens.weight"]
    )


@pytest.mark.parametrize("tie", ["all", "none"])
def test_initial_weights_have_the_published_spread(tie: str) -> None:
    config = ModelConfig(
        d_model=128, d_ff=512, num_heads=4, encoder_layers=1, decoder_layers=1, tie_embeddings=tie
    )
    model = build_model(config, 500, 500, seed=1)
    assert float(model.output_weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    assert float(model.encoder.embed_tokens.weight.detach().std()) == pytest.approx(
        128**-0.5, rel=0.02
    )
    layer = model.encoder.layers[0]
    assert float(layer.fc1.weight.detach().abs().max()) == pytest.approx(
        math.sqrt(6 / (128 + 512)), rel=0.01
    )
    assert float(layer.self_attn.q_proj.weight.detach().abs().max()) == pytest.approx(
        math.sqrt(6 / 256), rel=0.01
    )
    assert not layer.fc1.bias.any()


# --- PyTorch's own layers as the reference


def attention_weights(prefix: str, block: nn.Module) -> dict[str, Tensor]:
    """Return an attention block's weights under the names that `nn.MultiheadAttention` uses."""
    projections = [getattr(block, f"{name}_proj") for name in "qkv"]
    return {
        f"{prefix}.in_proj_weight": torch.cat([p.weight for p in projections]),
        f"{prefix}.in_proj_bias": torch.cat([p.bias for p in projections]),
        f"{prefix}.out_proj.weight": block.out_proj.weight,
        f"{prefix}.out_proj.bias": block.out_proj.bias,
    }


def torch_stacks(model: Transformer) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    """Build PyTorch's encoder and decoder with the weights of `model`."""
    c = model.config
    options = {
        "dropout": 0.0,
        "activation": c.activation,
        "batch_first": True,
        "norm_first": c.norm == "pre",
    }
    stacks = []
    for ours, layer_type, stack_type, norms in (
        (model.encoder, nn.TransformerEncoderLayer, nn.TransformerEncoder, ["self_attn", "final"]),
        (
            model.decoder,
            nn.TransformerDecoderLayer,
            nn.TransformerDecoder,
            ["self_attn", "encoder_attn", "final"],
        ),
    ):
        last_norm = nn.LayerNorm(c.d_model) if c.norm == "pre" else None
        layer = layer_type(c.d_model, c.num_heads, c.d_ff, **options)
        plain = {"enable_nested_tensor": False} if stack_type is nn.TransformerEncoder else {}
        theirs = stack_type(layer, len(ours.layers), norm=last_norm, **plain)
        weights = {f"norm.{k}": v for k, v in ours.layer_norm.named_parameters()}
        for i, layer in enumerate(ours.layers):
            weights |= attention_weights(f"layers.{i}.self_attn", layer.self_attn)
            if len(norms) == 3:
                weights |= attention_weights(f"layers.{i}.multihead_attn", layer.encoder_attn)
            for number, name in enumerate(norms, 1):
                weights |= {
                    f"layers.{i}.norm{number}.{k}": v
                    for k, v in getattr(layer, f"{name}_layer_norm").named_parameters()
                }
            for number in (1, 2):
                weights |= {
                    f"layers.{i}.linear{number}.{k}": v
                    for k, v in getattr(layer, f"fc{number}").named_parameters()
                }
        theirs.load_state_dict(weights)
        stacks.append(
            theirs.train()
        )  # training mode, because in evaluation mode PyTorch's fused path changes padding
    return stacks[0], stacks[1]


def embedded(weight: Tensor, ids: Tensor) -> Tensor:
    """Return scaled embeddings plus the position encodings from the paper."""
    d = weight.shape[1]
    angles = torch.arange(ids.shape[1])[:, None] / 10_000 ** (2 * torch.arange(d // 2) / d)
    return F.embedding(ids, weight) * math.sqrt(d) + torch.cat([angles.sin(), angles.cos()], dim=1)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("tie", ["all", "none"])
@torch.no_grad()
def test_the_model_equals_pytorchs_own_transformer(norm: str, activation: str, tie: str) -> None:
    model = small(norm, tie, activation)
    encoder, decoder = torch_stacks(model)
    src, src_mask = sources(7, 3, 5)
    tgt_in, tgt_mask = sources(4, 6, 2)
    memory = encoder(
        embedded(model.encoder.embed_tokens.weight, src), src_key_padding_mask=~src_mask
    )
    torch.testing.assert_close(
        model.encode(src, src_mask)[src_mask], memory[src_mask], rtol=1e-5, atol=1e-5
    )
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    hidden = decoder(
        embedded(model.decoder.embed_tokens.weight, tgt_in),
        memory,
        tgt_mask=causal,
        memory_key_padding_mask=~src_mask,
    )
    ours = model(src, src_mask, tgt_in)
    torch.testing.assert_close(ours[tgt_mask], hidden[tgt_mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model.project(ours), ours @ model.output_weight.T, rtol=1e-5, atol=1e-5
    )


# --- padding and causality


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_padding_does_not_change_the_hidden_states_of_real_positions(norm: str) -> None:
    model = small(norm)
    src, src_mask = sources(9, 2, 5)
    tgt_in, tgt_mask = sources(3, 8, 1)
    together = model(src, src_mask, tgt_in)
    for i in range(3):
        alone = model(src[i : i + 1, src_mask[i]], None, tgt_in[i : i + 1, tgt_mask[i]])
        torch.testing.assert_close(together[i, tgt_mask[i]], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_position_sees_its_past_and_not_its_future() -> None:
    model = small()
    src, src_mask = sources(5)
    tgt, _ = sources(6)
    changed = tgt.clone()
    changed[0, 3] = 4 + (tgt[0, 3] - 3) % (VOCAB - 4)
    before, after = model(src, src_mask, tgt), model(src, src_mask, changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before - after)[0, 3:].abs().amax(dim=1) > 1e-3).all()


# --- packed sentences


def offsets(mask: Tensor) -> Tensor:
    """Return where each row of a mask [batch, length] starts when packed and the last one ends."""
    return F.pad(mask.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)


def packed_and_padded(
    model: Transformer, src_lens: tuple[int, ...], tgt_lens: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the hidden states [target tokens, d_model] from `packed` and from `forward`."""
    (src, src_mask), (tgt, tgt_mask) = sources(*src_lens), sources(*tgt_lens)
    padded = model(src, src_mask, tgt)[tgt_mask]
    packed = model.packed(
        src[src_mask],
        offsets(src_mask),
        max(src_lens),
        tgt[tgt_mask],
        offsets(tgt_mask),
        max(tgt_lens),
    )
    return packed, padded


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("src_lens", "tgt_lens"), [((9, 2, 5), (3, 8, 1)), ((4,), (6,)), ((1, 1), (1, 1))]
)
def test_packed_hidden_states_and_gradients_are_the_padded_ones(
    norm: str, src_lens: tuple[int, ...], tgt_lens: tuple[int, ...]
) -> None:
    model = small(norm, "none").double()
    packed, padded = packed_and_padded(model, src_lens, tgt_lens)
    assert packed.shape == (sum(tgt_lens), model.config.d_model)
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(packed)
    unused = ("output_projection.weight", "k_proj.bias")
    used = (item for item in model.named_parameters() if not item[0].endswith(unused))
    names, parameters = zip(*used, strict=True)
    gradients = [
        torch.autograd.grad((hidden * direction).sum(), parameters) for hidden in (packed, padded)
    ]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert len(tgt_lens) < 3 or theirs.abs().max() > 1e-3, name
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


# --- recomputing activations


def dropping(activation: str) -> Transformer:
    """Build a small model in training mode, with dropout everywhere."""
    config = ModelConfig(
        d_model=16, d_ff=24, num_heads=4, encoder_layers=2, decoder_layers=2, activation=activation,
        dropout=0.3, attention_dropout=0.2, activation_dropout=0.2,
    )  # fmt: skip
    return build_model(config, VOCAB, VOCAB, seed=1).train()


def loss_and_gradients(model: Transformer, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    (src, src_mask), (tgt, _) = sources(7, 3, 5), sources(4, 6, 2)
    loss = model.project(model(src, src_mask, tgt)).log_softmax(-1)[..., 5].mean()
    return [
        loss.detach(),
        *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]),
    ]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_recomputed_layers_give_the_same_loss_and_gradients_bit_for_bit(activation: str) -> None:
    model = dropping(activation)
    kept = loss_and_gradients(model, seed=5)
    model.recompute(True)
    again = loss_and_gradients(model, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert not torch.equal(kept[0], loss_and_gradients(model, seed=6)[0])  # dropout is active
    model.recompute(False)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, loss_and_gradients(model, seed=5), strict=True)
    )


def test_a_layer_runs_twice_where_it_is_recomputed_and_once_without_gradients() -> None:
    model = dropping("relu")
    runs: list[str] = []
    for stack in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(model, stack).layers):
            # Count at the layer's first block, because recomputation stops as soon as it has
            # everything it needs.
            layer.self_attn.register_forward_hook(lambda *_, name=f"{stack}.{i}": runs.append(name))
    names = ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    loss_and_gradients(model, seed=5)
    assert runs == names
    runs.clear()
    model.recompute(True)
    loss_and_gradients(model, seed=5)
    assert runs == [*names, *reversed(names)]
    runs.clear()
    with torch.no_grad():
        model(*sources(7, 3), sources(4, 6)[0])
    assert runs == names


def test_recomputed_packed_layers_give_the_same_gradients() -> None:
    model = small().train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    results = []
    for recompute in (False, True):
        model.recompute(recompute)
        packed, _ = packed_and_padded(model, (9, 2, 5), (3, 8, 1))
        loss = packed.square().mul(torch.arange(16)).sum()
        results.append(
            [
                loss.detach(),
                *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_parameter_gets_a_gradient_but_the_biases_of_keys() -> None:
    for tie in ("all", "decoder", "none"):
        model = small("post", tie).train()
        src, src_mask = sources(7, 3)
        model.project(model(src, src_mask, sources(4, 6)[0])).square().sum().backward()
        silent = {
            n
            for n, p in model.named_parameters()
            if p.grad is None or not (p.grad.abs() > 1e-3).any()
        }
        assert silent == {n for n, p in model.named_parameters() if n.endswith("k_proj.bias")}
        assert silent == {n for n, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_biases_of_keys_change_nothing(norm: str) -> None:
    """Change the key biases. Each adds the same number to all scores of a query, so its gradient
    is only rounding error.
    """
    model = small(norm, "all").double().requires_grad_(True)
    batch = (*sources(7, 3), sources(4, 6)[0])
    before = model(*batch)
    before.square().sum().backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("k_proj.bias"):
                assert parameter.grad is not None
                assert parameter.grad.abs().max() < 1e-12
                parameter.normal_()
    torch.testing.assert_close(model(*batch), before, rtol=1e-12, atol=1e-12)
