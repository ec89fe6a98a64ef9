"""How far a run is, where its batch was changed."""

from types import SimpleNamespace

import pytest

from lit_ssl.progress import run_length, steps_ahead


def content(step, ahead=0.0, ready=0):
    current = {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}
    return {
        "global_step": step,
        "ahead": ahead,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": current}}},
    }


def batch(size, accumulated=1):
    return {"step_batch": size, "accumulate_grad_batches": accumulated}


def test_with_the_same_batch_the_place_is_the_same_to_the_bit():
    ahead = 0.1 + 0.2
    for before, now in ((batch(24), batch(24)), (batch(24, 2), batch(48)), (None, batch(24)), ({}, batch(24))):
        assert steps_ahead(before, now, content(7, ahead)) == ahead


def test_another_batch_moves_the_place_by_samples():
    saved = content(10, ready=4)
    assert steps_ahead(batch(32), batch(64), saved) == -5
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"] == {
        **{"ready": 2, "started": 2, "processed": 2},
        "completed": 1,
    }
    assert steps_ahead(batch(64), batch(32), content(15, -5.0)) == 5  # ten steps of 32, five of 64, seen from 32


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "ahead", "total"),
    [
        (-1, 3, 0.0, 15),
        (-1, 3, 4.0, 15),
        (8, -1, 0.0, 8),
        (8, -1, 4.0, 12),
        (8, 2, 4.0, 10),
        (8, 2, -4.0, 4),
        (8, None, -4.0, 4),
    ],
)
def test_the_length_of_a_run(max_steps, max_epochs, ahead, total):
    by_epochs = 5 * max_epochs if (max_epochs or 0) > 0 else max_steps
    trainer = SimpleNamespace(
        max_steps=max_steps,
        max_epochs=max_epochs,
        num_training_batches=9,
        accumulate_grad_batches=2,
        estimated_stepping_batches=min(by_epochs, max_steps) if max_steps > 0 else by_epochs,
    )
    assert run_length(trainer, ahead) == total
