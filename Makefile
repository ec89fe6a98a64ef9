.PHONY: check format types test slow bench

check: ## lint, formatting, types
	ruff check .
	ruff format --check .
	$(MAKE) types

format:
	ruff check --fix .
	ruff format .

# Three folders are mapped into the package, which only an installed copy shows to mypy.
types:
	rm -rf build/types
	python -m pip install --quiet --no-deps --target build/types .
	cd build && MYPYPATH=types python -m mypy --config-file ../pyproject.toml -p lit_ssl

test: ## the fast suite
	pytest

slow: ## laws, wheel in an empty environment, README blocks, long runs
	pytest -m slow

bench: ## benchmarks/README.md
	python benchmarks/report.py
