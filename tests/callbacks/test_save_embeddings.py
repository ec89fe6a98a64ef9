import csv
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl.callbacks import SaveEmbeddings
from lit_ssl.datamodules import ImageFolder, ImageText


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


def test_each_row_has_the_path_of_its_file(method, make_trainer, tmp_path, spec):
    names = ["b/plain.png", 'a/two\nlines, "quoted".png', "a/\u65e5\u672c.png", os.fsdecode(b"c/\xff.png")]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "photos" / name)
    data = ImageFolder(tmp_path / "photos", 2, 0, image_size=16, channels=1, val_fraction=0.5)
    make_trainer(callbacks=[SaveEmbeddings()]).predict(method(), datamodule=data, return_predictions=False)
    found = load_file(tmp_path / "embeddings.safetensors")
    with open(tmp_path / "embeddings.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == found["index"].tolist()
    assert [row["name"] for row in rows] == [str(data.val_set.path(i)) for i in found["index"].tolist()]
    assert len(rows) == 2


def test_of_a_table_the_name_is_the_path_and_not_the_line(method, make_trainer, tmp_path):
    for i in range(4):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.png")
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{i}.png,words\n" for i in range(4)))
    data = ImageText(tmp_path, None, 2, 0, image_size=16, channels=1, val_fraction=0.5)
    make_trainer(callbacks=[SaveEmbeddings()]).predict(method(), datamodule=data, return_predictions=False)
    with open(tmp_path / "embeddings.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == 2
    assert set(names) < {str(tmp_path / f"{i}.png") for i in range(4)}
