import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl.callbacks import SaveEmbeddings


def test_predict_writes_one_file_in_the_order_of_the_data(method, stripes, make_trainer, tmp_path, capsys):
    module, data = method(), stripes(batch_size=7)
    make_trainer(callbacks=[SaveEmbeddings()]).predict(module, datamodule=data, return_predictions=False)
    path = tmp_path / "embeddings.safetensors"
    found = load_file(path)
    assert set(found) == {"embedding", "index", "label"}
    assert found["embedding"].dtype == torch.float32
    assert found["index"].tolist() == list(range(40))
    assert torch.equal(found["label"], data.val_set.labels)
    torch.testing.assert_close(found["embedding"], module.represent(data.val_set.images))
    assert str(path) in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("embeddings*")) == ["embeddings.csv", "embeddings.safetensors"]


def test_a_plain_loader_counts_its_rows(method, images, spec, make_trainer, tmp_path):
    loader = DataLoader(TensorDataset(images, torch.arange(64)), batch_size=10)
    module, path = method(spec=spec), tmp_path / "deep" / "e.safetensors"
    for _ in range(2):  # a second time over the first file
        trainer = make_trainer(callbacks=[SaveEmbeddings(str(path))])
        trainer.predict(module, loader, return_predictions=False)
    found = load_file(path)
    assert found["index"].tolist() == found["label"].tolist() == list(range(64))
    torch.testing.assert_close(found["embedding"], module.represent(images))


def test_padded_and_repeated_rows_are_left_out_and_the_rest_sorted(tmp_path):
    index = torch.tensor([4, 0, -1, 2, 0])
    SaveEmbeddings._write(tmp_path / "e.safetensors", index[:, None].float(), index, index * 10)
    found = load_file(tmp_path / "e.safetensors")
    assert found["index"].tolist() == [0, 2, 4]
    assert found["embedding"].flatten().tolist() == [0, 2, 4]
    assert found["label"].tolist() == [0, 20, 40]


def test_another_prediction_is_refused(method, stripes, make_trainer, monkeypatch):
    module = method()
    monkeypatch.setattr(module, "predict_step", lambda batch, batch_idx: batch["index"])
    trainer = make_trainer(callbacks=[SaveEmbeddings()])
    with pytest.raises(TypeError, match="must return a dict with embedding, index, label, got Tensor"):
        trainer.predict(module, datamodule=stripes())


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(ValueError, match="output must be the path of a file"):
        SaveEmbeddings(str(tmp_path))
