# The developer's whole interface. `make` alone checks everything that a change must pass.
.PHONY: all install test lint bench docs

all: lint test

install:
	pip install -e ".[test,dev,bench]" -c constraints.txt

test:
	pytest

lint:
	ruff check .
	ruff format --check .
	basedpyright

bench:
	luthier bench tokenizers
	luthier bench vectors

docs:
	python docs/make_help.py
