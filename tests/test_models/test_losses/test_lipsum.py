import pytest
import torch
from terms import build, dot, move_away, unit

from mmcfmask.models.losses.lipsum import energy_gap, random_tokens


def test_energy_gap_equals_loop():
    student, teacher, texts = torch.randn(3, 5), torch.randn(3, 5), torch.nn.functional.normalize(torch.randn(4, 5))
    total = 0.0
    for z, z0 in zip(student.tolist(), teacher.tolist()):
        v, v0 = ([100 * dot(unit(f), t) for t in texts.tolist()] for f in (z, z0))
        total += sum((a - b) ** 2 for a, b in zip(v, v0)) / (2 * 4)
    assert energy_gap(student, teacher, texts, 100.0).item() == pytest.approx(total / 3, rel=1e-4)


def test_similarities_are_float32_under_autocast():
    student, texts = torch.randn(3, 64), torch.nn.functional.normalize(torch.randn(4, 64))
    teacher = student + 1e-3
    expected = energy_gap(student, teacher, texts, 100.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(energy_gap(student, teacher, texts, 100.0), expected)


def test_random_texts_are_what_the_text_tower_expects(clip):
    model, tokenizer = clip
    tokens = random_tokens(200, 8, 16, tokenizer.sot_token_id, tokenizer.eot_token_id)
    assert tokens.shape == tokenizer(['']).shape[:0] + (200, 16)
    example = tokenizer(['a b c d'])[0]
    assert (
        (tokens[:, 0] == example[0]).all()
        and (tokens[:, 9] == tokenizer.eot_token_id).all()
        and (tokens[:, 10:] == 0).all()
    )
    words = tokens[:, 1:9]
    assert words.max() < tokenizer.sot_token_id and words.min() >= 0 and len(words.unique()) > 1400
    assert (tokens.argmax(dim=1) == 9).all()  # where the tower reads the text's embedding


def test_lipsum_step(tiny_pretrained, batch, clip):
    model = move_away(build(tiny_pretrained, dict(type='LipsumFT', weight=0.7, num_texts=5, length=3)))
    torch.manual_seed(8)
    loss = model(*batch, mode='loss')['loss_lipsum']
    whole, tokenizer = clip
    torch.manual_seed(8)
    tokens = random_tokens(5, 3, 16, tokenizer.sot_token_id, tokenizer.eot_token_id)
    with torch.no_grad():
        texts = whole.encode_text(tokens, normalize=True)
        gap = (
            whole.logit_scale.exp()
            * (
                torch.nn.functional.normalize(model.extract_feat(batch[0])[-1])
                - whole.encode_image(batch[0], normalize=True)
            )
            @ texts.T
        )
    torch.testing.assert_close(loss, 0.7 * gap.square().sum(1).mean() / 10)
    assert model(*batch, mode='loss')['loss_lipsum'] != loss  # other texts in the next step
