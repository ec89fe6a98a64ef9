"""The quickstart's run beats the untrained encoder everywhere, and raw pixels with ten labels a class."""

import json
import sys
from pathlib import Path

table = json.loads(Path(sys.argv[1]).read_text())
raw, untrained, trained = (table[row] for row in ("raw_pixels", "untrained", "trained"))
for column in ("knn", "linear", "ten_labels"):
    if not trained[column] > untrained[column]:
        sys.exit(f"quickstart: {column} {trained[column]} is not above the untrained encoder's {untrained[column]}")
if not trained["ten_labels"] > raw["ten_labels"]:
    sys.exit(f"quickstart: ten_labels {trained['ten_labels']} is not above raw pixels' {raw['ten_labels']}")
print("quickstart:", json.dumps(table))
