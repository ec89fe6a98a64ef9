import pytest
from captioned_images import picture


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures; that of row i has the gray value 10 i, two captions, one of three kinds, and a split."""
    rows = ["image,caption,other,kind,split"]
    for i in range(20):
        picture(tmp_path / f"pictures/{i:02}.png", 10 * i)
        rows.append(
            f"pictures/{i:02}.png,caption {i},other {i},{(30, 4, 200)[i % 3]},{'held' if i % 5 == 0 else 'train'}"
        )
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return tmp_path
