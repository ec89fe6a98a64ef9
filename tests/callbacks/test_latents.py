import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lit_ssl import VAE
from lit_ssl.callbacks import LatentSamples, LatentTraversals
from lit_ssl.callbacks.augmented_views import grid
from lit_ssl.callbacks.latents import traverse


def pixels(path):
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


@pytest.fixture
def vae(tiny):
    return VAE(**tiny, latent_dim=5, decoder_hidden=(16,))


def test_a_traversal_moves_one_coordinate_and_the_most_active_first():
    scale = torch.tensor([0.1, 2.0, 0.0, 1.0])
    codes = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * scale + 0.5
    z, latents = traverse(codes, dimensions=3, steps=5, span=2.0)
    assert latents == [1, 3, 0]
    assert z.shape == (3, 5, 4)
    for row, latent in enumerate(latents):
        assert z[row, :, latent].tolist() == [-2, -1, 0, 1, 2]
        others = [i for i in range(4) if i != latent]
        assert torch.equal(z[row][:, others], codes[0, others].expand(5, 3))
    assert traverse(codes, dimensions=9, steps=2, span=1.0)[1] == [1, 3, 0, 2]


def test_traversals_are_of_a_held_out_image(vae, stripes, make_trainer, tmp_path):
    data = stripes()
    callback = LatentTraversals(dimensions=3, steps=4, span=1.5, max_samples=30)
    make_trainer(callbacks=[callback]).fit(vae, datamodule=data)
    rows = torch.cat([torch.arange(0, 10), torch.arange(16, 26), torch.arange(32, 40)])  # up to ten a batch
    codes = vae.represent(data.val_set.images[rows])
    z, latents = traverse(codes, 3, 4, 1.5)
    images = vae.decode(z.flatten(0, 1)).unflatten(0, (3, 4))
    expected = grid(list(images.unbind(1))).numpy()
    picture = pixels(tmp_path / "pictures" / "latent-traversals-step4.png")
    assert len(set(latents)) == 3
    assert (picture[-expected.shape[0] :, -expected.shape[1] :] == expected).all()


def test_samples_are_the_priors_at_every_drawing(vae, stripes, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=3, callbacks=[LatentSamples(rows=2, columns=3, seed=4, every_n_epochs=2)])
    trainer.fit(vae, datamodule=stripes())
    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["latent-samples-step12.png", "latent-samples-step8.png"]
    samples = vae.sample(6, seed=4)
    columns = [samples[[i, 3 + i]] for i in range(3)]
    assert (pixels(folder / "latent-samples-step12.png") == grid(columns).numpy()).all()


def test_diverged_codes_are_not_drawn(vae, stripes, make_trainer, tmp_path):
    vae.spec = stripes.native
    vae.configure_model()
    with torch.no_grad():
        vae.mean_head.bias.fill_(torch.nan)
    make_trainer(callbacks=[LatentTraversals()]).fit(vae, datamodule=stripes())
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatentTraversals(dimensions=0), "dimensions must be an integer of at least 1, got 0"),
        (lambda: LatentTraversals(steps=1), "steps must be an integer of at least 2, got 1"),
        (lambda: LatentTraversals(span=0.0), "span must be a finite number above 0, got 0.0"),
        (lambda: LatentTraversals(max_samples=0), "max_samples must be"),
        (lambda: LatentTraversals(every_n_epochs=0), "every_n_epochs must be"),
        (lambda: LatentSamples(rows=0), "rows must be"),
        (lambda: LatentSamples(columns=True), "columns must be an integer of at least 1, got True"),
        (lambda: LatentSamples(seed=-1), "seed must be an integer .*got -1"),
        (lambda: LatentSamples(every_n_epochs=0), "every_n_epochs must be"),
    ],
)
def test_arguments_are_validated(make, message):
    with pytest.raises(ValueError, match=message):
        make()
