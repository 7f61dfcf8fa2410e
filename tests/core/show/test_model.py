"""The view of a model says what the config and the loss say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from luthier.core.errors import InputError
from luthier.core.show.model import show_model
from luthier.models.checkpoints import CheckpointError, save_model
from luthier.models.config import parameter_count, preset
from luthier.models.transformer import Transformer


def test_parameters_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    tokenizer = train_bpe(["the spruce soundboard and the maple back"] * 9, vocab_size=280)
    model = Transformer(preset("demo", vocab_size=tokenizer.vocab_size))
    save_model(model, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    text = "the spruce [bold] is ü"
    show_model(tmp_path, text)
    shown = capsys.readouterr().out
    assert f"{parameter_count(model.config):,} parameters" in shown and "layers.N.mlp.down_proj.weight" in shown
    ids = [tokenizer.eos_id, *tokenizer.encode_ordinary(text).tolist()]
    loss, count = model.loss(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))
    bits = float(loss.detach()) / math.log(2)
    assert f"{int(count)} tokens, {bits / int(count):.2f} bits a token" in shown
    assert f"{bits / len(text.encode()):.2f} bits a byte" in shown and "'['" in shown
    with pytest.raises(InputError, match="holds no token"):
        show_model(tmp_path, "")
    with pytest.raises(InputError, match="reads 256 at once"):
        show_model(tmp_path, "ü" * 300)
    with pytest.raises(CheckpointError):
        show_model(tmp_path / "nothing")


def test_a_tokenizer_of_another_model_and_a_page_in_no_folder_are_named(tmp_path: Path) -> None:
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    tokenizer = train_bpe(["the spruce soundboard and the maple back"] * 9, vocab_size=280)
    save_model(Transformer(preset("demo", vocab_size=270, num_hidden_layers=1)), tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(InputError, match="280 tokens, its model only 270"):
        show_model(tmp_path, "the")
    with pytest.raises(InputError, match=r"look\.html: there is no folder .*nowhere"):
        show_model(tmp_path, "the", tmp_path / "nowhere" / "look.html")


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    """With one backslash: two would be a backslash in the text."""
    from luthier.core.show.model import _piece
    from luthier.tokenizers.bpe_train import train_bpe

    tokenizer = train_bpe(["é é é é"] * 9, vocab_size=262)
    shown = {tokenizer.tokens[i]: _piece(tokenizer, i) for i in range(tokenizer.vocab_size)}
    assert shown[b"\xac"] == r"'\xac'" and shown[b"\\"] == r"'\\'" and shown[b"\n"] == r"'\n'"
    assert "'é'" in shown.values()


def test_weights_that_are_not_what_config_says_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After what config.json says; a folder without weights has that alone."""
    save_model(Transformer(preset("demo", vocab_size=64, num_hidden_layers=1)), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        show_model(tmp_path)
    assert "layers.N.mlp.down_proj.weight" in capsys.readouterr().out
    weights.unlink()
    show_model(tmp_path)
    assert "none on disk" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["Llama", "Mistral", "GPT2"])
def test_attention_and_lens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Maps against output_attentions of the eager kind, the lens against norm and head on output_hidden_states."""
    transformers = pytest.importorskip("transformers")
    from luthier.core.show.model_look import look
    from luthier.models.checkpoints import load_model

    torch.manual_seed(0)
    if family == "GPT2":
        kind = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=53)
        theirs = transformers.GPT2LMHeadModel._from_config(kind, attn_implementation="eager").eval()
        norm, depth = theirs.transformer.ln_f, 2
    else:
        shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        shape |= {"vocab_size": 53, "intermediate_size": 40, "initializer_range": 0.3}
        shape |= {"sliding_window": 5} if family == "Mistral" else {}
        kind = getattr(transformers, f"{family}Config")(**shape)
        theirs = getattr(transformers, f"{family}ForCausalLM")._from_config(kind, attn_implementation="eager").eval()
        norm, depth = theirs.model.norm, 2
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, 53, (1, 20))
    seen = look(load_model(tmp_path), ids[0].tolist())
    with torch.no_grad():
        out = theirs(ids[:, :-1], output_attentions=True, output_hidden_states=True)
    for ours, wanted in zip(seen.maps_LHTT, out.attentions, strict=True):
        torch.testing.assert_close(ours, wanted[0], atol=1e-5, rtol=1e-4)
    for layer, stream in enumerate(out.hidden_states[:depth]):  # the last one of theirs is normalised already
        table = theirs.lm_head(norm(stream))[0].softmax(-1)
        torch.testing.assert_close(seen.sure_LT[layer].float(), table.max(-1).values, atol=1e-5, rtol=1e-4)
        assert torch.equal(seen.said_LT[layer], table.argmax(-1))
    log_p = out.logits[0].log_softmax(-1)
    bits = -log_p.gather(1, ids[0, 1:, None])[:, 0] / math.log(2)
    torch.testing.assert_close(seen.bits_T.float(), bits, atol=1e-4, rtol=1e-4)
    assert torch.equal(seen.said_LT[-1], log_p.argmax(-1)) and torch.equal(seen.best_TN[:, 0], log_p.argmax(-1))


def test_the_page_holds_everything_and_needs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import base64
    import json

    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    tokenizer = train_bpe(["the spruce soundboard and the maple back"] * 9, vocab_size=280)
    save_model(Transformer(preset("demo", vocab_size=tokenizer.vocab_size, num_hidden_layers=2)), tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    page = tmp_path / "look.html"
    with pytest.raises(InputError, match="add --text"):
        show_model(tmp_path, page=page)
    show_model(tmp_path, "the </script> spruce", page)
    text = page.read_text(encoding="utf-8")
    assert str(page) in capsys.readouterr().out
    assert "http" not in text and text.count("</script>") == 2
    data = json.loads(text.partition('type="application/json">')[2].partition("</script>")[0])
    T = len(data["tokens"]) - 1
    assert "".join(data["tokens"][1:]) == "the </script> spruce"
    assert len(base64.b64decode(data["maps"])) == 2 * 6 * T * T and len(data["said"]) == 3
    assert all(len(row) == T for row in (data["bits"], data["rank"], data["best"], *data["sure"]))


def test_a_text_whose_maps_are_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.show import model_look

    monkeypatch.setattr(model_look, "MOST_WEIGHTS", 4 * 6 * 25)
    with pytest.raises(InputError, match="at most 5 tokens"):
        model_look.look(Transformer(preset("demo")), list(range(8)))
